// SPDX-License-Identifier: Apache-2.0
//
// The program's memory as devices reach it, and pointers that lead nowhere.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

static int pin(int fd, void *address, size_t length, int writable, struct request *out) {
  *out = (struct request){.a = (uintptr_t)address, .b = length, .c = (uint64_t)writable};
  return call(fd, 5, out);
}

static int get(int fd, uint64_t offset) {
  struct request request = {.a = offset};
  return call(fd, 7, &request) < 0 ? -1 : (int)request.b;
}

static int put(int fd, uint64_t offset, int value) {
  struct request request = {.a = offset, .b = (uint64_t)value};
  return call(fd, 6, &request);
}

// Reads and writes go both ways; `local` says whether without a call.
static void exchange(int fd, char *memory, size_t length, int local) {
  struct request request;
  CHECK(pin(fd, memory, length, 1, &request) == 0);
  CHECK(request.e == local);
  memory[length - 1] = 12;
  CHECK(get(fd, length - 1) == 12);
  CHECK(put(fd, 3, 99) == 0 && memory[3] == 99);
}

static int memories(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  size_t size = 65536;
  char *anonymous = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  exchange(fd, anonymous, size, 0);
  int memory = memfd_create("test", 0);
  CHECK(memory >= 0 && ftruncate(memory, (off_t)size * 2) == 0);
  char *shared = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)size);
  exchange(fd, shared, size, 1);
  exchange(fd, shared + 4096, 4096, 1);
  char path[] = "/tmp/iommu-memory-XXXXXX";
  int file = mkstemp(path);
  CHECK(file >= 0 && ftruncate(file, (off_t)size) == 0);
  char *mapped = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  exchange(fd, mapped, size, 1);
  // Found by its path where the descriptor is closed.
  CHECK(close(file) == 0);
  exchange(fd, mapped, size, 1);
  CHECK(unlink(path) == 0);
  // A private mapping of a file is the program's alone.
  char *private = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory, 0);
  exchange(fd, private, size, 0);
  CHECK(pread(memory, path, 4, 0) == 4 && path[3] == 0);
  struct request request;
  // Two neighbours of different kinds are two runs.
  char *pair = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mmap(pair + 4096, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) != MAP_FAILED);
  CHECK(pin(fd, pair, 8192, 1, &request) == 0 && request.d == 2);
  pair[4097] = 55;
  CHECK(get(fd, 4097) == 55);
  // Shared without a file.
  char *nameless = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(pin(fd, nameless, size, 1, &request) == 0);
  nameless[9] = 31;
  CHECK(get(fd, 9) == 31 && put(fd, 10, 32) == 0 && nameless[10] == 32);
  return 0;
}

// Processes that pin memory in files that outlive them.
static int heirs(char **arguments) {
  (void)arguments;
  enum { count = 60 };
  int files[count];
  struct request request;
  for (int i = 0; i < count; i++) files[i] = open_iommu();
  for (int i = 0; i < count; i++) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      char *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      memory[5] = 7;
      _exit(pin(files[i], memory, 4096, 1, &request) != 0 || get(files[i], 5) != 7);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  char *own = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  own[6] = 8;
  for (int i = 0; i < count; i++) {
    CHECK(get(files[i], 5) == -1);
    CHECK(pin(files[i], own, 4096, 1, &request) == 0 && get(files[i], 6) == 8);
  }
  return 0;
}

static int memory_errors(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct request request;
  char *memory = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(munmap(memory + 4096, 4096) == 0);
  CHECK(pin(fd, memory, 12288, 1, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, memory, 4096, 1, &request) == 0);
  CHECK(mprotect(memory, 4096, PROT_READ) == 0);
  CHECK(pin(fd, memory, 4096, 1, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, memory, 4096, 0, &request) == 0);
  CHECK(mprotect(memory, 4096, PROT_NONE) == 0);
  CHECK(pin(fd, memory, 4096, 0, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, 0, 4096, 0, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, (void *)-4096, 8192, 0, &request) == -1 && errno == EOVERFLOW);
  CHECK(pin(fd, (void *)(1ULL << 60), 4096, 0, &request) == -1 && errno == EFAULT);
  // Unmapped after it was pinned: the DMA faults.
  char *gone = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(pin(fd, gone, 4096, 1, &request) == 0);
  CHECK(munmap(gone, 4096) == 0 && get(fd, 0) == -1 && errno == EIO);
  // A file that ends before its mapping does.
  int file = memfd_create("short", 0);
  CHECK(ftruncate(file, 4096) == 0);
  char *mapped = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  CHECK(pin(fd, mapped, 8192, 1, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, mapped, 4096, 1, &request) == 0 && request.e == 1);
  // Truncated under the device: it reads zeros, everybody lives.
  mapped[5] = 5;
  CHECK(get(fd, 5) == 5);
  CHECK(ftruncate(file, 0) == 0);
  CHECK(get(fd, 5) == 0 && put(fd, 6, 1) == 0);
  CHECK(call(fd, 1, &request) >= 0);
  // What the kernel cannot pin: beyond the end of a privately mapped file, pages of its own,
  // secret memory.
  CHECK(ftruncate(file, 4096) == 0);
  mapped = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  CHECK(pin(fd, mapped, 4096, 1, &request) == 0);
  CHECK(pin(fd, mapped, 8192, 1, &request) == -1 && errno == EFAULT);
  CHECK(pin(fd, mapped + 4096, 4096, 0, &request) == -1 && errno == EFAULT);
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[512];
  unsigned long start;
  while (maps && fgets(line, sizeof line, maps))
    if (strstr(line, "[vvar]") && sscanf(line, "%lx", &start) == 1)
      CHECK(pin(fd, (void *)start, 4096, 0, &request) == -1 && errno == EFAULT);
  int secret = (int)syscall(447, 0);
  if (secret >= 0 && ftruncate(secret, 4096) == 0) {
    mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, secret, 0);
    if (mapped != MAP_FAILED)
      CHECK(pin(fd, mapped, 4096, 1, &request) == -1 && errno == EFAULT);
  }
  return 0;
}

// A fault that waits for the program: the device's access fails, nobody waits with it.
static int waiting_memory(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct request request;
  char *memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(pin(fd, memory, 4096, 1, &request) == 0);
  int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (faults < 0) return 0;
  struct uffdio_api api = {.api = UFFD_API};
  CHECK(ioctl(faults, UFFDIO_API, &api) == 0);
  struct uffdio_register range = {
      .range = {(uintptr_t)memory, 8192}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  CHECK(ioctl(faults, UFFDIO_REGISTER, &range) == 0);
  CHECK(get(fd, 0) == -1 && errno == EIO);
  CHECK(pin(fd, memory, 8192, 1, &request) == 0);
  CHECK(get(fd, 4096) == -1 && errno == EIO);
  request = (struct request){.a = 1};
  CHECK(call(fd, 1, &request) == 1);
  return 0;
}

static int file_memory(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  int file = memfd_create("file", 0);
  CHECK(ftruncate(file, 65536) == 0);
  struct request request = {.a = 4096, .b = 8192, .d = file};
  CHECK(call(fd, 10, &request) == 0 && request.c == 65536);
  char byte = 44;
  CHECK(pwrite(file, &byte, 1, 4100) == 1 && get(fd, 4) == 44);
  CHECK(put(fd, 5, 45) == 0 && pread(file, &byte, 1, 4101) == 1 && byte == 45);
  CHECK(close(file) == 0 && get(fd, 4) == 44);
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  request = (struct request){.b = 4096, .d = pipes[0]};
  CHECK(call(fd, 10, &request) == -1 && errno == EINVAL);
  request.d = fd;
  CHECK(call(fd, 10, &request) == -1 && errno == EINVAL);
  request.d = 99;
  CHECK(call(fd, 10, &request) == -1 && errno == EBADF);
  return 0;
}

static int events(char **arguments) {
  (void)arguments;
  int fd = open_iommu(), event = eventfd(0, 0);
  struct request request = {.d = event};
  CHECK(call(fd, 8, &request) == 0 && call(fd, 8, &request) == 0);
  uint64_t count;
  CHECK(read(event, &count, 8) == 8 && count == 2);
  // A full counter blocks nobody.
  count = UINT64_MAX - 1;
  CHECK(write(event, &count, 8) == 8);
  CHECK(call(fd, 8, &request) == 0);
  request.d = 0;
  CHECK(call(fd, 8, &request) == -1 && errno == EINVAL);
  request.d = 99;
  CHECK(call(fd, 8, &request) == -1 && errno == EBADF);
  return 0;
}

// Any pointer, any command, any descriptor: an errno, and the next call works.
static int fuzz(char **arguments) {
  int fd = open_iommu(), device = open("/dev/vfio/devices/vfio0", O_RDWR);
  CHECK(device >= 0);
  unsigned seed = arguments[0] ? (unsigned)atoi(arguments[0]) : 1;
  srandom(seed);
  char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(munmap(page + 4096, 4096) == 0);
  int queues[2];
  for (int i = 0; i < 2; i++) {
    struct request request = {.a = (uint64_t)i};
    CHECK(call(fd, 20, &request) == 0);
    queues[i] = request.d;
    request = (struct request){.a = 1, .b = (uint64_t)i, .c = 1000};
    CHECK(call(fd, 21, &request) == 0);
  }
  for (int i = 0; i < 4000; i++) {
    uint64_t wild = (uint64_t)random() << 33 ^ (uint64_t)random() << 11 ^ (uint64_t)random();
    uintptr_t places[] = {0, 8, (uintptr_t)page, (uintptr_t)page + 4096 - (uint64_t)(random() & 63),
                          (uintptr_t)page + 1, wild, wild & 0x7fffffffffff, (uintptr_t)-8};
    uintptr_t place = places[random() & 7];
    for (int j = 0; j < 4080; j += 8) *(uint64_t *)(page + j) = (uint64_t)random() & 0xffff;
    int target = random() & 1 ? fd : device;
    int command = (int)(random() % 13);
    if (command == 11 || command == 4) command = 1;
    if (random() & 15)
      ioctl(target, COMMAND(command), place);
    else
      ioctl(target, (unsigned long)wild, place);
    uint64_t offset = random() & 1 ? 1ULL << 45 | (wild & 0x1ffff) : wild;
    size_t length = random() & 1 ? (size_t)(random() & 0xff) : (size_t)wild;
    int queue = queues[random() & 1], commands[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFL, F_SETFL};
    int copy = -1;
    switch (random() % 8) {
      case 0: (void)!read(queue, (void *)place, length); break;
      case 1: (void)!write(queue, (void *)place, length); break;
      case 2: (void)!readv(queue, (void *)place, (int)length); break;
      case 3: (void)!preadv2(queue, (void *)place, (int)length, (off_t)wild | -(off_t)(i & 1), 0); break;
      case 4: copy = dup(queue); break;
      case 5:
        copy = fcntl(queue, commands[i & 3], wild);
        if ((i & 3) >= 2) copy = -1;
        break;
      default: break;
    }
    if (copy >= 0) CHECK(copy != fd && copy != device && close(copy) == 0);
    switch (random() % 6) {
      case 0: (void)!pread(device, (void *)place, length, (off_t)offset); break;
      case 1: (void)!pwrite(device, (void *)place, length, (off_t)offset); break;
      case 2: (void)!read(device, (void *)place, length); break;
      case 3: (void)!open((char *)place, (int)wild & ~(O_CREAT | O_TRUNC)); break;
      case 4: lseek(device, (off_t)wild, (int)(random() & 7)); break;
      default: break;
    }
  }
  int fresh = open_iommu();
  struct request request = {.a = 1};
  CHECK(call(fresh, 1, &request) == 1);
  return 0;
}

const struct test memory_tests[] = {
    {"memories", memories},       {"memory-errors", memory_errors},
    {"waiting-memory", waiting_memory}, {"file-memory", file_memory}, {"events", events},
    {"fuzz", fuzz}, {"heirs", heirs},               {0, 0},
};
