// SPDX-License-Identifier: Apache-2.0
//
// Two copy engines in one container: the second one's DMA goes to the memory of the first, whose
// BAR is mapped by address as type1 takes it. Exits with 0 where all of it holds.
// Usage: peer-to-peer ADDRESS ADDRESS: two engines of different groups, the first with memory.

#include <sys/mman.h>

#include "copy_engine.h"
#include "../common/check.h"

#define BOTH (PROT_READ | PROT_WRITE)
enum { RAM = 0x100000, BAR = 0x800000, SIZE = 0x10000 };

static int container;
static struct engine target, copier;

static int open_group(const char *bdf) {
  char path[320], group[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
  ssize_t length = readlink(path, group, sizeof group - 1);
  CHECK(length > 0);
  group[length] = 0;
  snprintf(path, sizeof path, "/dev/vfio/%.32s", strrchr(group, '/') + 1);
  return open(path, O_RDWR | O_CLOEXEC);
}

static int map(void *memory, uint64_t iova, uint64_t size) {
  struct vfio_iommu_type1_dma_map cmd = {.argsz = sizeof cmd,
                                         .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                         .vaddr = (uintptr_t)memory,
                                         .iova = iova,
                                         .size = size};
  return ioctl(container, VFIO_IOMMU_MAP_DMA, &cmd) ? errno : 0;
}

static struct vfio_region_info memory_of(struct engine *engine) {
  struct vfio_region_info region = {.argsz = sizeof region, .index = 2};
  CHECK(ioctl(engine->device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
  CHECK(region.flags & VFIO_REGION_INFO_FLAG_MMAP && region.size >= SIZE);
  return region;
}

// Copies a page; returns what CHANERR says.
static uint32_t copy(struct descriptor *ring, uint64_t source, uint64_t destination) {
  CHECK(engine_reset(&copier));
  ring[0] = (struct descriptor){.size = 4096, .source = source, .destination = destination};
  engine_start(&copier, RAM, RAM + 512, 1);
  uint64_t status = 0;
  for (int wait = 0; wait < 30000; wait++) {
    status = engine_read(&copier, CHANSTS, 8) & 7;
    if (status == CHANSTS_DONE || status == CHANSTS_HALTED) break;
    usleep(1000);
  }
  return (uint32_t)engine_read(&copier, CHANERR, 4);
}

static void set_command(struct engine *engine, uint16_t command) {
  CHECK(pwrite(engine->device, &command, 2, (off_t)(engine->config + 4)) == 2);
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  CHECK(engine_find(&target, arguments[1]) && engine_find(&copier, arguments[2]));
  container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  int groups[] = {open_group(target.bdf), open_group(copier.bdf)};
  for (int i = 0; i < 2; i++)
    CHECK(groups[i] >= 0 && ioctl(groups[i], VFIO_GROUP_SET_CONTAINER, &container) == 0);
  CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  target.device = ioctl(groups[0], VFIO_GROUP_GET_DEVICE_FD, target.bdf);
  copier.device = ioctl(groups[1], VFIO_GROUP_GET_DEVICE_FD, copier.bdf);
  CHECK(target.device >= 0 && copier.device >= 0);
  CHECK(engine_enable(&target) == 0 && engine_enable(&copier) == 0);

  struct vfio_region_info region = memory_of(&target);
  uint64_t *bar = mmap(NULL, SIZE, BOTH, MAP_SHARED, target.device, (off_t)region.offset);
  uint64_t *ram = mmap(NULL, SIZE, BOTH, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(bar != MAP_FAILED && ram != MAP_FAILED);
  CHECK(map(ram, RAM, SIZE) == 0);

  // A second descriptor of the device shows the same memory.
  int again = ioctl(groups[0], VFIO_GROUP_GET_DEVICE_FD, target.bdf);
  CHECK(again >= 0);
  uint64_t *other = mmap(NULL, SIZE, BOTH, MAP_SHARED, again, (off_t)region.offset);
  CHECK(other != MAP_FAILED);
  bar[5] = 55;
  CHECK(other[5] == 55);
  CHECK(munmap(other, SIZE) == 0 && close(again) == 0);
  CHECK(bar[5] == 55);

  // While it does not decode there is nothing to map.
  set_command(&target, 4);
  CHECK(map(bar, BAR, SIZE) == EFAULT);
  set_command(&target, 6);
  CHECK(map(bar, BAR, SIZE) == 0);
  CHECK(map(bar, BAR, SIZE) == EEXIST);

  // Both ways.
  ram[1024] = 0x1234;
  CHECK(copy((struct descriptor *)ram, RAM + 8192, BAR + 4096) == 0);
  CHECK(bar[512] == 0x1234);
  bar[1024] = 77;
  CHECK(copy((struct descriptor *)ram, BAR + 8192, RAM + 12288) == 0);
  CHECK(ram[1536] == 77);

  // The mapping stays while the memory does not answer; DMA to it is an error until it does.
  set_command(&target, 4);
  CHECK(copy((struct descriptor *)ram, RAM + 8192, BAR + 12288) & 0x200);
  CHECK(copy((struct descriptor *)ram, BAR + 8192, RAM + 12288) & 0x100);
  set_command(&target, 6);
  CHECK(copy((struct descriptor *)ram, RAM + 8192, BAR + 12288) == 0);
  CHECK(bar[1536] == 0x1234);

  // The address of mapped registers is taken too, as a VMM maps all that its guest has; DMA there
  // is an error.
  struct vfio_region_info info = {.argsz = sizeof info};
  CHECK(ioctl(target.device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
  if (info.flags & VFIO_REGION_INFO_FLAG_MMAP) {
    uint64_t *registers =
        mmap(NULL, info.size, BOTH, MAP_SHARED, target.device, (off_t)info.offset);
    CHECK(registers != MAP_FAILED);
    set_command(&target, 4);
    CHECK(map(registers, 2 * BAR, info.size) == EFAULT);
    set_command(&target, 6);
    CHECK(map(registers, 2 * BAR, info.size) == 0);
    CHECK(copy((struct descriptor *)ram, RAM + 8192, 2 * BAR) & 0x200);
    CHECK(copy((struct descriptor *)ram, 2 * BAR, RAM + 12288) & 0x100);
    CHECK(munmap(registers, info.size) == 0);
  }

  // It does not need the program's own mapping, and reaches nothing once the device is closed.
  CHECK(munmap(bar, SIZE) == 0);
  ram[1024] = 0x5678;
  CHECK(copy((struct descriptor *)ram, RAM + 8192, BAR + 16384) == 0);
  uint64_t value = 0;
  CHECK(pread(target.device, &value, 8, (off_t)(region.offset + 16384)) == 8 && value == 0x5678);
  CHECK(close(target.device) == 0);
  CHECK(copy((struct descriptor *)ram, RAM + 8192, BAR + 16384) & 0x200);
  target.device = ioctl(groups[0], VFIO_GROUP_GET_DEVICE_FD, target.bdf);
  CHECK(target.device >= 0);
  CHECK(pread(target.device, &value, 8, (off_t)(region.offset + 16384)) == 8 && value == 0);
  return 0;
}
