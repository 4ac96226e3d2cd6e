// SPDX-License-Identifier: Apache-2.0
//
// The memory BAR of a copy engine, mapped: who may, what both sides see, what takes it away.
// Needs a machine whose first engine has memory. Exits with 0 where all of it holds.

#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

#include "device_memory.h"

#define BOTH (PROT_READ | PROT_WRITE)

static sigjmp_buf back;

static void on_bus_error(int number) { siglongjmp(back, number); }

// Whether a load from the address raises SIGBUS.
static bool faults(volatile uint64_t *address) {
  if (sigsetjmp(back, 1)) return true;
  (void)*address;
  return false;
}

static struct engine engine = {.event = -1};
static struct vfio_region_info region;

static int refused(int fd, size_t length, int protection, int flags, uint64_t offset) {
  void *map = mmap(NULL, length, protection, flags, fd, (off_t)offset);
  if (map == MAP_FAILED) return errno;
  munmap(map, length);
  return 0;
}

static void set_command(uint16_t command) {
  CHECK(pwrite(engine.device, &command, 2, (off_t)(engine.config + 4)) == 2);
}

static uint64_t at(uint64_t offset) {
  uint64_t value = ~0ull;
  CHECK(pread(engine.device, &value, 8, (off_t)(region.offset + offset)) == 8);
  return value;
}

static void check_maps(void) {
  int fd = engine.device;
  CHECK(refused(fd, region.size, BOTH, MAP_SHARED, region.offset) == 0);
  CHECK(refused(fd, 1, PROT_READ, MAP_SHARED, region.offset + region.size - 4096) == 0);
  CHECK(refused(fd, region.size + 1, BOTH, MAP_SHARED, region.offset) == EINVAL);
  CHECK(refused(fd, 4096, BOTH, MAP_SHARED, region.offset + region.size) == EINVAL);
  CHECK(refused(fd, 4096, BOTH, MAP_PRIVATE, region.offset) == EINVAL);
  CHECK(refused(fd, 4096, PROT_READ, MAP_SHARED, engine.config) == EINVAL);
}

// Registers of a device that has memory too fault as ever: they are carried out.
static void check_registers(void) {
  struct vfio_region_info info = {.argsz = sizeof info};
  CHECK(ioctl(engine.device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
  if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP)) return;
  volatile uint8_t *registers =
      mmap(NULL, info.size, BOTH, MAP_SHARED, engine.device, (off_t)info.offset);
  CHECK(registers != MAP_FAILED);
  CHECK(registers[VERSION] != 0 && registers[VERSION] == engine_read(&engine, VERSION, 1));
  *(volatile uint32_t *)(registers + CHANCMP) = 0x1240;
  CHECK(engine_read(&engine, CHANCMP, 4) == 0x1240);
  CHECK(munmap((void *)registers, info.size) == 0);
}

// The same at the offsets that Linux happens to have, for programs that do not ask.
static void check_linux_offsets(volatile uint64_t *memory) {
  struct vfio_region_info info = {.argsz = sizeof info};
  CHECK(ioctl(engine.device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
  uint32_t value = 0;
  CHECK(pread(engine.device, &value, 1, VERSION) == 1 && value != 0);
  memory[0] = 0xfeed;
  uint64_t word = 0;
  CHECK(pread(engine.device, &word, 8, (off_t)(2ull << 40)) == 8 && word == 0xfeed);
  if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP)) return;
  volatile uint8_t *registers = mmap(NULL, info.size, BOTH, MAP_SHARED, engine.device, 0);
  CHECK(registers != MAP_FAILED && registers[VERSION] == value);
  volatile uint64_t *other =
      mmap(NULL, region.size, BOTH, MAP_SHARED, engine.device, (off_t)(2ull << 40));
  CHECK(other != MAP_FAILED && other[0] == 0xfeed);
  other[region.size / 8 - 1] = 0xbeef;
  CHECK(memory[region.size / 8 - 1] == 0xbeef);
  other[region.size / 8 - 1] = memory[0] = 0;
  CHECK(munmap((void *)registers, info.size) == 0 && munmap((void *)other, region.size) == 0);
}

static void check_contents(volatile uint64_t *map) {
  CHECK(map[0] == 0 && at(0) == 0);
  map[1] = 0x1234;
  CHECK(at(8) == 0x1234);
  uint64_t value = 77;
  CHECK(pwrite(engine.device, &value, 8, (off_t)(region.offset + region.size - 8)) == 8);
  CHECK(map[region.size / 8 - 1] == 77);

  // A child shares it, and its mapping alone is enough.
  pid_t child = fork();
  if (child == 0) {
    close(engine.device);
    map[2] = map[1] + 1;
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0 && map[2] == 0x1235);
}

static void check_revocation(volatile uint64_t *map) {
  // Decoding off: every touch faults; on again: what was there is there.
  set_command(0);
  CHECK(faults(map + 1) && faults(map + region.size / 8 - 1));
  uint64_t value;
  CHECK(pread(engine.device, &value, 8, (off_t)region.offset) == -1 && errno == EIO);
  volatile uint64_t *late = mmap(NULL, 4096, BOTH, MAP_SHARED, engine.device, (off_t)region.offset);
  CHECK(late != MAP_FAILED && faults(late));
  set_command(6);
  CHECK(!faults(map) && map[1] == 0x1234 && late[2] == 0x1235 && map[region.size / 8 - 1] == 77);
  CHECK(munmap((void *)late, 4096) == 0);

  // Power off is the same.
  uint16_t power = 3;
  CHECK(pwrite(engine.device, &power, 2, (off_t)(engine.config + 0xe4)) == 2);
  CHECK(faults(map));
  power = 0;
  CHECK(pwrite(engine.device, &power, 2, (off_t)(engine.config + 0xe4)) == 2);
  CHECK(map[1] == 0x1234);

  // A reset leaves nothing of it, and does not fault.
  CHECK(ioctl(engine.device, VFIO_DEVICE_RESET) == 0);
  CHECK(!faults(map) && map[1] == 0 && map[region.size / 8 - 1] == 0);
}

// iommufd does not pin what is mapped of a device.
static void check_refusal(uint64_t *map) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) == 0);
  CHECK(engine_attach(&engine, alloc.out_ioas_id) == 0);
  struct iommu_ioas_map cmd = {.size = sizeof cmd,
                               .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = alloc.out_ioas_id,
                               .user_va = (uintptr_t)map,
                               .length = 4096};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_MAP, &cmd) == -1 && errno == EFAULT);
  struct iommu_vfio_ioas compat = {
      .size = sizeof compat, .ioas_id = alloc.out_ioas_id, .op = IOMMU_VFIO_IOAS_SET};
  CHECK(ioctl(engine.iommu, IOMMU_VFIO_IOAS, &compat) == 0);
  struct vfio_iommu_type1_dma_map type1 = {.argsz = sizeof type1,
                                           .flags = VFIO_DMA_MAP_FLAG_READ,
                                           .vaddr = (uintptr_t)map,
                                           .iova = 0x100000,
                                           .size = 4096};
  CHECK(ioctl(engine.iommu, VFIO_IOMMU_MAP_DMA, &type1) == -1 && errno == EFAULT);
}

// The last of descriptors and mappings unbinds.
static void check_lifetime(uint64_t *map) {
  map[3] = 5;
  struct engine second = engine;
  second.device = open(engine.node, O_RDWR | O_CLOEXEC);
  CHECK(close(engine.device) == 0);
  CHECK(map[3] == 5);
  CHECK(engine_bind(&second) == -1 && errno == EINVAL);
  CHECK(munmap(map, region.size) == 0);
  CHECK(engine_bind(&second) == 0);
  map = mmap(NULL, region.size, BOTH, MAP_SHARED, second.device, (off_t)region.offset);
  CHECK(map != MAP_FAILED && map[3] == 0);
  CHECK(munmap(map, region.size) == 0 && close(second.device) == 0 && close(engine.iommu) == 0);
}

int main(void) {
  struct sigaction action = {.sa_handler = on_bus_error};
  sigaction(SIGBUS, &action, NULL);
  CHECK(engine_find(&engine, NULL));
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  CHECK(refused(engine.device, 4096, BOTH, MAP_SHARED, 1ull << 45 | 2ull << 40) == EINVAL);
  CHECK(engine_bind(&engine) == 0 && engine_enable(&engine) == 0);
  region = (struct vfio_region_info){.argsz = sizeof region, .index = 2};
  CHECK(ioctl(engine.device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
  CHECK(region.flags & VFIO_REGION_INFO_FLAG_MMAP && region.size >= 8192);
  check_maps();
  check_registers();
  uint64_t *map = mmap(NULL, region.size, BOTH, MAP_SHARED, engine.device, (off_t)region.offset);
  CHECK(map != MAP_FAILED);
  check_linux_offsets(map);
  check_contents(map);
  check_revocation(map);
  check_refusal(map);
  check_lifetime(map);
  check_group_way(&engine, &region);
  return 0;
}
