// SPDX-License-Identifier: Apache-2.0
//
// The memory BAR through the device's group: every descriptor of the device shows the same pages,
// and a container maps them for DMA, peer to peer.

#include "device_memory.h"

// Copies 4 KiB; 0 where it went well, else the engine's error bits.
static uint32_t copy(struct engine *engine, struct descriptor *one, uint64_t iova, uint64_t source,
                     uint64_t destination) {
  *one = (struct descriptor){
      .size = 4096, .source = source, .destination = destination, .next = iova};
  if (!engine_reset(engine)) return ~0u;
  engine_start(engine, iova, iova + 2048, 1);
  for (;;) {
    uint64_t state = engine_read(engine, CHANSTS, 8) & 7;
    if (state == CHANSTS_DONE) return 0;
    if (state == CHANSTS_HALTED) return (uint32_t)engine_read(engine, CHANERR, 4);
  }
}

static int map_dma(int container, void *memory, uint64_t iova, uint64_t size) {
  struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                         .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                         .vaddr = (uintptr_t)memory,
                                         .iova = iova,
                                         .size = size};
  return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

void check_group_way(struct engine *engine, const struct vfio_region_info *region) {
  const char *failed = engine_open_by_group(engine, "/dev/vfio/vfio");
  if (failed) perror(failed);
  CHECK(!failed);
  int second = ioctl(engine->group, VFIO_GROUP_GET_DEVICE_FD, engine->bdf);
  CHECK(second >= 0 && second != engine->device);
  uint64_t *maps[2];
  for (int i = 0; i < 2; i++) {
    maps[i] = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED,
                   i ? second : engine->device, (off_t)region->offset);
    CHECK(maps[i] != MAP_FAILED);
  }
  maps[0][5] = 0x5555;
  CHECK(maps[1][5] == 0x5555);
  CHECK(close(engine->device) == 0);
  engine->device = second;
  CHECK(engine_enable(engine) == 0 && maps[0][5] == 0x5555);

  // From memory to the device's own, and back.
  uint64_t *memory = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  CHECK(map_dma(engine->iommu, memory, 0x10000, 12288) == 0);
  CHECK(map_dma(engine->iommu, maps[0], 0x100000, region->size) == 0);
  memory[512] = 0x1234;
  CHECK(copy(engine, (void *)memory, 0x10000, 0x11000, 0x100000) == 0);
  CHECK(maps[1][0] == 0x1234);
  CHECK(copy(engine, (void *)memory, 0x10000, 0x100000, 0x12000) == 0);
  CHECK(memory[1024] == 0x1234);

  // The last of the mappings keeps the device, and the device the group.
  CHECK(munmap(maps[0], region->size) == 0);
  CHECK(close(second) == 0 && close(engine->group) == 0 && close(engine->iommu) == 0);
  CHECK(maps[1][0] == 0x1234);
}
