// SPDX-License-Identifier: Apache-2.0
//
// The structures of the commands of /dev/kvm, of VMs and of their devices.

import CLinuxABI

extension StructLayout {
  static let kvm: [StructLayout] = [
    StructLayout(KVM_GET_API_VERSION, "KVM_GET_API_VERSION"),
    StructLayout(KVM_CREATE_VM, "KVM_CREATE_VM"),
    StructLayout(KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION"),
    StructLayout(
      KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", "kvm_userspace_memory_region",
      size: 32,
      [
        .init("slot", 0, 4, .in, .decimal),
        .init("flags", 4, 4, .in, .hex),
        .init("guest_phys_addr", 8, 8, .in, .hex),
        .init("memory_size", 16, 8, .in, .hex),
        .init("userspace_addr", 24, 8, .in, .pointer),
      ]),
    StructLayout(
      KVM_ENABLE_CAP, "KVM_ENABLE_CAP", "kvm_enable_cap", size: 104,
      [
        .init("cap", 0, 4, .in, .decimal),
        .init("flags", 4, 4, .in, .hex),
      ]),
    StructLayout(
      KVM_CREATE_DEVICE, "KVM_CREATE_DEVICE", "kvm_create_device", size: 12,
      [
        .init("type", 0, 4, .in, .decimal),
        .init("fd", 4, 4, .out, .descriptor),
        .init("flags", 8, 4, .in, .hex),
      ]),
    StructLayout(
      KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR", "kvm_device_attr", size: 24, attribute),
    StructLayout(
      KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR", "kvm_device_attr", size: 24, attribute),
    StructLayout(
      KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR", "kvm_device_attr", size: 24, attribute),
    StructLayout(KVM_MAP_PASID, "KVM_MAP_PASID", "kvm_pasid", size: 20, pasid),
    StructLayout(KVM_UNMAP_PASID, "KVM_UNMAP_PASID", "kvm_pasid", size: 20, pasid),
  ]

  private static let attribute: [Field] = [
    .init("flags", 0, 4, .in, .hex),
    .init("group", 4, 4, .in, .decimal),
    .init("attr", 8, 8, .in, .decimal),
    .init("addr", 16, 8, .in, .pointer),
  ]

  private static let pasid: [Field] = [
    .init("flags", 4, 4, .in, .hex),
    .init("iommu_fd", 8, 4, .in, .descriptor),
    .init("ioasid", 12, 4, .in, .decimal),
    .init("vpasid", 16, 4, .in, .decimal),
  ]
}
