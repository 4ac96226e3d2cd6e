// SPDX-License-Identifier: Apache-2.0
//
// VMs for DMA on /dev/kvm of the machine: memory slots, devices given to a VM, the CPU's table of
// PASIDs, and work portals (MODEL B4, E2 to E4). These cases need a machine with
// `virtual-machines: true` and two work-queue engines, as Conformance/cases/machine.yaml has.

#include <stdlib.h>

#include "calls.h"
#include "kvm_abi.h"
#include "vfio_abi.h"

enum { MEMORY = 1 << 20, COMPLETION = 0x80000 };

/// A VM, and its device of type VFIO.
struct vm {
  int kvm, fd, vfio;
};

static int open_kvm(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0 || ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_PASID_TRANSLATION) != 1)
    skip("/dev/kvm is not a machine's of ours");
  return kvm;
}

static struct vm make_vm(void) {
  struct vm vm = {.kvm = open_kvm()};
  vm.fd = (int)GET(call(vm.kvm, KVM_CREATE_VM, NULL));
  struct kvm_create_device create = {.type = KVM_DEV_TYPE_VFIO};
  NEED(0, call(vm.fd, KVM_CREATE_DEVICE, &create));
  vm.vfio = (int)create.fd;
  return vm;
}

static long set_file(const struct vm *vm, uint64_t attr, int file) {
  struct kvm_device_attr cmd = {
      .group = KVM_DEV_VFIO_FILE, .attr = attr, .addr = (uintptr_t)&file};
  return call(vm->vfio, KVM_SET_DEVICE_ATTR, &cmd);
}

static long translate(const struct vm *vm, uint64_t value) {
  struct kvm_enable_cap cmd = {.cap = KVM_CAP_PASID_TRANSLATION, .args = {value}};
  return call(vm->fd, KVM_ENABLE_CAP, &cmd);
}

static long map_pasid(const struct vm *vm, int iommu, uint32_t target, uint32_t pasid) {
  struct kvm_pasid cmd = {
      .argsz = sizeof cmd, .iommu_fd = iommu, .ioasid = target, .vpasid = pasid};
  return call(vm->fd, KVM_MAP_PASID, &cmd);
}

static long unmap_pasid(const struct vm *vm, uint32_t pasid) {
  struct kvm_pasid cmd = {.argsz = sizeof cmd, .vpasid = pasid};
  return call(vm->fd, KVM_UNMAP_PASID, &cmd);
}

/// A device with PASIDs, bound to a context, on a table of 1 MiB of memory at IOVA 0.
struct engine {
  int iommu, device;
  uint32_t id, ioas, table;
  unsigned char *memory;
  uint64_t registers;
};

/// What the vPASID capability says; its id is 0 where there is none.
static struct vfio_device_info_cap_pasid capability(int device) {
  union {
    struct vfio_device_info info;
    unsigned char bytes[256];
  } all = {.info = {.argsz = sizeof all}};
  struct vfio_device_info_cap_pasid cap = {0};
  NEED(0, call(device, VFIO_DEVICE_GET_INFO, &all));
  for (uint32_t at = all.info.cap_offset; at; at = cap.header.next) {
    memcpy(&cap, all.bytes + at, sizeof cap);
    if (cap.header.id == VFIO_DEVICE_INFO_CAP_PASID) return cap;
  }
  return (struct vfio_device_info_cap_pasid){0};
}

/// Binds the first device that has these flags in its vPASID capability, and a portal or not.
static struct engine make_engine(uint32_t flags) {
  struct engine made = {.iommu = open_iommu()};
  bool found = false;
  for (int index = 0; index < 16 && !found; index++) {
    char path[64];
    snprintf(path, sizeof path, "/dev/vfio/devices/vfio%d", index);
    made.device = open(path, O_RDWR | O_CLOEXEC);
    if (made.device < 0) continue;
    struct vfio_device_bind_iommufd bind = {.argsz = 16, .iommufd = made.iommu};
    if (call(made.device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0) {
      struct vfio_device_info_cap_pasid cap = capability(made.device);
      made.id = bind.out_devid;
      found = cap.header.id == VFIO_DEVICE_INFO_CAP_PASID && cap.flags == flags;
    }
    if (!found) close(made.device);
  }
  if (!found) skip("the machine has no such device");
  struct vfio_region_info region = {.argsz = sizeof region};
  NEED(0, call(made.device, VFIO_DEVICE_GET_REGION_INFO, &region));
  made.registers = region.offset;
  region.index = VFIO_PCI_CONFIG_REGION_INDEX;
  NEED(0, call(made.device, VFIO_DEVICE_GET_REGION_INFO, &region));
  uint16_t command = 6;
  NEED(2, pwrite(made.device, &command, 2, (off_t)region.offset + 4));
  made.memory = aligned_alloc(4096, MEMORY);
  memset(made.memory, 0, MEMORY);
  made.ioas = (uint32_t)GET(alloc_ioas(made.iommu));
  uint64_t iova = 0;
  NEED(0, map(made.iommu, made.ioas, made.memory, MEMORY,
              IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
              &iova));
  made.table =
      (uint32_t)GET(alloc_hwpt(made.iommu, made.id, made.ioas, IOMMU_HWPT_ALLOC_PASID));
  return made;
}

static long attach(const struct engine *engine, uint32_t pasid) {
  struct vfio_device_attach_iommufd_pt cmd = {.argsz = sizeof cmd,
                                              .flags = VFIO_DEVICE_ATTACH_PASID,
                                              .pt_id = engine->table,
                                              .pasid = pasid};
  return call(engine->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}

static long detach(const struct engine *engine, uint32_t pasid) {
  struct vfio_device_detach_iommufd_pt cmd = {
      .argsz = sizeof cmd, .flags = VFIO_DEVICE_DETACH_PASID, .pasid = pasid};
  return call(engine->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd);
}

/// One ENQCMD: a copy of 16 bytes from 0 to 0x1000.
static long submit(const struct engine *engine, uint32_t pasid) {
  uint64_t words[8] = {pasid | 1ull << 32 | 1ull << 40, COMPLETION, 0, 0x1000, 16};
  ssize_t done = pwrite(engine->device, words, sizeof words, (off_t)engine->registers + 0x1000);
  return done < 0 ? -errno : done;
}

/// Waits for the completion of a copy, and clears it.
static long completion(const struct engine *engine) {
  volatile uint64_t *place = (volatile uint64_t *)(engine->memory + COMPLETION);
  while (!*place) usleep(100);
  long value = (long)*place;
  *place = 0;
  return value;
}

CASE(kvm, node, LINUX_7_1) {
  int kvm = open_kvm();
  EXPECT(12, call(kvm, KVM_GET_API_VERSION, NULL));
  EXPECT(-EINVAL, call(kvm, KVM_GET_API_VERSION, (void *)1));
  EXPECT(-EINVAL, call(kvm, KVM_CREATE_VM, (void *)99));
  EXPECT(0, call(kvm, KVM_CHECK_EXTENSION, (void *)206));
  EXPECT(-ENOTTY, call(kvm, KVM_MAP_PASID, NULL));
  EXPECT(-ENOTTY, call(kvm, 0xae41, NULL));
}

CASE(kvm, memory_slots, LINUX_7_1) {
  struct vm vm = make_vm();
  void *memory = aligned_alloc(4096, MEMORY);
  struct kvm_userspace_memory_region region = {
      .guest_phys_addr = 0x100000, .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory};
  EXPECT(0, call(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
  region.slot = 1;
  EXPECT(-EEXIST, call(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
  region.guest_phys_addr++;
  EXPECT(-EINVAL, call(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
  region.slot = 0;
  region.memory_size = 0;
  region.guest_phys_addr--;
  EXPECT(0, call(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
  EXPECT(-EINVAL, call(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
  EXPECT(-EFAULT, call(vm.fd, KVM_SET_USER_MEMORY_REGION, (void *)8));
}

CASE(kvm, devices, LINUX_7_1) {
  struct vm vm = make_vm();
  struct engine engine = make_engine(VFIO_DEVICE_PASID_CPU);
  struct kvm_create_device create = {.type = KVM_DEV_TYPE_VFIO};
  EXPECT(-EBUSY, call(vm.fd, KVM_CREATE_DEVICE, &create));
  create.flags = KVM_CREATE_DEVICE_TEST;
  EXPECT(0, call(vm.fd, KVM_CREATE_DEVICE, &create));
  create.type = 1;
  EXPECT(-ENODEV, call(vm.fd, KVM_CREATE_DEVICE, &create));
  EXPECT(-ENOENT, set_file(&vm, KVM_DEV_VFIO_FILE_DEL, engine.device));
  EXPECT(-EINVAL, set_file(&vm, KVM_DEV_VFIO_FILE_ADD, engine.iommu));
  EXPECT(-EBADF, set_file(&vm, KVM_DEV_VFIO_FILE_ADD, 1000000));
  EXPECT(-ENXIO, set_file(&vm, 3, engine.device));
  EXPECT(0, set_file(&vm, KVM_DEV_VFIO_FILE_ADD, engine.device));
  EXPECT(-EEXIST, set_file(&vm, KVM_DEV_VFIO_FILE_ADD, engine.device));
  EXPECT(-EINVAL, translate(&vm, 1));  // A device of kind 7 takes PASIDs as they are.
  EXPECT(0, set_file(&vm, KVM_DEV_VFIO_FILE_DEL, engine.device));
  EXPECT(0, translate(&vm, 1));
  EXPECT(-EINVAL, set_file(&vm, KVM_DEV_VFIO_FILE_ADD, engine.device));
}

CASE(kvm, groups, LINUX_7_1) {
  struct vm vm = make_vm();
  int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  int group = open("/dev/vfio/0", O_RDWR | O_CLOEXEC);
  if (container < 0 || group < 0) skip("the machine has no group 0 to open");
  EXPECT(-ENOENT, set_file(&vm, KVM_DEV_VFIO_GROUP_DEL, group));
  EXPECT(-EINVAL, set_file(&vm, KVM_DEV_VFIO_GROUP_ADD, container));
  EXPECT(0, set_file(&vm, KVM_DEV_VFIO_GROUP_ADD, group));
  EXPECT(-EEXIST, set_file(&vm, KVM_DEV_VFIO_GROUP_ADD, group));
  EXPECT(0, call(group, VFIO_GROUP_SET_CONTAINER, &container));
  EXPECT(0, set_file(&vm, KVM_DEV_VFIO_GROUP_DEL, group));
  EXPECT(-ENOENT, set_file(&vm, KVM_DEV_VFIO_GROUP_DEL, group));
}

CASE(kvm, pasids, LINUX_7_1) {
  struct vm vm = make_vm();
  struct engine engine = make_engine(VFIO_DEVICE_PASID_CPU);
  NEED(0, attach(&engine, 5));
  EXPECT(-ENOENT, map_pasid(&vm, engine.iommu, engine.ioas, 5));  // Of kind 7, not 8.
  EXPECT(-ENOENT, unmap_pasid(&vm, 5));
  EXPECT(-EINVAL, map_pasid(&vm, engine.device, engine.ioas, 5));
  EXPECT(-EBADF, map_pasid(&vm, -1, engine.ioas, 5));
  struct kvm_pasid cmd = {.argsz = sizeof cmd - 1};
  EXPECT(-EINVAL, call(vm.fd, KVM_MAP_PASID, &cmd));
  cmd.argsz = sizeof cmd;
  cmd.flags = 1;
  EXPECT(-EINVAL, call(vm.fd, KVM_MAP_PASID, &cmd));
  EXPECT(-EINVAL, translate(&vm, 2));
}

CASE(kvm, portal, LINUX_7_1) {
  struct engine engine = make_engine(VFIO_DEVICE_PASID_CPU);
  unsigned char half[32] = {0};
  EXPECT(-EPERM, submit(&engine, 5));
  NEED(0, attach(&engine, 5));
  memset(engine.memory, 0x5a, 16);
  EXPECT(64, submit(&engine, 5));
  EXPECT(0x1001, completion(&engine));
  CHECK(memcmp(engine.memory, engine.memory + 0x1000, 16) == 0);
  EXPECT(-1, pwrite(engine.device, half, sizeof half, (off_t)engine.registers + 0x1000));
  CHECK(errno == EINVAL);
  EXPECT(0, detach(&engine, 5));
  EXPECT(-EPERM, submit(&engine, 5));
}

CASE(kvm, portal_retries, LINUX_7_1) {
  struct engine engine = make_engine(VFIO_DEVICE_PASID_CPU);
  uint32_t hold = 1, capability = 0;
  NEED(0, attach(&engine, 5));
  NEED(4, pread(engine.device, &capability, 4, (off_t)engine.registers));
  NEED(4, pwrite(engine.device, &hold, 4, (off_t)engine.registers + 8));
  for (uint32_t index = 0; index < (capability & 0xff); index++) NEED(64, submit(&engine, 5));
  EXPECT(-EAGAIN, submit(&engine, 5));
  hold = 0;
  NEED(4, pwrite(engine.device, &hold, 4, (off_t)engine.registers + 8));
  EXPECT(0x1001, completion(&engine));
}
