// SPDX-License-Identifier: Apache-2.0
//
// Accessors: what a software device uses to pin, read and write an address space.

#include <errno.h>
#include <unistd.h>

#include "sequence.h"

enum { ACCESSORS = 6 };

static struct accessor *some_accessor(struct context *c) {
  int open = 0;
  for (int i = 0; i < ACCESSORS; i++) open += c->accessor[i].fd >= 0;
  if (open == 0) return NULL;
  uint64_t which = below((uint64_t)open);
  for (int i = 0; i < ACCESSORS; i++)
    if (c->accessor[i].fd >= 0 && which-- == 0) return &c->accessor[i];
  return NULL;
}

/// The descriptor to use, and how it is printed: descriptors have other numbers in each lane.
static uint32_t descriptor(struct context *c, const struct accessor *a) {
  if (a == NULL || once_in(60)) {
    static const uint32_t odd[] = {0xffffffff, 100000, 0};
    uint32_t fd = ONE_OF(odd);
    say(" accessor=fd%d", (int)fd);
    return fd;
  }
  if (once_in(100)) {
    say(" accessor=context");
    return (uint32_t)c->fd;
  }
  say(" accessor=#%d", (int)(a - c->accessor));
  return (uint32_t)a->fd;
}

void create_access(struct context *c) {
  struct accessor *free_one = NULL;
  for (int i = 0; i < ACCESSORS; i++)
    if (c->accessor[i].fd < 0) free_one = &c->accessor[i];
  if (free_one == NULL) {
    close_access(c);
    return;
  }
  struct iommu_test_cmd a = {.id = some_id(c, &c->ioas)};
  a.create_access.flags = once_in(40) ? 2 : once_in(4) ? 0 : 1;
  say("CREATE_ACCESS ioas=%u flags=%u", a.id, a.create_access.flags);
  if (back_door(c, &a, IOMMU_TEST_OP_CREATE_ACCESS) == 0) {
    *free_one = (struct accessor){.fd = (int)a.create_access.out_access_fd,
                                  .ioas = a.id,
                                  .pins = a.create_access.flags & 1};
    say(" accessor=#%d", (int)(free_one - c->accessor));
    c->last_id++;
  }
  say("\n");
}

/// A range in the accessor's address space, and where its memory lies.
static void range(struct context *c, const struct accessor *a, uint64_t *iova,
                  uint64_t *length, uint64_t *address) {
  uint32_t ioas = a ? a->ioas : 0;
  const struct area *area = some_area(c, ioas);
  *iova = some_iova(c, ioas);
  *length = some_length();
  *address = once_in(2) ? 0 : some_address();
  if (area == NULL || once_in(8)) return;
  uint64_t skip = once_in(2) ? 0 : below(area->length / HALF + 1) * HALF;
  *iova = area->iova + skip;
  *address = area->address + skip;
  if (once_in(2)) *length = area->length - skip;
}

void access_pages(struct context *c) {
  struct accessor *accessor = some_accessor(c);
  if (accessor == NULL && !once_in(10)) return create_access(c);
  struct iommu_test_cmd a = {0};
  a.access_pages.flags = once_in(60) ? 2 : (uint32_t)below(2);
  range(c, accessor, &a.access_pages.iova, &a.access_pages.length, &a.access_pages.uptr);
  if (once_in(3)) a.access_pages.uptr = 0;
  // Beyond this the kernel's arithmetic overflows and it warns about itself.
  if (a.access_pages.iova > UINT64_MAX / 2) a.access_pages.iova = 0;
  say("ACCESS_PAGES");
  a.id = descriptor(c, accessor);
  say(" flags=%u iova=%#llx length=%#llx va=%#llx", a.access_pages.flags,
      (unsigned long long)a.access_pages.iova, (unsigned long long)a.access_pages.length,
      (unsigned long long)a.access_pages.uptr);
  if (back_door(c, &a, IOMMU_TEST_OP_ACCESS_PAGES) == 0) {
    say(" item=%u", a.access_pages.out_access_pages_id);
    if (accessor && accessor->items < 8)
      accessor->item[accessor->items++] = a.access_pages.out_access_pages_id;
  }
  say("\n");
}

void unpin_pages(struct context *c) {
  struct accessor *accessor = some_accessor(c);
  if (accessor == NULL && !once_in(10)) return create_access(c);
  struct iommu_test_cmd a = {0};
  int which = accessor && accessor->items ? (int)below((uint64_t)accessor->items) : -1;
  a.destroy_access_pages.access_pages_id =
      which < 0 || once_in(10) ? (uint32_t)below(6) : accessor->item[which];
  say("DESTROY_ACCESS_PAGES");
  a.id = descriptor(c, accessor);
  say(" item=%u", a.destroy_access_pages.access_pages_id);
  back_door(c, &a, IOMMU_TEST_OP_DESTROY_ACCESS_PAGES);
  if (which >= 0) accessor->item[which] = accessor->item[--accessor->items];
  say("\n");
}

void access_rw(struct context *c) {
  uint8_t *data = scratch(16384);
  struct accessor *accessor = some_accessor(c);
  if (accessor == NULL && !once_in(10)) return create_access(c);
  struct iommu_test_cmd a = {0};
  uint64_t address;
  a.access_rw.flags = (once_in(2) ? MOCK_ACCESS_RW_WRITE : 0) |
                      (once_in(4) ? MOCK_ACCESS_RW_SLOW_PATH : 0) | (once_in(60) ? 2 : 0);
  // The fast path copies from where the memory was, not from what is pinned.
  if (memory_moves) a.access_rw.flags |= MOCK_ACCESS_RW_SLOW_PATH;
  range(c, accessor, &a.access_rw.iova, &a.access_rw.length, &address);
  if (once_in(2)) {
    a.access_rw.iova += below(PAGE);
    a.access_rw.length = 1 + below(3 * PAGE);
  }
  if (a.access_rw.length > 16384 && a.access_rw.length < 1u << 24) a.access_rw.length = 16384;
  a.access_rw.uptr = scratch_address();
  bool writes = a.access_rw.flags & MOCK_ACCESS_RW_WRITE;
  uint8_t value = (uint8_t)random_bits();
  if (writes)
    for (int i = 0; i < 16384; i++) data[i] = (uint8_t)(value + i);
  say("ACCESS_RW");
  a.id = descriptor(c, accessor);
  say(" flags=%u iova=%#llx length=%#llx at=%#llx", a.access_rw.flags,
      (unsigned long long)a.access_rw.iova, (unsigned long long)a.access_rw.length,
      (unsigned long long)a.access_rw.uptr);
  back_door(c, &a, IOMMU_TEST_OP_ACCESS_RW);
  say(" data=%llx\n", (unsigned long long)hash(data, 16384));
}

void access_replace(struct context *c) {
  struct accessor *accessor = some_accessor(c);
  if (accessor == NULL && !once_in(10)) return create_access(c);
  struct iommu_test_cmd a = {0};
  a.access_replace_ioas.ioas_id = some_id(c, &c->ioas);
  say("ACCESS_REPLACE_IOAS");
  a.id = descriptor(c, accessor);
  say(" ioas=%u", a.access_replace_ioas.ioas_id);
  if (back_door(c, &a, IOMMU_TEST_OP_ACCESS_REPLACE_IOAS) == 0 && accessor) {
    if (accessor->ioas != a.access_replace_ioas.ioas_id) accessor->items = 0;
    accessor->ioas = a.access_replace_ioas.ioas_id;
  }
  say("\n");
}

void close_access(struct context *c) {
  struct accessor *accessor = some_accessor(c);
  if (accessor == NULL) {
    create_access(c);
    return;
  }
  say("CLOSE accessor=#%d -> %s\n", (int)(accessor - c->accessor),
      error_name(close(accessor->fd) ? errno : 0));
  accessor->fd = -1;
}
