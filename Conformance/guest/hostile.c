// SPDX-License-Identifier: Apache-2.0
//
// The steps `hostile` and `hostile-nvme`: what they do to any PCI function.

#define _GNU_SOURCE

#include "hostile.h"

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

hostile_function it;

uint64_t any(void) {
  static uint64_t state = 88172645463325252;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

void write8(size_t offset, uint8_t value) { it.bar[offset] = value; }
void write16(size_t offset, uint16_t value) {
  *(volatile uint16_t *)(it.bar + offset) = value;
}
void write32(size_t offset, uint32_t value) {
  *(volatile uint32_t *)(it.bar + offset) = value;
}
void write64(size_t offset, uint64_t value) {
  write32(offset, (uint32_t)value);
  write32(offset + 4, (uint32_t)(value >> 32));
}
uint32_t read32(size_t offset) { return *(volatile uint32_t *)(it.bar + offset); }

// --- Taking and giving back ---------------------------------------------------------------------

static int find_capability(uint8_t wanted) {
  uint8_t at = 0, head[2];
  if (pread(it.config, &at, 1, 0x34) != 1) return 0;
  for (int turns = 0; at >= 0x40 && turns < 48; turns++, at = head[1]) {
    if (pread(it.config, head, 2, at) != 2) return 0;
    if (head[0] == wanted) return at;
  }
  return 0;
}

static volatile uint8_t *map_bar(int index, size_t *size) {
  int file = open(path("/sys/bus/pci/devices/%s/resource%d", it.name, index), O_RDWR | O_CLOEXEC);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) return NULL;
  *size = (size_t)status.st_size;
  void *mapping = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return mapping == MAP_FAILED ? NULL : mapping;
}

static void find_vectors(void) {
  uint16_t control = 0;
  uint32_t place = 0;
  it.capability = find_capability(0x11);
  it.vectors = 0;
  if (!it.capability || pread(it.config, &control, 2, it.capability + 2) != 2 ||
      pread(it.config, &place, 4, it.capability + 4) != 4)
    return;
  size_t size = it.size;
  volatile uint8_t *bar = place & 7 ? map_bar((int)(place & 7), &size) : it.bar;
  if (!bar) return;
  it.vectors = (control & 0x7FF) + 1;
  it.table = bar + (place & ~7u);
}

static int take_memory(void) {
  it.memory = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
  int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (it.memory == MAP_FAILED || map < 0) return 0;
  for (int i = 0; i < pages; i++) {
    uint64_t entry = 0;
    it.memory[i * page_size] = 1;
    off_t place = (off_t)(((uintptr_t)it.memory / page_size + (uintptr_t)i) * 8);
    if (pread(map, &entry, 8, place) != 8 || !(entry >> 63)) return 0;
    it.physical[i] = (entry & ((UINT64_C(1) << 55) - 1)) * page_size;
  }
  close(map);
  return 1;
}

int take_function(const char *vendor, const char *device, const char *driver) {
  it.driver = setting("driver", driver);
  if (!judge(find_function(setting("vendor", vendor), setting("device", device), it.name),
             "function", "is there"))
    return 0;
  int status = put(path("/sys/bus/pci/drivers/%s/unbind", it.driver), it.name);
  judge(status == 0 || status == ENODEV, "unbind", "%s of %s: %s", it.name, it.driver,
        strerror(status));
  it.config = open(path("/sys/bus/pci/devices/%s/config", it.name), O_RDWR | O_CLOEXEC);
  it.bar = map_bar(0, &it.size);
  uint16_t command = 0x0006;
  int good = it.bar && pwrite(it.config, &command, 2, 4) == 2 && take_memory();
  if (!judge(good, "registers", "are mapped")) return 0;
  find_vectors();
  return judge(it.reset(), "reset", "of a device at rest");
}

void give_back(void) {
  int status = put(path("/sys/bus/pci/drivers/%s/bind", it.driver), it.name);
  judge(status == 0, "bind", "%s to %s again: %s", it.name, it.driver, strerror(status));
  close(it.config);
}

// --- Garbage ------------------------------------------------------------------------------------

void provoke_by_registers(size_t from, size_t to, size_t most) {
  for (int i = 0; i < 5000; i++) {
    size_t offset = any() % it.size, width = (size_t)1 << any() % 4;
    if (any() % 4) offset %= most;
    offset &= ~(width - 1);
    if (offset < to && offset + width > from) continue;
    volatile uint8_t *place = it.bar + offset;
    if (it.vectors && place + width > it.table && place < it.table + it.vectors * 16) continue;
    uint64_t value = any();
    switch (width) {
    case 1: write8(offset, (uint8_t)value); break;
    case 2: write16(offset, (uint16_t)value); break;
    case 4: write32(offset, (uint32_t)value); break;
    default: *(volatile uint64_t *)place = value;
    }
    if (i % 3 == 0) read32((any() % it.size) & ~(size_t)3);
  }
  judge(it.reset(), "random-registers", "the device is reset");
}

static volatile uint32_t *vector_entry(int vector) {
  return (volatile uint32_t *)(uintptr_t)(it.table + vector * 16);
}

static void switch_vectors(int on) {
  // QEMU 7.2 without KVM ends by a null pointer where MSI-X is switched on with a vector masked
  // below one that is not.
  for (int vector = 0; on && vector < it.vectors; vector++) vector_entry(vector)[3] = 1;
  uint16_t control = (uint16_t)((on ? 0x8000 : 0) | (it.vectors - 1));
  if (pwrite(it.config, &control, 2, it.capability + 2) != 2) perror("MSI-X");
}

void provoke_by_vectors(void (*work)(void)) {
  if (!it.vectors) return;
  switch_vectors(1);
  for (int i = 0; i < 500; i++) {
    for (int vector = 0; vector < it.vectors && vector < 4; vector++) {
      volatile uint32_t *entry = vector_entry(vector);
      entry[3] = (uint32_t)any() & 1;
      entry[0] = 0xFEE00000 | ((uint32_t)any() & 0xFF000);
      entry[1] = 0;
      entry[2] = 0x80 + (uint32_t)any() % 0x50; // Vectors that nobody waits for.
      entry[3] = (uint32_t)any() & 1;
    }
    work();
    if (i % 20 == 0) switch_vectors(any() % 2);
  }
  int good = it.reset();
  switch_vectors(0);
  judge(good, "live-vectors", "the device is reset");
}

void provoke_by_configuration(void) {
  uint8_t before[256], value[4];
  if (pread(it.config, before, sizeof before, 0) != sizeof before) perror("config");
  for (int i = 0; i < 2000; i++) {
    int width = 1 << any() % 3, offset = (int)(any() % 4096) & ~(width - 1);
    if (offset < 0x40) continue; // Where the BARs are, the guest's own devices may be.
    uint64_t random = any();
    memcpy(value, &random, sizeof value);
    if (pwrite(it.config, value, (size_t)width, offset) < 0 && errno != EINVAL) perror("config");
    if (pread(it.config, value, (size_t)width, offset) < 0 && errno != EINVAL) perror("config");
  }
  for (int offset = 0; offset < 256; offset += 4)
    if (pwrite(it.config, before + offset, 4, offset) != 4) perror("config");
  int status = put(path("/sys/bus/pci/devices/%s/reset", it.name), "1");
  judge(status == 0 && it.reset(), "random-configuration", "is reset: %s", strerror(status));
}

void provoke_by_resets(void (*work)(void)) {
  const char *reset = path("/sys/bus/pci/devices/%s/reset", it.name);
  int status = 0;
  for (int i = 0; i < 10 && status == 0; i++) {
    work();
    status = put(reset, "1");
  }
  judge(status == 0 && it.reset(), "function-reset-in-the-middle", "%s", strerror(status));
}
