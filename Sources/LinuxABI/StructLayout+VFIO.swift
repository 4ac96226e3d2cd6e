// SPDX-License-Identifier: Apache-2.0
//
// The structures of the commands of VFIO devices, groups and containers.

import CLinuxABI

extension StructLayout {
  /// `/dev/vfio/devices/vfioN`.
  static let vfioDevice: [StructLayout] = [
    StructLayout(
      VFIO_DEVICE_GET_INFO, "VFIO_DEVICE_GET_INFO", "vfio_device_info", size: 24,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("num_regions", 8, 4, .out, .decimal),
        .init("num_irqs", 12, 4, .out, .decimal),
        .init("cap_offset", 16, 4, .out, .decimal),
      ]),
    StructLayout(
      VFIO_DEVICE_GET_REGION_INFO, "VFIO_DEVICE_GET_REGION_INFO", "vfio_region_info", size: 32,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("index", 8, 4, .in, .decimal),
        .init("cap_offset", 12, 4, .out, .decimal),
        .init("size", 16, 8, .out, .hex),
        .init("offset", 24, 8, .out, .hex),
      ]),
    StructLayout(
      VFIO_DEVICE_GET_IRQ_INFO, "VFIO_DEVICE_GET_IRQ_INFO", "vfio_irq_info", size: 16,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("index", 8, 4, .in, .decimal),
        .init("count", 12, 4, .out, .decimal),
      ]),
    StructLayout(
      VFIO_DEVICE_SET_IRQS, "VFIO_DEVICE_SET_IRQS", "vfio_irq_set", size: 20,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("index", 8, 4, .in, .decimal),
        .init("start", 12, 4, .in, .decimal),
        .init("count", 16, 4, .in, .decimal),
      ]),
    StructLayout(VFIO_DEVICE_RESET, "VFIO_DEVICE_RESET"),
    StructLayout(
      VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
      "vfio_pci_hot_reset_info", size: 12,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("count", 8, 4, .out, .decimal),
      ]),
    StructLayout(
      VFIO_DEVICE_PCI_HOT_RESET, "VFIO_DEVICE_PCI_HOT_RESET", "vfio_pci_hot_reset", size: 12,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("count", 8, 4, .in, .decimal),
      ]),
    StructLayout(
      VFIO_DEVICE_IOEVENTFD, "VFIO_DEVICE_IOEVENTFD", "vfio_device_ioeventfd", size: 32,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("offset", 8, 8, .in, .hex),
        .init("data", 16, 8, .in, .hex),
        .init("fd", 24, 4, .in, .descriptor),
      ]),
    StructLayout(
      VFIO_DEVICE_FEATURE, "VFIO_DEVICE_FEATURE", "vfio_device_feature", size: 8,
      [
        .init("flags", 4, 4, .in, .hex)
      ]),
    StructLayout(
      VFIO_DEVICE_BIND_IOMMUFD, "VFIO_DEVICE_BIND_IOMMUFD", "vfio_device_bind_iommufd",
      size: 24,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("iommufd", 8, 4, .in, .descriptor),
        .init("out_devid", 12, 4, .out, .decimal),
        .init("token_uuid_ptr", 16, 8, .in, .pointer),
      ]),
    StructLayout(
      VFIO_DEVICE_ATTACH_IOMMUFD_PT, "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
      "vfio_device_attach_iommufd_pt", size: 16,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("pt_id", 8, 4, .inout, .decimal),
        .init("pasid", 12, 4, .in, .decimal),
      ]),
    StructLayout(
      VFIO_DEVICE_DETACH_IOMMUFD_PT, "VFIO_DEVICE_DETACH_IOMMUFD_PT",
      "vfio_device_detach_iommufd_pt", size: 12,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("pasid", 8, 4, .in, .decimal),
      ]),
  ]

  /// `/dev/vfio/N`.
  static let vfioGroup: [StructLayout] = [
    StructLayout(
      VFIO_GROUP_GET_STATUS, "VFIO_GROUP_GET_STATUS", "vfio_group_status", size: 8,
      [
        .init("flags", 4, 4, .out, .hex)
      ]),
    StructLayout(VFIO_GROUP_SET_CONTAINER, "VFIO_GROUP_SET_CONTAINER"),
    StructLayout(VFIO_GROUP_UNSET_CONTAINER, "VFIO_GROUP_UNSET_CONTAINER"),
    StructLayout(VFIO_GROUP_GET_DEVICE_FD, "VFIO_GROUP_GET_DEVICE_FD"),
  ]

  /// `/dev/vfio/vfio` with the type1 model.
  static let vfioContainer: [StructLayout] = [
    StructLayout(VFIO_GET_API_VERSION, "VFIO_GET_API_VERSION"),
    StructLayout(VFIO_CHECK_EXTENSION, "VFIO_CHECK_EXTENSION"),
    StructLayout(VFIO_SET_IOMMU, "VFIO_SET_IOMMU"),
    StructLayout(
      VFIO_IOMMU_GET_INFO, "VFIO_IOMMU_GET_INFO", "vfio_iommu_type1_info", size: 24,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("iova_pgsizes", 8, 8, .out, .hex),
        .init("cap_offset", 16, 4, .out, .decimal),
      ]),
    StructLayout(
      VFIO_IOMMU_MAP_DMA, "VFIO_IOMMU_MAP_DMA", "vfio_iommu_type1_dma_map", size: 32,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("vaddr", 8, 8, .in, .pointer),
        .init("iova", 16, 8, .in, .hex),
        .init("size", 24, 8, .in, .hex),
      ]),
    StructLayout(
      VFIO_IOMMU_UNMAP_DMA, "VFIO_IOMMU_UNMAP_DMA", "vfio_iommu_type1_dma_unmap", size: 24,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("iova", 8, 8, .in, .hex),
        .init("size", 16, 8, .inout, .hex),
      ]),
    StructLayout(
      VFIO_IOMMU_DIRTY_PAGES, "VFIO_IOMMU_DIRTY_PAGES", "vfio_iommu_type1_dirty_bitmap",
      size: 8,
      [
        .init("flags", 4, 4, .in, .hex)
      ]),
  ]
}
