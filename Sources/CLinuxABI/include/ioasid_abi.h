// SPDX-License-Identifier: Apache-2.0
//
// The calls of the /dev/ioasid proposal of 2021 (MODEL K1): numbers, structures and values.
// Linux never had them. Numbers are VFIO's type from base 100, without size bits; every
// structure starts with argsz (its size, in bytes) and flags. Lengths and addresses are in bytes.

#ifndef IOASID_ABI_H
#define IOASID_ABI_H

#include <stdint.h>

#include "vfio_abi.h"

// Commands of /dev/ioasid.
#define IOASID_CHECK_EXTENSION 0x3b64u
#define IOASID_DEVICE_GET_INFO 0x3b65u
#define IOASID_ALLOC 0x3b66u
#define IOASID_FREE 0x3b67u
#define IOASID_MAP_DMA 0x3b68u
#define IOASID_UNMAP_DMA 0x3b69u
#define IOASID_INVALIDATE_CACHE 0x3b6au
#define IOASID_PAGE_FAULT_FD 0x3b6bu
#define IOASID_PAGE_RESPONSE 0x3b6cu
#define IOASID_BIND_PGTABLE 0x3b6du
#define IOASID_UNBIND_PGTABLE 0x3b6eu

// Commands of a device (/dev/vfio/devices/vfioN).
#define VFIO_DEVICE_BIND_IOMMU_FD 0x3b8cu
#define VFIO_DEVICE_ATTACH_IOASID 0x3b8du
#define VFIO_DEVICE_DETACH_IOASID 0x3b8eu

// What CHECK_EXTENSION knows: the argument itself. It returns 0 or 1.
#define IOASID_EXT_MAP_TYPE1V2 1u
#define IOASID_EXT_NO_SNOOP_DMA 2u
#define IOASID_EXT_MAP_NEWTYPE 3u
#define IOASID_EXT_MULTI_DEVICE_GROUP 4u
#define IOASID_EXT_NESTING 5u
#define IOASID_EXT_USER_PAGE_TABLE 6u
#define IOASID_EXT_USER_PASID_TABLE 7u
#define IOASID_EXT_DIRTY_TRACKING 8u
// Of ours: the types below of the same number.
#define IOASID_EXT_PROCESS_PAGE_TABLE 0x101u
#define IOASID_EXT_VM_MEMORY 0x102u

// Flags that DEVICE_GET_INFO answers.
#define IOASID_DEVICE_INFO_ENFORCE_SNOOP 1u
#define IOASID_DEVICE_INFO_PGSIZES 2u
#define IOASID_DEVICE_INFO_ADDR_WIDTH 4u
#define IOASID_DEVICE_INFO_CAPS 8u

// Capabilities of DEVICE_GET_INFO.
#define IOASID_DEVICE_INFO_CAP_IOVA_RANGE 1u
#define IOASID_DEVICE_INFO_CAP_PASID 2u

/// DEVICE_GET_INFO: what a bound device, named by its cookie, can do with its IOMMU. The chain of
/// capabilities follows the structure; argsz comes back as the room that all of it needs.
struct ioasid_device_info {
  uint32_t argsz;
  uint32_t flags;
  uint64_t cookie;
  uint64_t iova_pgsizes;
  /// In bits.
  uint32_t addr_width;
  uint32_t cap_offset;
};

/// The IOVA that may be mapped for the device, both ends inclusive, lowest first.
struct ioasid_device_info_cap_iova_range {
  struct vfio_info_cap_header header;
  uint32_t nr_iovas;
  uint32_t reserved;
  struct vfio_iova_range iova_ranges[];
};

/// PASIDs that the device can carry.
struct ioasid_device_info_cap_pasid {
  struct vfio_info_cap_header header;
  /// Width in bits.
  uint32_t pasid_bits;
  uint32_t reserved;
};

#define IOASID_ALLOC_ENFORCE_SNOOP 1u
#define IOASID_ALLOC_USER_PAGE_TABLE 2u
#define IOASID_ALLOC_USER_PASID_TABLE 4u
#define IOASID_ALLOC_PARENT 8u

#define IOASID_TYPE_KERNEL_TYPE1V2 1u
// Page tables that the mails only list, numbered by us, away from the formats of users' tables.
/// "A user application CPU page table": the caller's own address space, for devices behind an
/// IOMMU with PASIDs. `table` is the cookie of a bound device whose IOMMU is to walk it. No flags,
/// and no addr_width: it is the CPU's.
#define IOASID_TYPE_PROCESS_PAGE_TABLE 0x101u
/// "A KVM EPT": a VM's guest-physical memory. `table` is the VM's descriptor. Its memory slots are
/// what is mapped, from now on and with every change.
#define IOASID_TYPE_VM_MEMORY 0x102u

/// ALLOC: makes an address space and returns its ioasid, from 1 up.
struct ioasid_alloc {
  uint32_t argsz;
  uint32_t flags;
  uint32_t type;
  /// Of its addresses, in bits; 0 takes whatever the attached devices have.
  uint32_t addr_width;
  /// With IOASID_ALLOC_PARENT.
  uint32_t parent;
  uint32_t reserved;
  /// Of a table of the user's; of some types who the table is of.
  uint64_t table;
};

/// MAP_DMA. With a parent, vaddr is an address in the parent.
struct ioasid_dma_map {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  uint32_t reserved;
  struct vfio_iommu_type1_dma_map map;
};

/// UNMAP_DMA: mappings are unmapped whole; `unmap.size` comes back as what was unmapped. Its
/// layout is that of the first 24 bytes of vfio_iommu_type1_dma_unmap.
struct ioasid_dma_unmap {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  uint32_t reserved;
  uint32_t unmap_argsz;
  uint32_t unmap_flags;
  uint64_t iova;
  uint64_t size;
};

#define IOASID_INVALIDATE_DEVICE 1u
#define IOASID_INVALIDATE_PASID 2u
#define IOASID_INVALIDATE_RANGE 3u
#define IOASID_CACHE_IOTLB 1u
#define IOASID_CACHE_DEVICE_TLB 2u
#define IOASID_CACHE_PASID 4u

/// INVALIDATE_CACHE, of tables that the user owns.
struct ioasid_invalidate_cache {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  uint32_t granularity;
  uint32_t caches;
  uint32_t vpasid;
  uint64_t cookie;
  uint64_t addr;
  uint64_t size;
};

/// VFIO_DEVICE_BIND_IOMMU_FD: gives the device a security context in which it reaches nothing,
/// and the cookie names it in the context of `iommu_fd` from then on.
struct vfio_device_bind_iommu_fd {
  uint32_t argsz;
  uint32_t flags;
  int32_t iommu_fd;
  uint32_t reserved;
  uint64_t cookie;
};

#define VFIO_DEVICE_IOASID_VPASID 1u

/// VFIO_DEVICE_ATTACH_IOASID and VFIO_DEVICE_DETACH_IOASID. `vpasid` is looked at with
/// VFIO_DEVICE_IOASID_VPASID only.
struct vfio_device_attach_ioasid {
  uint32_t argsz;
  uint32_t flags;
  int32_t iommu_fd;
  uint32_t ioasid;
  uint32_t vpasid;
};

#endif
