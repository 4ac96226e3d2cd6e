// SPDX-License-Identifier: Apache-2.0
//
// The step `hostile-nvme`: garbage in the registers and queues of an NVMe controller. It ends in a
// fatal status or with errors, takes a driver again afterwards, and the blocks are as before:
// commands that may change them are left out, or name blocks that are not there.

#include "guest.h"
#include "hostile.h"

#include <string.h>
#include <unistd.h>

enum { CONFIGURATION = 0x14, STATUS = 0x1C, ADMIN_SIZES = 0x24, ADMIN_QUEUE = 0x28,
       ADMIN_COMPLETIONS = 0x30, DOORBELLS = 0x1000 };
enum { READY = 1, FATAL = 2, ENABLE = 1, ENTRY_SIZES = 0x460000 };
enum { SUBMISSIONS = 0, COMPLETIONS = 1, OWN_SUBMISSIONS = 2, OWN_COMPLETIONS = 3, DATA = 4 };

typedef struct {
  uint32_t opcode, space;
  uint64_t reserved, metadata, first, second;
  uint32_t word[6];
} command;

static int wait_status(uint32_t mask, uint32_t value, double seconds) {
  for (double end = now() + seconds; (read32(STATUS) & mask) != value;)
    if (now() > end) return 0;
  return 1;
}

/// A disabled controller is always not ready in the end.
static int disable(void) {
  write32(CONFIGURATION, 0);
  return wait_status(READY | FATAL, 0, 10);
}

static int enable(uint64_t submissions, uint64_t completions, uint32_t sizes) {
  write32(ADMIN_SIZES, sizes);
  write64(ADMIN_QUEUE, submissions);
  write64(ADMIN_COMPLETIONS, completions);
  write32(CONFIGURATION, ENABLE | ENTRY_SIZES);
  return wait_status(READY, READY, 5);
}

static int enable_well(void) {
  memset(it.memory, 0, pages * page_size);
  return disable() && enable(it.physical[SUBMISSIONS], it.physical[COMPLETIONS], 63 << 16 | 63);
}

static command *entry(int page, int index) {
  return (command *)(void *)(it.memory + page * page_size) + index;
}

static void ring_doorbell(unsigned queue, int completions, uint32_t value) {
  write32(DOORBELLS + (2 * queue + (completions ? 1 : 0)) * 4, value);
}

/// Does one command of the admin queue, as the first since the controller was enabled plus `index`.
static int do_admin(int index, command what) {
  *entry(SUBMISSIONS, index) = what;
  volatile uint16_t *status =
      (volatile uint16_t *)(void *)(it.memory + COMPLETIONS * page_size + index * 16 + 14);
  ring_doorbell(0, 0, (uint32_t)index + 1);
  for (double end = now() + 5; !(*status & 1);)
    if (now() > end) return 0;
  return *status >> 1 == 0;
}

static uint64_t pointer(void) {
  switch (any() % 4) {
  case 0: return any() | nowhere;
  case 1: return it.physical[DATA] + any() % page_size;
  case 2: return it.physical[DATA];
  default: return it.physical[DATA + 1] - 64;
  }
}

static command garbage(uint32_t opcode) {
  command made = {opcode | (uint32_t)any() << 8, (uint32_t)any() % 4 ? 1 : (uint32_t)any(), any(),
                  pointer(), pointer(), pointer(),
                  {(uint32_t)any(), (uint32_t)any(), (uint32_t)any(), (uint32_t)any(),
                   (uint32_t)any(), (uint32_t)any()}};
  return made;
}

/// Formats, sanitizes, firmware, namespaces: not these.
static uint32_t admin_opcode(void) {
  static const uint32_t codes[] = {0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C,
                                   0x14, 0x18, 0x19, 0x1A, 0x7C, 0x7F, 0xC0, 0xFF};
  return codes[any() % (sizeof codes / sizeof *codes)];
}

static void provoke_by_admin_commands(void) {
  int ends = 0, rounds = 100;
  for (int round = 0; round < rounds; round++) {
    if (!enable_well()) break;
    for (int i = 0; i < 63; i++) *entry(SUBMISSIONS, i) = garbage(admin_opcode());
    ring_doorbell(0, 0, any() % 8 ? 1 + (uint32_t)any() % 63 : (uint32_t)any());
    if (any() % 4 == 0) ring_doorbell((unsigned)any() % 64, (int)any() % 2, (uint32_t)any());
    usleep((useconds_t)(any() % 3000));
    ends += disable();
  }
  judge(ends == rounds, "random-admin-commands", "%d of %d times the controller was disabled", ends,
        rounds);
}

static int make_queues(void) {
  return enable_well() &&
         do_admin(0, (command){.opcode = 0x05, .first = it.physical[OWN_COMPLETIONS],
                               .word = {63 << 16 | 1, 1}}) &&
         do_admin(1, (command){.opcode = 0x01, .first = it.physical[OWN_SUBMISSIONS],
                               .word = {63 << 16 | 1, 1 << 16 | 1}});
}

static command data_command(void) {
  static const uint32_t reads[] = {0x00, 0x02, 0x05, 0x0C, 0x7E}, writes[] = {0x01, 0x04, 0x08};
  if (any() % 2) return garbage(reads[any() % 5]);
  command made = garbage(writes[any() % 3]);
  made.word[1] |= 1u << 13; // Far behind the last block.
  return made;
}

static void provoke_by_data_commands(void) {
  int ends = 0, rounds = 100;
  for (int round = 0; round < rounds; round++) {
    if (!make_queues()) break;
    for (int i = 0; i < 64; i++) *entry(OWN_SUBMISSIONS, i) = data_command();
    for (int i = 0; i < 20; i++) {
      ring_doorbell(1, 0, any() % 16 ? (uint32_t)any() % 64 : (uint32_t)any());
      ring_doorbell(1, 1, any() % 16 ? (uint32_t)any() % 64 : (uint32_t)any());
    }
    usleep((useconds_t)(any() % 3000));
    ends += disable();
  }
  judge(ends == rounds, "random-commands", "%d of %d times the controller was disabled", ends,
        rounds);
}

/// A full queue of reads.
static void work(void) {
  if (!make_queues()) return;
  for (int i = 0; i < 63; i++)
    *entry(OWN_SUBMISSIONS, i) = (command){.opcode = 0x02, .space = 1, .first = it.physical[DATA],
                                           .word = {(uint32_t)i, 0, 7}};
  ring_doorbell(1, 0, 63);
}

/// Settings: vendor, device, driver.
void step_hostile_nvme(void) {
  it.reset = disable;
  if (!take_function("0x1b36", "0x0010", "nvme")) return;
  enable(nowhere, nowhere, 0xFFF0FFF);
  ring_doorbell(0, 0, 1);
  usleep(2000);
  judge(disable(), "queues-nowhere", "the controller is disabled");
  enable(it.physical[0] + 8, it.physical[1] + 8, 0);
  judge(disable(), "queues-misaligned", "the controller is disabled");
  provoke_by_admin_commands();
  provoke_by_data_commands();
  provoke_by_resets(work);
  // The configuration register may enable the controller: its queues are nowhere then.
  write64(ADMIN_QUEUE, nowhere);
  write64(ADMIN_COMPLETIONS, nowhere);
  provoke_by_registers(ADMIN_QUEUE, ADMIN_COMPLETIONS + 8, DOORBELLS + 0x200);
  provoke_by_vectors(work);
  provoke_by_configuration();
  give_back();
}
