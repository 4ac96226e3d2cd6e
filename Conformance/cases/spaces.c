// SPDX-License-Identifier: Apache-2.0
//
// Address spaces, options and what a device's IOMMU says of itself, at the edges that the
// kernel's own tests leave out.

#include "calls.h"

CASE(spaces, map_arguments, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint8_t *memory = pages(2, 0);
  uint32_t fixed = both | IOMMU_IOAS_MAP_FIXED_IOVA;
  uint64_t start = MOCK_APERTURE_START, iova = start;
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE, 0, &iova));
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE, IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(-EOPNOTSUPP, map(rig.fd, rig.ioas, memory, PAGE, both | 8, &iova));
  EXPECT(-EOPNOTSUPP, map(rig.fd, 0, memory, PAGE, 8, &iova));
  EXPECT(-ENOENT, map(rig.fd, rig.mock.device, memory, PAGE, both, &iova));
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, 0, both, &iova));
  EXPECT(-EOVERFLOW, map(rig.fd, rig.ioas, memory, UINT64_MAX, both, &iova));
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, NULL, UINT64_MAX - 1, both, &iova));
  iova = UINT64_MAX;
  EXPECT(-EOVERFLOW, map(rig.fd, rig.ioas, memory, PAGE, fixed, &iova));
  iova = UINT64_MAX - PAGE + 1;  // The last page.
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE, fixed, &iova));
  iova = start - PAGE;  // Outside of what the device can reach.
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE, fixed, &iova));
  iova = start + 1;
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE, fixed, &iova));
  iova = start;
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory, PAGE + 1, fixed, &iova));
  EXPECT(-EINVAL, map(rig.fd, rig.ioas, memory + 1, PAGE, fixed, &iova));
  EXPECT(0, map(rig.fd, rig.ioas, memory + MOCK_PAGE_SIZE, PAGE, fixed, &iova));
}

CASE(spaces, unmap_arguments, LINUX_6_12) {
  int fd = open_iommu();
  uint32_t ioas = (uint32_t)GET(alloc_ioas(fd));
  uint64_t iova = 0x100000;
  NEED(0, map(fd, ioas, pages(2, 0), 2 * PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(-ENOENT, unmap(fd, 0x7fffffff, iova, PAGE));
  EXPECT(-EOVERFLOW, unmap(fd, ioas, 1, UINT64_MAX));
  EXPECT(-EOVERFLOW, unmap(fd, ioas, UINT64_MAX, 1));
  EXPECT(-EINVAL, unmap(fd, ioas, iova, 0));
  EXPECT(-EOVERFLOW, unmap(fd, ioas, UINT64_MAX - 1, 3));
  EXPECT(-ENOENT, unmap(fd, ioas, iova, PAGE));
  EXPECT(-ENOENT, unmap(fd, ioas, iova + PAGE, PAGE));
  EXPECT(-ENOENT, unmap(fd, ioas, iova + 2 * PAGE, PAGE));
  struct iommu_ioas_unmap cmd = {.size = sizeof cmd, .ioas_id = ioas, .iova = 1,
                                 .length = 1ull << 40};
  EXPECT(0, call(fd, IOMMU_IOAS_UNMAP, &cmd));
  EXPECT(2 * PAGE, (long long)cmd.length);
  EXPECT(-ENOENT, unmap(fd, ioas, 1, 1ull << 40));
  EXPECT(0, unmap(fd, ioas, 0, UINT64_MAX));
}

CASE(spaces, copy_arguments, LINUX_6_12) {
  int fd = open_iommu();
  uint32_t one = (uint32_t)GET(alloc_ioas(fd)), two = (uint32_t)GET(alloc_ioas(fd));
  uint64_t iova = 0x100000;
  NEED(0, map(fd, one, pages(4, 0), 4 * PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(0, copy(fd, two, 0, one, iova + PAGE, 2 * PAGE));
  EXPECT(-EEXIST, copy(fd, two, PAGE, one, iova, PAGE));
  EXPECT(-ENOENT, copy(fd, two, 0x100000, one, iova - PAGE, 2 * PAGE));
  EXPECT(-ENOENT, copy(fd, two, 0x100000, one, iova + 3 * PAGE, 2 * PAGE));
  EXPECT(-EINVAL, copy(fd, two, 0x100000, one, iova, 0));
  EXPECT(-EOVERFLOW, copy(fd, two, 0x100000, one, iova, UINT64_MAX));
  EXPECT(-ENOENT, copy(fd, two, 0x100000, 0, iova, PAGE));
  EXPECT(-ENOENT, copy(fd, 0, 0x100000, one, iova, PAGE));
  // A copy of a part within one space, and what it copied may go.
  EXPECT(0, copy(fd, one, 0, one, iova, PAGE));
  EXPECT(0, unmap(fd, one, iova, 4 * PAGE));
  EXPECT(0, unmap(fd, two, 0, 2 * PAGE));
  // Copied once more from the copy; the source was readable and writable.
  EXPECT(0, copy(fd, two, 0, one, 0, PAGE));
}

CASE(spaces, read_only_memory, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint8_t *memory = pages(1, 0);
  uint64_t iova = MOCK_APERTURE_START;
  uint32_t second = (uint32_t)GET(alloc_ioas(rig.fd));
  NEED(0, mprotect(memory, PAGE, PROT_READ));
  EXPECT(-EFAULT, map(rig.fd, rig.ioas, memory, PAGE, both, &iova));
  NEED(0, map(rig.fd, rig.ioas, memory, PAGE, IOMMU_IOAS_MAP_READABLE, &iova));
  // A copy cannot be written to where the map cannot.
  EXPECT(-EPERM, copy(rig.fd, second, 0x1000000, rig.ioas, iova, PAGE));
}

static long option(int fd, uint32_t id, uint16_t op, uint32_t object, uint64_t *value) {
  struct iommu_option cmd = {.size = sizeof cmd, .option_id = id, .op = op, .object_id = object,
                             .val64 = *value};
  long result = call(fd, IOMMU_OPTION, &cmd);
  *value = cmd.val64;
  return result;
}

CASE(options, account_mode, LINUX_6_12) {
  int fd = open_iommu();
  uint64_t value = 1;
  EXPECT(0, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_GET, 0, &value));
  EXPECT(0, (long long)value);
  EXPECT(-EOPNOTSUPP, option(fd, IOMMU_OPTION_RLIMIT_MODE, 2, 0, &value));
  EXPECT(-EOPNOTSUPP, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_GET, 1, &value));
  EXPECT(-EOPNOTSUPP, option(fd, 2, IOMMU_OPTION_OP_GET, 0, &value));
  if (geteuid() != 0) return;  // The mode is the privileged's to set.
  value = 2;
  EXPECT(-EINVAL, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_SET, 0, &value));
  value = 1;
  EXPECT(0, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_SET, 0, &value));
  value = 0;
  EXPECT(0, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_GET, 0, &value));
  EXPECT(1, (long long)value);
  // It is set before there is anything to account.
  uint32_t ioas = (uint32_t)GET(alloc_ioas(fd));
  value = 0;
  EXPECT(-EBUSY, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_SET, 0, &value));
  value = 5;
  EXPECT(-EBUSY, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_SET, 0, &value));
  NEED(0, destroy(fd, ioas));
  value = 0;
  EXPECT(0, option(fd, IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_OP_SET, 0, &value));
}

CASE(options, huge_pages, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint64_t value = 9;
  EXPECT(-ENOENT, option(rig.fd, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_GET, 0, &value));
  EXPECT(-ENOENT,
         option(rig.fd, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_GET, rig.mock.device, &value));
  EXPECT(-EOPNOTSUPP, option(rig.fd, IOMMU_OPTION_HUGE_PAGES, 2, rig.ioas, &value));
  EXPECT(0, option(rig.fd, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_GET, rig.ioas, &value));
  EXPECT(1, (long long)value);
  value = 2;
  EXPECT(-EINVAL, option(rig.fd, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_SET, rig.ioas, &value));
}

CASE(information, arguments, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint8_t data[24];
  memset(data, 0x55, sizeof data);
  struct iommu_hw_info cmd = {.size = sizeof cmd, .flags = 1u << 31, .dev_id = rig.mock.device};
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  cmd.flags = 0;
  for (int i = 0; i < 3; i++) {
    cmd.__reserved[i] = 1;
    EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
    cmd.__reserved[i] = 0;
  }
  cmd.dev_id = rig.ioas;
  EXPECT(-ENOENT, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  cmd.dev_id = rig.mock.device;
  cmd.data_len = 8;
  cmd.data_uptr = (uintptr_t)nowhere;
  EXPECT(-EFAULT, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  // As many bytes as there is room for, zeros after them, and the true length comes back.
  cmd.data_uptr = (uintptr_t)data;
  cmd.data_len = 6;
  EXPECT(0, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  EXPECT(8, cmd.data_len);
  EXPECT(0x55, data[6]);
  EXPECT(0xef, data[4]);
  cmd.data_len = 20;
  EXPECT(0, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  EXPECT((long long)IOMMU_HW_INFO_TYPE_SELFTEST, cmd.out_data_type);
  EXPECT(0, data[19]);
  EXPECT(0x55, data[20]);
  EXPECT(IOMMU_HW_CAP_DIRTY_TRACKING, (long long)cmd.out_capabilities);
  EXPECT(0, cmd.out_max_pasid_log2);
}

CASE(information, by_type, LINUX_7_1) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_PASID | MOCK_FLAGS_DEVICE_NO_DIRTY);
  struct iommu_hw_info cmd = {.size = sizeof cmd, .flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE,
                              .dev_id = rig.mock.device, .in_data_type = 5};
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  cmd.in_data_type = IOMMU_HW_INFO_TYPE_DEFAULT;
  EXPECT(0, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
  EXPECT((long long)IOMMU_HW_INFO_TYPE_SELFTEST, cmd.out_data_type);
  cmd.data_len = 0;
  EXPECT(0, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));  // That type is one to ask for.
  EXPECT(MOCK_PASID_WIDTH, cmd.out_max_pasid_log2);
  EXPECT(0, (long long)(cmd.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING));
  // Without the flag nobody looks at the type.
  cmd.flags = cmd.data_len = 0;
  cmd.in_data_type = 5;
  EXPECT(0, call(rig.fd, IOMMU_GET_HW_INFO, &cmd));
}

// --- Dirty tracking ------------------------------------------------------------------------------

static long read_dirty(int fd, uint32_t hwpt, uint32_t flags, uint64_t iova, uint64_t length,
                       uint64_t page, void *bitmap) {
  struct iommu_hwpt_get_dirty_bitmap cmd = {.size = sizeof cmd, .hwpt_id = hwpt, .flags = flags,
                                            .iova = iova, .length = length, .page_size = page,
                                            .data = (uintptr_t)bitmap};
  return call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd);
}

static long track(int fd, uint32_t hwpt, uint32_t flags) {
  struct iommu_hwpt_set_dirty_tracking cmd = {.size = sizeof cmd, .flags = flags,
                                              .hwpt_id = hwpt};
  return call(fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &cmd);
}

/// Makes the mock pages whose bits are set in `bits` dirty; how many there were.
static long soil(int fd, uint32_t hwpt, uint64_t iova, uint64_t length, uint64_t bits) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_DIRTY, .id = hwpt,
                               .dirty = {.iova = iova, .length = length,
                                         .page_size = MOCK_PAGE_SIZE, .uptr = (uintptr_t)&bits}};
  long result = back_door(fd, &cmd);
  return result ? result : (long)cmd.dirty.out_nr_dirty;
}

CASE(dirty, arguments, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint64_t start = MOCK_APERTURE_START, bits = 0;
  uint32_t dirty = (uint32_t)GET(
      alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING));
  EXPECT(-EOPNOTSUPP, track(rig.fd, dirty, 2));
  EXPECT(-ENOENT, track(rig.fd, rig.ioas, 1));
  EXPECT(-EOPNOTSUPP, track(rig.fd, rig.mock.hwpt, 1));  // It was not made for that.
  EXPECT(-EOPNOTSUPP, read_dirty(rig.fd, rig.mock.hwpt, 0, start, PAGE, PAGE, &bits));
  EXPECT(0, read_dirty(rig.fd, dirty, 0, start, PAGE, PAGE, &bits));  // Off as yet: all clean.
  NEED(0, track(rig.fd, dirty, IOMMU_HWPT_DIRTY_TRACKING_ENABLE));
  EXPECT(0, track(rig.fd, dirty, IOMMU_HWPT_DIRTY_TRACKING_ENABLE));
  EXPECT(-EOPNOTSUPP, read_dirty(rig.fd, dirty, 2, start, PAGE, PAGE, &bits));
  EXPECT(-ENOENT, read_dirty(rig.fd, rig.mock.device, 0, start, PAGE, PAGE, &bits));
  EXPECT(-EINVAL, read_dirty(rig.fd, dirty, 0, start, 0, PAGE, &bits));
  EXPECT(-EINVAL, read_dirty(rig.fd, dirty, 0, start, PAGE, 0, &bits));
  EXPECT(-EOVERFLOW, read_dirty(rig.fd, dirty, 0, UINT64_MAX, 2, PAGE, &bits));
  EXPECT(-EINVAL, read_dirty(rig.fd, dirty, 0, start + 1, PAGE, MOCK_PAGE_SIZE, &bits));
  EXPECT(-EINVAL, read_dirty(rig.fd, dirty, 0, start, PAGE + 1, MOCK_PAGE_SIZE, &bits));
  EXPECT(-EINVAL, read_dirty(rig.fd, dirty, 0, start + MOCK_PAGE_SIZE, PAGE, PAGE, &bits));
}

CASE(dirty, read_and_clear, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint64_t start = MOCK_APERTURE_START, iova = start, bits = 0, length = 8 * PAGE;
  uint8_t *memory = pages(8, 0);
  uint32_t dirty = (uint32_t)GET(
      alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING));
  uint64_t value = 0;
  NEED(0, option(rig.fd, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_SET, rig.ioas, &value));
  NEED(0, map(rig.fd, rig.ioas, memory, length, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(-EINVAL, soil(rig.fd, dirty, start, length, 1));
  NEED(0, track(rig.fd, dirty, IOMMU_HWPT_DIRTY_TRACKING_ENABLE));
  EXPECT(3, soil(rig.fd, dirty, start, length, 0x8005));
  uint32_t keep = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
  NEED(0, read_dirty(rig.fd, dirty, keep, start, length, MOCK_PAGE_SIZE, &bits));
  EXPECT(0x8005, (long long)bits);
  // The bits that are there stay: a read only adds to them.
  bits = 0x100;
  NEED(0, read_dirty(rig.fd, dirty, 0, start, length / 2, MOCK_PAGE_SIZE, &bits));
  EXPECT(0x105, (long long)bits);
  bits = 0;
  NEED(0, read_dirty(rig.fd, dirty, 0, start, length, MOCK_PAGE_SIZE, &bits));
  EXPECT(0x8000, (long long)bits);
  bits = 0;
  NEED(0, read_dirty(rig.fd, dirty, 0, start, length, MOCK_PAGE_SIZE, &bits));
  EXPECT(0, (long long)bits);
  // Tracking that starts again starts clean.
  EXPECT(1, soil(rig.fd, dirty, start, length, 1));
  NEED(0, track(rig.fd, dirty, 0));
  NEED(0, track(rig.fd, dirty, IOMMU_HWPT_DIRTY_TRACKING_ENABLE));
  NEED(0, read_dirty(rig.fd, dirty, 0, start, length, MOCK_PAGE_SIZE, &bits));
  EXPECT(0, (long long)bits);
}
