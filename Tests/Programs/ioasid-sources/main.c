// SPDX-License-Identifier: Apache-2.0
//
// A copy engine on ioasids that are somebody else's page table: this process's own (MODEL B3) and a
// VM's memory slots (B4). Exits with 0 where all of it holds.
// Usage: ioasid-sources ADDRESS ADDRESS: an engine behind an IOMMU with PASIDs, and one without.

#define _GNU_SOURCE
#include <sys/mman.h>

#include "copy_engine.h"
#include "ioasid_abi.h"
#include "kvm_abi.h"
#include "../common/check.h"

enum { PAGE = 4096, COOKIE = 7, GUEST = 0x100000, MOVED = 0x400000 };

static int ioasid_fd;
static struct engine engine = {.event = -1}, poor = {.event = -1};

static void bind_engine(struct engine *this, const char *address, uint64_t cookie) {
  CHECK(engine_find(this, address));
  this->device = open(this->node, O_RDWR | O_CLOEXEC);
  struct vfio_device_bind_iommu_fd bind = {
      .argsz = sizeof bind, .iommu_fd = ioasid_fd, .cookie = cookie};
  CHECK(this->device >= 0 && ioctl(this->device, VFIO_DEVICE_BIND_IOMMU_FD, &bind) == 0);
  CHECK(engine_enable(this) == 0);
}

static int alloc(uint32_t type, uint64_t table) {
  struct ioasid_alloc cmd = {.argsz = sizeof cmd, .type = type, .table = table};
  return ioctl(ioasid_fd, IOASID_ALLOC, &cmd);
}

static int change(unsigned long call, int ioasid) {
  struct vfio_device_attach_ioasid cmd = {
      .argsz = sizeof cmd, .iommu_fd = ioasid_fd, .ioasid = (uint32_t)ioasid};
  return ioctl(engine.device, call, &cmd);
}

// Copies the second page of `memory` to the third, all of which the engine finds at `dma`.
static bool copies(uint8_t *memory, uint64_t dma, uint8_t seed) {
  memset(memory + PAGE, seed, PAGE);
  memset(memory + 2 * PAGE, 0, PAGE);
  *(struct descriptor *)memory = (struct descriptor){.size = PAGE,
                                                     .control = CONTROL_COMPLETION,
                                                     .source = dma + PAGE,
                                                     .destination = dma + 2 * PAGE};
  CHECK(engine_reset(&engine));
  engine_start(&engine, dma, dma + 256, 1);
  uint64_t status = CHANSTS_ACTIVE;
  for (int wait = 0; wait < 30000 && status == CHANSTS_ACTIVE; wait++, usleep(1000))
    status = engine_read(&engine, CHANSTS, 4) & 7;
  return status != CHANSTS_HALTED && !memcmp(memory + PAGE, memory + 2 * PAGE, PAGE);
}

static int set_slot(int vm, uint64_t guest, void *memory, uint64_t size) {
  struct kvm_userspace_memory_region region = {
      .guest_phys_addr = guest, .memory_size = size, .userspace_addr = (uintptr_t)memory};
  return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void use_process_table(uint8_t *memory) {
  CHECK(ioctl(ioasid_fd, IOASID_CHECK_EXTENSION, IOASID_EXT_PROCESS_PAGE_TABLE) == 1);
  CHECK(alloc(IOASID_TYPE_PROCESS_PAGE_TABLE, COOKIE + 1) == -1 && errno == EOPNOTSUPP);
  CHECK(alloc(IOASID_TYPE_PROCESS_PAGE_TABLE, 99) == -1 && errno == ENOENT);
  int ioasid = alloc(IOASID_TYPE_PROCESS_PAGE_TABLE, COOKIE);
  CHECK(ioasid > 0 && change(VFIO_DEVICE_ATTACH_IOASID, ioasid) == 0);
  // No map call, and pages that come and go are followed.
  CHECK(copies(memory, (uintptr_t)memory, 0x31));
  CHECK(mprotect(memory + 2 * PAGE, PAGE, PROT_READ) == 0);
  memory[PAGE] = 1;
  CHECK(engine_reset(&engine));
  engine_start(&engine, (uintptr_t)memory, (uintptr_t)memory + 256, 1);
  uint64_t status = CHANSTS_ACTIVE;
  for (int wait = 0; wait < 30000 && status == CHANSTS_ACTIVE; wait++, usleep(1000))
    status = engine_read(&engine, CHANSTS, 4) & 7;
  CHECK(status == CHANSTS_HALTED && memory[2 * PAGE] == 0x31);
  CHECK(mprotect(memory + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
  CHECK(copies(memory, (uintptr_t)memory, 0x32));
  CHECK(ioctl(ioasid_fd, IOASID_FREE, ioasid) == -1 && errno == EBUSY);
  CHECK(change(VFIO_DEVICE_DETACH_IOASID, ioasid) == 0);
  CHECK(!copies(memory, (uintptr_t)memory, 0x33));
  CHECK(ioctl(ioasid_fd, IOASID_FREE, ioasid) == 0);
}

static void use_vm_memory(uint8_t *memory) {
  CHECK(ioctl(ioasid_fd, IOASID_CHECK_EXTENSION, IOASID_EXT_VM_MEMORY) == 1);
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  CHECK(vm >= 0 && set_slot(vm, GUEST, memory, 4 * PAGE) == 0);
  CHECK(alloc(IOASID_TYPE_VM_MEMORY, (uint64_t)kvm) == -1 && errno == EINVAL);
  CHECK(alloc(IOASID_TYPE_VM_MEMORY, (uint64_t)null) == -1 && errno == EINVAL);
  CHECK(alloc(IOASID_TYPE_VM_MEMORY, 1000000) == -1 && errno == EBADF);
  int ioasid = alloc(IOASID_TYPE_VM_MEMORY, (uint64_t)vm);
  CHECK(ioasid > 0 && change(VFIO_DEVICE_ATTACH_IOASID, ioasid) == 0);
  CHECK(copies(memory, GUEST, 0x41));
  CHECK(set_slot(vm, MOVED, memory, 4 * PAGE) == 0);
  CHECK(!copies(memory, GUEST, 0x42));
  CHECK(copies(memory, MOVED, 0x43));
  CHECK(close(vm) == 0 && close(kvm) == 0);
  CHECK(!copies(memory, MOVED, 0x44));
  CHECK(change(VFIO_DEVICE_DETACH_IOASID, ioasid) == 0);
  CHECK(ioctl(ioasid_fd, IOASID_FREE, ioasid) == 0 && close(null) == 0);
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  ioasid_fd = open("/dev/ioasid", O_RDWR | O_CLOEXEC);
  CHECK(ioasid_fd >= 0);
  bind_engine(&engine, arguments[1], COOKIE);
  bind_engine(&poor, arguments[2], COOKIE + 1);
  uint8_t *memory =
      mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  use_process_table(memory);
  use_vm_memory(memory);
  return 0;
}
