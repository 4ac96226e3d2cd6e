// SPDX-License-Identifier: Apache-2.0
//
// Mock devices: attach, replace, what they can do, what their tables hold.

#include "sequence.h"

static uint32_t some_table(struct context *c) {
  const struct ids *kinds[] = {&c->ioas,   &c->ioas,   &c->table, &c->dirty,
                               &c->parent, &c->nested, &c->nested};
  return some_id(c, ONE_OF(kinds));
}

static void note_device(struct context *c, int result, const struct iommu_test_cmd *a) {
  if (result == 0) {
    say(" mock=%u table=%u device=%u", a->mock_domain.out_stdev_id, a->mock_domain.out_hwpt_id,
        a->mock_domain.out_idev_id);
    add_id(&c->mock, a->mock_domain.out_stdev_id);
    add_id(&c->device, a->mock_domain.out_idev_id);
    add_id(&c->table, a->mock_domain.out_hwpt_id);
    if (a->mock_domain.out_idev_id > c->last_id) c->last_id = a->mock_domain.out_idev_id;
    if (a->mock_domain.out_hwpt_id > c->last_id) c->last_id = a->mock_domain.out_hwpt_id;
  }
  say("\n");
}

static bool enough(struct context *c) {
  if (c->mock.count < 5 || once_in(8)) return false;
  destroy(c);
  return true;
}

void mock_domain(struct context *c) {
  if (enough(c)) return;
  struct iommu_test_cmd a = {.id = some_table(c)};
  say("MOCK_DOMAIN table=%u", a.id);
  int result = back_door(c, &a, IOMMU_TEST_OP_MOCK_DOMAIN);
  note_device(c, result, &a);
}

void mock_domain_flags(struct context *c) {
  if (enough(c)) return;
  struct iommu_test_cmd a = {.id = some_table(c)};
  // Flag 4 is new after 6.12.
  static const uint32_t flags[] = {0, 1, 1, 2, 3};
  a.mock_domain_flags.dev_flags = once_in(30) ? 8 : ONE_OF(flags);
  say("MOCK_DOMAIN_FLAGS table=%u flags=%u", a.id, a.mock_domain_flags.dev_flags);
  int result = back_door(c, &a, IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS);
  note_device(c, result, &a);
}

void mock_replace(struct context *c) {
  struct iommu_test_cmd a = {.id = some_id(c, &c->mock)};
  bool nested = c->nested.count && once_in(2);
  a.mock_domain_replace.pt_id = nested ? some_id(c, &c->nested) : some_table(c);
  say("MOCK_DOMAIN_REPLACE mock=%u table=%u", a.id, a.mock_domain_replace.pt_id);
  if (back_door(c, &a, IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE) == 0) {
    uint32_t table = a.mock_domain_replace.pt_id;
    say(" table=%u", table);
    if (table > c->last_id) c->last_id = table;
    nested = false;
    for (int i = 0; i < c->nested.count; i++) nested |= c->nested.id[i] == table;
    if (!nested) add_id(&c->table, table);
    // A mock device's own id is the one before the bound device's.
    if (nested && a.id < c->last_id) add_id(&c->faulting, a.id + 1);
  }
  say("\n");
}

void hw_info(struct context *c) {
  uint32_t *data = scratch(64);
  data[2] = 0xffffffff;
  // Flag 1 is new after 6.12.
  struct iommu_hw_info a = {
      .flags = once_in(40) ? 2 : 0,
      .dev_id = some_id(c, &c->device),
      .data_len = once_in(2) ? 8 : (uint32_t)below(20),
      .data_uptr = scratch_address(),
      .__reserved = {once_in(60), 0, once_in(60)},
  };
  say("GET_HW_INFO device=%u flags=%u length=%u at=%#llx reserved=%u,%u", a.dev_id, a.flags,
      a.data_len, (unsigned long long)a.data_uptr, a.__reserved[0], a.__reserved[2]);
  if (call(c, IOMMU_GET_HW_INFO, &a, sizeof a) == 0)
    say(" length=%u type=%#x capabilities=%#llx pasids=%u data=%x,%x,%x", a.data_len,
        a.out_data_type, (unsigned long long)a.out_capabilities, a.out_max_pasid_log2, data[0],
        data[1], data[2]);
  say("\n");
}

void check_map(struct context *c) {
  struct iommu_test_cmd a = {.id = some_id(c, once_in(4) ? &c->parent : &c->table)};
  uint32_t ioas = good_id(c, &c->ioas);
  const struct area *area = some_area(c, ioas);
  a.check_map.iova = some_iova(c, ioas);
  a.check_map.length = once_in(10) ? some_length() : HALF * (1 + below(4));
  a.check_map.uptr = some_address();
  if (area && !once_in(6)) {
    uint64_t skip = once_in(2) ? 0 : below(area->length / HALF + 1) * HALF;
    a.check_map.iova = area->iova + skip;
    a.check_map.uptr = area->address + skip;
    if (once_in(3)) a.check_map.length = area->length - skip;
  }
  // The kernel looks at each half page for as long as it takes.
  if (a.check_map.length > 1u << 24) a.check_map.length = 1u << 24;
  say("MD_CHECK_MAP table=%u iova=%#llx length=%#llx va=%#llx", a.id,
      (unsigned long long)a.check_map.iova, (unsigned long long)a.check_map.length,
      (unsigned long long)a.check_map.uptr);
  back_door(c, &a, IOMMU_TEST_OP_MD_CHECK_MAP);
  say("\n");
}

void check_references(struct context *c) {
  struct iommu_test_cmd a = {.id = 0};
  a.check_refs.uptr = some_address() & ~(uint64_t)(once_in(20) ? 0 : PAGE - 1);
  a.check_refs.length = once_in(10) ? some_length() : PAGE * (1 + below(3));
  if (a.check_refs.length > 1u << 24) a.check_refs.length = 1u << 24;
  a.check_refs.refs = (uint32_t)below(3);
  say("MD_CHECK_REFS va=%#llx length=%#llx refs=%u", (unsigned long long)a.check_refs.uptr,
      (unsigned long long)a.check_refs.length, a.check_refs.refs);
  back_door(c, &a, IOMMU_TEST_OP_MD_CHECK_REFS);
  say("\n");
}
