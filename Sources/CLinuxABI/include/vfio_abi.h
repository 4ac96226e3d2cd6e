// SPDX-License-Identifier: Apache-2.0
//
// The binary interface of VFIO: devices, groups, type1 containers (MODEL J1), under the
// kernel's names.
// Constants are literals: they import into Swift as UInt32 and work in a C switch or #if.

#ifndef VFIO_ABI_H
#define VFIO_ABI_H

#include <stdint.h>

// Type, base and version.
#define VFIO_API_VERSION 0u
#define VFIO_TYPE 0x3bu
#define VFIO_BASE 0x64u

// Commands of a container (/dev/vfio/vfio).
#define VFIO_GET_API_VERSION 0x3b64u
#define VFIO_CHECK_EXTENSION 0x3b65u
#define VFIO_SET_IOMMU 0x3b66u
#define VFIO_IOMMU_GET_INFO 0x3b70u
#define VFIO_IOMMU_MAP_DMA 0x3b71u
#define VFIO_IOMMU_UNMAP_DMA 0x3b72u
#define VFIO_IOMMU_DIRTY_PAGES 0x3b75u

// Commands of a group (/dev/vfio/N).
#define VFIO_GROUP_GET_STATUS 0x3b67u
#define VFIO_GROUP_SET_CONTAINER 0x3b68u
#define VFIO_GROUP_UNSET_CONTAINER 0x3b69u
#define VFIO_GROUP_GET_DEVICE_FD 0x3b6au

// Commands of a device (/dev/vfio/devices/vfioN, or from a group). Some numbers are the
// container's too.
#define VFIO_DEVICE_GET_INFO 0x3b6bu
#define VFIO_DEVICE_GET_REGION_INFO 0x3b6cu
#define VFIO_DEVICE_GET_IRQ_INFO 0x3b6du
#define VFIO_DEVICE_SET_IRQS 0x3b6eu
#define VFIO_DEVICE_RESET 0x3b6fu
#define VFIO_DEVICE_GET_PCI_HOT_RESET_INFO 0x3b70u
#define VFIO_DEVICE_PCI_HOT_RESET 0x3b71u
#define VFIO_DEVICE_IOEVENTFD 0x3b74u
#define VFIO_DEVICE_FEATURE 0x3b75u
#define VFIO_DEVICE_BIND_IOMMUFD 0x3b76u
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT 0x3b77u
#define VFIO_DEVICE_DETACH_IOMMUFD_PT 0x3b78u
#define VFIO_MIG_GET_PRECOPY_INFO 0x3b79u

// What CHECK_EXTENSION knows, and the models that SET_IOMMU takes.
#define VFIO_TYPE1_IOMMU 1u
#define VFIO_TYPE1v2_IOMMU 3u
#define VFIO_DMA_CC_IOMMU 4u
#define VFIO_NOIOMMU_IOMMU 8u
#define VFIO_UNMAP_ALL 9u
#define VFIO_UPDATE_VADDR 0xau

/// Heads each capability in a chain; `next` is an offset from the start of the structure, 0 at
/// the end.
struct vfio_info_cap_header {
  uint16_t id;
  uint16_t version;
  uint32_t next;
};

// Group status.
#define VFIO_GROUP_FLAGS_VIABLE 1u
#define VFIO_GROUP_FLAGS_CONTAINER_SET 2u

/// VFIO_GROUP_GET_STATUS.
struct vfio_group_status {
  uint32_t argsz;
  uint32_t flags;
};

// Device information.
#define VFIO_DEVICE_FLAGS_RESET 1u
#define VFIO_DEVICE_FLAGS_PCI 2u
#define VFIO_DEVICE_FLAGS_CAPS 0x80u
#define VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP 5u
#define VFIO_PCI_ATOMIC_COMP32 1u
#define VFIO_PCI_ATOMIC_COMP64 2u
#define VFIO_PCI_ATOMIC_COMP128 4u
#define VFIO_DEVICE_API_PCI_STRING "vfio-pci"

/// VFIO_DEVICE_GET_INFO.
struct vfio_device_info {
  uint32_t argsz;
  uint32_t flags;
  uint32_t num_regions;
  uint32_t num_irqs;
  uint32_t cap_offset;
  uint32_t pad;
};

/// Capability: the atomic operations that the root port completes.
struct vfio_device_info_cap_pci_atomic_comp {
  struct vfio_info_cap_header header;
  uint32_t flags;
  uint32_t reserved;
};

/// The proposal's 5 was given to another one; this number is ours.
#define VFIO_DEVICE_INFO_CAP_PASID 0xf005u
#define VFIO_DEVICE_PASID_DELEGATED 1u
#define VFIO_DEVICE_PASID_CPU 2u
#define VFIO_DEVICE_PASID_CPU_VIRT 4u

/// Capability: the device's user may attach it by PASIDs of its own (MODEL E3). The layout is
/// ours.
struct vfio_device_info_cap_pasid {
  struct vfio_info_cap_header header;
  uint32_t flags;
  uint32_t pasid_bits;
};

// Indices of a PCI device's regions and interrupts.
#define VFIO_PCI_BAR0_REGION_INDEX 0u
#define VFIO_PCI_BAR1_REGION_INDEX 1u
#define VFIO_PCI_BAR2_REGION_INDEX 2u
#define VFIO_PCI_BAR3_REGION_INDEX 3u
#define VFIO_PCI_BAR4_REGION_INDEX 4u
#define VFIO_PCI_BAR5_REGION_INDEX 5u
#define VFIO_PCI_ROM_REGION_INDEX 6u
#define VFIO_PCI_CONFIG_REGION_INDEX 7u
#define VFIO_PCI_VGA_REGION_INDEX 8u
#define VFIO_PCI_NUM_REGIONS 9u
#define VFIO_PCI_INTX_IRQ_INDEX 0u
#define VFIO_PCI_MSI_IRQ_INDEX 1u
#define VFIO_PCI_MSIX_IRQ_INDEX 2u
#define VFIO_PCI_ERR_IRQ_INDEX 3u
#define VFIO_PCI_REQ_IRQ_INDEX 4u
#define VFIO_PCI_NUM_IRQS 5u

// Regions.
#define VFIO_REGION_INFO_FLAG_READ 1u
#define VFIO_REGION_INFO_FLAG_WRITE 2u
#define VFIO_REGION_INFO_FLAG_MMAP 4u
#define VFIO_REGION_INFO_FLAG_CAPS 8u
#define VFIO_REGION_INFO_CAP_SPARSE_MMAP 1u
#define VFIO_REGION_INFO_CAP_TYPE 2u
#define VFIO_REGION_INFO_CAP_MSIX_MAPPABLE 3u
#define VFIO_REGION_TYPE_PCI_VENDOR_MASK 0xffffu
#define VFIO_REGION_TYPE_PCI_VENDOR_TYPE 0x80000000u

/// VFIO_DEVICE_GET_REGION_INFO: `offset` is where pread, pwrite and mmap find the region.
struct vfio_region_info {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t cap_offset;
  uint64_t size;
  uint64_t offset;
};

/// A part of a region that can be mapped; `offset` within the region.
struct vfio_region_sparse_mmap_area {
  uint64_t offset;
  uint64_t size;
};

/// Capability: only these areas can be mapped.
struct vfio_region_info_cap_sparse_mmap {
  struct vfio_info_cap_header header;
  uint32_t nr_areas;
  uint32_t reserved;
  struct vfio_region_sparse_mmap_area areas[];
};

/// Capability: what a region beyond the fixed ones is.
struct vfio_region_info_cap_type {
  struct vfio_info_cap_header header;
  uint32_t type;
  uint32_t subtype;
};

// Interrupts.
#define VFIO_IRQ_INFO_EVENTFD 1u
#define VFIO_IRQ_INFO_MASKABLE 2u
#define VFIO_IRQ_INFO_AUTOMASKED 4u
#define VFIO_IRQ_INFO_NORESIZE 8u
#define VFIO_IRQ_SET_DATA_NONE 1u
#define VFIO_IRQ_SET_DATA_BOOL 2u
#define VFIO_IRQ_SET_DATA_EVENTFD 4u
#define VFIO_IRQ_SET_DATA_TYPE_MASK 7u
#define VFIO_IRQ_SET_ACTION_MASK 8u
#define VFIO_IRQ_SET_ACTION_UNMASK 0x10u
#define VFIO_IRQ_SET_ACTION_TRIGGER 0x20u
#define VFIO_IRQ_SET_ACTION_TYPE_MASK 0x38u

/// VFIO_DEVICE_GET_IRQ_INFO.
struct vfio_irq_info {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t count;
};

/// VFIO_DEVICE_SET_IRQS: `data` holds `count` bytes or fds (-1 disarms), or nothing.
struct vfio_irq_set {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t start;
  uint32_t count;
  uint8_t data[];
};

// Hot reset.
#define VFIO_PCI_HOT_RESET_FLAG_DEV_ID 1u
#define VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED 2u
#define VFIO_PCI_DEVID_OWNED 0u
#define VFIO_PCI_DEVID_NOT_OWNED 0xffffffffffffffffull

/// A device that is reset together with the one asked for.
struct vfio_pci_dependent_device {
  union {
    uint32_t group_id;
    uint32_t devid;
  };
  uint16_t segment;
  uint8_t bus;
  uint8_t devfn;
};

/// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.
struct vfio_pci_hot_reset_info {
  uint32_t argsz;
  uint32_t flags;
  uint32_t count;
  struct vfio_pci_dependent_device devices[];
};

/// VFIO_DEVICE_PCI_HOT_RESET.
struct vfio_pci_hot_reset {
  uint32_t argsz;
  uint32_t flags;
  uint32_t count;
  int32_t group_fds[];
};

// Eventfds that write registers.
#define VFIO_DEVICE_IOEVENTFD_8 1u
#define VFIO_DEVICE_IOEVENTFD_16 2u
#define VFIO_DEVICE_IOEVENTFD_32 4u
#define VFIO_DEVICE_IOEVENTFD_64 8u
#define VFIO_DEVICE_IOEVENTFD_SIZE_MASK 0xfu

/// VFIO_DEVICE_IOEVENTFD.
struct vfio_device_ioeventfd {
  uint32_t argsz;
  uint32_t flags;
  uint64_t offset;
  uint64_t data;
  int32_t fd;
  uint32_t reserved;
};

// Binding and attaching, by device node.
#define VFIO_DEVICE_ATTACH_PASID 1u
#define VFIO_DEVICE_BIND_FLAG_TOKEN 1u
#define VFIO_DEVICE_DETACH_PASID 1u

/// VFIO_DEVICE_BIND_IOMMUFD: 16 bytes until the token was added; `argsz` says which.
struct vfio_device_bind_iommufd {
  uint32_t argsz;
  uint32_t flags;
  int32_t iommufd;
  uint32_t out_devid;
  uint64_t token_uuid_ptr;
};

/// VFIO_DEVICE_ATTACH_IOMMUFD_PT: `pt_id` comes back as the page table in use.
struct vfio_device_attach_iommufd_pt {
  uint32_t argsz;
  uint32_t flags;
  uint32_t pt_id;
  uint32_t pasid;
};

/// VFIO_DEVICE_DETACH_IOMMUFD_PT.
struct vfio_device_detach_iommufd_pt {
  uint32_t argsz;
  uint32_t flags;
  uint32_t pasid;
};

// Features of a device.
#define VFIO_DEVICE_FEATURE_CLEAR_MASTER 0u
#define VFIO_DEVICE_FEATURE_PCI_VF_TOKEN 0u
#define VFIO_DEVICE_FEATURE_MIGRATION 1u
#define VFIO_DEVICE_FEATURE_SET_MASTER 1u
#define VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE 2u
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY 3u
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP 4u
#define VFIO_DEVICE_FEATURE_LOW_POWER_EXIT 5u
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_START 6u
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP 7u
#define VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT 8u
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9u
#define VFIO_DEVICE_FEATURE_BUS_MASTER 0xau
#define VFIO_DEVICE_FEATURE_DMA_BUF 0xbu
#define VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 0xcu
#define VFIO_DEVICE_FEATURE_MASK 0xffffu
#define VFIO_DEVICE_FEATURE_GET 0x10000u
#define VFIO_DEVICE_FEATURE_SET 0x20000u
#define VFIO_DEVICE_FEATURE_PROBE 0x40000u

/// VFIO_DEVICE_FEATURE: flags hold the feature and what to do; its own structure follows.
struct vfio_device_feature {
  uint32_t argsz;
  uint32_t flags;
  uint8_t data[];
};

/// VFIO_DEVICE_FEATURE_BUS_MASTER.
struct vfio_device_feature_bus_master {
  uint32_t op;
};

/// A part of a region, for a DMA buffer.
struct vfio_region_dma_range {
  uint64_t offset;
  uint64_t length;
};

/// VFIO_DEVICE_FEATURE_DMA_BUF.
struct vfio_device_feature_dma_buf {
  uint32_t region_index;
  uint32_t open_flags;
  uint32_t flags;
  uint32_t nr_ranges;
  struct vfio_region_dma_range dma_ranges[];
};

/// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP.
struct vfio_device_low_power_entry_with_wakeup {
  int32_t wakeup_eventfd;
  uint32_t reserved;
};

/// A range of IOVA to log.
struct vfio_device_feature_dma_logging_range {
  uint64_t iova;
  uint64_t length;
};

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
struct vfio_device_feature_dma_logging_control {
  uint64_t page_size;
  uint32_t num_ranges;
  uint32_t __reserved;
  uint64_t ranges;
};

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
struct vfio_device_feature_dma_logging_report {
  uint64_t iova;
  uint64_t length;
  uint64_t page_size;
  uint64_t bitmap;
};

// Migration.
#define VFIO_DEVICE_STATE_ERROR 0u
#define VFIO_DEVICE_STATE_STOP 1u
#define VFIO_DEVICE_STATE_RUNNING 2u
#define VFIO_DEVICE_STATE_STOP_COPY 3u
#define VFIO_DEVICE_STATE_RESUMING 4u
#define VFIO_DEVICE_STATE_RUNNING_P2P 5u
#define VFIO_DEVICE_STATE_PRE_COPY 6u
#define VFIO_DEVICE_STATE_PRE_COPY_P2P 7u
#define VFIO_DEVICE_STATE_NR 8u
#define VFIO_MIGRATION_STOP_COPY 1u
#define VFIO_MIGRATION_P2P 2u
#define VFIO_MIGRATION_PRE_COPY 4u
#define VFIO_PRECOPY_INFO_REINIT 1u

/// VFIO_DEVICE_FEATURE_MIGRATION.
struct vfio_device_feature_migration {
  uint64_t flags;
};

/// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE.
struct vfio_device_feature_mig_state {
  uint32_t device_state;
  int32_t data_fd;
};

/// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
struct vfio_device_feature_mig_data_size {
  uint64_t stop_copy_length;
};

/// VFIO_MIG_GET_PRECOPY_INFO.
struct vfio_precopy_info {
  uint32_t argsz;
  uint32_t flags;
  uint64_t initial_bytes;
  uint64_t dirty_bytes;
};

// The type1 container.
#define VFIO_IOMMU_INFO_PGSIZES 1u
#define VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE 1u
#define VFIO_IOMMU_INFO_CAPS 2u
#define VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION 2u
#define VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL 3u
#define VFIO_DMA_MAP_FLAG_READ 1u
#define VFIO_DMA_MAP_FLAG_WRITE 2u
#define VFIO_DMA_MAP_FLAG_VADDR 4u
#define VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP 1u
#define VFIO_DMA_UNMAP_FLAG_ALL 2u
#define VFIO_DMA_UNMAP_FLAG_VADDR 4u
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_START 1u
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP 2u
#define VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP 4u

/// VFIO_IOMMU_GET_INFO.
struct vfio_iommu_type1_info {
  uint32_t argsz;
  uint32_t flags;
  uint64_t iova_pgsizes;
  uint32_t cap_offset;
  uint32_t pad;
};

/// A range of IOVA, both ends inclusive.
struct vfio_iova_range {
  uint64_t start;
  uint64_t end;
};

/// Capability: what may be mapped.
struct vfio_iommu_type1_info_cap_iova_range {
  struct vfio_info_cap_header header;
  uint32_t nr_iovas;
  uint32_t reserved;
  struct vfio_iova_range iova_ranges[];
};

/// Capability: dirty tracking.
struct vfio_iommu_type1_info_cap_migration {
  struct vfio_info_cap_header header;
  uint32_t flags;
  uint64_t pgsize_bitmap;
  uint64_t max_dirty_bitmap_size;
};

/// Capability: how many more mappings are allowed.
struct vfio_iommu_type1_info_dma_avail {
  struct vfio_info_cap_header header;
  uint32_t avail;
};

/// VFIO_IOMMU_MAP_DMA.
struct vfio_iommu_type1_dma_map {
  uint32_t argsz;
  uint32_t flags;
  uint64_t vaddr;
  uint64_t iova;
  uint64_t size;
};

/// A bitmap in the caller's memory: `size` in bytes, `data` its address (Linux has a pointer).
struct vfio_bitmap {
  uint64_t pgsize;
  uint64_t size;
  uint64_t data;
};

/// VFIO_IOMMU_UNMAP_DMA: `size` comes back as the bytes unmapped.
struct vfio_iommu_type1_dma_unmap {
  uint32_t argsz;
  uint32_t flags;
  uint64_t iova;
  uint64_t size;
  uint8_t data[];
};

/// VFIO_IOMMU_DIRTY_PAGES.
struct vfio_iommu_type1_dirty_bitmap {
  uint32_t argsz;
  uint32_t flags;
  uint8_t data[];
};

/// What follows it for FLAG_GET_BITMAP.
struct vfio_iommu_type1_dirty_bitmap_get {
  uint64_t iova;
  uint64_t size;
  struct vfio_bitmap bitmap;
};

#endif
