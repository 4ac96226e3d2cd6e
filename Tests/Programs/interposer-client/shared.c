// SPDX-License-Identifier: Apache-2.0
//
// Shared memory without a name, as a device reaches it once the process that mapped it has it no more.
// Where the host lets the interposer open the mapping, it stays as on Linux; else it is there for as
// long as any process has it, and then is nothing.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 65536, LAST = SIZE - 1 };

static int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

static int get(int fd, uint64_t offset) {
  struct request request = {.a = offset};
  return call(fd, 7, &request) < 0 ? -1 : (int)request.b;
}

static int put(int fd, uint64_t offset, int value) {
  struct request request = {.a = offset, .b = (uint64_t)value};
  return call(fd, 6, &request);
}

static char *map(int flags, int file) {
  char *memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, flags, file, 0);
  CHECK(memory != MAP_FAILED);
  return memory;
}

// Has a child pin memory and end. Whether the memory stays, whoever ends: it is mapped in the interposer.
static int pinned_by_child(int fd, char *memory) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    struct request request = {.a = (uintptr_t)memory, .b = SIZE, .c = 1};
    _exit(call(fd, 5, &request) != 0 ? 2 : request.e);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) < 2);
  return WEXITSTATUS(status);
}

// Both ways, at both ends, seen through `memory`.
static void check_reached(int fd, char *memory) {
  static int value;
  value = (value + 1) % 60;
  memory[0] = (char)value;
  memory[LAST] = (char)(value + 60);
  CHECK(get(fd, 0) == value && get(fd, LAST) == value + 60);
  CHECK(put(fd, 4095, value) == 0 && memory[4095] == value);
  CHECK(put(fd, 40000, value + 1) == 0 && memory[40000] == value + 1);
}

static void check_gone(int fd, int stays) {
  if (stays) {
    CHECK(get(fd, 0) >= 0 && put(fd, 1, 2) == 0);
    return;
  }
  CHECK(get(fd, 0) == -1 && errno == EIO);
  CHECK(put(fd, 0, 1) == -1 && errno == EIO);
}

// One process after the other has it.
static int survivors(char **arguments) {
  (void)arguments;
  int fd = open_iommu(), ends[2];
  char *memory = map(MAP_SHARED | MAP_ANONYMOUS, -1);
  const int stays = pinned_by_child(fd, memory);
  check_reached(fd, memory);
  // Elsewhere, and in two parts.
  char *room = map(MAP_PRIVATE | MAP_ANONYMOUS, -1);
  char *moved = mremap(memory, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
  CHECK(moved == room);
  check_reached(fd, moved);
  CHECK(mprotect(moved, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
  check_reached(fd, moved);
  // A child that came after it was pinned, and knows nothing of devices, is the last one to have it.
  CHECK(pipe(ends) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    (void)!read(ends[0], &byte, 1);
    _exit(moved[7] == 70 && moved[8] == 71 ? 0 : 1);
  }
  moved[7] = 60;
  CHECK(munmap(moved, SIZE) == 0);
  CHECK(get(fd, 7) == 60 && put(fd, 7, 70) == 0 && put(fd, 8, 71) == 0);
  // Something else is at all the addresses that it had here: it is not touched.
  char *other = mmap(moved, SIZE, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(other == moved && mmap(memory, SIZE, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
  CHECK(put(fd, 8, 71) == 0 && get(fd, 8) == 71 && !other[8] && !memory[8]);
  CHECK(write(ends[1], "x", 1) == 1);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  check_gone(fd, stays);
  CHECK(!other[0] && !other[1] && !memory[0] && !memory[1]);
  return 0;
}

// What the others may not do with it, the device cannot do through them.
static int readers(char **arguments) {
  (void)arguments;
  int fd = open_iommu(), ends[2];
  char *memory = map(MAP_SHARED | MAP_ANONYMOUS, -1);
  const int stays = pinned_by_child(fd, memory);
  memory[0] = 5;
  CHECK(mprotect(memory, SIZE, PROT_READ) == 0);
  CHECK(get(fd, 0) == 5);
  if (!stays) CHECK(put(fd, 0, 6) == -1 && errno == EIO && memory[0] == 5);
  // Who may is found beside who may not, whichever comes first.
  CHECK(pipe(ends) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(mprotect(memory, SIZE, PROT_READ | PROT_WRITE) == 0);
    CHECK(write(ends[1], "x", 1) == 1);
    for (;;) pause();
  }
  char byte;
  CHECK(read(ends[0], &byte, 1) == 1);
  CHECK(put(fd, 0, 7) == 0 && memory[0] == 7 && get(fd, 0) == 7);
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, 0, 0) == child);
  CHECK(get(fd, 0) == 7);
  CHECK(mprotect(memory, SIZE, PROT_NONE) == 0);
  if (!stays) CHECK(get(fd, 0) == -1 && errno == EIO);
  return 0;
}

// What is mapped of the same file but is a process's own is not the memory.
static int private_copies(char **arguments) {
  (void)arguments;
  int fd = open_iommu(), file = memfd_create("nameless", 0), ends[2];
  CHECK(file >= 0 && ftruncate(file, SIZE) == 0);
  char *private = map(MAP_PRIVATE, file), *shared = map(MAP_SHARED, file);
  private[0] = 9;
  CHECK(close(file) == 0);
  const int stays = pinned_by_child(fd, shared);
  check_reached(fd, shared);
  CHECK(pipe(ends) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    (void)!read(ends[0], &byte, 1);
    _exit(0);
  }
  CHECK(munmap(shared, SIZE) == 0);
  CHECK(put(fd, 0, 3) == 0 && get(fd, 0) == 3 && private[0] == 9);
  CHECK(write(ends[1], "x", 1) == 1 && waitpid(child, 0, 0) == child);
  check_gone(fd, stays);
  CHECK(private[0] == 9);
  return 0;
}

// Another segment may have its number one day: it is reached through who mapped it, or not at all.
static int segments(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  int id = shmget(IPC_PRIVATE, SIZE, 0600);
  CHECK(id >= 0);
  char *memory = shmat(id, 0, 0);
  CHECK(memory != (char *)-1 && shmctl(id, IPC_RMID, 0) == 0);
  struct request request = {.a = (uintptr_t)memory, .b = SIZE, .c = 1};
  CHECK(call(fd, 5, &request) == 0);
  check_reached(fd, memory);
  const int stays = pinned_by_child(fd, memory);
  if (!stays) {
    memory[0] = 1;
    CHECK(get(fd, 0) == -1 && errno == EIO);
  } else {
    check_reached(fd, memory);
  }
  return 0;
}

const struct test shared_tests[] = {
    {"survivors", survivors}, {"readers", readers}, {"private-copies", private_copies},
    {"segments", segments},   {0, 0},
};
