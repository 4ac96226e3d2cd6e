// SPDX-License-Identifier: Apache-2.0
//
// What the tests of mapped registers share.

#ifndef REGISTERS_H
#define REGISTERS_H

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "copy_engine.h"
#include "../common/check.h"

// A register that takes any 64 bits and does nothing by itself.
enum { PLAIN = CHANCMP };

struct test {
  const char *name;
  void (*run)(void);
};
extern const struct test access_tests[], signal_tests[], process_tests[], edge_tests[];

extern struct engine engine;
extern struct vfio_region_info bar;
// BAR 0, mapped.
extern volatile uint8_t *map;

static inline volatile uint64_t *wide(uint64_t offset) { return (volatile uint64_t *)(map + offset); }
static inline volatile uint32_t *word(uint64_t offset) { return (volatile uint32_t *)(map + offset); }

#endif
