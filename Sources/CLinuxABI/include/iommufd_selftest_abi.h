// SPDX-License-Identifier: Apache-2.0
//
// The back door that the kernel's iommufd self-tests drive, under the kernel's names.
// Constants are literals: they import into Swift as UInt32 and work in a C switch or #if.

#ifndef IOMMUFD_SELFTEST_ABI_H
#define IOMMUFD_SELFTEST_ABI_H

#include <stdint.h>

#include "iommufd_abi.h"

// The command and its operations.
#define IOMMU_TEST_CMD 0x3ba0u
#define IOMMU_TEST_OP_ADD_RESERVED 1u
#define IOMMU_TEST_OP_MOCK_DOMAIN 2u
#define IOMMU_TEST_OP_MD_CHECK_MAP 3u
#define IOMMU_TEST_OP_MD_CHECK_REFS 4u
#define IOMMU_TEST_OP_CREATE_ACCESS 5u
#define IOMMU_TEST_OP_DESTROY_ACCESS_PAGES 6u
#define IOMMU_TEST_OP_ACCESS_PAGES 7u
#define IOMMU_TEST_OP_ACCESS_RW 8u
#define IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT 9u
#define IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE 0xau
#define IOMMU_TEST_OP_ACCESS_REPLACE_IOAS 0xbu
#define IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS 0xcu
#define IOMMU_TEST_OP_DIRTY 0xdu
#define IOMMU_TEST_OP_MD_CHECK_IOTLB 0xeu
#define IOMMU_TEST_OP_TRIGGER_IOPF 0xfu
#define IOMMU_TEST_OP_DEV_CHECK_CACHE 0x10u
#define IOMMU_TEST_OP_TRIGGER_VEVENT 0x11u
#define IOMMU_TEST_OP_PASID_ATTACH 0x12u
#define IOMMU_TEST_OP_PASID_REPLACE 0x13u
#define IOMMU_TEST_OP_PASID_DETACH 0x14u
#define IOMMU_TEST_OP_PASID_CHECK_HWPT 0x15u
#define IOMMU_TEST_OP_DMABUF_GET 0x16u
#define IOMMU_TEST_OP_DMABUF_REVOKE 0x17u

// The mock IOMMU. HUGE_IOVA is of Linux 6.12; later kernels say MOCK_IOMMUPT_HUGE instead.
#define MOCK_APERTURE_START 0x1000000u
#define MOCK_APERTURE_LAST 0x7fffffffu
#define MOCK_PAGE_SIZE 0x800u
#define MOCK_HUGE_PAGE_SIZE 0x100000u
#define MOCK_FLAGS_DEVICE_NO_DIRTY 1u
#define MOCK_FLAGS_DEVICE_HUGE_IOVA 2u
#define MOCK_FLAGS_DEVICE_PASID 4u
#define MOCK_IOMMUPT_DEFAULT 0u
#define MOCK_IOMMUPT_HUGE 1u
#define MOCK_PASID_WIDTH 0x14u
#define MOCK_DEV_CACHE_ID_MAX 3u
#define MOCK_NESTED_DOMAIN_IOTLB_ID_MAX 3u
#define MOCK_DEV_CACHE_NUM 4u
#define MOCK_NESTED_DOMAIN_IOTLB_NUM 4u

// Accessors.
#define MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES 1u
#define MOCK_FLAGS_ACCESS_WRITE 1u
#define MOCK_FLAGS_ACCESS_SYZ 0x10000u
#define MOCK_ACCESS_RW_WRITE 1u
#define MOCK_ACCESS_RW_SLOW_PATH 4u

// Kinds and values that only the self-tests use.
#define IOMMU_TEST_INVALIDATE_FLAG_ALL 1u
#define IOMMU_TEST_HW_QUEUE_MAX 2u
#define IOMMU_TEST_PASID_RESERVED 0x400u
#define IOMMU_HWPT_DATA_SELFTEST 0xdeadu
#define IOMMU_TEST_DEV_CACHE_DEFAULT 0xbaddadu
#define IOMMU_TEST_IOTLB_DEFAULT 0xbadbeefu
#define IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID 0xdadbeefu
#define IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID 0xdadbeefu
#define IOMMU_VEVENTQ_TYPE_SELFTEST 0xbeefbeefu
#define IOMMU_HWPT_INVALIDATE_DATA_SELFTEST 0xdeadbeefu
#define IOMMU_HW_INFO_SELFTEST_REGVAL 0xdeadbeefu
#define IOMMU_HW_QUEUE_TYPE_SELFTEST 0xdeadbeefu
#define IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST 0xdeadbeefu
#define IOMMU_VIOMMU_TYPE_SELFTEST 0xdeadbeefu
#define IOMMU_HW_INFO_TYPE_SELFTEST 0xfeedbeefu

/// IOMMU_TEST_CMD: `op` says which part of the union counts.
struct iommu_test_cmd {
  uint32_t size;
  uint32_t op;
  uint32_t id;
  uint32_t __reserved;
  union {
    struct {
      uint64_t start;
      uint64_t length;
    } add_reserved;
    struct {
      uint32_t out_stdev_id;
      uint32_t out_hwpt_id;
      uint32_t out_idev_id;
    } mock_domain;
    struct {
      uint32_t out_stdev_id;
      uint32_t out_hwpt_id;
      uint32_t out_idev_id;
      uint32_t dev_flags;
    } mock_domain_flags;
    struct {
      uint32_t pt_id;
    } mock_domain_replace;
    struct {
      uint64_t iova;
      uint64_t length;
      uint64_t uptr;
    } check_map;
    struct {
      uint64_t length;
      uint64_t uptr;
      uint32_t refs;
    } check_refs;
    struct {
      uint32_t out_access_fd;
      uint32_t flags;
    } create_access;
    struct {
      uint32_t access_pages_id;
    } destroy_access_pages;
    struct {
      uint32_t flags;
      uint32_t out_access_pages_id;
      uint64_t iova;
      uint64_t length;
      uint64_t uptr;
    } access_pages;
    struct {
      uint64_t iova;
      uint64_t length;
      uint64_t uptr;
      uint32_t flags;
    } access_rw;
    struct {
      uint32_t limit;
    } memory_limit;
    struct {
      uint32_t ioas_id;
    } access_replace_ioas;
    struct {
      uint32_t flags;
      uint64_t iova;
      uint64_t length;
      uint64_t page_size;
      uint64_t uptr;
      uint64_t out_nr_dirty;
    } dirty;
    struct {
      uint32_t id;
      uint32_t iotlb;
    } check_iotlb;
    struct {
      uint32_t dev_id;
      uint32_t pasid;
      uint32_t grpid;
      uint32_t perm;
      uint64_t addr;
    } trigger_iopf;
    struct {
      uint32_t id;
      uint32_t cache;
    } check_dev_cache;
    struct {
      uint32_t dev_id;
    } trigger_vevent;
    struct {
      uint32_t pasid;
      uint32_t pt_id;
    } pasid_attach;
    struct {
      uint32_t pasid;
      uint32_t pt_id;
    } pasid_replace;
    struct {
      uint32_t pasid;
    } pasid_detach;
    struct {
      uint32_t pasid;
      uint32_t hwpt_id;
    } pasid_check;
    struct {
      uint32_t length;
      uint32_t open_flags;
    } dmabuf_get;
    struct {
      int32_t dmabuf_fd;
      uint32_t revoked;
    } dmabuf_revoke;
  };
  uint32_t last;
};

/// Data of IOMMU_HW_INFO_TYPE_SELFTEST.
struct iommu_test_hw_info {
  uint32_t flags;
  uint32_t test_reg;
};

/// Data of IOMMU_HWPT_DATA_SELFTEST; Linux 6.12 has the first field only.
struct iommu_hwpt_selftest {
  uint32_t iotlb;
  uint32_t pagetable_type;
};

/// One entry of IOMMU_HWPT_INVALIDATE_DATA_SELFTEST.
struct iommu_hwpt_invalidate_selftest {
  uint32_t flags;
  uint32_t iotlb_id;
};

/// Data of IOMMU_VIOMMU_TYPE_SELFTEST.
struct iommu_viommu_selftest {
  uint32_t in_data;
  uint32_t out_data;
  uint64_t out_mmap_offset;
  uint64_t out_mmap_length;
};

/// One entry of IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST.
struct iommu_viommu_invalidate_selftest {
  uint32_t flags;
  uint32_t vdev_id;
  uint32_t cache_id;
};

/// An event of IOMMU_VEVENTQ_TYPE_SELFTEST.
struct iommu_viommu_event_selftest {
  uint32_t virt_id;
};

#endif
