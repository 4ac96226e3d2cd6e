// SPDX-License-Identifier: Apache-2.0
//
// What the operations of the back door refuse.

#include "calls.h"

CASE(back_door, unknown_operations, LINUX_6_12) {
  int fd = open_iommu();
  struct iommu_test_cmd cmd = {.op = 0};
  EXPECT(-EOPNOTSUPP, back_door(fd, &cmd));
  cmd.op = 0x1000;
  EXPECT(-EOPNOTSUPP, back_door(fd, &cmd));
}

CASE(back_door, devices, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct mock mock;
  EXPECT(-ENOENT, add_mock(rig.fd, 0, 0, &mock));
  EXPECT(-EINVAL, add_mock(rig.fd, rig.ioas, 1u << 30, &mock));
  EXPECT(-EINVAL, add_mock(rig.fd, 0, 1u << 30, &mock));
  EXPECT(-EINVAL, add_mock(rig.fd, rig.mock.device, 0, &mock));
  EXPECT(-ENOENT, replace(rig.fd, rig.mock.device, rig.ioas));
  EXPECT(-ENOENT, replace(rig.fd, rig.mock.stdev, 0));
  EXPECT(-EINVAL, replace(rig.fd, rig.mock.stdev, rig.mock.device));
  EXPECT(0, replace(rig.fd, rig.mock.stdev, rig.mock.hwpt));
}

CASE(back_door, failed_device_leaves_nothing, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct mock mock;
  uint32_t next = (uint32_t)GET(alloc_ioas(rig.fd));
  NEED(0, destroy(rig.fd, next));
  EXPECT(-ENOENT, add_mock(rig.fd, 0x7fffffff, 0, &mock));
  EXPECT(next, alloc_ioas(rig.fd));
}

CASE(back_door, reserved_ranges, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_ADD_RESERVED, .id = rig.ioas};
  EXPECT(-EINVAL, back_door(rig.fd, &cmd));
  cmd.add_reserved.start = UINT64_MAX;
  cmd.add_reserved.length = 2;
  EXPECT(-EOVERFLOW, back_door(rig.fd, &cmd));
  cmd.id = rig.mock.device;
  EXPECT(-EOVERFLOW, back_door(rig.fd, &cmd));
  cmd.add_reserved.length = 1;
  EXPECT(-ENOENT, back_door(rig.fd, &cmd));
}

CASE(back_door, looking_at_maps, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint8_t *memory = pages(3, 0);
  uint64_t iova = MOCK_APERTURE_START;
  NEED(0, map(rig.fd, rig.ioas, memory, 2 * PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, iova, memory, 2 * PAGE));
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, iova + MOCK_PAGE_SIZE, memory + MOCK_PAGE_SIZE, PAGE));
  EXPECT(-EINVAL, check_map(rig.fd, rig.mock.hwpt, iova + 1, memory + 1, PAGE));
  EXPECT(-EINVAL, check_map(rig.fd, rig.mock.hwpt, iova, memory, PAGE + 1));
  EXPECT(-EINVAL, check_map(rig.fd, rig.mock.hwpt, iova, memory, 3 * PAGE));
  EXPECT(-ENOENT, check_map(rig.fd, rig.ioas, iova, memory, PAGE));
  EXPECT(-ENOENT, check_map(rig.fd, rig.mock.device, iova, memory, PAGE));
}

CASE(back_door, memory_limit, LINUX_6_12) {
  int fd = open_iommu();
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
                               .memory_limit = {.limit = 11}};
  EXPECT(-EINVAL, back_door(fd, &cmd));
  cmd.memory_limit.limit = 12;
  EXPECT(0, back_door(fd, &cmd));
  cmd.memory_limit.limit = 65536;
  EXPECT(0, back_door(fd, &cmd));
}

CASE(back_door, accessors, LINUX_6_12) {
  struct rig rig = make_rig(0);
  uint8_t *memory = pages(1, 0x33), byte = 0;
  uint64_t iova = MOCK_APERTURE_START;
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, .id = (uint32_t)rig.fd,
                               .access_replace_ioas = {.ioas_id = rig.ioas}};
  EXPECT(-EOPNOTSUPP, create_access(rig.fd, rig.ioas, 2));
  EXPECT(-ENOENT, create_access(rig.fd, rig.mock.device, 0));
  EXPECT(-EBADFD, back_door(rig.fd, &cmd));
  EXPECT(-EBADFD, access_rw(rig.fd, -1, iova, &byte, 1, 0));
  EXPECT(-EBADFD, access_pin(rig.fd, STDOUT_FILENO, iova, memory, PAGE, 0));
  int plain = (int)GET(create_access(rig.fd, rig.ioas, 0));
  int pins =
      (int)GET(create_access(rig.fd, rig.ioas, MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
  EXPECT(-EOPNOTSUPP, access_rw(rig.fd, plain, iova, &byte, 1, 2));
  EXPECT(-EOPNOTSUPP, access_pin(rig.fd, pins, iova, memory, PAGE, 2));
  EXPECT(-EOPNOTSUPP, access_pin(rig.fd, plain, iova, memory, PAGE, 0));
  EXPECT(-ENOMEM, access_rw(rig.fd, plain, iova, &byte, (16 << 20) + 1, 0));
  EXPECT(-ENOMEM, access_pin(rig.fd, pins, iova, NULL, (16 << 20) + 1, 0));
  EXPECT(-ENOENT, access_rw(rig.fd, plain, iova, &byte, 1, 0));
  EXPECT(-ENOENT, access_pin(rig.fd, pins, iova, memory, PAGE, 0));
  NEED(0, map(rig.fd, rig.ioas, memory, PAGE, IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_FIXED_IOVA,
              &iova));
  EXPECT(0, access_rw(rig.fd, plain, iova, &byte, 1, 0));
  EXPECT(0x33, byte);
  EXPECT(-EPERM, access_rw(rig.fd, plain, iova, &byte, 1, MOCK_ACCESS_RW_WRITE));
  EXPECT(-EPERM, access_pin(rig.fd, pins, iova, memory, PAGE, MOCK_FLAGS_ACCESS_WRITE));
  EXPECT(-EBADE, access_pin(rig.fd, pins, iova, pages(1, 0), PAGE, 0));
  long first = GET(access_pin(rig.fd, pins, iova, memory, PAGE, 0));
  EXPECT(first + 1, access_pin(rig.fd, pins, iova, NULL, PAGE, 0));
  EXPECT(0, unmap(rig.fd, rig.ioas, iova, PAGE));  // Told, it lets go.
}
