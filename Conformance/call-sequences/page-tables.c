// SPDX-License-Identifier: Apache-2.0
//
// Page tables: every kind that 6.12 has, invalidation of nested ones, dirty tracking.

#include "sequence.h"

static void note_table(struct context *c, struct ids *kind, uint32_t id) {
  say(" table=%u", id);
  add_id(kind, id);
  if (id > c->last_id) c->last_id = id;
}

static bool enough(struct context *c) {
  if (c->table.count + c->parent.count + c->nested.count < 8 || once_in(8)) return false;
  destroy(c);
  return true;
}

static void allocate(struct context *c, struct iommu_hwpt_alloc *a) {
  say("HWPT_ALLOC device=%u on=%u flags=%#x reserved=%u data=%#x,%u,%#llx queue=%u", a->dev_id,
      a->pt_id, a->flags, a->__reserved, a->data_type, a->data_len,
      (unsigned long long)a->data_uptr, a->fault_id);
  bool nested = a->data_len != 0, parent = a->flags & IOMMU_HWPT_ALLOC_NEST_PARENT;
  if (call(c, IOMMU_HWPT_ALLOC, a, sizeof *a) == 0) {
    note_table(c, nested ? &c->nested : parent ? &c->parent : &c->table, a->out_hwpt_id);
    if (!nested && a->flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) add_id(&c->dirty, a->out_hwpt_id);
  }
  say("\n");
}

void hwpt_alloc(struct context *c) {
  if (enough(c)) return;
  // Flag 8, and flag 4 with a nest parent, mean something after 6.12.
  static const uint32_t flags[] = {0, 0, 1, 1, 1, 2, 2, 3};
  struct iommu_hwpt_alloc a = {
      .flags = once_in(40) ? 0x10 : ONE_OF(flags),
      .dev_id = some_id(c, &c->device),
      .pt_id = some_id(c, &c->ioas),
      .__reserved = once_in(60),
  };
  if (c->dirty.count == 0 && once_in(2)) a.flags |= IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
  if (once_in(40)) a.data_type = (uint32_t)below(5);
  if (once_in(40)) a.data_len = (uint32_t)below(9);
  if (a.data_type == 0 && a.data_len == 0 && once_in(60)) a.data_uptr = MEMORY;
  allocate(c, &a);
}

void hwpt_alloc_nested(struct context *c) {
  if (enough(c)) return;
  struct iommu_hwpt_selftest *data = scratch(16);
  data->iotlb = once_in(3) ? 0 : IOMMU_TEST_IOTLB_DEFAULT;
  struct iommu_hwpt_alloc a = {
      .flags = once_in(40) ? 1u << below(3) : 0,
      .dev_id = some_id(c, &c->device),
      .pt_id = some_id(c, once_in(12) ? &c->table : &c->parent),
      .__reserved = once_in(60),
      .data_type = once_in(30) ? (uint32_t)below(4) : IOMMU_HWPT_DATA_SELFTEST,
      .data_len = once_in(30) ? (uint32_t)below(5) : 4,
      .data_uptr = scratch_address(),
  };
  // An address space as the parent, and data all the same, means something after 6.12.
  for (int i = 0; i < c->ioas.count; i++)
    if (c->ioas.id[i] == a.pt_id) a.pt_id = 0;
  // The kernel would take 4 for a queue where the group of faults is left out.
  if (c->queue_id.count == 0) a.flags &= ~IOMMU_HWPT_FAULT_ID_VALID;
  if (c->queue_id.count && !once_in(4)) {
    a.flags |= IOMMU_HWPT_FAULT_ID_VALID;
    a.fault_id = some_id(c, &c->queue_id);
  }
  allocate(c, &a);
}

void hwpt_invalidate(struct context *c) {
  struct iommu_hwpt_invalidate_selftest *entries = scratch(4096);
  struct iommu_hwpt_invalidate a = {
      .hwpt_id = some_id(c, once_in(15) ? &c->parent : &c->nested),
      .data_uptr = scratch_address(),
      .data_type = once_in(30)   ? IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID
                   : once_in(60) ? 0
                                 : IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
      .entry_len = once_in(12) ? (uint32_t)below(20) : 8,
      .entry_num = once_in(12) ? 0 : (uint32_t)below(5),
      .__reserved = once_in(60),
  };
  if (once_in(60)) a.entry_len = PAGE + 1;
  if (once_in(60)) a.entry_num = (1u << 19) + 1;
  say("HWPT_INVALIDATE table=%u at=%#llx type=%#x length=%u number=%u reserved=%u", a.hwpt_id,
      (unsigned long long)a.data_uptr, a.data_type, a.entry_len, a.entry_num, a.__reserved);
  for (uint32_t i = 0; i < a.entry_num && i < 5; i++) {
    entries[i].iotlb_id = (uint32_t)below(4);
    if (once_in(25)) entries[i].iotlb_id = (uint32_t)below(8);
    entries[i].flags = once_in(6) ? IOMMU_TEST_INVALIDATE_FLAG_ALL : once_in(30) ? 2 : 0;
    say(" %u:%u", entries[i].flags, entries[i].iotlb_id);
  }
  call(c, IOMMU_HWPT_INVALIDATE, &a, sizeof a);
  say(" number=%u\n", a.entry_num);
}

void check_iotlb(struct context *c) {
  struct iommu_test_cmd a = {.id = some_id(c, once_in(20) ? &c->table : &c->nested)};
  a.check_iotlb.id = (uint32_t)below(once_in(10) ? 6 : 4);
  a.check_iotlb.iotlb = once_in(2) ? 0 : IOMMU_TEST_IOTLB_DEFAULT;
  say("MD_CHECK_IOTLB table=%u id=%u value=%#x", a.id, a.check_iotlb.id, a.check_iotlb.iotlb);
  back_door(c, &a, IOMMU_TEST_OP_MD_CHECK_IOTLB);
  say("\n");
}

static uint32_t dirty_table(struct context *c) {
  if (c->dirty.count && !once_in(4)) return some_id(c, &c->dirty);
  const struct ids *kinds[] = {&c->table, &c->table, &c->parent, &c->parent, &c->nested};
  return some_id(c, ONE_OF(kinds));
}

void set_dirty(struct context *c) {
  struct iommu_hwpt_set_dirty_tracking a = {
      .flags = once_in(30) ? 2 : once_in(6) ? 0 : IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
      .hwpt_id = dirty_table(c),
      .__reserved = once_in(60),
  };
  say("HWPT_SET_DIRTY_TRACKING table=%u flags=%u reserved=%u", a.hwpt_id, a.flags,
      a.__reserved);
  call(c, IOMMU_HWPT_SET_DIRTY_TRACKING, &a, sizeof a);
  say("\n");
}

/// An area's range, or one about it.
static void dirty_range(struct context *c, uint64_t *iova, uint64_t *length) {
  const struct area *area = some_area(c, good_id(c, &c->ioas));
  *iova = some_iova(c, 0) & ~(uint64_t)(HALF - 1);
  *length = (1 + below(16)) * HALF;
  if (area == NULL || once_in(12)) return;
  *iova = area->iova;
  *length = area->length;
  if (once_in(3)) {
    uint64_t skip = below(area->length / HALF + 1) * HALF;
    *iova += skip;
    if (once_in(2)) *length -= skip;
  }
}

void get_dirty(struct context *c) {
  uint64_t *bitmap = scratch(4096);
  bool before = once_in(8);
  if (before) bitmap[0] = 0xff00;
  struct iommu_hwpt_get_dirty_bitmap a = {
      .hwpt_id = dirty_table(c),
      .flags = once_in(30) ? 2 : once_in(3) ? IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0,
      .__reserved = once_in(60),
      .page_size = once_in(30) ? 0 : once_in(4) ? PAGE << below(3) : HALF,
      .data = scratch_address(),
  };
  dirty_range(c, &a.iova, &a.length);
  if (once_in(60)) a.length = 0;
  if (once_in(60)) a.iova += 512;
  say("HWPT_GET_DIRTY_BITMAP table=%u flags=%u reserved=%u iova=%#llx length=%#llx page=%#llx "
      "at=%#llx before=%d",
      a.hwpt_id, a.flags, a.__reserved, (unsigned long long)a.iova,
      (unsigned long long)a.length, (unsigned long long)a.page_size,
      (unsigned long long)a.data, before);
  if (call(c, IOMMU_HWPT_GET_DIRTY_BITMAP, &a, sizeof a) == 0)
    say(" bitmap=%#llx,%#llx", (unsigned long long)bitmap[0], (unsigned long long)bitmap[1]);
  say("\n");
}

// Only pages of the mock's own size: what others mean has changed since 6.12.
void make_dirty(struct context *c) {
  uint64_t *bitmap = scratch(64);
  bitmap[0] = random_bits();
  struct iommu_test_cmd a = {.id = dirty_table(c)};
  a.dirty.page_size = once_in(40) ? 0 : HALF;
  a.dirty.uptr = scratch_address();
  dirty_range(c, &a.dirty.iova, &a.dirty.length);
  if (once_in(60)) a.dirty.length = 0;
  if (once_in(60)) a.dirty.iova += 512;
  if (a.dirty.length > 64 * HALF) a.dirty.length = 64 * HALF;
  say("DIRTY table=%u iova=%#llx length=%#llx page=%#llx at=%#llx bits=%#llx", a.id,
      (unsigned long long)a.dirty.iova, (unsigned long long)a.dirty.length,
      (unsigned long long)a.dirty.page_size, (unsigned long long)a.dirty.uptr,
      (unsigned long long)bitmap[0]);
  if (back_door(c, &a, IOMMU_TEST_OP_DIRTY) == 0)
    say(" dirty=%llu", (unsigned long long)a.dirty.out_nr_dirty);
  say("\n");
}
