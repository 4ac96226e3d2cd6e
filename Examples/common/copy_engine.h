// SPDX-License-Identifier: Apache-2.0
//
// A copy engine (Intel I/OAT, 8086:2021) driven through VFIO by hand: find it, bind it to an
// iommufd, read and write its registers, give it descriptors. Uses the kernel's interface only
// (iommufd, VFIO and sysfs), so it runs on hardware and under `iommu run`.

#ifndef COPY_ENGINE_H
#define COPY_ENGINE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vfio_device.h"

// Registers of BAR 0.
enum {
  XFERCAP = 0x01,
  INTRCTRL = 0x03,
  VERSION = 0x08,
  CHANCTRL = 0x80,
  CHANCMD = 0x84,
  DMACOUNT = 0x86,
  CHANSTS = 0x88,
  CHAINADDR = 0x90,
  CHANCMP = 0x98,
  CHANERR = 0xa8,
};
enum { INTRCTRL_MASTER = 0x01, INTRCTRL_MSIX = 0x08 };
enum { CHANCTRL_REARM = 0x01, CHANCTRL_ABORT_ON_ERROR = 0x08 };
enum { CHANCMD_RESET = 0x20 };
enum { CHANSTS_ACTIVE = 0, CHANSTS_DONE = 1, CHANSTS_SUSPENDED, CHANSTS_HALTED, CHANSTS_ARMED };
enum { CONTROL_INTERRUPT = 0x01, CONTROL_COMPLETION = 0x08 };

struct descriptor {
  uint32_t size;
  uint32_t control;
  uint64_t source;
  uint64_t destination;
  uint64_t next;
  uint64_t owned_by_driver[4];
};

struct engine {
  char bdf[32];      // 0000:00:04.0
  char node[128];    // /dev/vfio/devices/vfio0
  int device;        // fd of the node
  int iommu;         // fd of /dev/iommu, or of the container
  int group;         // fd of the group, where the device was opened through it
  int event;         // eventfd of MSI-X vector 0, or -1
  uint32_t id;       // what binding called the device in its context
  uint64_t bar0;     // file offset of the registers
  uint64_t config;   // file offset of configuration space
  volatile uint8_t *registers;  // BAR 0, where engine_map has mapped it
  size_t registers_size;
};

static inline bool is_engine(const char *bdf) {
  unsigned vendor, device;
  return read_id(bdf, "vendor", &vendor) && read_id(bdf, "device", &device) &&
         vendor == 0x8086 && device == 0x2021;
}

// Finds the first copy engine that vfio-pci drives, or the one at `wanted`.
static inline bool engine_find(struct engine *engine, const char *wanted) {
  return find_device(is_engine, wanted, NULL, engine->bdf, engine->node);
}

// Connects the device to the context: after this it may be used, and its DMA reaches nothing.
static inline int engine_bind(struct engine *engine) {
  return vfio_bind(engine->device, engine->iommu, &engine->id);
}

static inline int engine_attach(struct engine *engine, uint32_t page_table) {
  return vfio_attach(engine->device, page_table);
}

static inline int engine_detach(struct engine *engine) { return vfio_detach(engine->device); }

// The older way: puts the device's group into a container, /dev/vfio/vfio or /dev/iommu, and takes
// the device from it. It may be used at once. Returns what failed, or NULL.
static inline const char *engine_open_by_group(struct engine *engine, const char *container) {
  char path[320], group[320], node[64];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", engine->bdf);
  const ssize_t length = readlink(path, group, sizeof group - 1);
  if (length < 0) return "the device's iommu_group";
  group[length] = 0;
  snprintf(node, sizeof node, "/dev/vfio/%.32s", strrchr(group, '/') + 1);
  if ((engine->iommu = open(container, O_RDWR | O_CLOEXEC)) < 0) return "the container";
  if ((engine->group = open(node, O_RDWR | O_CLOEXEC)) < 0) return "the group";
  struct vfio_group_status status = {.argsz = sizeof status};
  if (ioctl(engine->group, VFIO_GROUP_GET_STATUS, &status)) return "VFIO_GROUP_GET_STATUS";
  if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
    errno = EPERM;
    return "the group has a device that the host uses";
  }
  if (ioctl(engine->group, VFIO_GROUP_SET_CONTAINER, &engine->iommu))
    return "VFIO_GROUP_SET_CONTAINER";
  if (ioctl(engine->iommu, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) return "VFIO_SET_IOMMU";
  engine->device = ioctl(engine->group, VFIO_GROUP_GET_DEVICE_FD, engine->bdf);
  return engine->device < 0 ? "VFIO_GROUP_GET_DEVICE_FD" : NULL;
}

// Learns where the regions are, and lets the device be bus master.
static inline int engine_enable(struct engine *engine) {
  struct vfio_region_info region = {.argsz = sizeof region, .index = VFIO_PCI_BAR0_REGION_INDEX};
  if (ioctl(engine->device, VFIO_DEVICE_GET_REGION_INFO, &region)) return -1;
  engine->bar0 = region.offset;
  region = (struct vfio_region_info){
      .argsz = sizeof region, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  if (ioctl(engine->device, VFIO_DEVICE_GET_REGION_INFO, &region)) return -1;
  engine->config = region.offset;
  uint16_t command;
  const off_t at = (off_t)(engine->config + 4);
  if (pread(engine->device, &command, sizeof command, at) != sizeof command) return -1;
  command |= 0x6;  // memory space and bus master
  return pwrite(engine->device, &command, sizeof command, at) == sizeof command ? 0 : -1;
}

// Has MSI-X vector 0 signal an eventfd.
static inline int engine_arm(struct engine *engine) {
  engine->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (engine->event < 0) return -1;
  union {
    struct vfio_irq_set set;
    char bytes[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
  } irq = {.set = {.argsz = sizeof irq.bytes,
                   .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                   .index = VFIO_PCI_MSIX_IRQ_INDEX,
                   .count = 1}};
  memcpy(irq.set.data, &engine->event, sizeof(int32_t));
  return ioctl(engine->device, VFIO_DEVICE_SET_IRQS, &irq);
}

// Maps the registers: from here on they are reached by loads and stores.
static inline int engine_map(struct engine *engine) {
  struct vfio_region_info region = {.argsz = sizeof region, .index = VFIO_PCI_BAR0_REGION_INDEX};
  if (ioctl(engine->device, VFIO_DEVICE_GET_REGION_INFO, &region)) return -1;
  if (!(region.flags & VFIO_REGION_INFO_FLAG_MMAP)) return errno = EOPNOTSUPP, -1;
  void *map = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, engine->device,
                   (off_t)region.offset);
  if (map == MAP_FAILED) return -1;
  engine->registers = map;
  engine->registers_size = region.size;
  return 0;
}

// Gives the mapping back: it keeps the device open as a descriptor does.
static inline int engine_unmap(struct engine *engine) {
  if (!engine->registers) return 0;
  void *map = (void *)(uintptr_t)engine->registers;
  engine->registers = NULL;
  return munmap(map, engine->registers_size);
}

static inline uint64_t engine_read(struct engine *engine, uint64_t offset, size_t size) {
  uint64_t value = 0;
  if (engine->registers) {
    volatile uint8_t *at = engine->registers + offset;
    return size == 1 ? *at
           : size == 2 ? *(volatile uint16_t *)at
           : size == 4 ? *(volatile uint32_t *)at
                       : *(volatile uint64_t *)at;
  }
  if (pread(engine->device, &value, size, (off_t)(engine->bar0 + offset)) != (ssize_t)size) {
    perror("reading a register");
    exit(1);
  }
  return value;
}

static inline void engine_write(struct engine *engine, uint64_t offset, uint64_t value,
                                size_t size) {
  if (engine->registers) {
    volatile uint8_t *at = engine->registers + offset;
    switch (size) {
      case 1: *at = (uint8_t)value; return;
      case 2: *(volatile uint16_t *)at = (uint16_t)value; return;
      case 4: *(volatile uint32_t *)at = (uint32_t)value; return;
      default: *(volatile uint64_t *)at = value; return;
    }
  }
  if (pwrite(engine->device, &value, size, (off_t)(engine->bar0 + offset)) != (ssize_t)size) {
    perror("writing a register");
    exit(1);
  }
}

static inline void engine_write_address(struct engine *engine, uint64_t offset, uint64_t value) {
  engine_write(engine, offset, value & 0xffffffff, 4);
  engine_write(engine, offset + 4, value >> 32, 4);
}

static inline uint64_t milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// Brings the channel to a known state and clears its errors.
static inline bool engine_reset(struct engine *engine) {
  engine_write(engine, CHANCMD, CHANCMD_RESET, 1);
  for (uint64_t end = milliseconds() + 1000; engine_read(engine, CHANCMD, 1) & CHANCMD_RESET;) {
    if (milliseconds() > end) return false;
    usleep(100);
  }
  engine_write(engine, CHANERR, engine_read(engine, CHANERR, 4), 4);
  return true;
}

// Starts a chain of `count` descriptors at IOVA `chain`; CHANSTS is copied to `completion`.
static inline void engine_start(struct engine *engine, uint64_t chain, uint64_t completion,
                                uint16_t count) {
  engine_write(engine, INTRCTRL, INTRCTRL_MASTER | INTRCTRL_MSIX, 1);
  engine_write(engine, CHANCTRL, CHANCTRL_REARM | CHANCTRL_ABORT_ON_ERROR, 2);
  engine_write_address(engine, CHANCMP, completion);
  engine_write_address(engine, CHAINADDR, chain);
  engine_write(engine, DMACOUNT, count, 2);
}

// Waits for the interrupt. Returns how often it came, 0 at the timeout.
static inline uint64_t engine_wait(struct engine *engine, int timeout_ms) {
  struct pollfd event = {.fd = engine->event, .events = POLLIN};
  uint64_t count = 0;
  if (poll(&event, 1, timeout_ms) != 1 || read(engine->event, &count, 8) != 8) return 0;
  return count;
}

// What the bits of CHANERR say.
static inline const char *engine_error(uint32_t bits) {
  static const struct { uint32_t bit; const char *text; } names[] = {
      {0x01, "source address"},       {0x02, "destination address"},
      {0x04, "next descriptor address"}, {0x08, "descriptor alignment"},
      {0x10, "chain address"},        {0x20, "channel command"},
      {0x100, "read data"},           {0x200, "write data"},
      {0x400, "descriptor control"},  {0x800, "length"},
      {0x1000, "completion address"}, {0x40000, "descriptor count"},
  };
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (bits & names[i].bit) return names[i].text;
  return bits ? "unknown" : "none";
}

#endif
