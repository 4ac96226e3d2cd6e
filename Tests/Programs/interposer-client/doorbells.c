// SPDX-License-Identifier: Apache-2.0
//
// Doorbells of a device that opens and closes them all the time: no ring is lost.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REGISTERS (1LL << 45)
enum { LANES = 4, RINGS = 30000 };

static int device;
static volatile uint32_t *doorbells;
static volatile uint32_t *seen;

static void open_device(void) {
  device = open("/dev/vfio/devices/vfio1", O_RDWR);
  CHECK(device >= 0);
  const int page = memfd_create("seen", MFD_CLOEXEC);
  CHECK(page >= 0 && ftruncate(page, 4096) == 0);
  seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
  struct request request = {.a = (uintptr_t)seen, .b = 4096, .c = 1};
  CHECK(call(device, 5, &request) == 0 && request.e == 1);
  uint8_t *map = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, device, REGISTERS);
  CHECK(map != MAP_FAILED);
  doorbells = (volatile uint32_t *)(map + 0x1000);
}

// Rings, and waits until the device has seen it.
static void *ring(void *argument) {
  const uintptr_t lane = (uintptr_t)argument;
  for (uint32_t i = 1; i <= RINGS; i++) {
    doorbells[lane] = i;
    time_t end = time(NULL) + 20;
    for (unsigned spins = 0; seen[lane] != i; spins++) {
      if (spins % 64 == 63) sched_yield();
      if (spins % 65536 == 65535) CHECK(time(NULL) < end);
    }
  }
  return NULL;
}

static int rings(char **arguments) {
  (void)arguments;
  open_device();
  struct request request = {0};
  CHECK(call(device, 40, &request) == 0);
  pthread_t other;
  CHECK(pthread_create(&other, NULL, ring, (void *)1) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    ring((void *)2);
    _exit(0);
  }
  ring((void *)0);
  CHECK(pthread_join(other, NULL) == 0);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(call(device, 41, &request) == 0);
  if (getenv("SHOW")) fprintf(stderr, "%lu openings, %lu traps\n", request.a, request.b);
  // Both ways were gone, and often: at three rings a look and 128 looks an opening, or so, there are
  // 230 openings at the least.
  CHECK(request.a > 100 && request.b > 10 && request.b < 3 * RINGS);
  return 0;
}

static int shares(char **arguments) {
  (void)arguments;
  open_device();
  // The descriptor by which they were mapped is gone.
  int next = dup(0);
  CHECK(next >= 0 && next < 16 && close(next) == 0);
  struct request request = {0};
  for (uint32_t i = 1; i < 100; i++) {
    doorbells[7] = 2 * i;  // A trap.
    CHECK(call(device, 42, &request) == 0);
    CHECK(doorbells[7] == 2 * i && doorbells[8] == 0);
    doorbells[7] = 2 * i + 1;  // None.
    request.a = 28;
    CHECK(call(device, 43, &request) == 0 && request.b == 2 * i + 1);
  }
  // They keep the device open, as its registers do.
  int other = open("/dev/iommu", O_RDWR);
  CHECK(munmap((void *)((uintptr_t)doorbells - 0x1000), 0x1000) == 0);
  CHECK(munmap((void *)((uintptr_t)doorbells + 0x1000), 0x1000) == 0);
  CHECK(close(device) == 0);
  usleep(20000);
  CHECK(open_files(other) == 2);
  doorbells[7] = 5;
  CHECK(munmap((void *)doorbells, 0x1000) == 0);
  for (int i = 0; i < 1000 && open_files(other) != 1; i++) usleep(10000);
  CHECK(open_files(other) == 1);
  return 0;
}

const struct test doorbell_tests[] = {{"doorbell-rings", rings}, {"doorbell-shares", shares}, {0, 0}};
