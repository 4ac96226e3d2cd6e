// SPDX-License-Identifier: Apache-2.0
//
// A child gives a device very much memory, or takes it away, and others call meanwhile: their calls
// end before the child's does. Then the child is killed, and the device is free again.
// Usage: large-map map|unmap. Exits with 0 where that is so.

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "copy_engine.h"

// Sparse, and in leaves of 4 KiB.
static const uint64_t SIZE = 96ULL << 30;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int bind_and_attach(struct engine *engine, uint32_t *space) {
  engine->device = open(engine->node, O_RDWR | O_CLOEXEC);
  if (engine->device < 0) return -1;
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
  *space = alloc.out_ioas_id;
  if (!engine_bind(engine) && !engine_attach(engine, *space)) return 0;
  close(engine->device);
  return -1;
}

// Says in `stage` before which call the child is: 1 the call that takes long, 2 is after it.
static void child(struct engine *engine, volatile int *stage, int unmaps) {
  uint32_t space;
  engine->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (engine->iommu < 0 || bind_and_attach(engine, &space)) fail("setting up the engine");
  const int file = (int)syscall(SYS_memfd_create, "sparse", 0);
  if (file < 0 || ftruncate(file, (off_t)SIZE)) fail("memfd");
  void *bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = space,
      .user_va = (uintptr_t)bytes,
      .length = SIZE,
      .iova = (4ULL << 30) + ((((uintptr_t)bytes) & 0x1fffff) ^ 0x1000)};
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = space, .iova = map.iova, .length = SIZE};
  if (unmaps && ioctl(engine->iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
  *stage = 1;
  const int result = unmaps ? ioctl(engine->iommu, IOMMU_IOAS_UNMAP, &unmap)
                            : ioctl(engine->iommu, IOMMU_IOAS_MAP, &map);
  *stage = 2;
  if (result) fail("the call");
  exit(0);
}

// Whether the child waits in an ioctl; what cannot be seen is believed.
static int is_calling(pid_t process) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/syscall", process);
  FILE *file = fopen(path, "r");
  if (!file) return usleep(50000), 1;
  long number = -1;
  const int count = fscanf(file, "%ld", &number);
  fclose(file);
  return count == 1 && number == SYS_ioctl;
}

int main(int count, char **arguments) {
  const int unmaps = count > 1 && !strcmp(arguments[1], "unmap");
  volatile int *stage =
      mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) fail("no copy engine");
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  const pid_t process = fork();
  if (process == 0) child(&engine, stage, unmaps);
  while (!*stage || (*stage == 1 && !is_calling(process))) {
    if (waitpid(process, NULL, WNOHANG)) return 1;
    usleep(100);
  }
  // Few: on a busy machine each takes a while, and the long call is to be killed in its middle.
  for (int i = 0; i < 8; i++) {
    struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
    if (ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
    struct iommu_destroy destroy = {.size = sizeof destroy, .id = alloc.out_ioas_id};
    if (ioctl(engine.iommu, IOMMU_DESTROY, &destroy)) fail("IOMMU_DESTROY");
    const int another = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    if (another < 0 || close(another)) fail("open");
    if (write(1, ".", 1) != 1) fail("write");
  }
  if (*stage != 1) {
    fprintf(stderr, "the others' calls waited for the long one\n");
    return 1;
  }
  kill(process, SIGKILL);
  waitpid(process, NULL, 0);
  // Its device comes free once what it did is taken back.
  uint32_t space;
  for (int wait = 0; bind_and_attach(&engine, &space); wait++) {
    if (wait == 60000) fail("the device is not free");
    usleep(1000);
  }
  return 0;
}
