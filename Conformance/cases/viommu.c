// SPDX-License-Identifier: Apache-2.0
//
// VIOMMU_ALLOC and VDEVICE_ALLOC: what a virtual IOMMU sits on, the names that a guest gives its
// devices, invalidation through them, tombstones, and the order of destruction.

#include "calls.h"

enum { TYPE = IOMMU_VIOMMU_TYPE_SELFTEST };

CASE(viommu, order_of_checks, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t device = rig.mock.device;
  // The default type is no type; this comes before anything is looked up.
  EXPECT(-EOPNOTSUPP, alloc_viommu_full(rig.fd, 0, 0, IOMMU_VIOMMU_TYPE_DEFAULT, NULL, 0));
  EXPECT(-ENOENT, alloc_viommu_full(rig.fd, 0, 0, 0xdead, NULL, 0));
  // The device says which types there are before the page table is looked for.
  EXPECT(-EOPNOTSUPP, alloc_viommu_full(rig.fd, device, 0, 0xdead, NULL, 0));
  EXPECT(-EOPNOTSUPP,
         alloc_viommu_full(rig.fd, device, rig.parent, IOMMU_VIOMMU_TYPE_ARM_SMMUV3, NULL, 0));
  EXPECT(-ENOENT, alloc_viommu(rig.fd, device, 0));
}

CASE(viommu, kinds_of_ids, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t device = rig.mock.device;
  uint32_t plain = (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, 0));
  uint32_t not_devices[] = {rig.ioas, rig.parent, rig.mock.stdev, rig.viommu};
  uint32_t not_tables[] = {rig.ioas, device, rig.nested, rig.viommu};
  for (int i = 0; i < 4; i++) {
    EXPECT(-ENOENT, alloc_viommu(rig.fd, not_devices[i], rig.parent));
    EXPECT(-ENOENT, alloc_viommu(rig.fd, device, not_tables[i]));
    EXPECT(-ENOENT, alloc_vdevice(rig.fd, rig.viommu, not_devices[i], VIRTUAL_ID));
    EXPECT(-ENOENT, alloc_vdevice(rig.fd, not_tables[i] == rig.viommu ? rig.parent : not_tables[i],
                                  device, VIRTUAL_ID));
  }
  EXPECT(-EINVAL, alloc_viommu(rig.fd, device, plain));
  EXPECT(-EINVAL, alloc_viommu(rig.fd, device, rig.mock.hwpt));
}

CASE(viommu, order_of_destruction, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t second = (uint32_t)GET(alloc_viommu(rig.fd, rig.mock.device, rig.parent));
  EXPECT(-EBUSY, destroy(rig.fd, rig.parent));
  EXPECT(-EBUSY, destroy(rig.fd, rig.viommu));  // The nested table sits on it.
  NEED(0, destroy(rig.fd, second));
  EXPECT(-EBUSY, destroy(rig.fd, rig.parent));
  NEED(0, destroy(rig.fd, rig.nested));
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  EXPECT(-EBUSY, destroy(rig.fd, rig.viommu));
  NEED(0, destroy(rig.fd, vdevice));
  EXPECT(-ENOENT, destroy(rig.fd, vdevice));
  NEED(0, destroy(rig.fd, rig.viommu));
  EXPECT(0, destroy(rig.fd, rig.parent));
}

CASE(viommu, close_takes_all, LINUX_7_1) {
  // A close with everything in use, and the same once more in a fresh context.
  for (int i = 0; i < 2; i++) {
    struct virtual_rig rig = make_virtual_rig();
    GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
    NEED(0, replace(rig.fd, rig.mock.stdev, rig.nested));
    NEED(0, close(rig.fd));
  }
}

CASE(viommu, data, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t device = rig.mock.device;
  struct {
    struct iommu_viommu_selftest known;
    uint32_t unknown;
  } data = {.known = {.in_data = 0xbeef, .out_data = 1, .out_mmap_offset = 1}};
  GET(alloc_viommu_full(rig.fd, device, rig.parent, TYPE, &data, sizeof data.known));
  EXPECT(0xbeef, data.known.out_data);
  EXPECT(2 * PAGE, (long long)data.known.out_mmap_length);
  CHECK(data.known.out_mmap_offset != 0 && data.known.out_mmap_offset % PAGE == 0);
  // The oldest length has room for one answer only, and no more is written.
  memset(&data, 0x55, sizeof data);
  data.known.in_data = 7;
  GET(alloc_viommu_full(rig.fd, device, rig.parent, TYPE, &data, 8));
  EXPECT(7, data.known.out_data);
  EXPECT(0x5555555555555555ll, (long long)data.known.out_mmap_offset);
  EXPECT(-EINVAL, alloc_viommu_full(rig.fd, device, rig.parent, TYPE, &data, 7));
  EXPECT(-EINVAL, alloc_viommu_full(rig.fd, device, rig.parent, TYPE, &data, 4));
  EXPECT(-EINVAL, alloc_viommu_full(rig.fd, device, rig.parent, TYPE, &data, sizeof data + 4));
  EXPECT(-EFAULT, alloc_viommu_full(rig.fd, device, rig.parent, TYPE, NULL, 8));
}

CASE(viommu, data_that_cannot_be_written, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint8_t *page = pages(1, 0);
  uint32_t next = (uint32_t)GET(alloc_ioas(rig.fd));
  NEED(0, destroy(rig.fd, next));
  NEED(0, mprotect(page, PAGE, PROT_READ));
  EXPECT(-EFAULT, alloc_viommu_full(rig.fd, rig.mock.device, rig.parent, TYPE, page, 24));
  EXPECT(next, alloc_ioas(rig.fd));
}

CASE(viommu, tables_on_it, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t device = rig.mock.device, type = IOMMU_HWPT_DATA_SELFTEST;
  struct iommu_hwpt_selftest data = {.iotlb = 3};
  EXPECT(-EOPNOTSUPP, nest(rig.fd, device, rig.viommu, IOMMU_HWPT_ALLOC_NEST_PARENT, 0));
  EXPECT(-EOPNOTSUPP, nest(rig.fd, device, rig.viommu, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt(rig.fd, device, rig.viommu, 0));
  EXPECT(-EOPNOTSUPP, alloc_hwpt_full(rig.fd, device, rig.viommu, 0, type + 1, &data, 4, 0));
  EXPECT(-EINVAL, alloc_hwpt_full(rig.fd, device, rig.viommu, 0, type, &data, 3, 0));
  EXPECT(-EFAULT, alloc_hwpt_full(rig.fd, device, rig.viommu, 0, type, nowhere, 4, 0));
  EXPECT(-ENOENT, nest(rig.fd, device, rig.viommu, IOMMU_HWPT_FAULT_ID_VALID, rig.ioas));
  uint32_t table = (uint32_t)GET(nest(rig.fd, device, rig.viommu, IOMMU_HWPT_ALLOC_PASID, 0));
  EXPECT(0, check_iotlb(rig.fd, table, 0, IOMMU_TEST_IOTLB_DEFAULT));
  // Tables on it nest nothing and hold no more tables.
  EXPECT(-EINVAL, nest(rig.fd, device, table, 0, 0));
  EXPECT(-ENOENT, alloc_viommu(rig.fd, device, table));
  // It is no page table: nothing attaches to it.
  EXPECT(-EINVAL, replace(rig.fd, rig.mock.stdev, rig.viommu));
}

// --- Virtual devices ---------------------------------------------------------------------------

CASE(vdevice, before_attaching, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct mock other, failed;
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &other));
  EXPECT(-ENOENT, replace(rig.fd, rig.mock.stdev, rig.nested));
  EXPECT(-ENOENT, add_mock(rig.fd, rig.nested, 0, &failed));
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  EXPECT(0, replace(rig.fd, rig.mock.stdev, rig.nested));
  EXPECT(-ENOENT, replace(rig.fd, other.stdev, rig.nested));  // A name is for one device.
  // A table on the parent itself asks for none.
  uint32_t direct = (uint32_t)GET(nest(rig.fd, other.device, rig.parent, 0, 0));
  EXPECT(0, replace(rig.fd, other.stdev, direct));
  NEED(0, replace(rig.fd, rig.mock.stdev, rig.ioas));
  NEED(0, destroy(rig.fd, vdevice));
  EXPECT(-ENOENT, replace(rig.fd, rig.mock.stdev, rig.nested));
}

CASE(vdevice, names, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct mock other;
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &other));
  uint32_t second = (uint32_t)GET(alloc_viommu(rig.fd, other.device, rig.parent));
  uint32_t one = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, 5));
  EXPECT(-EEXIST, alloc_vdevice(rig.fd, rig.viommu, other.device, 5));
  // One name each: not on this virtual IOMMU, not on another.
  EXPECT(-EEXIST, alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, 6));
  EXPECT(-EEXIST, alloc_vdevice(rig.fd, second, rig.mock.device, 6));
  // The same name on another virtual IOMMU is another name.
  uint32_t two = (uint32_t)GET(alloc_vdevice(rig.fd, second, other.device, 5));
  NEED(0, destroy(rig.fd, two));
  NEED(0, destroy(rig.fd, one));
  uint64_t edges[] = {0, UINT32_MAX, 1ull << 40, UINT64_MAX};
  for (int i = 0; i < 4; i++) {
    one = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, edges[i]));
    EXPECT(-EEXIST, alloc_vdevice(rig.fd, rig.viommu, other.device, edges[i]));
    NEED(0, destroy(rig.fd, one));
  }
}

CASE(vdevice, of_another_context, LINUX_7_1) {
  // Ids never cross contexts (A1). In the second one the numbers name other things or nothing.
  struct virtual_rig rig = make_virtual_rig();
  struct virtual_rig other = make_virtual_rig();
  GET(alloc_ioas(other.fd));
  uint32_t far = (uint32_t)GET(alloc_viommu(other.fd, other.mock.device, other.parent));
  EXPECT(-ENOENT, alloc_vdevice(rig.fd, far, rig.mock.device, 1));
  EXPECT(-ENOENT, alloc_viommu(rig.fd, rig.mock.device, far));
}

CASE(vdevice, tombstone, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  uint32_t device = rig.mock.device, ids[8];
  NEED(0, destroy(rig.fd, rig.mock.stdev));
  EXPECT(-ENOENT, destroy(rig.fd, device));
  EXPECT(-ENOENT, destroy(rig.fd, vdevice));
  EXPECT(-ENOENT, alloc_vdevice(rig.fd, rig.viommu, device, 1));
  // The number stays taken as long as the context lives.
  for (int i = 0; i < 8; i++) {
    ids[i] = (uint32_t)GET(alloc_ioas(rig.fd));
    CHECK(ids[i] != vdevice);
  }
  for (int i = 0; i < 8; i++) NEED(0, destroy(rig.fd, ids[i]));
  EXPECT(-ENOENT, destroy(rig.fd, vdevice));
  // Its name is free, and nothing is held.
  struct mock other;
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &other));
  uint32_t again = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, other.device, VIRTUAL_ID));
  CHECK(again != vdevice);
  NEED(0, destroy(rig.fd, again));
  NEED(0, destroy(rig.fd, rig.nested));
  NEED(0, destroy(rig.fd, rig.viommu));
  EXPECT(0, destroy(rig.fd, rig.parent));
}

CASE(vdevice, no_tombstone_without_need, LINUX_7_1) {
  // Destroyed before its device it leaves none: the lowest free number is given out again.
  struct virtual_rig rig = make_virtual_rig();
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  NEED(0, destroy(rig.fd, vdevice));
  EXPECT(vdevice, alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  NEED(0, destroy(rig.fd, vdevice));
  EXPECT(vdevice, alloc_ioas(rig.fd));
}

CASE(vdevice, tombstone_while_attached, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  NEED(0, replace(rig.fd, rig.mock.stdev, rig.nested));
  EXPECT(-EBUSY, destroy(rig.fd, rig.nested));
  NEED(0, destroy(rig.fd, rig.mock.stdev));
  EXPECT(-ENOENT, destroy(rig.fd, vdevice));
  EXPECT(0, destroy(rig.fd, rig.nested));
  EXPECT(0, destroy(rig.fd, rig.viommu));
}

// --- Invalidation through a virtual IOMMU ---------------------------------------------------------

static long flush(int fd, uint32_t viommu, const void *entries, uint32_t length, uint32_t *count) {
  return invalidate(fd, viommu, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST, entries, length, count);
}

static void expect_cache(int fd, uint32_t device, const char *filled) {
  for (uint32_t slot = 0; slot < MOCK_DEV_CACHE_NUM; slot++)
    if (!EXPECT(0, check_cache(fd, device, slot,
                               filled[slot] == 'x' ? IOMMU_TEST_DEV_CACHE_DEFAULT : 0)))
      printf("    in slot %u\n", slot);
}

CASE(viommu, cache_of_a_device, LINUX_7_1) {
  struct rig rig = make_rig(0);
  expect_cache(rig.fd, rig.mock.device, "xxxx");
  EXPECT(-EINVAL, check_cache(rig.fd, rig.mock.device, 0, 0));
  EXPECT(-EINVAL, check_cache(rig.fd, rig.mock.device, MOCK_DEV_CACHE_NUM,
                              IOMMU_TEST_DEV_CACHE_DEFAULT));
  EXPECT(-ENOENT, check_cache(rig.fd, rig.mock.stdev, 0, IOMMU_TEST_DEV_CACHE_DEFAULT));
  EXPECT(-ENOENT, check_cache(rig.fd, 0, 0, IOMMU_TEST_DEV_CACHE_DEFAULT));
}

CASE(viommu, invalidate_by_name, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct mock other;
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &other));
  GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  struct iommu_viommu_invalidate_selftest entries[3] = {{0, VIRTUAL_ID, 2}, {0, 7, 1},
                                                        {0, VIRTUAL_ID, 3}};
  uint32_t count = 3;
  // The second name is nobody's yet.
  EXPECT(-EINVAL, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  EXPECT(1, count);
  expect_cache(rig.fd, rig.mock.device, "xx.x");
  uint32_t vdevice = (uint32_t)GET(alloc_vdevice(rig.fd, rig.viommu, other.device, 7));
  count = 3;
  EXPECT(0, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  EXPECT(3, count);
  expect_cache(rig.fd, rig.mock.device, "xx..");
  expect_cache(rig.fd, other.device, "x.xx");
  NEED(0, destroy(rig.fd, vdevice));
  count = 1;
  EXPECT(-EINVAL, flush(rig.fd, rig.viommu, entries + 1, sizeof *entries, &count));
  EXPECT(0, count);
}

CASE(viommu, invalidate_arguments, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, 0));
  struct {
    struct iommu_viommu_invalidate_selftest known;
    uint32_t unknown;
  } entries[2] = {{{0, 0, 1}, 0}, {{0, 0, 2}, 1}};
  uint32_t count = 0;
  EXPECT(0, flush(rig.fd, rig.viommu, NULL, 0, &count));
  EXPECT(-EINVAL, invalidate(rig.fd, rig.viommu, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID,
                             NULL, 0, &count));
  count = 1;
  EXPECT(-EINVAL, invalidate(rig.fd, rig.viommu, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID,
                             entries, sizeof *entries, &count));
  count = 1;
  EXPECT(-EINVAL, flush(rig.fd, rig.viommu, NULL, 12, &count));
  count = 1;
  EXPECT(-EINVAL, flush(rig.fd, rig.viommu, entries, 0, &count));
  count = 1;
  EXPECT(-EFAULT, flush(rig.fd, rig.viommu, nowhere, 12, &count));
  EXPECT(0, count);
  expect_cache(rig.fd, rig.mock.device, "xxxx");
  // All entries are read before the first counts: a bad tail stops them all.
  count = 2;
  EXPECT(-E2BIG, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  EXPECT(0, count);
  expect_cache(rig.fd, rig.mock.device, "xxxx");
  entries[1].unknown = 0;
  count = 2;
  EXPECT(0, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  EXPECT(2, count);
  expect_cache(rig.fd, rig.mock.device, "x..x");
  entries[0].known = (struct iommu_viommu_invalidate_selftest){2, 0, 0};
  count = 1;
  EXPECT(-EOPNOTSUPP, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  entries[0].known = (struct iommu_viommu_invalidate_selftest){1, 0, MOCK_DEV_CACHE_NUM};
  count = 1;
  EXPECT(-EINVAL, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  EXPECT(0, count);
  entries[0].known.cache_id = 0;
  count = 1;
  EXPECT(0, flush(rig.fd, rig.viommu, entries, sizeof *entries, &count));
  expect_cache(rig.fd, rig.mock.device, "....");
}

CASE(viommu, nested_tables_keep_their_own_cache, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t count = 1;
  GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, 1));
  struct iommu_viommu_invalidate_selftest through = {IOMMU_TEST_INVALIDATE_FLAG_ALL, 1, 0};
  struct iommu_hwpt_invalidate_selftest table = {0, 1};
  EXPECT(0, flush(rig.fd, rig.viommu, &through, sizeof through, &count));
  EXPECT(0, check_iotlb(rig.fd, rig.nested, 0, IOMMU_TEST_IOTLB_DEFAULT));
  EXPECT(0, invalidate(rig.fd, rig.nested, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, &table,
                       sizeof table, &count));
  EXPECT(0, check_iotlb(rig.fd, rig.nested, 1, 0));
}
