// SPDX-License-Identifier: Apache-2.0
//
// Reads from an NVMe controller by a program that polls, as drivers in user space do. Nothing traps:
// doorbells are stores to a shared page, completions are loads from memory.

#define _GNU_SOURCE
#include "probe.h"

#include "nvme.h"

enum { DEPTH = 32, PIECE = 4096, READS = 1024 };
enum { DATA = NVME_QUEUE_BYTES, MEMORY = DATA + DEPTH * PIECE };

static uint64_t iova, blocks;

static void submit_read(struct nvme *nvme, unsigned slot, unsigned count) {
  static uint64_t random = 0x9e3779b97f4a7c15;
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  const uint64_t block = random % (blocks / 8) * 8;
  const struct nvme_command command = {
      .opcode = 2, .id = (uint16_t)slot, .namespace = 1,
      .prp1 = iova + DATA + (uint64_t)slot * PIECE,
      .dwords = {(uint32_t)block, (uint32_t)(block >> 32), count - 1}};
  nvme_put(&nvme->io, &command);
}

static unsigned take(struct nvme *nvme) {
  struct nvme_completion completion;
  while (!nvme_poll(&nvme->io, &completion)) __builtin_ia32_pause();
  if (completion.status >> 1) errno = EIO, fail("a read");
  return completion.id;
}

// From the doorbell's store to the completion of the shortest read.
static uint64_t one(struct nvme *nvme) {
  submit_read(nvme, 0, 1);
  const uint64_t start = nanoseconds();
  nvme_submit(nvme, &nvme->io);
  take(nvme);
  const uint64_t end = nanoseconds();
  nvme_release(nvme, &nvme->io);
  return end - start;
}

// Of a read of 4 KiB, among 32 that are under way.
static uint64_t many(struct nvme *nvme) {
  const uint64_t start = nanoseconds();
  for (unsigned slot = 0; slot < DEPTH; slot++) submit_read(nvme, slot, 8);
  nvme_submit(nvme, &nvme->io);
  for (unsigned done = 0; done < READS; done++) {
    const unsigned slot = take(nvme);
    if (done < READS - DEPTH) submit_read(nvme, slot, 8);
    if (done % (DEPTH / 4)) continue;
    nvme_release(nvme, &nvme->io);
    nvme_submit(nvme, &nvme->io);
  }
  nvme_release(nvme, &nvme->io);
  return (nanoseconds() - start) / READS;
}

void measure_nvme(size_t count, int is_shared) {
  struct nvme nvme = {0};
  if (!nvme_find(&nvme, NULL)) errno = ENODEV, fail("no NVMe controller");
  const char *failed = nvme_open(&nvme);
  if (failed) fail(failed);
  uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                         MAP_ANONYMOUS | MAP_POPULATE | (is_shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
  if (memory == MAP_FAILED || !nvme_map(&nvme, memory, MEMORY, &iova)) fail("memory");
  if ((failed = nvme_start(&nvme, memory, iova))) fail(failed);
  const struct nvme_command commands[] = {
      {.opcode = 6, .namespace = 1, .prp1 = iova + DATA},  // identify the namespace
      nvme_make_completions(iova), nvme_make_submissions(iova)};
  for (int i = 0; i < 3; i++)
    if (nvme_run(&nvme, &nvme.admin, &commands[i])) errno = EIO, fail("making queues");
  // Blocks of 512 bytes.
  memcpy(&blocks, memory + DATA, sizeof blocks);

  uint64_t *samples = calloc(count, sizeof *samples);
  for (size_t i = 0; i < count; i++) samples[i] = one(&nvme);
  print_median(is_shared ? "doorbell shared" : "doorbell private", samples, count);
  for (size_t i = 0; i < count / 16 + 1; i++) samples[i] = many(&nvme);
  print_median(is_shared ? "NVMe read shared" : "NVMe read private", samples, count / 16 + 1);
}
