// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "native_instructions.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// Pages: 0 to 1 code, 2 to 3 state, 4 nothing, 5 data, 6 nothing.
enum { page = 4096, code_at = 0xC00, end_at = 0x1000, state_at = 2 * page, data_at = 5 * page };
enum { pages = 7 };

struct inner {
  struct native_state state;
  uint64_t host_stack;
};

struct native_place {
  uint8_t *base;
  uint8_t *stack;  // Signals are handled here: the instruction's stack may be anywhere.
};

static _Thread_local struct native_place *current;
static _Thread_local int caught;
static _Thread_local uint64_t caught_address;
static struct sigaction previous[65];

// CPUID costs microseconds in a virtual machine.
int native_vector_level(void) {
  static _Atomic int known = -1;
  if (known < 0) known = native_has(native_avx512) ? 2 : native_has(native_avx) ? 1 : 0;
  return known;
}

int native_has(enum native_feature feature) {
  unsigned a, b, c, d, b7 = 0, c7 = 0, c1 = 0, c81 = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) c1 = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) b7 = b, c7 = c;
  if (__get_cpuid(0x80000001, &a, &b, &c, &d)) c81 = c;
  // What the kernel saves of the vector registers.
  unsigned low = 0, high = 0;
  if (c1 & (1u << 27)) __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  int ymm = (low & 6) == 6, zmm = (low & 0xE6) == 0xE6;
  switch (feature) {
    case native_avx: return ymm && (c1 >> 28 & 1);
    case native_avx2: return ymm && (b7 >> 5 & 1);
    // F, BW, VL, DQ.
    case native_avx512: return zmm && (b7 >> 16 & 1) && (b7 >> 30 & 1) && (b7 >> 31) && (b7 >> 17 & 1);
    case native_bmi1: return ymm && (b7 >> 3 & 1);
    case native_bmi2: return ymm && (b7 >> 8 & 1);
    case native_lzcnt: return c81 >> 5 & 1;
    case native_movbe: return c1 >> 22 & 1;
    case native_adx: return b7 >> 19 & 1;
    case native_sse4a: return c81 >> 6 & 1;
    case native_movdiri: return c7 >> 27 & 1;
    case native_movdir64b: return c7 >> 28 & 1;
    case native_enqcmd: return c7 >> 29 & 1;
    case native_popcnt: return c1 >> 23 & 1;
    case native_vbmi: return zmm && (c7 >> 1 & 1);
  }
  return 0;
}

static void handle(int signal, siginfo_t *info, void *context) {
  ucontext_t *thread = context;
  greg_t *rip = &thread->uc_mcontext.gregs[REG_RIP];
  if (current && (uint64_t)*rip - (uint64_t)current->base < 2 * page) {
    caught = signal;
    caught_address = (uint64_t)info->si_addr;
    // A fault is marked so in the flags that it saves.
    thread->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)0x10000;
    *rip = (greg_t)(current->base + end_at);
    return;
  }
  sigaction(signal, &previous[signal], NULL);
}

static void install(void) {
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  for (int i = 0; i < 4; i++) sigaction(signals[i], &action, &previous[signals[i]]);
}

// Emits `length` bytes and a displacement to `target` of the place, counted from behind it.
static uint8_t *emit(
    uint8_t *at, const uint8_t *bytes, int length, const uint8_t *base, uint64_t target) {
  memcpy(at, bytes, length);
  at += length;
  int32_t distance = (int32_t)((int64_t)target - (at + 4 - base));
  memcpy(at, &distance, 4);
  return at + 4;
}

static uint8_t *emit_general(uint8_t *at, uint8_t *base, int is_store) {
  for (int i = 0; i < 16; i++) {
    uint8_t bytes[] = {i < 8 ? 0x48 : 0x4C, is_store ? 0x89 : 0x8B, (i & 7) << 3 | 5};
    at = emit(at, bytes, 3, base, state_at + offsetof(struct inner, state.general[0]) + i * 8);
  }
  return at;
}

static uint8_t *emit_vectors(uint8_t *at, uint8_t *base, int is_store) {
  int level = native_vector_level();
  uint8_t opcode = is_store ? 0x11 : 0x10;
  for (int i = 0; i < (level == 2 ? 32 : 16); i++) {
    uint8_t modrm = (i & 7) << 3 | 5;
    uint64_t target = state_at + offsetof(struct inner, state.vectors[0]) + i * 64;
    if (level == 2) {
      uint8_t p0 = 0xF1 ^ (i & 8 ? 0x80 : 0) ^ (i & 16 ? 0x10 : 0);
      uint8_t bytes[] = {0x62, p0, 0x7C, 0x48, opcode, modrm};
      at = emit(at, bytes, 6, base, target);
    } else if (level == 1) {
      uint8_t bytes[] = {0xC5, i < 8 ? 0xFC : 0x7C, opcode, modrm};
      at = emit(at, bytes, 4, base, target);
    } else {
      uint8_t bytes[] = {i < 8 ? 0x40 : 0x44, 0x0F, opcode, modrm};
      at = emit(at, bytes, 4, base, target);
    }
  }
  for (int i = 0; level == 2 && i < 8; i++) {
    uint8_t bytes[] = {0xC4, 0xE1, 0xF8, is_store ? 0x91 : 0x90, i << 3 | 5};
    at = emit(at, bytes, 5, base, state_at + offsetof(struct inner, state.masks[0]) + i * 8);
  }
  return at;
}

struct native_place *native_place_create(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, install);
  struct native_place *place = calloc(1, sizeof *place);
  if (!place) return NULL;
  place->stack = malloc(65536);
  place->base = mmap(
      NULL, pages * page, PROT_READ | PROT_WRITE | PROT_EXEC,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (!place->stack || place->base == MAP_FAILED) {
    free(place->stack);
    free(place);
    return NULL;
  }
  mprotect(place->base + 4 * page, page, PROT_NONE);
  mprotect(place->base + 6 * page, page, PROT_NONE);
  const uint64_t host_stack = state_at + offsetof(struct inner, host_stack);
  const uint64_t flags = state_at + offsetof(struct inner, state.rflags);

  uint8_t *at = place->base;
  const uint8_t save[] = {0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57};
  memcpy(at, save, sizeof save);
  at = emit(at + sizeof save, (uint8_t[]){0x48, 0x89, 0x25}, 3, place->base, host_stack);
  at = emit_vectors(at, place->base, 0);
  at = emit(at, (uint8_t[]){0xFF, 0x35}, 2, place->base, flags);
  *at++ = 0x9D;
  at = emit_general(at, place->base, 0);
  at = emit(at, (uint8_t[]){0xE9}, 1, place->base, code_at);

  at = place->base + end_at;
  at = emit_general(at, place->base, 1);
  at = emit(at, (uint8_t[]){0x48, 0x8B, 0x25}, 3, place->base, host_stack);
  *at++ = 0x9C;
  at = emit(at, (uint8_t[]){0x8F, 0x05}, 2, place->base, flags);
  *at++ = 0xFC;
  at = emit_vectors(at, place->base, 1);
  if (native_vector_level() > 0) {
    memcpy(at, (uint8_t[]){0xC5, 0xF8, 0x77}, 3);
    at += 3;
  }
  const uint8_t restore[] = {
      0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3};
  memcpy(at, restore, sizeof restore);
  return place;
}

void native_place_destroy(struct native_place *place) {
  munmap(place->base, pages * page);
  free(place->stack);
  free(place);
}

uint64_t native_code_address(const struct native_place *place) {
  return (uint64_t)place->base + code_at;
}

uint64_t native_end_address(const struct native_place *place) {
  return (uint64_t)place->base + end_at;
}

uint8_t *native_data(const struct native_place *place) { return place->base + data_at; }

uint64_t native_fs_base(void) {
  uint64_t base = 0;
  syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
  return base;
}

void native_fill(void *bytes, uint64_t count, uint64_t seed) {
  for (uint64_t at = 0; at + 8 <= count; at += 8) {
    uint64_t z = seed += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    memcpy((char *)bytes + at, &z, 8);
  }
}

int native_difference(const struct native_state *one, const struct native_state *other) {
  for (int i = 0; i < 16; i++)
    if (one->general[i] != other->general[i]) return i;
  for (int i = 0; i < 8; i++)
    if (one->masks[i] != other->masks[i]) return 16 + i;
  for (int i = 0; i < 256; i++)
    if (one->vectors[i] != other->vectors[i]) return 24 + i;
  return -1;
}

int native_run(
    struct native_place *place, const uint8_t *code, int length, struct native_state *state,
    uint64_t *address) {
  uint8_t *at = place->base + code_at;
  memcpy(at, code, length);
  emit(at + length, (uint8_t[]){0xE9}, 1, place->base, end_at);
  struct inner *inner = (struct inner *)(place->base + state_at);
  inner->state = *state;
  stack_t stack = {.ss_sp = place->stack, .ss_size = 65536}, before;
  sigaltstack(&stack, &before);
  if (state->gs_base) syscall(SYS_arch_prctl, ARCH_SET_GS, state->gs_base);
  current = place;
  caught = 0;
  caught_address = 0;
  uint32_t mxcsr;
  __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
  __asm__ volatile("ldmxcsr %0" ::"m"(state->mxcsr) : "memory");
  ((void (*)(void))place->base)();
  __asm__ volatile("stmxcsr %0" : "=m"(inner->state.mxcsr)::"memory");
  __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
  current = NULL;
  if (state->gs_base) syscall(SYS_arch_prctl, ARCH_SET_GS, 0UL);
  sigaltstack(&before, NULL);
  *state = inner->state;
  if (address) *address = caught_address;
  return caught;
}
