// SPDX-License-Identifier: Apache-2.0
//
// RLIMIT_MEMLOCK as Linux counts it for pinned memory (MODEL B6): per user, over contexts and
// processes, at the pin; and the change of process. Drops CAP_IPC_LOCK where it has it.
// Exits with 0 where every call answered as Linux's does.

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "copy_engine.h"

enum { PAGE = 4096 };

static void fail(const char *what, int got) {
  fprintf(stderr, "%s: %d (%s)\n", what, got, strerror(got));
  exit(1);
}

#define EXPECT(errno_wanted, call)                                  \
  do {                                                              \
    const int result = (call) ? errno : 0;                          \
    if (result != (errno_wanted)) fail(#call, result);              \
  } while (0)

// Returns whether it is on.
static int change_lock_capability(int on) {
  struct {
    uint32_t version;
    int pid;
  } header = {0x20080522, 0};
  struct {
    uint32_t effective, permitted, inheritable;
  } data[2];
  if (syscall(SYS_capget, &header, data)) fail("capget", errno);
  const uint32_t bit = 1u << 14;
  data[0].effective = on ? data[0].effective | (data[0].permitted & bit) : data[0].effective & ~bit;
  if (syscall(SYS_capset, &header, data)) fail("capset", errno);
  return (data[0].effective & bit) != 0;
}

static void set_limit(rlim_t bytes) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_MEMLOCK, &limit)) fail("getrlimit", errno);
  limit.rlim_cur = bytes;
  if (setrlimit(RLIMIT_MEMLOCK, &limit)) fail("setrlimit", errno);
}

static int map(int iommu, uint32_t space, void *bytes, uint64_t iova, uint64_t pages) {
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = 7,
                               .ioas_id = space,
                               .user_va = (uintptr_t)bytes,
                               .length = pages * PAGE,
                               .iova = iova};
  return ioctl(iommu, IOMMU_IOAS_MAP, &map);
}

static int map_file(int iommu, uint32_t space, int fd, uint64_t iova, uint64_t pages) {
  struct iommu_ioas_map_file map = {.size = sizeof map,
                                    .flags = 7,
                                    .ioas_id = space,
                                    .fd = fd,
                                    .length = pages * PAGE,
                                    .iova = iova};
  return ioctl(iommu, IOMMU_IOAS_MAP_FILE, &map);
}

static int unmap(int iommu, uint32_t space, uint64_t iova, uint64_t pages) {
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = space, .iova = iova, .length = pages * PAGE};
  return ioctl(iommu, IOMMU_IOAS_UNMAP, &unmap);
}

static int change_process(int iommu) {
  struct iommu_ioas_change_process change = {.size = sizeof change};
  return ioctl(iommu, IOMMU_IOAS_CHANGE_PROCESS, &change);
}

static int in_child(int (*body)(int, uint32_t), int iommu, uint32_t space) {
  const pid_t child = fork();
  if (child == 0) _exit(body(iommu, space));
  int status;
  if (waitpid(child, &status, 0) != child) fail("waitpid", errno);
  return status;
}

// The sum is the user's: what the parent has pinned counts here too.
static int map_in_child(int iommu, uint32_t space) {
  void *bytes = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT(ENOMEM, map(iommu, space, bytes, 0x200000, 1));
  set_limit(9 * PAGE);
  EXPECT(0, map(iommu, space, bytes, 0x200000, 1));
  EXPECT(0, unmap(iommu, space, 0x200000, 1));
  return 0;
}

// The new owner is charged before the old one is relieved: 4 + 4 pages of one user.
static int take_over(int iommu, uint32_t space) {
  (void)space;
  set_limit(7 * PAGE);
  EXPECT(ENOMEM, change_process(iommu));
  set_limit(8 * PAGE);
  EXPECT(0, change_process(iommu));
  return 0;
}

int main(void) {
  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) fail("no copy engine", 0);
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (engine_bind(&engine) || ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) ||
      engine_attach(&engine, alloc.out_ioas_id))
    fail("setting up the engine", errno);
  const int iommu = engine.iommu;
  const uint32_t space = alloc.out_ioas_id;
  uint8_t *bytes =
      mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int file = (int)syscall(SYS_memfd_create, "memory", 0);
  if (bytes == MAP_FAILED || file < 0 || ftruncate(file, 16 * PAGE)) fail("memory", errno);

  change_lock_capability(0);
  set_limit(8 * PAGE);
  EXPECT(ENOMEM, map(iommu, space, bytes, 0x100000, 9));
  EXPECT(0, map(iommu, space, bytes, 0x100000, 8));
  EXPECT(ENOMEM, map(iommu, space, bytes, 0x110000, 1));
  if (in_child(map_in_child, iommu, space)) return 1;
  EXPECT(EINVAL, change_process(iommu));
  EXPECT(0, unmap(iommu, space, 0x100000, 8));

  EXPECT(0, map_file(iommu, space, file, 0x100000, 4));
  EXPECT(0, change_process(iommu));
  if (in_child(take_over, iommu, space)) return 1;
  // The child is gone, its memory stays charged.
  EXPECT(ENOMEM, map(iommu, space, bytes, 0x200000, 5));
  EXPECT(0, map(iommu, space, bytes, 0x200000, 4));
  EXPECT(0, unmap(iommu, space, 0x100000, 4));
  EXPECT(0, map(iommu, space, bytes, 0x300000, 4));

  // With the capability, where it can be had, there is no limit.
  const int privileged = change_lock_capability(1);
  EXPECT(privileged ? 0 : ENOMEM, map(iommu, space, bytes, 0x400000, 16));
  puts("every call answered as expected");
  return 0;
}
