// SPDX-License-Identifier: Apache-2.0
//
// The container's calls on /dev/iommu (MODEL J1): which of them there are, and what they refuse.

#include "calls.h"
#include "vfio_abi.h"

/// A context whose container calls reach an address space with a device.
static struct rig make_container(uint32_t type) {
  struct rig rig = make_rig(0);
  struct iommu_vfio_ioas cmd = {.size = sizeof cmd, .ioas_id = rig.ioas,
                                .op = IOMMU_VFIO_IOAS_SET};
  NEED(0, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  NEED(0, call(rig.fd, VFIO_SET_IOMMU, (void *)(uintptr_t)type));
  return rig;
}

static long map_dma(int fd, void *memory, uint64_t iova, uint64_t size, uint32_t flags) {
  struct vfio_iommu_type1_dma_map cmd = {.argsz = sizeof cmd, .flags = flags,
                                         .vaddr = (uintptr_t)memory, .iova = iova, .size = size};
  return call(fd, VFIO_IOMMU_MAP_DMA, &cmd);
}

/// Unmaps; `*size` comes back as the bytes unmapped.
static long unmap_dma(int fd, uint64_t iova, uint64_t *size, uint32_t flags) {
  struct vfio_iommu_type1_dma_unmap cmd = {.argsz = sizeof cmd, .flags = flags, .iova = iova,
                                           .size = *size};
  long result = call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd);
  *size = cmd.size;
  return result;
}

CASE(compat, extensions, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1v2_IOMMU);
  int alone = open_iommu();
  // 1 type1, 3 type1v2, 9 unmap all; not 6 nesting, 10 new addresses.
  static const long answers[] = {0, 1, 0, 1, -1, 0, 0, 0, -1, 1, 0, 0};
  for (uintptr_t i = 0; i < sizeof answers / sizeof *answers; i++) {
    if (answers[i] < 0) continue;
    if (!EXPECT(answers[i], call(rig.fd, VFIO_CHECK_EXTENSION, (void *)i)) ||
        !EXPECT(answers[i], call(alone, VFIO_CHECK_EXTENSION, (void *)i)))
      printf("    of extension %lu\n", (unsigned long)i);
  }
  // Whether DMA is coherent for sure depends on the devices: without any there is no answer.
  EXPECT(-ENODEV, call(alone, VFIO_CHECK_EXTENSION, (void *)VFIO_DMA_CC_IOMMU));
  EXPECT(0, call(rig.fd, VFIO_CHECK_EXTENSION, (void *)VFIO_DMA_CC_IOMMU));
  EXPECT(0, call(alone, VFIO_GET_API_VERSION, NULL));
}

CASE(compat, types, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1v2_IOMMU);
  int alone = open_iommu();
  EXPECT(-ENODEV, call(alone, VFIO_SET_IOMMU, (void *)VFIO_TYPE1_IOMMU));
  EXPECT(-EINVAL, call(alone, VFIO_SET_IOMMU, (void *)6));
  EXPECT(-EINVAL, call(rig.fd, VFIO_SET_IOMMU, (void *)0));
  EXPECT(-EINVAL, call(rig.fd, VFIO_SET_IOMMU, (void *)6));
  EXPECT(0, call(rig.fd, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU));
  EXPECT(0, call(rig.fd, VFIO_SET_IOMMU, (void *)VFIO_TYPE1_IOMMU));
}

CASE(compat, refused_calls, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1v2_IOMMU);
  uint32_t bytes[64] = {sizeof bytes, 1};
  uint64_t size = PAGE;
  uint8_t *memory = pages(1, 0);
  EXPECT(-ENOTTY, call(rig.fd, VFIO_IOMMU_DIRTY_PAGES, bytes));
  NEED(0, map_dma(rig.fd, memory, MOCK_APERTURE_START, PAGE, 3));
  // The unmap that also reads dirty bits, and the one that keeps the map for a new address.
  EXPECT(-EINVAL, unmap_dma(rig.fd, MOCK_APERTURE_START, &size, 1));
  EXPECT(-EINVAL, unmap_dma(rig.fd, MOCK_APERTURE_START, &size, 4));
  EXPECT(-EINVAL, map_dma(rig.fd, memory, MOCK_APERTURE_START + PAGE, PAGE, 7));
  EXPECT(0, unmap_dma(rig.fd, MOCK_APERTURE_START, &size, 0));
  EXPECT(PAGE, (long long)size);
}

CASE(compat, map_arguments, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1v2_IOMMU);
  uint8_t *memory = pages(2, 0);
  uint64_t start = MOCK_APERTURE_START, size = PAGE;
  EXPECT(-EINVAL, map_dma(rig.fd, memory, start, 0, 3));
  EXPECT(-EINVAL, map_dma(rig.fd, memory + 1, start, PAGE, 3));
  EXPECT(-EINVAL, map_dma(rig.fd, memory, start - PAGE, PAGE, 3));
  NEED(0, map_dma(rig.fd, memory, start, 2 * PAGE, 3));
  EXPECT(-EEXIST, map_dma(rig.fd, memory, start + PAGE, PAGE, 3));
  EXPECT(-EFAULT, call(rig.fd, VFIO_IOMMU_MAP_DMA, nowhere));
  // Both faces are one: what one maps the other sees.
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, start, memory, 2 * PAGE));
  EXPECT(-ENOENT, unmap(rig.fd, rig.ioas, start, PAGE));
  EXPECT(-ENOENT, unmap_dma(rig.fd, start, &size, 0));  // Type1v2 splits nothing.
  EXPECT(0, (long long)size);
  EXPECT(0, unmap(rig.fd, rig.ioas, start, 2 * PAGE));
  size = PAGE;
  EXPECT(0, unmap_dma(rig.fd, start, &size, 0));  // Nothing there is no error here.
  EXPECT(0, (long long)size);
}

CASE(compat, type1_splits, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1_IOMMU);
  uint8_t *memory = pages(8, 0);
  uint64_t start = MOCK_APERTURE_START, size = 2 * PAGE;
  NEED(0, map_dma(rig.fd, memory, start, 8 * PAGE, 3));
  EXPECT(0, unmap_dma(rig.fd, start + 3 * PAGE, &size, 0));
  EXPECT(2 * PAGE, (long long)size);
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, start, memory, 3 * PAGE));
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, start + 5 * PAGE, memory + 5 * PAGE, 3 * PAGE));
  EXPECT(-EINVAL, check_map(rig.fd, rig.mock.hwpt, start + 3 * PAGE, memory + 3 * PAGE, PAGE));
  size = 0;
  EXPECT(0, unmap_dma(rig.fd, 0, &size, 2));
  EXPECT(6 * PAGE, (long long)size);
}

CASE(compat, the_space_of_the_container, LINUX_6_12) {
  struct rig rig = make_container(VFIO_TYPE1v2_IOMMU);
  struct iommu_vfio_ioas cmd = {.size = sizeof cmd, .op = IOMMU_VFIO_IOAS_GET, .__reserved = 1};
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  cmd.__reserved = 0;
  EXPECT(0, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  EXPECT(rig.ioas, cmd.ioas_id);
  cmd.op = 3;
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  cmd.op = IOMMU_VFIO_IOAS_SET;
  cmd.ioas_id = rig.mock.device;
  EXPECT(-ENOENT, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  // A space that goes takes the choice along.
  uint32_t second = (uint32_t)GET(alloc_ioas(rig.fd));
  cmd.ioas_id = second;
  EXPECT(0, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
  EXPECT(0, destroy(rig.fd, second));
  cmd.op = IOMMU_VFIO_IOAS_GET;
  EXPECT(-ENODEV, call(rig.fd, IOMMU_VFIO_IOAS, &cmd));
}
