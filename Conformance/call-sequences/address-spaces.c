// SPDX-License-Identifier: Apache-2.0
//
// The commands of address spaces: make, map, copy, unmap, ranges, options; and destroy.

#include <sys/ioctl.h>

#include "sequence.h"

static void note_id(struct context *c, uint32_t id) {
  if (id > c->last_id && id < 100000) c->last_id = id;
}

void ioas_alloc(struct context *c) {
  if (c->ioas.count > 4 && !once_in(8)) {
    destroy(c);
    return;
  }
  struct iommu_ioas_alloc a = {.flags = once_in(40) ? 1 : 0};
  say("IOAS_ALLOC flags=%u", a.flags);
  if (call(c, IOMMU_IOAS_ALLOC, &a, sizeof a) == 0) {
    say(" ioas=%u", a.out_ioas_id);
    add_id(&c->ioas, a.out_ioas_id);
    note_id(c, a.out_ioas_id);
  }
  say("\n");
}

void ioas_ranges(struct context *c) {
  struct iommu_iova_range *ranges = scratch(4096);
  struct iommu_ioas_iova_ranges a = {
      .ioas_id = some_id(c, &c->ioas),
      .num_iovas = (uint32_t)below(7),
      .__reserved = once_in(60),
      .allowed_iovas = scratch_address(),
  };
  uint32_t room = a.num_iovas;
  say("IOAS_IOVA_RANGES ioas=%u num=%u reserved=%u at=%#llx", a.ioas_id, a.num_iovas,
      a.__reserved, (unsigned long long)a.allowed_iovas);
  int result = call(c, IOMMU_IOAS_IOVA_RANGES, &a, sizeof a);
  if (result == 0 || result == -90 /* EMSGSIZE */) {
    say(" num=%u alignment=%#llx", a.num_iovas, (unsigned long long)a.out_iova_alignment);
    for (uint32_t i = 0; i < room && i < 8; i++)
      say(" %#llx-%#llx", (unsigned long long)ranges[i].start,
          (unsigned long long)ranges[i].last);
  }
  say("\n");
}

void ioas_allow(struct context *c) {
  struct iommu_iova_range *ranges = scratch(4096);
  struct iommu_ioas_allow_iovas a = {
      .ioas_id = some_id(c, &c->ioas),
      .num_iovas = once_in(2) ? 0 : (uint32_t)below(4),
      .__reserved = once_in(60),
      .allowed_iovas = scratch_address(),
  };
  say("IOAS_ALLOW_IOVAS ioas=%u num=%u reserved=%u at=%#llx", a.ioas_id, a.num_iovas,
      a.__reserved, (unsigned long long)a.allowed_iovas);
  uint64_t at = MOCK_APERTURE_START;
  for (uint32_t i = 0; i < a.num_iovas; i++) {
    at += below(40) * PAGE;
    ranges[i] = (struct iommu_iova_range){at, at + below(60) * PAGE + PAGE - 1};
    if (once_in(30)) ranges[i].last = ranges[i].start;
    if (once_in(30)) ranges[i].start = some_iova(c, a.ioas_id);
    if (once_in(30)) ranges[i].last = UINT64_MAX;
    at = once_in(20) ? ranges[i].start : ranges[i].last + 1;
    say(" %#llx-%#llx", (unsigned long long)ranges[i].start,
        (unsigned long long)ranges[i].last);
  }
  call(c, IOMMU_IOAS_ALLOW_IOVAS, &a, sizeof a);
  say("\n");
}

static uint32_t some_map_flags(void) {
  static const uint32_t flags[] = {6, 6, 6, 6, 6, 4, 4, 2};
  uint32_t chosen = ONE_OF(flags);
  if (!once_in(4)) chosen |= IOMMU_IOAS_MAP_FIXED_IOVA;
  if (once_in(80)) chosen &= IOMMU_IOAS_MAP_FIXED_IOVA;
  if (once_in(80)) chosen |= 8u << below(8);
  return chosen;
}

void ioas_map(struct context *c) {
  struct iommu_ioas_map a = {
      .flags = some_map_flags(),
      .ioas_id = some_id(c, &c->ioas),
      .__reserved = once_in(100),
      .user_va = some_address(),
      .length = some_length(),
  };
  a.iova = some_iova(c, a.ioas_id);
  say("IOAS_MAP ioas=%u flags=%#x reserved=%u va=%#llx length=%#llx iova=%#llx", a.ioas_id,
      a.flags, a.__reserved, (unsigned long long)a.user_va, (unsigned long long)a.length,
      (unsigned long long)a.iova);
  if (call(c, IOMMU_IOAS_MAP, &a, sizeof a) == 0) {
    say(" iova=%#llx", (unsigned long long)a.iova);
    add_area(c, a.ioas_id, a.iova, a.length, a.user_va);
  }
  say("\n");
}

void ioas_copy(struct context *c) {
  struct iommu_ioas_copy a = {
      .flags = some_map_flags(),
      .dst_ioas_id = some_id(c, &c->ioas),
      .src_ioas_id = some_id(c, &c->ioas),
      .length = some_length(),
  };
  const struct area *from = some_area(c, a.src_ioas_id);
  a.src_iova = some_iova(c, a.src_ioas_id);
  uint64_t address = 0;
  if (from && !once_in(5)) {
    if (!once_in(10)) a.src_ioas_id = from->ioas;
    uint64_t skip = once_in(2) ? 0 : below(from->length / HALF + 1) * HALF;
    a.src_iova = from->iova + skip;
    a.length = once_in(2) ? from->length - skip : some_length();
    address = from->address + skip;
  }
  a.dst_iova = some_iova(c, a.dst_ioas_id);
  say("IOAS_COPY to=%u from=%u flags=%#x length=%#llx dst=%#llx src=%#llx", a.dst_ioas_id,
      a.src_ioas_id, a.flags, (unsigned long long)a.length, (unsigned long long)a.dst_iova,
      (unsigned long long)a.src_iova);
  if (call(c, IOMMU_IOAS_COPY, &a, sizeof a) == 0) {
    say(" iova=%#llx", (unsigned long long)a.dst_iova);
    add_area(c, a.dst_ioas_id, a.dst_iova, a.length, address);
  }
  say("\n");
}

void ioas_unmap(struct context *c) {
  struct iommu_ioas_unmap a = {.ioas_id = some_id(c, &c->ioas)};
  const struct area *area = some_area(c, a.ioas_id);
  a.iova = some_iova(c, a.ioas_id);
  a.length = some_length();
  if (area && !once_in(6)) {
    a.iova = area->iova;
    a.length = area->length;
    if (!once_in(10)) a.ioas_id = area->ioas;
    if (once_in(8)) a.length += below(6) * PAGE;
    if (once_in(8)) a.iova -= below(4) * PAGE;
    if (once_in(12)) a.length -= HALF;
  }
  if (once_in(25)) {
    a.iova = 0;
    a.length = UINT64_MAX;
  }
  say("IOAS_UNMAP ioas=%u iova=%#llx length=%#llx", a.ioas_id, (unsigned long long)a.iova,
      (unsigned long long)a.length);
  uint64_t iova = a.iova, length = a.length;
  if (call(c, IOMMU_IOAS_UNMAP, &a, sizeof a) == 0) {
    say(" length=%#llx", (unsigned long long)a.length);
    drop_areas(c, a.ioas_id, iova, length);
  }
  say("\n");
}

void destroy(struct context *c) {
  const struct ids *kinds[] = {&c->ioas,   &c->table, &c->table,    &c->nested, &c->nested,
                               &c->parent, &c->mock,  &c->queue_id, &c->device};
  struct iommu_destroy a = {.id = some_id(c, ONE_OF(kinds))};
  say("DESTROY id=%u", a.id);
  uint32_t id = a.id;
  if (call(c, IOMMU_DESTROY, &a, sizeof a) == 0) drop_id(c, id);
  say("\n");
}

void option(struct context *c) {
  struct iommu_option a = {
      .option_id = once_in(20) ? (uint32_t)below(4)
                   : once_in(4) ? IOMMU_OPTION_RLIMIT_MODE
                                : IOMMU_OPTION_HUGE_PAGES,
      .op = (uint16_t)(once_in(20) ? below(4) : below(2)),
      .__reserved = once_in(60),
      .val64 = once_in(20) ? below(4) : below(2),
  };
  bool spaces = a.option_id == IOMMU_OPTION_HUGE_PAGES;
  a.object_id = spaces != once_in(20) ? some_id(c, &c->ioas) : 0;
  say("OPTION id=%u op=%u reserved=%u object=%u value=%llu", a.option_id, a.op, a.__reserved,
      a.object_id, (unsigned long long)a.val64);
  if (call(c, IOMMU_OPTION, &a, sizeof a) == 0) say(" value=%llu", (unsigned long long)a.val64);
  say("\n");
}

void vfio_ioas(struct context *c) {
  struct iommu_vfio_ioas a = {
      .ioas_id = some_id(c, &c->ioas),
      .op = (uint16_t)(once_in(8) ? below(6) : IOMMU_VFIO_IOAS_SET),
      .__reserved = once_in(60),
  };
  say("VFIO_IOAS ioas=%u op=%u reserved=%u", a.ioas_id, a.op, a.__reserved);
  if (call(c, IOMMU_VFIO_IOAS, &a, sizeof a) == 0) say(" ioas=%u", a.ioas_id);
  say("\n");
}

void add_reserved(struct context *c) {
  struct iommu_test_cmd a = {.id = some_id(c, &c->ioas)};
  a.add_reserved.start = some_iova(c, a.id);
  a.add_reserved.length = once_in(3) ? some_length() : PAGE;
  say("ADD_RESERVED ioas=%u start=%#llx length=%#llx", a.id,
      (unsigned long long)a.add_reserved.start, (unsigned long long)a.add_reserved.length);
  back_door(c, &a, IOMMU_TEST_OP_ADD_RESERVED);
  say("\n");
}

void memory_limit(struct context *c) {
  static const uint32_t limits[] = {0, 11, 12, 4096, 16384, 65536};
  struct iommu_test_cmd a = {.memory_limit.limit = ONE_OF(limits)};
  say("SET_TEMP_MEMORY_LIMIT limit=%u", a.memory_limit.limit);
  back_door(c, &a, IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT);
  say("\n");
}

// Numbers that no kernel up to 7.1 knows.
void unknown_command(struct context *c) {
  struct iommu_test_cmd a = {.id = 1};
  if (once_in(2)) {
    say("BACK_DOOR unknown");
    back_door(c, &a, once_in(2) ? 0 : 0x40 + (uint32_t)below(20));
  } else {
    static const uint32_t numbers[] = {0x3b95, 0x3b9f, 0x3ba1, 0x3bff, 0x3b7f,
                                       0x3a85, 0x4b85, 0x80003b85};
    uint32_t number = ONE_OF(numbers);
    say("COMMAND %#x", number);
    call(c, number, &a, sizeof a);
  }
  say("\n");
}
