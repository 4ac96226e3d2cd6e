// SPDX-License-Identifier: Apache-2.0
//
// Pages that a driver shares: one mmap of /dev/iommu gives one area, whole, and the area stays
// as long as anybody has it mapped.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct pages {
  uint64_t index;
  off_t offset;
};

static struct pages make_pages(int fd, uint64_t length) {
  struct request request = {.a = length};
  CHECK(call(fd, 24, &request) == 0);
  return (struct pages){request.c, (off_t)request.b};
}

static uint32_t driver_reads(int fd, struct pages pages, uint64_t at) {
  struct request request = {.a = at, .c = pages.index};
  CHECK(call(fd, 25, &request) == 0);
  return (uint32_t)request.b;
}

static void driver_writes(int fd, struct pages pages, uint64_t at, uint32_t value) {
  struct request request = {.a = at, .b = value, .c = pages.index};
  CHECK(call(fd, 26, &request) == 0);
}

// 0, or the errno.
static int free_pages(int fd, struct pages pages) {
  struct request request = {.c = pages.index};
  return call(fd, 27, &request) == 0 ? 0 : errno;
}

static int refused(int fd, size_t length, int protection, int flags, off_t offset) {
  void *map = mmap(0, length, protection, flags, fd, offset);
  if (map == MAP_FAILED) return errno;
  munmap(map, length);
  return 0;
}

#define BOTH (PROT_READ | PROT_WRITE)

static int page_maps(char **arguments) {
  (void)arguments;
  int fd = open("/dev/iommu", O_RDWR), readable = open("/dev/iommu", O_RDONLY);
  CHECK(fd >= 0 && readable >= 0);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, 0) == ENXIO);
  struct pages one = make_pages(fd, 4096), two = make_pages(fd, 8192);
  // The offset and the length of one area exactly.
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, one.offset) == 0);
  CHECK(refused(fd, 1, BOTH, MAP_SHARED, one.offset) == 0);
  CHECK(refused(fd, 8192, BOTH, MAP_SHARED, one.offset) == ENXIO);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, two.offset) == ENXIO);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, two.offset + 4096) == ENXIO);
  CHECK(refused(fd, 8192, BOTH, MAP_SHARED, two.offset) == 0);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, 0) == ENXIO);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, two.offset + 8192) == ENXIO);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, one.offset + 1) == EINVAL);
  CHECK(refused(fd, 0, BOTH, MAP_SHARED, one.offset) == EINVAL);
  CHECK(refused(fd, 4096, BOTH, MAP_PRIVATE, one.offset) == EINVAL);
  CHECK(refused(fd, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, one.offset) == EPERM);
  CHECK(refused(fd, 4096, PROT_READ, MAP_SHARED, one.offset) == 0);
  // Another context has nothing there.
  CHECK(refused(readable, 4096, PROT_READ, MAP_SHARED, one.offset) == ENXIO);
  struct pages third = make_pages(readable, 4096);
  CHECK(refused(readable, 4096, PROT_READ, MAP_SHARED, third.offset) == 0);
  CHECK(refused(readable, 4096, BOTH, MAP_SHARED, third.offset) == EACCES);

  // Both sides see each other's stores; a second mapping is the same memory.
  uint32_t *map = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  uint32_t *other = mmap(0, 8192, BOTH, MAP_SHARED, fd, two.offset);
  uint32_t *again = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  CHECK(map != MAP_FAILED && other != MAP_FAILED && again != MAP_FAILED);
  for (int i = 0; i < 1024; i++) CHECK(map[i] == 0 && other[1024 + i] == 0);
  map[0] = 0x1234;
  CHECK(driver_reads(fd, one, 0) == 0x1234 && again[0] == 0x1234);
  driver_writes(fd, one, 4092, 77);
  CHECK(map[1023] == 77 && again[1023] == 77);
  driver_writes(fd, two, 4096, 78);
  CHECK(other[1024] == 78 && other[0] == 0 && map[0] == 0x1234);

  // From a number outside of the window too, with the same checks.
  CHECK(dup2(fd, 9) == 9);
  CHECK(refused(9, 4096, BOTH, MAP_SHARED, one.offset) == 0);
  CHECK(refused(9, 8192, BOTH, MAP_SHARED, one.offset) == ENXIO);
  CHECK(refused(9, 4096, BOTH, MAP_SHARED, two.offset + 8192) == ENXIO);
  return 0;
}

static int page_busy(char **arguments) {
  (void)arguments;
  int fd = open("/dev/iommu", O_RDWR);
  struct pages one = make_pages(fd, 4096), two = make_pages(fd, 8192);
  CHECK(free_pages(fd, one) == 0);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, one.offset) == ENXIO);
  // An offset is not given out again.
  one = make_pages(fd, 4096);
  CHECK(one.offset > two.offset);
  char *map = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  char *again = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  char *other = mmap(0, 8192, BOTH, MAP_SHARED, fd, two.offset);
  CHECK(map != MAP_FAILED && again != MAP_FAILED && other != MAP_FAILED);
  CHECK(free_pages(fd, one) == EBUSY && munmap(map, 4096) == 0);
  CHECK(free_pages(fd, one) == EBUSY && munmap(again, 4096) == 0);
  CHECK(free_pages(fd, one) == 0 && free_pages(fd, one) == ENOENT);
  // A part of it is enough.
  CHECK(munmap(other, 4096) == 0 && free_pages(fd, two) == EBUSY);
  void *moved = mremap(other + 4096, 4096, 4096, MREMAP_MAYMOVE);
  CHECK(moved == other + 4096 && munmap(moved, 4096) == 0 && free_pages(fd, two) == 0);

  // A child has what its parent had, though it never calls.
  one = make_pages(fd, 4096);
  map = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  CHECK(map != MAP_FAILED);
  pid_t child = fork();
  if (child == 0)
    for (;;) pause();
  CHECK(munmap(map, 4096) == 0 && free_pages(fd, one) == EBUSY);
  int status;
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
  CHECK(free_pages(fd, one) == 0);
  // An exec gives it up.
  one = make_pages(fd, 4096);
  map = mmap(0, 4096, BOTH, MAP_SHARED, fd, one.offset);
  int pipes[2];
  CHECK(map != MAP_FAILED && pipe2(pipes, O_CLOEXEC) == 0);
  child = fork();
  if (child == 0) {
    execlp("sleep", "sleep", "1000", (char *)0);
    _exit(9);
  }
  CHECK(close(pipes[1]) == 0 && munmap(map, 4096) == 0);
  char byte;
  CHECK(read(pipes[0], &byte, 1) == 0);
  CHECK(free_pages(fd, one) == 0);
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);

  // A mapping keeps its context open.
  int second = open("/dev/iommu", O_RDWR);
  struct pages last = make_pages(second, 4096);
  uint32_t *kept = mmap(0, 4096, BOTH, MAP_SHARED, second, last.offset);
  CHECK(kept != MAP_FAILED && open_files(fd) == 2 && close(second) == 0);
  kept[5] = 6;
  CHECK(open_files(fd) == 2 && kept[5] == 6 && munmap(kept, 4096) == 0 && open_files(fd) == 1);
  return 0;
}

const struct test page_tests[] = {
    {"page-maps", page_maps},
    {"page-busy", page_busy},
    {0, 0},
};
