// SPDX-License-Identifier: Apache-2.0
//
// The step `hostile`: garbage in every register and descriptor of the copy engine. The device says
// what hardware would, and takes a driver again afterwards.

#include "guest.h"
#include "hostile.h"

#include <string.h>
#include <unistd.h>

enum { CONTROL = 0x80, COMMAND = 0x84, DOORBELL = 0x86, STATUS = 0x88, CHAIN = 0x90,
       COMPLETION = 0x98, ERRORS = 0xA8 };
enum { START = 0x01, SUSPEND = 0x04, ABORT = 0x08, RESUME = 0x10, RESET = 0x20 };

typedef struct {
  uint32_t size, control;
  uint64_t source, destination, next, own[4];
} descriptor;

/// A reset of the channel always comes to its end.
static int reset_channel(void) {
  write8(COMMAND, RESET);
  double end = now() + 10;
  while (it.bar[COMMAND] & RESET)
    if (now() > end) return 0;
  write32(ERRORS, read32(ERRORS));
  return (read32(STATUS) & 7) == 3;
}

static descriptor *ring(int index) {
  return (descriptor *)(void *)it.memory + index;
}

static void start(uint64_t chain, uint16_t count) {
  write16(CONTROL, 0x0d); // Re-armed; errors complete and abort.
  write64(COMPLETION, it.physical[pages - 1]);
  write64(CHAIN, chain);
  write16(DOORBELL, count);
}

/// Lets the engine run on garbage, and resets it.
static int provoke(const char *what, uint64_t chain, uint16_t count) {
  start(chain, count);
  usleep((useconds_t)(any() % 2000));
  uint32_t status = read32(STATUS) & 7, errors = read32(ERRORS);
  int good = reset_channel();
  if (what) judge(good, what, "status %u, errors %#x, and reset", status, errors);
  return good;
}

static int provoke_by_random_rings(void) {
  for (int round = 0; round < 300; round++) {
    for (int i = 0; i < page_size / 64; i++) {
      *ring(i) = (descriptor){(uint32_t)any() & (any() % 2 ? 0xFFF : UINT32_MAX), (uint32_t)any(),
                              any() | nowhere, any() | nowhere,
                              any() % 4 ? it.physical[0] + any() % 64 * 64 : any() | nowhere,
                              {any(), any(), any(), any()}};
      if (any() % 2) ring(i)->control &= 0x2f;
      if (any() % 3) ring(i)->source = it.physical[2] + any() % 64;
      if (any() % 3) ring(i)->destination = it.physical[3] + any() % 64, ring(i)->size %= 4000;
    }
    if (!provoke(NULL, it.physical[0] + any() % 64 * 64, (uint16_t)any())) return 0;
  }
  return 1;
}

static void provoke_by_descriptors(void) {
  uint64_t here = it.physical[0], data = it.physical[2];
  provoke("chain-nowhere", nowhere, 1);
  provoke("chain-misaligned", here + 4, 3);
  memset(it.memory, 0xFF, page_size);
  provoke("descriptor-of-ones", here, 1);
  *ring(0) = (descriptor){.size = 64, .source = nowhere, .destination = data, .next = here};
  provoke("source-nowhere", here, 1);
  *ring(0) = (descriptor){.size = 64, .source = data, .destination = nowhere, .next = here};
  provoke("destination-nowhere", here, 1);
  *ring(0) = (descriptor){.size = UINT32_MAX, .source = nowhere, .destination = nowhere};
  provoke("longest-copy", here, 1);
  // A ring of one, that goes on for as long as the count says, onto its own descriptor.
  *ring(0) = (descriptor){.size = 64, .source = here, .destination = here, .next = here};
  provoke("loop", here, UINT16_MAX);
  judge(provoke_by_random_rings(), "random-rings", "are reset");
}

/// A ring of one that raises interrupts, without an end.
static void work_long(void) {
  *ring(0) = (descriptor){.size = page_size, .control = 1, .source = it.physical[2],
                          .destination = it.physical[3], .next = it.physical[0]};
  start(it.physical[0], UINT16_MAX);
}

static void work_shortly(void) {
  work_long();
  ring(0)->size = 16;
  start(it.physical[0], 50);
}

static void provoke_by_commands(void) {
  static const uint8_t commands[] = {SUSPEND, RESUME, ABORT, START, RESET, SUSPEND | RESUME, 0xFF};
  for (int i = 0; i < 300; i++) {
    work_long();
    write8(COMMAND, commands[any() % sizeof commands]);
    write16(DOORBELL, (uint16_t)any());
    if (any() % 2) write64(CHAIN, it.physical[0]);
  }
  judge(reset_channel(), "commands-in-the-middle", "the channel is reset");
}

/// Settings: vendor, device, driver.
void step_hostile(void) {
  it.reset = reset_channel;
  if (!take_function("0x8086", "0x2021", "ioatdma")) return;
  provoke_by_descriptors();
  provoke_by_commands();
  provoke_by_resets(work_long);
  provoke_by_registers(CHAIN, COMPLETION + 8, 0x100);
  provoke_by_vectors(work_shortly);
  provoke_by_configuration();
  give_back();
}
