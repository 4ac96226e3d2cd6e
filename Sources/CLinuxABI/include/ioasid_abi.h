// SPDX-License-Identifier: Apache-2.0
//
// The calls of the /dev/ioasid proposal of 2021 (MODEL K1): numbers, structures and values.
// Linux never had them. Numbers are VFIO's type from base 100, without size bits; every
// structure starts with argsz (its size, in bytes) and flags. Lengths and addresses are in bytes.

#ifndef IOASID_ABI_H
#define IOASID_ABI_H

#include <stdint.h>

#include "iommufd_abi.h"
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
#define IOASID_DEVICE_INFO_CAP_NESTING 3u
#define IOASID_DEVICE_INFO_CAP_USER_PAGE_TABLE 4u
#define IOASID_DEVICE_INFO_CAP_USER_PASID_TABLE 5u

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

/// A child maps addresses of its parent's; the device goes through one table that holds both.
#define IOASID_NESTING_SOFTWARE 1u
/// A child's table is the user's; the device goes through it, and at each step through the
/// parent's.
#define IOASID_NESTING_HARDWARE 2u

/// How an ioasid that the device is attached to may be nested: IOASID_NESTING_…
struct ioasid_device_info_cap_nesting {
  struct vfio_info_cap_header header;
  uint32_t kinds;
  uint32_t reserved;
};

/// A format of tables that the user owns, as the device's IOMMU walks it.
struct ioasid_user_table_format {
  /// IOASID_TYPE_…
  uint32_t type;
  uint32_t reserved;
  /// Bit n: an addr_width of n bits.
  uint64_t addr_widths;
};

/// The formats of page tables (USER_PAGE_TABLE), and of PASID tables (USER_PASID_TABLE), lowest
/// number first.
struct ioasid_device_info_cap_user_table {
  struct vfio_info_cap_header header;
  uint32_t nr_formats;
  uint32_t reserved;
  struct ioasid_user_table_format formats[];
};

#define IOASID_ALLOC_ENFORCE_SNOOP 1u
#define IOASID_ALLOC_USER_PAGE_TABLE 2u
#define IOASID_ALLOC_USER_PASID_TABLE 4u
#define IOASID_ALLOC_PARENT 8u

#define IOASID_TYPE_KERNEL_TYPE1V2 1u
// Formats of page tables that the user owns (USER_PAGE_TABLE | PARENT), numbered by us. `table` is
// the address of the root table, in the parent; a multiple of 4096.
/// Intel VT-d first stage. addr_width 48 (4 levels) or 57 (5).
#define IOASID_TYPE_INTEL_FIRST_STAGE 2u
/// AMD guest (v2). addr_width 48 or 57. No AMD IOMMU takes one by itself: put it into a
/// GCR3_TABLE.
#define IOASID_TYPE_AMD_GUEST 3u
/// Arm SMMUv3 stage 1: VMSAv8-64, granule 4 KiB, TTBR0. addr_width 25 to 48, 64 - T0SZ. No SMMUv3
/// takes one by itself: put it into a CD_TABLE.
#define IOASID_TYPE_ARM_SMMUV3_STAGE1 4u
/// RISC-V first stage. addr_width 39, 48 or 57: Sv39, Sv48, Sv57.
#define IOASID_TYPE_RISCV_FIRST_STAGE 5u
// Formats of PASID tables that the user owns (USER_PASID_TABLE | PARENT): one ioasid stands for all
// PASIDs of a device. addr_width is the width of the PASIDs that the table has entries for.
/// Arm SMMUv3 context descriptors in a row (S1Fmt 0). addr_width 0 to 20 (S1CDMax); 0 is one
/// descriptor, for DMA without a PASID. `table` is a multiple of 64.
#define IOASID_TYPE_ARM_CD_TABLE 16u
/// The same in two levels, leaves of 4 KiB (S1Fmt 1). addr_width 7 to 20.
#define IOASID_TYPE_ARM_CD_TABLE_4K 17u
/// The same in two levels, leaves of 64 KiB (S1Fmt 2). addr_width 11 to 20.
#define IOASID_TYPE_ARM_CD_TABLE_64K 18u
/// AMD guest CR3 table of page tables of 4 levels. addr_width 9, 18 or 20: 1, 2 or 3 levels (GLX).
#define IOASID_TYPE_AMD_GCR3_TABLE 19u
/// The same, of page tables of 5 levels.
#define IOASID_TYPE_AMD_GCR3_TABLE_5_LEVELS 20u
/// RISC-V process directory. addr_width 8, 17 or 20: PD8, PD17, PD20.
#define IOASID_TYPE_RISCV_PROCESS_DIRECTORY 21u
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
  /// Of its addresses, in bits; 0 takes whatever the attached devices have. A user's table has one.
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

/// INVALIDATE_CACHE, of tables that the user owns. `vpasid` is looked at with
/// IOASID_INVALIDATE_PASID, and of a PASID table with IOASID_INVALIDATE_RANGE; 0 is DMA without a
/// PASID. `cookie` is looked at with IOASID_INVALIDATE_DEVICE, and for device TLBs and the PASID
/// cache. `addr` and `size` are looked at with IOASID_INVALIDATE_RANGE.
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

/// PAGE_FAULT_FD: returns a descriptor to poll and read, of the page requests of devices that are
/// attached to the ioasid from then on.
struct ioasid_page_fault_fd {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  uint32_t reserved;
};

/// What is read from it. Linux's record, and where the request came from in the proposal's words.
struct ioasid_page_fault {
  /// `dev_id` is no number of this interface; `cookie` names the group of requests.
  struct iommu_hwpt_pgfault fault;
  /// The device's, as it was bound with.
  uint64_t dev_cookie;
  uint32_t ioasid;
  uint32_t reserved;
};

/// PAGE_RESPONSE: answers all requests of a group.
struct ioasid_page_response {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  /// Of the group.
  uint32_t cookie;
  /// IOMMUFD_PAGE_RESP_…
  uint32_t code;
};

/// BIND_PGTABLE: gives a child, in which nothing is mapped, a table of the user's; UNBIND_PGTABLE
/// takes it back, and looks at the ioasid only: the rest is 0.
struct ioasid_bind_pgtable {
  uint32_t argsz;
  uint32_t flags;
  uint32_t ioasid;
  /// IOASID_TYPE_…, of a page table or of a PASID table.
  uint32_t format;
  uint32_t addr_width;
  uint32_t reserved;
  uint64_t addr;
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
