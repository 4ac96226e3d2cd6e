// SPDX-License-Identifier: Apache-2.0
//
// The binary interface of /dev/iommu (MODEL L), under the kernel's names.
// Constants are literals: they import into Swift as UInt32 and work in a C switch or #if.

#ifndef IOMMUFD_ABI_H
#define IOMMUFD_ABI_H

#include <stdint.h>

// The type byte and the numbers of the commands.
#define IOMMUFD_TYPE 0x3bu
#define IOMMUFD_CMD_BASE 0x80u
#define IOMMUFD_CMD_DESTROY 0x80u
#define IOMMUFD_CMD_IOAS_ALLOC 0x81u
#define IOMMUFD_CMD_IOAS_ALLOW_IOVAS 0x82u
#define IOMMUFD_CMD_IOAS_COPY 0x83u
#define IOMMUFD_CMD_IOAS_IOVA_RANGES 0x84u
#define IOMMUFD_CMD_IOAS_MAP 0x85u
#define IOMMUFD_CMD_IOAS_UNMAP 0x86u
#define IOMMUFD_CMD_OPTION 0x87u
#define IOMMUFD_CMD_VFIO_IOAS 0x88u
#define IOMMUFD_CMD_HWPT_ALLOC 0x89u
#define IOMMUFD_CMD_GET_HW_INFO 0x8au
#define IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING 0x8bu
#define IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP 0x8cu
#define IOMMUFD_CMD_HWPT_INVALIDATE 0x8du
#define IOMMUFD_CMD_FAULT_QUEUE_ALLOC 0x8eu
#define IOMMUFD_CMD_IOAS_MAP_FILE 0x8fu
#define IOMMUFD_CMD_VIOMMU_ALLOC 0x90u
#define IOMMUFD_CMD_VDEVICE_ALLOC 0x91u
#define IOMMUFD_CMD_IOAS_CHANGE_PROCESS 0x92u
#define IOMMUFD_CMD_VEVENTQ_ALLOC 0x93u
#define IOMMUFD_CMD_HW_QUEUE_ALLOC 0x94u

// The commands as ioctl(2) takes them: type << 8 | number, no size bits.
#define IOMMU_DESTROY 0x3b80u
#define IOMMU_IOAS_ALLOC 0x3b81u
#define IOMMU_IOAS_ALLOW_IOVAS 0x3b82u
#define IOMMU_IOAS_COPY 0x3b83u
#define IOMMU_IOAS_IOVA_RANGES 0x3b84u
#define IOMMU_IOAS_MAP 0x3b85u
#define IOMMU_IOAS_UNMAP 0x3b86u
#define IOMMU_OPTION 0x3b87u
#define IOMMU_VFIO_IOAS 0x3b88u
#define IOMMU_HWPT_ALLOC 0x3b89u
#define IOMMU_GET_HW_INFO 0x3b8au
#define IOMMU_HWPT_SET_DIRTY_TRACKING 0x3b8bu
#define IOMMU_HWPT_GET_DIRTY_BITMAP 0x3b8cu
#define IOMMU_HWPT_INVALIDATE 0x3b8du
#define IOMMU_FAULT_QUEUE_ALLOC 0x3b8eu
#define IOMMU_IOAS_MAP_FILE 0x3b8fu
#define IOMMU_VIOMMU_ALLOC 0x3b90u
#define IOMMU_VDEVICE_ALLOC 0x3b91u
#define IOMMU_IOAS_CHANGE_PROCESS 0x3b92u
#define IOMMU_VEVENTQ_ALLOC 0x3b93u
#define IOMMU_HW_QUEUE_ALLOC 0x3b94u

/// IOMMU_DESTROY: frees any object by its id; EBUSY while others use it.
struct iommu_destroy {
  uint32_t size;
  uint32_t id;
};

/// IOMMU_IOAS_ALLOC: makes an empty address space.
struct iommu_ioas_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t out_ioas_id;
};

/// A range of IOVA, both ends inclusive.
struct iommu_iova_range {
  uint64_t start;
  uint64_t last;
};

/// IOMMU_IOAS_IOVA_RANGES: what may be mapped now; EMSGSIZE where the array is too short.
struct iommu_ioas_iova_ranges {
  uint32_t size;
  uint32_t ioas_id;
  uint32_t num_iovas;
  uint32_t __reserved;
  uint64_t allowed_iovas;
  uint64_t out_iova_alignment;
};

/// IOMMU_IOAS_ALLOW_IOVAS: the only ranges that later attaches may not take away.
struct iommu_ioas_allow_iovas {
  uint32_t size;
  uint32_t ioas_id;
  uint32_t num_iovas;
  uint32_t __reserved;
  uint64_t allowed_iovas;
};

// Flags of IOMMU_IOAS_MAP, _MAP_FILE and _COPY.
#define IOMMU_IOAS_MAP_FIXED_IOVA 1u
#define IOMMU_IOAS_MAP_WRITEABLE 2u
#define IOMMU_IOAS_MAP_READABLE 4u

/// IOMMU_IOAS_MAP: maps memory of the caller.
struct iommu_ioas_map {
  uint32_t size;
  uint32_t flags;
  uint32_t ioas_id;
  uint32_t __reserved;
  uint64_t user_va;
  uint64_t length;
  uint64_t iova;
};

/// IOMMU_IOAS_MAP_FILE: maps a range of a memory file.
struct iommu_ioas_map_file {
  uint32_t size;
  uint32_t flags;
  uint32_t ioas_id;
  int32_t fd;
  uint64_t start;
  uint64_t length;
  uint64_t iova;
};

/// IOMMU_IOAS_COPY: maps what another address space maps.
struct iommu_ioas_copy {
  uint32_t size;
  uint32_t flags;
  uint32_t dst_ioas_id;
  uint32_t src_ioas_id;
  uint64_t length;
  uint64_t dst_iova;
  uint64_t src_iova;
};

/// IOMMU_IOAS_UNMAP: `length` comes back as the bytes unmapped.
struct iommu_ioas_unmap {
  uint32_t size;
  uint32_t ioas_id;
  uint64_t iova;
  uint64_t length;
};

/// IOMMU_IOAS_CHANGE_PROCESS: hands file mappings over to the calling process.
struct iommu_ioas_change_process {
  uint32_t size;
  uint32_t __reserved;
};

// Options and operations of IOMMU_OPTION.
#define IOMMU_OPTION_OP_SET 0u
#define IOMMU_OPTION_RLIMIT_MODE 0u
#define IOMMU_OPTION_HUGE_PAGES 1u
#define IOMMU_OPTION_OP_GET 1u

/// IOMMU_OPTION: reads or sets an option of the context or of one object.
struct iommu_option {
  uint32_t size;
  uint32_t option_id;
  uint16_t op;
  uint16_t __reserved;
  uint32_t object_id;
  uint64_t val64;
};

// Operations of IOMMU_VFIO_IOAS.
#define IOMMU_VFIO_IOAS_GET 0u
#define IOMMU_VFIO_IOAS_SET 1u
#define IOMMU_VFIO_IOAS_CLEAR 2u

/// IOMMU_VFIO_IOAS: the address space of the container interface.
struct iommu_vfio_ioas {
  uint32_t size;
  uint32_t ioas_id;
  uint16_t op;
  uint16_t __reserved;
};

// Flags of IOMMU_HWPT_ALLOC, and the kinds of its data.
#define IOMMU_HWPT_ALLOC_NEST_PARENT 1u
#define IOMMU_HWPT_ALLOC_DIRTY_TRACKING 2u
#define IOMMU_HWPT_FAULT_ID_VALID 4u
#define IOMMU_HWPT_ALLOC_PASID 8u
#define IOMMU_HWPT_DATA_NONE 0u
#define IOMMU_HWPT_DATA_VTD_S1 1u
#define IOMMU_HWPT_DATA_ARM_SMMUV3 2u
#define IOMMU_HWPT_DATA_AMD_GUEST 3u

/// IOMMU_HWPT_ALLOC: makes a page table for a device, on an address space or nested.
struct iommu_hwpt_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t dev_id;
  uint32_t pt_id;
  uint32_t out_hwpt_id;
  uint32_t __reserved;
  uint32_t data_type;
  uint32_t data_len;
  uint64_t data_uptr;
  uint32_t fault_id;
  uint32_t __reserved2;
};

// Flags of a VT-d first-stage table.
#define IOMMU_VTD_S1_SRE 1u
#define IOMMU_VTD_S1_EAFE 2u
#define IOMMU_VTD_S1_WPE 4u

/// Data of a user-managed VT-d first-stage table.
struct iommu_hwpt_vtd_s1 {
  uint64_t flags;
  uint64_t pgtbl_addr;
  uint32_t addr_width;
  uint32_t __reserved;
};

/// Data of a user-managed SMMUv3 stage-1 table: the first words of the stream table entry.
struct iommu_hwpt_arm_smmuv3 {
  uint64_t ste[2];
};

/// Data of a user-managed AMD guest table: the device table entry.
struct iommu_hwpt_amd_guest {
  uint64_t dte[4];
};

// What GET_HW_INFO can say: flags, kinds of data, capabilities.
#define IOMMU_HW_INFO_FLAG_INPUT_TYPE 1u
#define IOMMU_HW_INFO_TYPE_DEFAULT 0u
#define IOMMU_HW_INFO_TYPE_NONE 0u
#define IOMMU_HW_INFO_TYPE_INTEL_VTD 1u
#define IOMMU_HW_INFO_TYPE_ARM_SMMUV3 2u
#define IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV 3u
#define IOMMU_HW_INFO_TYPE_AMD 4u
#define IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 1u
#define IOMMU_HW_CAP_DIRTY_TRACKING 1u
#define IOMMU_HW_CAP_PCI_PASID_EXEC 2u
#define IOMMU_HW_CAP_PCI_PASID_PRIV 4u
#define IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED 8u

/// IOMMU_GET_HW_INFO: the IOMMU of a bound device.
struct iommu_hw_info {
  uint32_t size;
  uint32_t flags;
  uint32_t dev_id;
  uint32_t data_len;
  uint64_t data_uptr;
  union {
    uint32_t in_data_type;
    uint32_t out_data_type;
  };
  uint8_t out_max_pasid_log2;
  uint8_t __reserved[3];
  uint64_t out_capabilities;
};

/// Data of IOMMU_HW_INFO_TYPE_INTEL_VTD.
struct iommu_hw_info_vtd {
  uint32_t flags;
  uint32_t __reserved;
  uint64_t cap_reg;
  uint64_t ecap_reg;
};

/// Data of IOMMU_HW_INFO_TYPE_ARM_SMMUV3.
struct iommu_hw_info_arm_smmuv3 {
  uint32_t flags;
  uint32_t __reserved;
  uint32_t idr[6];
  uint32_t iidr;
  uint32_t aidr;
};

/// Data of IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV.
struct iommu_hw_info_tegra241_cmdqv {
  uint32_t flags;
  uint8_t version;
  uint8_t log2vcmdqs;
  uint8_t log2vsids;
  uint8_t __reserved;
};

/// Data of IOMMU_HW_INFO_TYPE_AMD: the extended feature registers.
struct iommu_hw_info_amd {
  uint64_t efr;
  uint64_t efr2;
};

// Dirty tracking.
#define IOMMU_HWPT_DIRTY_TRACKING_ENABLE 1u
#define IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR 1u

/// IOMMU_HWPT_SET_DIRTY_TRACKING.
struct iommu_hwpt_set_dirty_tracking {
  uint32_t size;
  uint32_t flags;
  uint32_t hwpt_id;
  uint32_t __reserved;
};

/// IOMMU_HWPT_GET_DIRTY_BITMAP: one bit a page of `page_size`.
struct iommu_hwpt_get_dirty_bitmap {
  uint32_t size;
  uint32_t hwpt_id;
  uint32_t flags;
  uint32_t __reserved;
  uint64_t iova;
  uint64_t length;
  uint64_t page_size;
  uint64_t data;
};

// Invalidation of user-managed tables.
#define IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 0u
#define IOMMU_VTD_INV_FLAGS_LEAF 1u

/// IOMMU_HWPT_INVALIDATE: `entry_num` comes back as the entries handled.
struct iommu_hwpt_invalidate {
  uint32_t size;
  uint32_t hwpt_id;
  uint64_t data_uptr;
  uint32_t data_type;
  uint32_t entry_len;
  uint32_t entry_num;
  uint32_t __reserved;
};

/// One VT-d entry of it.
struct iommu_hwpt_vtd_s1_invalidate {
  uint64_t addr;
  uint64_t npages;
  uint32_t flags;
  uint32_t __reserved;
};

// I/O page faults.
#define IOMMU_PGFAULT_FLAGS_PASID_VALID 1u
#define IOMMU_PGFAULT_PERM_READ 1u
#define IOMMU_PGFAULT_FLAGS_LAST_PAGE 2u
#define IOMMU_PGFAULT_PERM_WRITE 2u
#define IOMMU_PGFAULT_PERM_EXEC 4u
#define IOMMU_PGFAULT_PERM_PRIV 8u
#define IOMMUFD_PAGE_RESP_SUCCESS 0u
#define IOMMUFD_PAGE_RESP_INVALID 1u

/// IOMMU_FAULT_QUEUE_ALLOC: makes a queue that is read and written through its own fd.
struct iommu_fault_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t out_fault_id;
  uint32_t out_fault_fd;
};

/// What a read of the fault queue gives.
struct iommu_hwpt_pgfault {
  uint32_t flags;
  uint32_t dev_id;
  uint32_t pasid;
  uint32_t grpid;
  uint32_t perm;
  uint32_t __reserved;
  uint64_t addr;
  uint32_t length;
  uint32_t cookie;
};

/// What is written to it.
struct iommu_hwpt_page_response {
  uint32_t cookie;
  uint32_t code;
};

// Virtual IOMMUs.
#define IOMMU_VIOMMU_TYPE_DEFAULT 0u
#define IOMMU_VIOMMU_TYPE_ARM_SMMUV3 1u
#define IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV 2u
#define IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 1u

/// IOMMU_VIOMMU_ALLOC: a slice of an IOMMU for one guest.
struct iommu_viommu_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t type;
  uint32_t dev_id;
  uint32_t hwpt_id;
  uint32_t out_viommu_id;
  uint32_t data_len;
  uint32_t __reserved;
  uint64_t data_uptr;
};

/// Data of IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV.
struct iommu_viommu_tegra241_cmdqv {
  uint64_t out_vintf_mmap_offset;
  uint64_t out_vintf_mmap_length;
};

/// One SMMUv3 command of an invalidation through a virtual IOMMU.
struct iommu_viommu_arm_smmuv3_invalidate {
  uint64_t cmd[2];
};

/// IOMMU_VDEVICE_ALLOC: names a bound device as the guest does.
struct iommu_vdevice_alloc {
  uint32_t size;
  uint32_t viommu_id;
  uint32_t dev_id;
  uint32_t out_vdevice_id;
  uint64_t virt_id;
};

// Event queues of a virtual IOMMU.
#define IOMMU_VEVENTQ_TYPE_DEFAULT 0u
#define IOMMU_VEVENTQ_FLAG_LOST_EVENTS 1u
#define IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 1u
#define IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV 2u

/// IOMMU_VEVENTQ_ALLOC.
struct iommu_veventq_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t viommu_id;
  uint32_t type;
  uint32_t veventq_depth;
  uint32_t out_veventq_id;
  uint32_t out_veventq_fd;
  uint32_t __reserved;
};

/// Stands before each event that is read.
struct iommufd_vevent_header {
  uint32_t flags;
  uint32_t sequence;
};

/// An SMMUv3 event record.
struct iommu_vevent_arm_smmuv3 {
  uint64_t evt[4];
};

/// A Tegra241 command-queue error map.
struct iommu_vevent_tegra241_cmdqv {
  uint64_t lvcmdq_err_map[2];
};

// Hardware queues of a virtual IOMMU.
#define IOMMU_HW_QUEUE_TYPE_DEFAULT 0u
#define IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV 1u

/// IOMMU_HW_QUEUE_ALLOC.
struct iommu_hw_queue_alloc {
  uint32_t size;
  uint32_t flags;
  uint32_t viommu_id;
  uint32_t type;
  uint32_t index;
  uint32_t out_hw_queue_id;
  uint64_t nesting_parent_iova;
  uint64_t length;
};

#endif
