// SPDX-License-Identifier: Apache-2.0
//
// HWPT_ALLOC in every kind, and HWPT_INVALIDATE with its arrays (MODEL B2, G1, D1).

#include "calls.h"

enum { SELFTEST = IOMMU_HWPT_DATA_SELFTEST };

CASE(tables, kinds_of_ids, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device;
  // The device is looked up first, and what it should sit on is "invalid" where it is not there.
  EXPECT(-ENOENT, alloc_hwpt(rig.fd, 0, rig.ioas, 0));
  EXPECT(-ENOENT, alloc_hwpt(rig.fd, rig.ioas, rig.ioas, 0));
  EXPECT(-ENOENT, alloc_hwpt(rig.fd, rig.mock.stdev, rig.ioas, 0));
  EXPECT(-ENOENT, alloc_hwpt(rig.fd, 0, 0, 0));
  EXPECT(-EINVAL, alloc_hwpt(rig.fd, device, 0, 0));
  EXPECT(-EINVAL, alloc_hwpt(rig.fd, device, 0x7fffffff, 0));
  EXPECT(-EINVAL, alloc_hwpt(rig.fd, device, device, 0));
  EXPECT(-EINVAL, alloc_hwpt(rig.fd, device, rig.mock.stdev, 0));
}

CASE(tables, data_and_length, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct iommu_hwpt_selftest data = {.iotlb = 1};
  // Either both or none; this is asked before the device is looked for.
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, 0, 0, 0, IOMMU_HWPT_DATA_NONE, &data, 4, 0));
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, 0, 0, 0, SELFTEST, &data, 0, 0));
  EXPECT(-ENOENT, alloc_hwpt_full(rig.fd, 0, 0, 0, SELFTEST, &data, 4, 0));
}

CASE(tables, nested_data, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device;
  uint8_t bytes[64] = {0xef, 0xbe, 0xad, 0x0b};
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST, bytes, 3, 0));
  EXPECT(-EFAULT, alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST, NULL, 4, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST + 1, bytes, 4, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt_full(rig.fd, device, parent, 0, IOMMU_HWPT_DATA_VTD_S1, bytes, 24, 0));
  // No data at all: a table of a user needs some.
  EXPECT(-EOPNOTSUPP, alloc_hwpt(rig.fd, device, parent, 0));
  // Longer than what Linux knows is refused, also where the rest is zero.
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST, bytes, sizeof bytes, 0));
  uint32_t nested = (uint32_t)GET(alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST, bytes, 4, 0));
  EXPECT(0, check_iotlb(rig.fd, nested, 3, IOMMU_TEST_IOTLB_DEFAULT));
}

CASE(tables, nested_on_what, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device;
  uint32_t plain = (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, 0));
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t nested = (uint32_t)GET(nest(rig.fd, device, parent, 0, 0));
  EXPECT(-EINVAL, nest(rig.fd, device, plain, 0, 0));
  EXPECT(-EINVAL, nest(rig.fd, device, rig.mock.hwpt, 0, 0));  // An automatic table.
  EXPECT(-EINVAL, nest(rig.fd, device, nested, 0, 0));
  EXPECT(-EOPNOTSUPP, nest(rig.fd, device, parent, IOMMU_HWPT_ALLOC_NEST_PARENT, 0));
  EXPECT(-EOPNOTSUPP, nest(rig.fd, device, parent, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt(rig.fd, device, rig.ioas,
                                 IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_FAULT_ID_VALID));
}

CASE(tables, order_of_destruction, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device;
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t one = (uint32_t)GET(nest(rig.fd, device, parent, 0, 0));
  uint32_t other = (uint32_t)GET(nest(rig.fd, device, parent, 0, 0));
  EXPECT(-EBUSY, destroy(rig.fd, parent));
  NEED(0, replace(rig.fd, rig.mock.stdev, one));
  EXPECT(-EBUSY, destroy(rig.fd, one));
  NEED(0, destroy(rig.fd, other));
  EXPECT(-EBUSY, destroy(rig.fd, parent));
  NEED(0, replace(rig.fd, rig.mock.stdev, parent));
  NEED(0, destroy(rig.fd, one));
  EXPECT(-EBUSY, destroy(rig.fd, parent));
  NEED(0, replace(rig.fd, rig.mock.stdev, rig.ioas));
  NEED(0, destroy(rig.fd, parent));
  EXPECT(-ENOENT, destroy(rig.fd, parent));
  // A bound device and its table go only with the device's driver.
  EXPECT(-EBUSY, destroy(rig.fd, device));
  NEED(0, destroy(rig.fd, rig.mock.stdev));
  EXPECT(-ENOENT, destroy(rig.fd, device));
  EXPECT(0, destroy(rig.fd, rig.ioas));
}

CASE(tables, automatic_tables_are_shared, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct mock second, third;
  uint32_t manual = (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 0));
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &second));
  EXPECT(rig.mock.hwpt, second.hwpt);
  CHECK(second.hwpt != manual);
  // The last device that leaves takes the automatic table along.
  NEED(0, replace(rig.fd, rig.mock.stdev, manual));
  EXPECT(0, check_map(rig.fd, second.hwpt, MOCK_APERTURE_START, pages(1, 0), 0));
  NEED(0, replace(rig.fd, second.stdev, manual));
  EXPECT(-ENOENT, replace(rig.fd, second.stdev, second.hwpt));
  // And a device that comes then gets a new one, never the one made by hand.
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &third));
  CHECK(third.hwpt != manual);
}

CASE(tables, maps_of_a_late_table, LINUX_6_12) {
  // A table made on an address space with maps has them all before it is attached.
  struct rig rig = make_rig(0);
  uint8_t *memory = pages(8, 0x5a);
  uint64_t iova = MOCK_APERTURE_START, gone = MOCK_APERTURE_START + 64 * PAGE;
  NEED(0, map(rig.fd, rig.ioas, memory, 8 * PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  uint32_t table = (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 0));
  EXPECT(0, check_map(rig.fd, table, iova, memory, 8 * PAGE));
  EXPECT(-EINVAL, check_map(rig.fd, table, iova, memory + PAGE, PAGE));
  NEED(0, map(rig.fd, rig.ioas, memory, PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &gone));
  EXPECT(0, check_map(rig.fd, table, gone, memory, PAGE));
  NEED(0, unmap(rig.fd, rig.ioas, gone, PAGE));
  EXPECT(-EINVAL, check_map(rig.fd, table, gone, memory, PAGE));
}

CASE(tables, kernel_managed_with_data, LINUX_7_1) {
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device, dirty = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
  struct {
    struct iommu_hwpt_selftest known;
    uint32_t unknown;
  } data = {.known = {.pagetable_type = MOCK_IOMMUPT_DEFAULT}};
  uint32_t table = (uint32_t)GET(alloc_hwpt_full(rig.fd, device, rig.ioas, dirty, SELFTEST, &data,
                                                 sizeof data.known, 0));
  EXPECT(0, replace(rig.fd, rig.mock.stdev, table));
  // The oldest length leaves the type at its default.
  GET(alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST, &data, 4, 0));
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST, &data, sizeof data, 0));
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST, &data, 3, 0));
  EXPECT(-EFAULT, alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST, NULL, 8, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST + 1, &data, 8, 0));
  data.known.pagetable_type = MOCK_IOMMUPT_HUGE;
  GET(alloc_hwpt_full(rig.fd, device, rig.ioas, dirty, SELFTEST, &data, 8, 0));
  data.known.pagetable_type = 77;
  EXPECT(-EOPNOTSUPP, alloc_hwpt_full(rig.fd, device, rig.ioas, 0, SELFTEST, &data, 8, 0));
}

CASE(tables, dirty_tracking_asked_of, LINUX_6_12) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_NO_DIRTY), able = make_rig(0);
  uint32_t dirty = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
  struct mock unable;
  EXPECT(-EOPNOTSUPP, alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, dirty));
  uint32_t table = (uint32_t)GET(alloc_hwpt(able.fd, able.mock.device, able.ioas, dirty));
  EXPECT(0, replace(able.fd, able.mock.stdev, table));
  EXPECT(-EINVAL, add_mock(able.fd, table, MOCK_FLAGS_DEVICE_NO_DIRTY, &unable));
  NEED(0, add_mock(able.fd, able.ioas, MOCK_FLAGS_DEVICE_NO_DIRTY, &unable));
  EXPECT(-EINVAL, replace(able.fd, unable.stdev, table));
}

// --- Invalidation -------------------------------------------------------------------------------

static long invalidate_nested(int fd, uint32_t id, const void *entries, uint32_t length,
                              uint32_t *count) {
  return invalidate(fd, id, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, entries, length, count);
}

/// A nested table of a fresh rig.
static uint32_t make_nested(struct rig *rig, uint32_t *parent) {
  *rig = make_rig(0);
  *parent = (uint32_t)GET(
      alloc_hwpt(rig->fd, rig->mock.device, rig->ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  return (uint32_t)GET(nest(rig->fd, rig->mock.device, *parent, 0, 0));
}

CASE(invalidation, of_what, LINUX_7_1) {
  // Data as long as later kernels have it: whoever speaks 6.12's here has its answer, ENOENT.
  struct rig rig = make_rig(0);
  uint32_t device = rig.mock.device, count = 1;
  struct iommu_hwpt_selftest data = {.iotlb = 5};
  struct iommu_hwpt_invalidate_selftest entry = {0};
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t nested =
      (uint32_t)GET(alloc_hwpt_full(rig.fd, device, parent, 0, SELFTEST, &data, sizeof data, 0));
  EXPECT(-EINVAL, invalidate_nested(rig.fd, parent, &entry, sizeof entry, &count));
  EXPECT(0, count);
  uint32_t others[] = {rig.ioas, device, rig.mock.stdev, rig.mock.hwpt};
  for (unsigned i = 0; i < 4; i++) {
    count = 1;
    EXPECT(-EINVAL, invalidate_nested(rig.fd, others[i], &entry, sizeof entry, &count));
    EXPECT(0, count);
  }
  count = 1;
  EXPECT(-ENOENT, invalidate_nested(rig.fd, 0x7fffffff, &entry, sizeof entry, &count));
  EXPECT(0, count);
  EXPECT(0, check_iotlb(rig.fd, nested, 0, 5));
}

CASE(invalidation, arguments, LINUX_6_12) {
  struct rig rig;
  uint32_t parent, nested = make_nested(&rig, &parent), count = 0;
  struct iommu_hwpt_invalidate_selftest entry = {0};
  // No entries: a question whether the kind is known. Then nothing else is looked at.
  EXPECT(0, invalidate_nested(rig.fd, nested, NULL, 0, &count));
  EXPECT(-EINVAL, invalidate(rig.fd, nested, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID, NULL, 0,
                             &count));
  struct {
    const void *entries;
    uint32_t length, count;
    long wanted;
  } calls[] = {
      {NULL, sizeof entry, 1, -EINVAL},
      {&entry, 0, 1, -EINVAL},
      {&entry, sizeof entry - 1, 1, -EINVAL},
      {&entry, PAGE + 8, 1, -EINVAL},
      {&entry, sizeof entry, (1u << 19) + 1, -EINVAL},
      {nowhere, sizeof entry, 1, -EFAULT},
  };
  for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
    count = calls[i].count;
    if (!EXPECT(calls[i].wanted,
                invalidate_nested(rig.fd, nested, calls[i].entries, calls[i].length, &count)) ||
        !EXPECT(0, count))
      printf("    in call %u\n", i);
  }
  for (uint32_t slot = 0; slot < MOCK_NESTED_DOMAIN_IOTLB_NUM; slot++)
    EXPECT(0, check_iotlb(rig.fd, nested, slot, IOMMU_TEST_IOTLB_DEFAULT));
}

CASE(invalidation, stops_at_a_bad_entry, LINUX_6_12) {
  struct rig rig;
  uint32_t parent, nested = make_nested(&rig, &parent), count = 4;
  struct iommu_hwpt_invalidate_selftest entries[4] = {
      {0, 3}, {0, 1}, {2, 0}, {IOMMU_TEST_INVALIDATE_FLAG_ALL, 0}};
  EXPECT(-EOPNOTSUPP, invalidate_nested(rig.fd, nested, entries, sizeof *entries, &count));
  EXPECT(2, count);
  EXPECT(0, check_iotlb(rig.fd, nested, 0, IOMMU_TEST_IOTLB_DEFAULT));
  EXPECT(0, check_iotlb(rig.fd, nested, 1, 0));
  EXPECT(0, check_iotlb(rig.fd, nested, 2, IOMMU_TEST_IOTLB_DEFAULT));
  EXPECT(0, check_iotlb(rig.fd, nested, 3, 0));
  // What is asked of a slot that is not there, also along with "all".
  entries[0] = (struct iommu_hwpt_invalidate_selftest){IOMMU_TEST_INVALIDATE_FLAG_ALL, 4};
  count = 1;
  EXPECT(-EINVAL, invalidate_nested(rig.fd, nested, entries, sizeof *entries, &count));
  EXPECT(0, count);
  entries[0].iotlb_id = 3;
  count = 1;
  EXPECT(0, invalidate_nested(rig.fd, nested, entries, sizeof *entries, &count));
  EXPECT(1, count);
  EXPECT(0, check_iotlb(rig.fd, nested, 2, 0));
}

CASE(invalidation, long_entries, LINUX_6_12) {
  struct rig rig;
  uint32_t parent, nested = make_nested(&rig, &parent), count = 1;
  struct {
    struct iommu_hwpt_invalidate_selftest known;
    uint64_t unknown;
  } entries[1] = {{{0, 0}, 0}};
  EXPECT(-EINVAL, invalidate_nested(rig.fd, nested, entries, sizeof *entries, &count));
  EXPECT(0, count);
  EXPECT(0, check_iotlb(rig.fd, nested, 0, IOMMU_TEST_IOTLB_DEFAULT));
}

CASE(invalidation, array_that_ends_early, LINUX_6_12) {
  struct rig rig;
  uint32_t parent, nested = make_nested(&rig, &parent), count = 3;
  uint8_t *memory = pages(2, 0);
  struct iommu_hwpt_invalidate_selftest *entries = (void *)(memory + PAGE - 2 * sizeof *entries);
  NEED(0, munmap(memory + PAGE, PAGE));
  entries[0].iotlb_id = 2;
  EXPECT(-EFAULT, invalidate_nested(rig.fd, nested, entries, sizeof *entries, &count));
  EXPECT(2, count);
  EXPECT(0, check_iotlb(rig.fd, nested, 2, 0));
  EXPECT(0, check_iotlb(rig.fd, nested, 0, 0));
  EXPECT(0, check_iotlb(rig.fd, nested, 1, IOMMU_TEST_IOTLB_DEFAULT));
}

CASE(invalidation, tables_do_not_share, LINUX_6_12) {
  struct rig rig;
  uint32_t parent, one = make_nested(&rig, &parent), count = 1;
  uint32_t other = (uint32_t)GET(nest(rig.fd, rig.mock.device, parent, 0, 0));
  struct iommu_hwpt_invalidate_selftest entry = {IOMMU_TEST_INVALIDATE_FLAG_ALL, 0};
  NEED(0, invalidate_nested(rig.fd, one, &entry, sizeof entry, &count));
  for (uint32_t slot = 0; slot < MOCK_NESTED_DOMAIN_IOTLB_NUM; slot++) {
    EXPECT(0, check_iotlb(rig.fd, one, slot, 0));
    EXPECT(0, check_iotlb(rig.fd, other, slot, IOMMU_TEST_IOTLB_DEFAULT));
  }
  EXPECT(-EINVAL, check_iotlb(rig.fd, other, 0, 0));
  EXPECT(-EINVAL, check_iotlb(rig.fd, other, MOCK_NESTED_DOMAIN_IOTLB_NUM, 0));
  EXPECT(-ENOENT, check_iotlb(rig.fd, parent, 0, 0));
}
