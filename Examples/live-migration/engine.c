// SPDX-License-Identifier: Apache-2.0
//
// A guest whose copy engine moves: a ring of 64 copies is begun on one engine and goes on in the
// other. Each copy is done once: those that the old engine did have their source spoilt before the
// new one goes on.

#include "copy_engine.h"
#include "migration.h"

enum { COPIES = 64, LENGTH = 16 << 10, EARLY = 8, LATE = 44, AFTER = 16 };
// The guest's memory: the completion word, the ring, sources, destinations.
enum { RING = PAGE, SOURCES = 16 * PAGE, DESTINATIONS = SOURCES + COPIES * LENGTH };
enum { SIZE = DESTINATIONS + COPIES * LENGTH };

static uint8_t byte(unsigned copy, unsigned round, unsigned at) {
  return (uint8_t)(copy * 37 + round * 101 + at * 7 + at / 256);
}

static void fill(struct host *host, unsigned copy, unsigned round) {
  uint8_t *source = host->memory + SOURCES + copy * LENGTH;
  for (unsigned i = 0; i < LENGTH; i++) source[i] = byte(copy, round, i);
  host_wrote(host, source, LENGTH);
}

static void check(const struct host *host, unsigned copy, unsigned round) {
  const uint8_t *destination = host->memory + DESTINATIONS + copy * LENGTH;
  for (unsigned i = 0; i < LENGTH; i++)
    if (destination[i] != byte(copy, round, i))
      wrong("copy %u differs from byte %u on: lost, or done twice", copy, i);
}

// The last copy that the engine says it has done; -1 for none.
static int last_done(const struct host *host) {
  const uint64_t word = *(const volatile uint64_t *)host->memory;
  return word ? (int)(((word & ~UINT64_C(0x3f)) - GUEST - RING) / sizeof(struct descriptor)) : -1;
}

static void wait_for(const struct host *host, int copy) {
  for (const uint64_t end = milliseconds() + 20000; last_done(host) != copy;) {
    if (milliseconds() > end) wrong("copy %d is not done: %d was the last", copy, last_done(host));
    usleep(100);
  }
}

static void prepare(struct engine *engine, const struct host *host) {
  engine->device = host->device;
  engine->event = -1;
  // Configuration space and interrupts are the VMM's to set up again on the other host.
  if (engine_enable(engine)) fail("the engine's regions");
  if (engine_map(engine) && errno != EOPNOTSUPP) fail("mapping the engine's registers");
  if (engine_arm(engine)) fail("VFIO_DEVICE_SET_IRQS");
}

static uint64_t interrupts(const struct engine *engine) {
  uint64_t count = 0;
  return read(engine->event, &count, sizeof count) == sizeof count ? count : 0;
}

int migrate_engine(int iommu) {
  struct host from = {0}, to = {0};
  if (!hosts_open(&from, &to, is_engine, "two copy engines (PCI 8086:2021)", iommu, SIZE))
    return EXIT_NO_DEVICE;
  struct engine old = {0}, new = {0};
  prepare(&old, &from);
  tell("a ring of %d copies of %d bytes on the engine at %s", COPIES, LENGTH, from.bdf);

  // The guest's driver begins.
  struct descriptor *ring = (struct descriptor *)(from.memory + RING);
  for (unsigned i = 0; i < COPIES; i++) {
    fill(&from, i, 1);
    ring[i] = (struct descriptor){
        .size = LENGTH,
        .control = CONTROL_COMPLETION | (i == COPIES - 1 ? CONTROL_INTERRUPT : 0),
        .source = GUEST + SOURCES + i * LENGTH,
        .destination = GUEST + DESTINATIONS + i * LENGTH,
        .next = GUEST + RING + (i + 1) % COPIES * sizeof *ring};
  }
  host_wrote(&from, ring, COPIES * sizeof *ring);
  if (!engine_reset(&old)) errno = ETIMEDOUT, fail("resetting the engine");
  engine_start(&old, GUEST + RING, GUEST, EARLY);
  wait_for(&from, EARLY - 1);
  tell("%d are done", EARLY);

  // The guest runs while it moves.
  struct move move;
  move_begin(&move, &from, &to);
  for (unsigned round = 2; round <= 3; round++) {
    engine_write(&old, DMACOUNT, round * EARLY, 2);
    wait_for(&from, (int)(round * EARLY) - 1);
    move_round(&move);
  }
  // And is stopped with work in the engine's hands; some more is rung for as it falls silent.
  engine_write(&old, DMACOUNT, LATE, 2);
  move_quiet(&move);
  engine_write(&old, DMACOUNT, COPIES, 2);
  move_stop(&move);
  const int done = last_done(&to) + 1;
  tell("%d of %d copies were done on the old engine", done, COPIES);
  for (int i = 0; i < done; i++) memset(to.memory + SOURCES + i * LENGTH, 0xee, LENGTH);
  if (last_done(&from) + 1 != done) wrong("the last page of the guest's memory was not copied");

  prepare(&new, &to);
  move_resume(&move);
  wait_for(&to, COPIES - 1);
  for (unsigned i = 0; i < COPIES; i++) check(&to, i, 1);
  // One interrupt was asked for, by the last copy. It came on the host where that was done.
  uint64_t count = interrupts(&old);
  if (!count) count = engine_wait(&new, 20000);
  count += interrupts(&new);
  if (count != 1) wrong("%llu interrupts came, not one", (unsigned long long)count);
  tell("the other %d were done on the new one; all bytes are right, one interrupt came",
       COPIES - done);

  // The driver goes on where it was: the same ring, the same count.
  for (unsigned i = 0; i < AFTER; i++) fill(&to, i, 2);
  engine_write(&new, DMACOUNT, COPIES + AFTER, 2);
  wait_for(&to, AFTER - 1);
  for (unsigned i = 0; i < COPIES; i++) check(&to, i, i < AFTER ? 2 : 1);
  tell("%d more copies, the ring's first ones again: right", AFTER);
  close(old.event);
  close(new.event);
  host_close(&from);
  host_close(&to);
  return EXIT_OK;
}
