// SPDX-License-Identifier: Apache-2.0
//
// A guest whose NVMe controller moves: 48 writes are begun on one controller and end on the other.
// Both have the same namespace (NVM Express 1.4, 6.1.1 NMIC: shared), for blocks are not in a
// controller's state. Each command is answered once; what the old controller wrote has its data
// spoilt in memory before the new one goes on.

#define _GNU_SOURCE
#include "migration.h"
#include "nvme.h"

enum { WRITES = 48, HALF = 24, EARLY = 8 };
// The guest's memory: the queues, then one page of data for each command.
enum { ADMIN_SQ = 0, ADMIN_CQ = PAGE, IO_SQ = 2 * PAGE, IO_CQ = 3 * PAGE, DATA = 4 * PAGE };
enum { SIZE = DATA + QUEUE_ENTRIES * PAGE };
enum { IDENTIFY = 6, CREATE_CQ = 5, CREATE_SQ = 1, WRITE = 1, READ = 2 };

static unsigned blocks_of_page;

static uint8_t byte(unsigned place, unsigned round, unsigned at) {
  return (uint8_t)(place * 41 + round * 89 + at * 5 + at / 256);
}

static uint8_t *data(const struct host *host, unsigned slot) {
  return host->memory + DATA + slot * PAGE;
}

// One page of the namespace, to or from the page of memory that is `slot`'s.
static struct nvme_command transfer(uint8_t opcode, unsigned place, unsigned slot) {
  return (struct nvme_command){.opcode = opcode, .id = (uint16_t)slot, .namespace = 1,
                               .prp1 = GUEST + DATA + slot * PAGE,
                               .dwords = {place * blocks_of_page, 0, blocks_of_page - 1}};
}

// Puts commands into the I/O queue, those of slots `first` up to `end`, and rings.
static void begin(struct nvme *nvme, struct host *host, uint8_t opcode, unsigned first,
                  unsigned end, unsigned round) {
  for (unsigned slot = first; slot < end; slot++) {
    if (opcode == WRITE)
      for (unsigned i = 0; i < PAGE; i++) data(host, slot)[i] = byte(slot, round, i);
    else
      memset(data(host, slot), 0, PAGE);
    const struct nvme_command command = transfer(opcode, slot, slot);
    nvme_put(&nvme->io, &command);
  }
  host_wrote(host, data(host, first), (end - first) * PAGE);
  host_wrote(host, nvme->io.commands, PAGE);
  nvme_submit(nvme, &nvme->io);
}

// Takes the answers that are there. Returns how many.
static unsigned take(struct nvme *nvme, unsigned answered[QUEUE_ENTRIES]) {
  struct nvme_completion completion;
  unsigned count = 0;
  while (nvme_poll(&nvme->io, &completion)) {
    if (completion.status >> 1) wrong("a command ended with status 0x%x", completion.status >> 1);
    if (completion.id >= QUEUE_ENTRIES || answered[completion.id]++)
      wrong("command %u was answered twice", completion.id);
    count++;
  }
  return count;
}

static void wait_for(struct nvme *nvme, unsigned answered[QUEUE_ENTRIES], unsigned count) {
  for (const time_t end = time(NULL) + 20; count;) {
    count -= take(nvme, answered);
    if (count && time(NULL) > end) wrong("%u commands have no answer", count);
    if (count) sched_yield();
  }
  nvme_release(nvme, &nvme->io);
}

static void all(struct nvme *nvme, struct host *host, uint8_t opcode, unsigned count,
                unsigned round) {
  unsigned answered[QUEUE_ENTRIES] = {0};
  begin(nvme, host, opcode, 0, count, round);
  wait_for(nvme, answered, count);
}

static void admin(struct nvme *nvme, struct nvme_command command, const char *what) {
  const unsigned status = nvme_run(nvme, &nvme->admin, &command);
  if (status) wrong("%s: status 0x%x", what, status);
}

static void prepare(struct nvme *nvme, const struct host *host) {
  nvme->device = host->device;
  const char *failed = nvme_enable(nvme);
  if (failed) fail(failed);
  nvme->stride = 4ull << (nvme_read64(nvme, NVME_CAP) >> 32 & 0xf);
  nvme->admin.commands = (void *)(host->memory + ADMIN_SQ);
  nvme->admin.completions = (void *)(host->memory + ADMIN_CQ);
  nvme->io.commands = (void *)(host->memory + IO_SQ);
  nvme->io.completions = (void *)(host->memory + IO_CQ);
}

static void start(struct nvme *nvme, struct host *host) {
  nvme->admin.phase = nvme->io.phase = nvme->io.number = 1;
  nvme_write32(nvme, NVME_CC, 0);
  if (!nvme_wait(nvme, CSTS_READY, 0)) errno = ETIMEDOUT, fail("disabling the controller");
  nvme_write32(nvme, NVME_AQA, (QUEUE_ENTRIES - 1) | (QUEUE_ENTRIES - 1) << 16);
  nvme_write64(nvme, NVME_ASQ, GUEST + ADMIN_SQ);
  nvme_write64(nvme, NVME_ACQ, GUEST + ADMIN_CQ);
  nvme_write32(nvme, NVME_CC, 6u << 16 | 4u << 20 | 1);
  if (!nvme_wait(nvme, CSTS_READY, CSTS_READY)) errno = ETIMEDOUT, fail("enabling the controller");

  admin(nvme, (struct nvme_command){.opcode = IDENTIFY, .namespace = 1, .prp1 = GUEST + DATA},
        "identify the namespace");
  const uint8_t *answer = data(host, 0);
  uint64_t blocks;
  memcpy(&blocks, answer, sizeof blocks);
  blocks_of_page = PAGE >> answer[128 + 4 * (answer[26] & 0xf) + 2];
  if (blocks < WRITES * blocks_of_page) wrong("the namespace of %s is too small", host->bdf);
  if (!(answer[30] & 1))
    wrong("the namespace of %s is its own: the new controller would not have its blocks (shared: "
          "true in the machine file)", host->bdf);
  admin(nvme,
        (struct nvme_command){.opcode = CREATE_CQ, .prp1 = GUEST + IO_CQ,
                              .dwords = {1 | (QUEUE_ENTRIES - 1) << 16, 1}}, "a completion queue");
  admin(nvme,
        (struct nvme_command){.opcode = CREATE_SQ, .prp1 = GUEST + IO_SQ,
                              .dwords = {1 | (QUEUE_ENTRIES - 1) << 16, 1 | 1 << 16}},
        "a submission queue");
}

static void check(const struct host *host, unsigned count, unsigned round) {
  for (unsigned slot = 0; slot < count; slot++)
    for (unsigned i = 0; i < PAGE; i++)
      if (data(host, slot)[i] != byte(slot, round, i))
        wrong("page %u of the namespace differs from byte %u on: lost, or written twice", slot, i);
}

int migrate_nvme(int iommu) {
  struct host from = {0}, to = {0};
  if (!hosts_open(&from, &to, is_nvme, "two NVMe controllers (PCI class 010802)", iommu, SIZE))
    return EXIT_NO_DEVICE;
  struct nvme nvme = {0};
  prepare(&nvme, &from);
  start(&nvme, &from);
  all(&nvme, &from, WRITE, EARLY, 1);
  tell("%d writes of a page on the NVMe controller at %s", EARLY, from.bdf);

  struct move move;
  move_begin(&move, &from, &to);
  // The guest reads while it moves: the controller's DMA writes its memory.
  for (unsigned round = 0; round < 2; round++) {
    all(&nvme, &from, READ, EARLY, 1);
    check(&from, EARLY, 1);
    move_round(&move);
  }
  begin(&nvme, &from, WRITE, 0, HALF, 2);
  move_quiet(&move);
  begin(&nvme, &from, WRITE, HALF, WRITES, 2);
  move_stop(&move);

  // The driver's own notes move with the guest's memory: the queues' heads, tails and phases.
  struct nvme moved = {.admin = nvme.admin, .io = nvme.io};
  prepare(&moved, &to);
  unsigned answered[QUEUE_ENTRIES] = {0};
  const unsigned done = take(&moved, answered);
  for (unsigned slot = 0; slot < QUEUE_ENTRIES; slot++)
    if (answered[slot]) memset(data(&to, slot), 0xee, PAGE);
  tell("%u of %d writes were answered by the old controller", done, WRITES);

  move_resume(&move);
  wait_for(&moved, answered, WRITES - done);
  tell("the other %u were answered by the new one, each once", WRITES - done);
  all(&moved, &to, READ, WRITES, 2);
  check(&to, WRITES, 2);
  tell("read back there: all %d pages are right", WRITES);

  nvme_write32(&moved, NVME_CC, 6u << 16 | 4u << 20 | 1u << 14 | 1);
  if (!nvme_wait(&moved, CSTS_SHUTDOWN, CSTS_SHUTDOWN_DONE)) errno = ETIMEDOUT, fail("shutdown");
  host_close(&from);
  host_close(&to);
  return EXIT_OK;
}
