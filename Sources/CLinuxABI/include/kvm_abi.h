// SPDX-License-Identifier: Apache-2.0
//
// The part of KVM's binary interface that DMA needs, under the kernel's names: a VM, its memory
// slots and its devices (MODEL B4), and the proposal's calls on PASIDs (E4), whose structures and
// whose capability are ours.
// Constants are literals: they import into Swift as UInt32 and work in a C switch or #if.

#ifndef KVM_ABI_H
#define KVM_ABI_H

#include <stdint.h>

#define KVM_API_VERSION 12u
#define KVM_TYPE 0xaeu

// Commands of /dev/kvm.
#define KVM_GET_API_VERSION 0xae00u
#define KVM_CREATE_VM 0xae01u

// Commands of /dev/kvm and of a VM.
#define KVM_CHECK_EXTENSION 0xae03u

// Commands of a VM.
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46u
#define KVM_ENABLE_CAP 0x4068aea3u
#define KVM_CREATE_DEVICE 0xc00caee0u
#define KVM_MAP_PASID 0xaef0u
#define KVM_UNMAP_PASID 0xaef1u

// Commands of a device of a VM.
#define KVM_SET_DEVICE_ATTR 0x4018aee1u
#define KVM_GET_DEVICE_ATTR 0x4018aee2u
#define KVM_HAS_DEVICE_ATTR 0x4018aee3u

// What CHECK_EXTENSION knows.
#define KVM_CAP_USER_MEMORY 3u
#define KVM_CAP_NR_MEMSLOTS 10u
#define KVM_CAP_DESTROY_MEMORY_REGION_WORKS 21u
#define KVM_CAP_JOIN_MEMORY_REGIONS_WORKS 30u
#define KVM_CAP_READONLY_MEM 81u
#define KVM_CAP_DEVICE_CTRL 89u
#define KVM_CAP_ENABLE_CAP_VM 98u
#define KVM_CAP_CHECK_EXTENSION_VM 105u
/// The proposal's 206 was given to another one; this number is ours.
#define KVM_CAP_PASID_TRANSLATION 20206u

#define KVM_MEM_LOG_DIRTY_PAGES 1u
#define KVM_MEM_READONLY 2u

/// KVM_SET_USER_MEMORY_REGION.
struct kvm_userspace_memory_region {
  uint32_t slot;
  uint32_t flags;
  uint64_t guest_phys_addr;
  uint64_t memory_size;
  uint64_t userspace_addr;
};

/// KVM_ENABLE_CAP.
struct kvm_enable_cap {
  uint32_t cap;
  uint32_t flags;
  uint64_t args[4];
  uint8_t pad[64];
};

#define KVM_CREATE_DEVICE_TEST 1u
#define KVM_DEV_TYPE_VFIO 4u

/// KVM_CREATE_DEVICE.
struct kvm_create_device {
  uint32_t type;
  uint32_t fd;
  uint32_t flags;
};

#define KVM_DEV_VFIO_FILE 1u
#define KVM_DEV_VFIO_FILE_ADD 1u
#define KVM_DEV_VFIO_FILE_DEL 2u
// Their first names, from when a VM was given groups only.
#define KVM_DEV_VFIO_GROUP 1u
#define KVM_DEV_VFIO_GROUP_ADD 1u
#define KVM_DEV_VFIO_GROUP_DEL 2u

/// KVM_SET_DEVICE_ATTR and its siblings.
struct kvm_device_attr {
  uint32_t flags;
  uint32_t group;
  uint64_t attr;
  uint64_t addr;
};

/// KVM_MAP_PASID and KVM_UNMAP_PASID, of which the second looks at `vpasid` only. The layout is
/// ours. `ioasid` is the page table or the address space that devices of `iommu_fd` are attached
/// to by `vpasid`.
struct kvm_pasid {
  uint32_t argsz;
  uint32_t flags;
  int32_t iommu_fd;
  uint32_t ioasid;
  uint32_t vpasid;
};

#endif
