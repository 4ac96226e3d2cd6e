// SPDX-License-Identifier: Apache-2.0
//
// Runs one instruction on this processor, with every register that it may touch given before and
// told after: the judge of X86Instructions' tests.

#pragma once

#include <stdint.h>

/// What runs before and after the instruction.
struct native_state {
  uint64_t general[16];  // In encoding order.
  uint64_t rflags;
  uint64_t masks[8];           // AVX-512: k0 to k7.
  uint64_t vectors[32 * 8];    // 8 words each; those above what the processor has are left alone.
  uint64_t gs_base;
  uint32_t mxcsr;
};

/// What this processor has: 0 SSE, 1 AVX, 2 AVX-512.
int native_vector_level(void);

/// Instruction sets that tests ask about, by CPUID.
enum native_feature {
  native_avx, native_avx2, native_avx512, native_bmi1, native_bmi2, native_lzcnt, native_movbe,
  native_adx, native_sse4a, native_movdiri, native_movdir64b, native_enqcmd, native_popcnt,
  native_vbmi,
};
int native_has(enum native_feature feature);

/// A place to run instructions in, below 2 GiB. One thread at a time. NULL: no memory.
struct native_place;
struct native_place *native_place_create(void);
void native_place_destroy(struct native_place *place);

/// Address of the instruction, and of what runs after it.
uint64_t native_code_address(const struct native_place *place);
uint64_t native_end_address(const struct native_place *place);
/// 4 KiB of memory for it, with pages that refuse all access around.
uint8_t *native_data(const struct native_place *place);
/// The thread's fs base, which no test may change.
uint64_t native_fs_base(void);

/// Random bytes, the same for the same seed: quick where tests are built for debugging.
void native_fill(void *bytes, uint64_t count, uint64_t seed);

/// The first difference but for flags: 0 to 15, a general register; from 16 on masks, from 24 on
/// words of vectors; -1, none.
int native_difference(const struct native_state *one, const struct native_state *other);

/// Runs `length` bytes of code, at most 15.
/// - Returns: 0, or the signal that the instruction was stopped with; *address is its address.
int native_run(
    struct native_place *place, const uint8_t *code, int length, struct native_state *state,
    uint64_t *address);
