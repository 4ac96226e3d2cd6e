// SPDX-License-Identifier: Apache-2.0
//
// What the processes of the stress test share: places in address spaces, what must be there,
// what was done, and the first thing that was not as it must be.

#ifndef STRESS_H
#define STRESS_H

#include <stdatomic.h>
#include <sys/types.h>

#include "copy_engine.h"

enum { SPACES = 2, MOST_MAPPERS = 16, PLACES = 4, MOST_PAGES = 8, WORDS = 32, STAMPS = 8 };
enum { PAGE = 4096, MOST_ENGINES = 3, MOST_THREADS = 8 };

// Where things are in every address space.
#define PLACE_IOVA UINT64_C(0x10000000)
#define DRIVER_IOVA UINT64_C(0x40000000)
#define OTHER_IOVA UINT64_C(0x80000000)

// Words of a page. A stamp is written before a map; poison after an unmap has returned: no DMA
// may see or change that.
#define POISON UINT64_C(0xdeaddeaddeaddead)
#define STAMP_TAG UINT64_C(0x5a)
#define ENGINE_TAG UINT64_C(0x1a)

static inline uint64_t stamp(uint64_t slot, uint64_t generation) {
  return STAMP_TAG << 56 | slot << 40 | (generation & 0xffffffffff);
}

enum operation {
  MAP, UNMAP, COPY, SPACE, TABLE, ATTACH, REPLACE, DETACH, REFUSED, ENGINE_READ, ENGINE_WRITE,
  ENGINE_FAULT, DEATH, OPERATIONS
};

// A place in one space, mapped and unmapped by one thread of one process.
struct slot {
  _Atomic uint64_t begun;  // the latest mapping that was begun
  _Atomic uint64_t ended;  // the latest that has been unmapped
};

struct shared {
  _Atomic int stop;
  _Atomic int failed;
  char sentence[512];
  uint64_t seed;
  uint32_t spaces[SPACES];
  uint32_t tables[SPACES];
  int mappers;
  struct slot slots[SPACES][MOST_MAPPERS][PLACES];
  // By engine: what it is attached to; even while it stands still. The low byte is the space
  // plus 1, 0 for nothing.
  _Atomic uint64_t phase[MOST_ENGINES];
  _Atomic uint64_t counts[OPERATIONS];
};

extern struct shared *shared;
extern int iommu;

void broken(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline int stopping(void) { return atomic_load(&shared->stop); }
static inline void count(enum operation operation) {
  atomic_fetch_add_explicit(&shared->counts[operation], 1, memory_order_relaxed);
}

// Numbers that a seed repeats.
static inline uint64_t next(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}
static inline uint64_t below(uint64_t *state, uint64_t bound) { return next(state) % bound; }

static inline uint64_t place_iova(int mapper, int place) {
  return PLACE_IOVA + (uint64_t)(mapper * PLACES + place) * MOST_PAGES * PAGE;
}
static inline int place_pages(int place) { return 1 + place * 2; }

static inline int map_memory(uint32_t space, const void *memory, uint64_t length, uint64_t iova) {
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
                                        IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = space,
                               .user_va = (uintptr_t)memory,
                               .length = length,
                               .iova = iova};
  return ioctl(iommu, IOMMU_IOAS_MAP, &map);
}

static inline int unmap_range(uint32_t space, uint64_t iova, uint64_t *length) {
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = space, .iova = iova, .length = *length};
  const int result = ioctl(iommu, IOMMU_IOAS_UNMAP, &unmap);
  *length = unmap.length;
  return result;
}

static inline int destroy(uint32_t id) {
  struct iommu_destroy destroy = {.size = sizeof destroy, .id = id};
  return ioctl(iommu, IOMMU_DESTROY, &destroy);
}

uint32_t make_table(uint32_t device, uint32_t space);

// The process that maps and unmaps; the one that drives the engines. Neither returns.
void mapper_process(int number, int threads) __attribute__((noreturn));
void driver_process(struct engine *engines, int count, int seconds) __attribute__((noreturn));

#endif
