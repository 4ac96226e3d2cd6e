// SPDX-License-Identifier: Apache-2.0
//
// DMA buffers in address spaces: parts of them, and buffers that their owner takes back.

#include "calls.h"

static const uint32_t fixed = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
                              IOMMU_IOAS_MAP_WRITEABLE;

CASE(dmabufs, making, LINUX_7_1) {
  int fd = open_iommu();
  EXPECT(-EINVAL, get_dmabuf(fd, 0));
  EXPECT(-EINVAL, get_dmabuf(fd, 512 * PAGE + 1));
  int buffer = (int)GET(get_dmabuf(fd, 512 * PAGE));
  CHECK(fcntl(buffer, F_GETFD) & FD_CLOEXEC);
  close(buffer);
  // Its length is whole pages, and can be asked for.
  buffer = (int)GET(get_dmabuf(fd, 1));
  EXPECT(PAGE, lseek(buffer, 0, SEEK_END));
  EXPECT(0, lseek(buffer, 0, SEEK_SET));
  EXPECT(-EINVAL, lseek(buffer, 8, SEEK_SET) < 0 ? -errno : 0);
  EXPECT(-EINVAL, lseek(buffer, 0, SEEK_CUR) < 0 ? -errno : 0);
}

CASE(dmabufs, mapping, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int buffer = (int)GET(get_dmabuf(rig.fd, 4 * PAGE));
  uint64_t iova = 0, at = MOCK_APERTURE_START;
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, buffer, 0, 0, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, buffer, 0, 4 * PAGE + 1, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, buffer, 4 * PAGE, PAGE, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, buffer, 3 * PAGE, 2 * PAGE, both, &iova));
  NEED(0, map_file(rig.fd, rig.ioas, buffer, 0, 4 * PAGE, fixed, &at));
  EXPECT(-EEXIST, map_file(rig.fd, rig.ioas, buffer, 0, PAGE, fixed, &at));
  NEED(0, map_file(rig.fd, rig.ioas, buffer, PAGE, PAGE, both, &iova));  // A part of it.
  EXPECT(-ENOENT, unmap(rig.fd, rig.ioas, at, PAGE));
  close(buffer);
  EXPECT(0, unmap(rig.fd, rig.ioas, at, 4 * PAGE));
  EXPECT(0, unmap(rig.fd, rig.ioas, iova, PAGE));
}

CASE(dmabufs, late_tables_and_copies, LINUX_7_1) {
  struct rig rig = make_rig(0);
  uint32_t second = (uint32_t)GET(alloc_ioas(rig.fd));
  int buffer = (int)GET(get_dmabuf(rig.fd, 2 * PAGE));
  uint64_t at = MOCK_APERTURE_START;
  struct mock mock;
  NEED(0, map_file(rig.fd, rig.ioas, buffer, 0, 2 * PAGE, fixed, &at));
  GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 0));
  NEED(0, copy(rig.fd, second, at, rig.ioas, at, 2 * PAGE));
  NEED(0, add_mock(rig.fd, second, 0, &mock));
  NEED(0, unmap(rig.fd, rig.ioas, at, 2 * PAGE));
  NEED(0, unmap(rig.fd, second, at, 2 * PAGE));
}

CASE(dmabufs, not_for_the_processor, LINUX_7_1) {
  // A buffer may be a device's memory: nothing reads, writes or pins it but a device.
  struct rig rig = make_rig(0);
  int buffer = (int)GET(get_dmabuf(rig.fd, PAGE));
  uint64_t at = MOCK_APERTURE_START;
  uint8_t byte = 0;
  NEED(0, map_file(rig.fd, rig.ioas, buffer, 0, PAGE, fixed, &at));
  int accessor = (int)GET(create_access(rig.fd, rig.ioas, 0));
  EXPECT(-EINVAL, access_rw(rig.fd, accessor, at, &byte, 1, 0));
  EXPECT(-EINVAL, access_rw(rig.fd, accessor, at, &byte, 1, MOCK_ACCESS_RW_WRITE));
}

CASE(dmabufs, stand_in_the_way_of_a_change_of_process, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int buffer = (int)GET(get_dmabuf(rig.fd, PAGE));
  uint64_t iova = 0;
  NEED(0, map_file(rig.fd, rig.ioas, buffer, 0, PAGE, both, &iova));
  EXPECT(-EINVAL, change_process(rig.fd));
  NEED(0, unmap(rig.fd, rig.ioas, iova, PAGE));
  EXPECT(0, change_process(rig.fd));
}

CASE(dmabufs, revoke, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int buffer = (int)GET(get_dmabuf(rig.fd, 4 * PAGE));
  uint64_t at = MOCK_APERTURE_START, other = at + 64 * PAGE;
  struct mock mock;
  NEED(0, map_file(rig.fd, rig.ioas, buffer, 0, 4 * PAGE, fixed, &at));
  NEED(0, revoke_dmabuf(rig.fd, buffer, true));
  EXPECT(-ENODEV, map_file(rig.fd, rig.ioas, buffer, 0, PAGE, fixed, &other));
  EXPECT(0, revoke_dmabuf(rig.fd, buffer, true));
  // The area is there still, with nothing behind it; tables and devices come as ever.
  EXPECT(-EEXIST, map_file(rig.fd, rig.ioas, (int)GET(get_dmabuf(rig.fd, PAGE)), 0, PAGE, fixed,
                           &at));
  uint32_t table = (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 0));
  EXPECT(0, add_mock(rig.fd, rig.ioas, 0, &mock));
  EXPECT(0, replace(rig.fd, rig.mock.stdev, table));
  NEED(0, revoke_dmabuf(rig.fd, buffer, false));
  EXPECT(0, map_file(rig.fd, rig.ioas, buffer, 0, PAGE, fixed, &other));
  EXPECT(0, unmap(rig.fd, rig.ioas, at, 4 * PAGE));
  EXPECT(0, map_file(rig.fd, rig.ioas, buffer, 0, 4 * PAGE, fixed, &at));
  close(buffer);
}

CASE(dmabufs, revoke_what, LINUX_7_1) {
  int fd = open_iommu(), file = memfd_create("case", MFD_CLOEXEC);
  EXPECT(-EBADF, revoke_dmabuf(fd, -1, true));
  EXPECT(-EINVAL, revoke_dmabuf(fd, file, true));
  EXPECT(-EINVAL, revoke_dmabuf(fd, fd, true));
}
