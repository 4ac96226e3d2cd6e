// SPDX-License-Identifier: Apache-2.0
//
// One engine, two processes: a child maps its memory into the address space through an
// inherited descriptor, and the parent has the engine copy it to its own (MODEL A2).
// Usage: two-processes private|shared. Exits with 0 where every byte arrived.

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "copy_engine.h"

enum { SIZE = 1 << 20 };

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint8_t *memory(int kind, size_t size) {
  uint8_t *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  return bytes;
}

static uint64_t map(int iommu, uint32_t space, void *bytes, uint64_t size, uint32_t access) {
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = access,
                               .ioas_id = space,
                               .user_va = (uintptr_t)bytes,
                               .length = size};
  if (ioctl(iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
  return map.iova;
}

int main(int count, char **arguments) {
  const int kind = count > 1 && !strcmp(arguments[1], "shared") ? MAP_SHARED : MAP_PRIVATE;
  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) fail("no copy engine");
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (engine_bind(&engine) || ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) ||
      engine_attach(&engine, alloc.out_ioas_id) || engine_enable(&engine))
    fail("setting up the engine");

  int pipes[2];
  if (pipe(pipes)) fail("pipe");
  const pid_t child = fork();
  if (child == 0) {
    uint8_t *bytes = memory(kind, SIZE);
    memset(bytes, 0xc5, SIZE);
    uint64_t iova = map(engine.iommu, alloc.out_ioas_id, bytes, SIZE, IOMMU_IOAS_MAP_READABLE);
    if (write(pipes[1], &iova, sizeof iova) != sizeof iova) fail("write");
    pause();
  }
  close(pipes[1]);
  uint64_t from;
  if (read(pipes[0], &from, sizeof from) != sizeof from) exit(1);

  uint8_t *bytes = memory(kind, SIZE);
  struct descriptor *ring = (struct descriptor *)memory(MAP_SHARED, 8192);
  const uint32_t both = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
  const uint64_t base = map(engine.iommu, alloc.out_ioas_id, ring, 8192, both);
  ring[0] = (struct descriptor){
      .size = SIZE,
      .control = CONTROL_COMPLETION,
      .source = from,
      .destination = map(engine.iommu, alloc.out_ioas_id, bytes, SIZE, both),
      .next = base};
  if (!engine_reset(&engine)) fail("resetting the channel");
  engine_start(&engine, base, base + 4096, 1);
  volatile uint64_t *completion = (volatile uint64_t *)((uint8_t *)ring + 4096);
  for (int wait = 0; wait < 30000 && !*completion; wait++) usleep(1000);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  for (size_t i = 0; i < SIZE; i++)
    if (bytes[i] != 0xc5) {
      fprintf(stderr, "byte %zu is %#x\n", i, bytes[i]);
      return 1;
    }
  return 0;
}
