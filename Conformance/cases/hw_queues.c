// SPDX-License-Identifier: Apache-2.0
//
// Hardware queues of virtual IOMMUs, the memory that they hold in the nesting parent, and the
// pages that a virtual IOMMU lends its user by mmap.

#include "calls.h"

enum { TYPE = IOMMU_HW_QUEUE_TYPE_SELFTEST, START = MOCK_APERTURE_START };

/// Maps pages at START.
static uint8_t *map_pages(struct virtual_rig *rig, unsigned count, uint32_t flags) {
  uint64_t iova = START;
  uint8_t *memory = pages(count, 0);
  NEED(0, map(rig->fd, rig->ioas, memory, (uint64_t)count * PAGE,
              flags | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  return memory;
}

CASE(hw_queues, order_of_checks, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  EXPECT(-EOPNOTSUPP, alloc_hw_queue(rig.fd, 0, IOMMU_HW_QUEUE_TYPE_DEFAULT, 0, START, 0));
  EXPECT(-EINVAL, alloc_hw_queue(rig.fd, 0, TYPE, 0, START, 0));
  EXPECT(-EOVERFLOW, alloc_hw_queue(rig.fd, 0, TYPE, 0, UINT64_MAX, 2));
  EXPECT(-EOVERFLOW, alloc_hw_queue(rig.fd, 0, TYPE, 0, START, UINT64_MAX));
  uint32_t others[] = {0, rig.ioas, rig.parent, rig.nested, rig.mock.device};
  for (int i = 0; i < 5; i++)
    EXPECT(-ENOENT, alloc_hw_queue(rig.fd, others[i], TYPE, 0, START, PAGE));
  EXPECT(-EOPNOTSUPP, alloc_hw_queue(rig.fd, rig.viommu, 0x77, 0, START, PAGE));
  // The memory is looked at before the index.
  EXPECT(-ENOENT, alloc_hw_queue(rig.fd, rig.viommu, TYPE, IOMMU_TEST_HW_QUEUE_MAX, START, PAGE));
  map_pages(&rig, 1, both);
  EXPECT(-EINVAL, alloc_hw_queue(rig.fd, rig.viommu, TYPE, IOMMU_TEST_HW_QUEUE_MAX, START, PAGE));
  EXPECT(-EINVAL, alloc_hw_queue(rig.fd, rig.viommu, TYPE, UINT32_MAX, START, PAGE));
  EXPECT(-EIO, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START, PAGE));
  // Past the end of what is mapped, by one byte.
  EXPECT(-ENOENT, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE + 1));
  EXPECT(-ENOENT, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START - 1, PAGE));
  // None of them holds the memory.
  EXPECT(0, unmap(rig.fd, rig.ioas, START, PAGE));
}

CASE(hw_queues, hold_their_memory, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint64_t far = START + 64 * PAGE;
  uint8_t *memory = map_pages(&rig, 1, both);
  NEED(0, map(rig.fd, rig.ioas, memory, PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &far));
  uint32_t queue = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, START, PAGE));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, START - PAGE, 3 * PAGE));
  EXPECT(0, unmap(rig.fd, rig.ioas, far, PAGE));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, 0, UINT64_MAX));
  EXPECT(0, check_map(rig.fd, rig.parent, START, memory, PAGE));
  NEED(0, destroy(rig.fd, queue));
  EXPECT(0, unmap(rig.fd, rig.ioas, START, PAGE));
}

CASE(hw_queues, hold_no_copies, LINUX_7_1) {
  // The queue holds the area in its own space: a copy elsewhere comes and goes as ever.
  struct virtual_rig rig = make_virtual_rig();
  uint32_t second = (uint32_t)GET(alloc_ioas(rig.fd));
  map_pages(&rig, 2, both);
  GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START + PAGE, PAGE));
  NEED(0, copy(rig.fd, second, START, rig.ioas, START, 2 * PAGE));
  EXPECT(0, unmap(rig.fd, second, START, 2 * PAGE));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, START, 2 * PAGE));
  EXPECT(-EBUSY, destroy(rig.fd, rig.ioas));
  NEED(0, copy(rig.fd, rig.ioas, START + 64 * PAGE, rig.ioas, START, PAGE));
  EXPECT(0, unmap(rig.fd, rig.ioas, START + 64 * PAGE, PAGE));
}

CASE(hw_queues, part_of_a_page, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  map_pages(&rig, 1, both);
  uint32_t one = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START + 64, 16));
  uint32_t two = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START + PAGE - 1, 1));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, START, PAGE));
  NEED(0, destroy(rig.fd, two));
  EXPECT(-EBUSY, unmap(rig.fd, rig.ioas, START, PAGE));
  NEED(0, destroy(rig.fd, one));
  EXPECT(0, unmap(rig.fd, rig.ioas, START, PAGE));
}

CASE(hw_queues, indices, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  map_pages(&rig, 1, both);
  uint32_t one = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  EXPECT(-EEXIST, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  uint32_t two = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START, PAGE));
  EXPECT(-EEXIST, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START, PAGE));
  // Each depends on the one before it.
  EXPECT(-EBUSY, destroy(rig.fd, one));
  NEED(0, destroy(rig.fd, two));
  two = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START, PAGE));
  EXPECT(-EBUSY, destroy(rig.fd, one));
  EXPECT(-EBUSY, destroy(rig.fd, rig.viommu));
  NEED(0, destroy(rig.fd, two));
  NEED(0, destroy(rig.fd, one));
  // Another virtual IOMMU has indices of its own.
  uint32_t second = (uint32_t)GET(alloc_viommu(rig.fd, rig.mock.device, rig.parent));
  EXPECT(-EIO, alloc_hw_queue(rig.fd, second, TYPE, 1, START, PAGE));
  one = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  two = (uint32_t)GET(alloc_hw_queue(rig.fd, second, TYPE, 0, START, PAGE));
  EXPECT(0, destroy(rig.fd, one));
  EXPECT(0, destroy(rig.fd, two));
  EXPECT(0, destroy(rig.fd, second));
}

CASE(hw_queues, memory_that_cannot_be_read, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  map_pages(&rig, 1, IOMMU_IOAS_MAP_WRITEABLE);
  EXPECT(-EPERM, alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  NEED(0, unmap(rig.fd, rig.ioas, START, PAGE));
  map_pages(&rig, 1, IOMMU_IOAS_MAP_READABLE);
  uint32_t queue = (uint32_t)GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  EXPECT(0, destroy(rig.fd, queue));
}

CASE(hw_queues, close_with_queues, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  map_pages(&rig, 1, both);
  GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 0, START, PAGE));
  GET(alloc_hw_queue(rig.fd, rig.viommu, TYPE, 1, START, PAGE));
  EXPECT(0, close(rig.fd));
}

// --- Pages to map ------------------------------------------------------------------------------

/// A virtual IOMMU with pages to map; the data that it answered.
static uint32_t make_pages(struct virtual_rig *rig, uint32_t value,
                           struct iommu_viommu_selftest *data) {
  *data = (struct iommu_viommu_selftest){.in_data = value};
  return (uint32_t)GET(alloc_viommu_full(rig->fd, rig->mock.device, rig->parent,
                                         IOMMU_VIOMMU_TYPE_SELFTEST, data, sizeof *data));
}

static long try_mmap(int fd, uint64_t length, int protection, int flags, uint64_t offset,
                     void **memory) {
  void *result = mmap(NULL, length, protection, flags, fd, (off_t)offset);
  if (memory) *memory = NULL;
  if (result == MAP_FAILED) return -errno;
  if (memory) *memory = result;
  else munmap(result, length);
  return 0;
}

CASE(pages_to_map, not_pinned, LINUX_7_1) {
  // A device's pages are no memory that a page table could pin.
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data;
  make_pages(&rig, 1, &data);
  void *pages = NULL;
  NEED(0, try_mmap(rig.fd, data.out_mmap_length, PROT_READ | PROT_WRITE, MAP_SHARED,
                   data.out_mmap_offset, &pages));
  uint64_t at = START;
  EXPECT(-EFAULT, map(rig.fd, rig.ioas, pages, PAGE, IOMMU_IOAS_MAP_FIXED_IOVA | both, &at));
  EXPECT(0, munmap(pages, data.out_mmap_length));
}

CASE(pages_to_map, refused, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data;
  int both_ways = PROT_READ | PROT_WRITE;
  EXPECT(-ENXIO, try_mmap(rig.fd, 2 * PAGE, both_ways, MAP_SHARED, PAGE, NULL));
  uint32_t viommu = make_pages(&rig, 1, &data);
  uint64_t offset = data.out_mmap_offset, length = data.out_mmap_length;
  EXPECT(-ENXIO, try_mmap(rig.fd, length, both_ways, MAP_SHARED, 0, NULL));
  EXPECT(-ENXIO, try_mmap(rig.fd, length, both_ways, MAP_SHARED, offset + PAGE, NULL));
  EXPECT(-ENXIO, try_mmap(rig.fd, length, both_ways, MAP_SHARED, offset + length, NULL));
  EXPECT(-ENXIO, try_mmap(rig.fd, PAGE, both_ways, MAP_SHARED, offset, NULL));
  EXPECT(-ENXIO, try_mmap(rig.fd, PAGE, both_ways, MAP_SHARED, offset + PAGE, NULL));
  EXPECT(-ENXIO, try_mmap(rig.fd, length + PAGE, both_ways, MAP_SHARED, offset, NULL));
  EXPECT(-EINVAL, try_mmap(rig.fd, length, both_ways, MAP_PRIVATE, offset, NULL));
  EXPECT(-EPERM, try_mmap(rig.fd, length, PROT_READ | PROT_EXEC, MAP_SHARED, offset, NULL));
  EXPECT(0, try_mmap(rig.fd, length, both_ways, MAP_SHARED, offset, NULL));
  EXPECT(0, try_mmap(rig.fd, length, PROT_READ, MAP_SHARED, offset, NULL));
  // None of them is left.
  NEED(0, destroy(rig.fd, viommu));
  EXPECT(-ENXIO, try_mmap(rig.fd, length, both_ways, MAP_SHARED, offset, NULL));
}

CASE(pages_to_map, shared_by_all_mappings, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data, other;
  void *one, *two, *three;
  int both_ways = PROT_READ | PROT_WRITE;
  make_pages(&rig, 0xabcd, &data);
  make_pages(&rig, 0x1234, &other);
  CHECK(other.out_mmap_offset >= data.out_mmap_offset + data.out_mmap_length ||
        other.out_mmap_offset + other.out_mmap_length <= data.out_mmap_offset);
  NEED(0, try_mmap(rig.fd, 2 * PAGE, both_ways, MAP_SHARED, data.out_mmap_offset, &one));
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ, MAP_SHARED, data.out_mmap_offset, &two));
  NEED(0, try_mmap(rig.fd, 2 * PAGE, both_ways, MAP_SHARED, other.out_mmap_offset, &three));
  EXPECT(0xabcd, *(uint32_t *)one);
  EXPECT(0xabcd, *(uint32_t *)two);
  EXPECT(0x1234, *(uint32_t *)three);
  EXPECT(0, ((uint8_t *)one)[4]);
  EXPECT(0, ((uint8_t *)one)[2 * PAGE - 1]);
  ((uint32_t *)one)[PAGE / 4] = 77;
  EXPECT(77, ((uint32_t *)two)[PAGE / 4]);
  EXPECT(0, ((uint32_t *)three)[PAGE / 4]);
}

CASE(pages_to_map, hold_their_owner, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data;
  void *one, *two;
  uint32_t viommu = make_pages(&rig, 5, &data);
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ, MAP_SHARED, data.out_mmap_offset, &one));
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ, MAP_SHARED, data.out_mmap_offset, &two));
  EXPECT(-EBUSY, destroy(rig.fd, viommu));
  NEED(0, munmap(one, 2 * PAGE));
  EXPECT(-EBUSY, destroy(rig.fd, viommu));
  // Half of a mapping is a mapping.
  NEED(0, munmap(two, PAGE));
  EXPECT(-EBUSY, destroy(rig.fd, viommu));
  EXPECT(0, *((uint8_t *)two + PAGE));
  NEED(0, munmap((uint8_t *)two + PAGE, PAGE));
  EXPECT(0, destroy(rig.fd, viommu));
}

CASE(pages_to_map, held_by_a_child, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data;
  void *memory;
  int status, channel[2];
  uint32_t viommu = make_pages(&rig, 5, &data);
  NEED(0, pipe(channel));
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, data.out_mmap_offset,
                   &memory));
  pid_t child = fork();
  if (child == 0) {
    char byte;
    close(channel[1]);
    *(uint32_t *)memory = 6;
    (void)!read(channel[0], &byte, 1);
    _exit(0);
  }
  close(channel[0]);
  NEED(0, munmap(memory, 2 * PAGE));
  EXPECT(-EBUSY, destroy(rig.fd, viommu));
  close(channel[1]);
  NEED(child, waitpid(child, &status, 0));
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ, MAP_SHARED, data.out_mmap_offset, &memory));
  EXPECT(6, *(uint32_t *)memory);
  NEED(0, munmap(memory, 2 * PAGE));
  EXPECT(0, destroy(rig.fd, viommu));
}

CASE(pages_to_map, outlive_the_descriptor, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_viommu_selftest data;
  void *memory;
  make_pages(&rig, 0x77, &data);
  NEED(0, try_mmap(rig.fd, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, data.out_mmap_offset,
                   &memory));
  NEED(0, close(rig.fd));
  EXPECT(0x77, *(uint32_t *)memory);
  *(uint32_t *)memory = 1;
  EXPECT(1, *(uint32_t *)memory);
  EXPECT(0, munmap(memory, 2 * PAGE));
}
