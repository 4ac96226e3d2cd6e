// SPDX-License-Identifier: Apache-2.0
//
// The container face of /dev/iommu: VFIO's type1 calls on the address space of VFIO_IOAS.

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "sequence.h"
#include "vfio_abi.h"

static int simple(struct context *c, uint32_t command, unsigned long argument) {
  errno = 0;
  int result = ioctl(c->fd, command, argument);
  say(" -> %s %d\n", error_name(result < 0 ? errno : 0), result);
  return result;
}

void api_version(struct context *c) {
  say("VFIO_GET_API_VERSION");
  simple(c, VFIO_GET_API_VERSION, 0);
}

void check_extension(struct context *c) {
  unsigned long type = below(14);
  say("VFIO_CHECK_EXTENSION %lu", type);
  simple(c, VFIO_CHECK_EXTENSION, type);
}

void set_iommu(struct context *c) {
  unsigned long type = once_in(6) ? below(10) : once_in(2) ? 1 : 3;
  say("VFIO_SET_IOMMU %lu", type);
  simple(c, VFIO_SET_IOMMU, type);
}

void get_info(struct context *c) {
  uint8_t buffer[256] = {0};
  uint32_t argsz = once_in(3) ? 256 : 12 + (uint32_t)below(160);
  say("VFIO_IOMMU_GET_INFO argsz=%u", argsz);
  if (call_type1(c, VFIO_IOMMU_GET_INFO, buffer, sizeof buffer, argsz) == 0) {
    struct vfio_iommu_type1_info info;
    memcpy(&info, buffer, sizeof info);
    say(" argsz=%u flags=%#x sizes=%#llx offset=%u all=%llx", info.argsz, info.flags,
        (unsigned long long)info.iova_pgsizes, info.cap_offset,
        (unsigned long long)hash(buffer, sizeof buffer));
  }
  say("\n");
}

static uint32_t compat_ioas(struct context *c) { return good_id(c, &c->ioas); }

void type1_map(struct context *c) {
  uint32_t ioas = compat_ioas(c);
  struct vfio_iommu_type1_dma_map a = {
      .flags = once_in(20) ? (uint32_t)below(9) : 3,
      .vaddr = some_address(),
      .iova = some_iova(c, ioas),
      .size = some_length(),
  };
  uint32_t argsz = once_in(30) ? (uint32_t)below(40) : sizeof a;
  say("VFIO_IOMMU_MAP_DMA argsz=%u flags=%u va=%#llx iova=%#llx size=%#llx", argsz, a.flags,
      (unsigned long long)a.vaddr, (unsigned long long)a.iova, (unsigned long long)a.size);
  if (call_type1(c, VFIO_IOMMU_MAP_DMA, &a, sizeof a, argsz) == 0)
    add_area(c, ioas, a.iova, a.size, a.vaddr);
  say("\n");
}

void type1_unmap(struct context *c) {
  uint32_t ioas = compat_ioas(c);
  const struct area *area = some_area(c, ioas);
  struct vfio_iommu_type1_dma_unmap a = {
      .flags = once_in(30) ? 1u << below(4) : 0,
      .iova = some_iova(c, ioas),
      .size = some_length(),
  };
  if (area && !once_in(6)) {
    a.iova = area->iova;
    a.size = area->length;
    if (once_in(2)) {
      a.iova += below(area->length / HALF + 1) * HALF;
      a.size = (1 + below(4)) * HALF;
    }
  }
  if (once_in(20)) {
    a.flags = VFIO_DMA_UNMAP_FLAG_ALL;
    a.iova = once_in(6) ? PAGE : 0;
    a.size = once_in(6) ? PAGE : 0;
  }
  uint32_t argsz = once_in(30) ? (uint32_t)below(40) : sizeof a;
  say("VFIO_IOMMU_UNMAP_DMA argsz=%u flags=%u iova=%#llx size=%#llx", argsz, a.flags,
      (unsigned long long)a.iova, (unsigned long long)a.size);
  uint64_t iova = a.iova, size = a.size;
  bool all = a.flags & VFIO_DMA_UNMAP_FLAG_ALL;
  if (call_type1(c, VFIO_IOMMU_UNMAP_DMA, &a, sizeof a, argsz) == 0)
    drop_areas(c, ioas, all ? 0 : iova, all ? UINT64_MAX : size);
  say(" size=%#llx\n", (unsigned long long)a.size);
}
