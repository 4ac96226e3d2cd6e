// SPDX-License-Identifier: Apache-2.0
//
// The memory that the calls map and use: plain, shared under two addresses, read-only,
// forbidden and absent, all at fixed addresses, so that choices of IOVA can be compared.

#define _GNU_SOURCE

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sequence.h"

enum {
  PLAIN = 0,                // private, anonymous
  SHARED = 0x100000,        // a file
  ALIAS = 0x180000,         // the same file
  READ_ONLY = 0x200000,     // private, anonymous
  FORBIDDEN = 0x240000,     // nothing allowed
  ABSENT = 0x280000,        // nothing there
};
#define SCRATCH (MEMORY + 0x1000000)
enum { SCRATCH_SIZE = 0x8000 };

static void *map_at(uint64_t offset, size_t size, int protection, int flags, int fd) {
  void *at = (void *)(uintptr_t)(MEMORY + offset);
  if (mmap(at, size, protection, flags | MAP_FIXED, fd, 0) != at) {
    perror("mmap");
    exit(125);
  }
  return at;
}

static int file = -1;

/// The second view of the file: page by page as the first.
static void map_alias(void) {
  map_at(ALIAS, READ_ONLY - ALIAS, PROT_READ | PROT_WRITE, MAP_SHARED, file);
}

static void fill(uint64_t offset, size_t size) {
  uint64_t *words = (uint64_t *)(uintptr_t)(MEMORY + offset);
  for (size_t i = 0; i < size / 8; i++) words[i] = (offset + i * 8) * 0x9e3779b97f4a7c15ull;
}

bool memory_moves;

void fill_memory(void) {
  map_alias();
  memory_moves = once_in(3);
  fill(PLAIN, SHARED - PLAIN);
  fill(SHARED, ALIAS - SHARED);
}

void make_memory(void) {
  const int own = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
  file = memfd_create("shared", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, ALIAS - SHARED) != 0) {
    perror("memfd");
    exit(125);
  }
  map_at(PLAIN, SHARED - PLAIN, both, own, -1);
  map_at(SHARED, ALIAS - SHARED, both, MAP_SHARED, file);
  void *read_only = map_at(READ_ONLY, FORBIDDEN - READ_ONLY, both, own, -1);
  fill(READ_ONLY, FORBIDDEN - READ_ONLY);
  mprotect(read_only, FORBIDDEN - READ_ONLY, PROT_READ);
  map_at(FORBIDDEN, ABSENT - FORBIDDEN, PROT_NONE, own, -1);
  map_at(SCRATCH - MEMORY, SCRATCH_SIZE, both, own, -1);
  fill_memory();
}

// What is mapped and pinned stays what it is; what is only mapped is looked up when it is used.
void remap(struct context *c) {
  if (!memory_moves) {
    ioas_map(c);
    return;
  }
  uint64_t at = MEMORY + ALIAS + below(48) * PAGE, size = (1 + below(6)) * PAGE;
  off_t offset = (off_t)(below(48) * PAGE);
  say("mmap va=%#llx length=%#llx offset=%#llx", (unsigned long long)at,
      (unsigned long long)size, (unsigned long long)offset);
  void *got = mmap((void *)(uintptr_t)at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                   file, offset);
  say(" -> %s\n", got == MAP_FAILED ? error_name(errno) : "OK");
}

uint64_t some_address(void) {
  static const uint64_t regions[] = {PLAIN,  PLAIN,  PLAIN,     PLAIN,    PLAIN, PLAIN,
                                     SHARED, SHARED, SHARED, ALIAS, READ_ONLY};
  uint64_t at = MEMORY + ONE_OF(regions) + below(48) * PAGE;
  if (once_in(6)) at += HALF;
  if (once_in(40)) at += below(PAGE);
  if (once_in(50)) at = MEMORY + FORBIDDEN - 2 * PAGE + below(8) * PAGE;
  if (once_in(60)) at = MEMORY + ABSENT - PAGE + below(4) * PAGE;
  if (once_in(150)) {
    static const uint64_t odd[] = {0, PAGE, 0x7ffffffff000, 0xffff800000000000,
                                   UINT64_MAX - PAGE + 1, UINT64_MAX};
    at = ONE_OF(odd);
  }
  return at;
}

uint64_t some_length(void) {
  if (once_in(60)) {
    static const uint64_t odd[] = {0, 1, PAGE + 1, UINT64_MAX, UINT64_MAX - 1,
                                   UINT64_MAX - PAGE + 1, 1ull << 63, 1ull << 32};
    return ONE_OF(odd);
  }
  if (once_in(5)) return (1 + below(12)) * HALF;
  if (once_in(12)) return (1 + below(64)) * PAGE;
  return (1 + below(8)) * PAGE;
}

uint64_t some_iova(struct context *c, uint32_t ioas) {
  const struct area *area = some_area(c, ioas);
  if (area && once_in(2)) {
    switch (below(6)) {
    case 0: return area->iova + area->length;
    case 1: return area->iova + below(area->length / HALF + 1) * HALF;
    case 2: return area->iova - PAGE;
    default: return area->iova;
    }
  }
  uint64_t iova = MOCK_APERTURE_START + below(96) * PAGE;
  if (once_in(6)) iova += HALF;
  if (once_in(30)) iova = MOCK_APERTURE_LAST + 1 - below(6) * PAGE;
  if (once_in(30)) iova = below(8) * PAGE;
  if (once_in(80)) iova += below(PAGE);
  if (once_in(100)) {
    static const uint64_t odd[] = {UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - PAGE + 1,
                                   1ull << 63, MOCK_APERTURE_START - PAGE, 1ull << 47};
    iova = ONE_OF(odd);
  }
  return iova;
}

void *scratch(size_t size) {
  void *at = (void *)(uintptr_t)SCRATCH;
  memset(at, 0, size < SCRATCH_SIZE ? size : SCRATCH_SIZE);
  return at;
}

uint64_t scratch_address(void) {
  if (once_in(60)) return 0;
  if (once_in(60)) return MEMORY + ABSENT;
  if (once_in(60)) return MEMORY + READ_ONLY;
  return SCRATCH;
}

// FNV-1a.
uint64_t hash(const void *bytes, size_t size) {
  uint64_t sum = 0xcbf29ce484222325ull;
  for (size_t i = 0; i < size; i++) sum = (sum ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ull;
  return sum;
}
