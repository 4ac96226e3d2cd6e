// SPDX-License-Identifier: Apache-2.0
//
// An NVMe controller driven through VFIO by hand: find it, bind it to an iommufd, reach its
// registers, give it commands, poll for what became of them (NVM Express 1.4). Uses the kernel's
// interface only, so it runs on hardware and under `iommu run`.

#ifndef NVME_H
#define NVME_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vfio_device.h"

// Registers of BAR 0.
enum { NVME_CAP = 0x00, NVME_CC = 0x14, NVME_CSTS = 0x1c, NVME_AQA = 0x24, NVME_ASQ = 0x28 };
enum { NVME_ACQ = 0x30, NVME_DOORBELLS = 0x1000 };
enum { CSTS_READY = 1, CSTS_FATAL = 2, CSTS_SHUTDOWN = 0xc, CSTS_SHUTDOWN_DONE = 0x8 };
enum { QUEUE_ENTRIES = 64 };

struct nvme_command {
  uint8_t opcode, flags;
  uint16_t id;
  uint32_t namespace;
  uint64_t unused[2];
  uint64_t prp1, prp2;
  uint32_t dwords[6];  // 10 to 15
};

struct nvme_completion {
  uint32_t result, reserved;
  uint16_t head, queue, id, status;  // bit 0 of status is the phase
};

struct nvme_queue {
  struct nvme_command *commands;
  volatile struct nvme_completion *completions;
  unsigned number, tail, head, phase;
};

struct nvme {
  char bdf[32];
  char node[128];
  int device, iommu;
  uint32_t ioas;
  uint64_t bar0;            // file offset of the registers
  uint64_t bar0_size;
  bool ignores_offsets;     // takes region n to be at n << 40, where Linux happens to have it
  volatile uint8_t *map;    // the registers, where they can be mapped
  uint64_t stride;          // of doorbells, in bytes
  struct nvme_queue admin, io;
};

static inline bool is_nvme(const char *bdf) {
  unsigned class;
  return read_id(bdf, "class", &class) && class == 0x010802;
}

// Finds the first controller that vfio-pci has, or the one at `wanted`: class 01 08 02.
static inline bool nvme_find(struct nvme *nvme, const char *wanted) {
  return find_device(is_nvme, wanted, NULL, nvme->bdf, nvme->node);
}

// Finds the registers, maps them where they can be, and lets the device answer and do DMA. Returns
// what failed.
static inline const char *nvme_enable(struct nvme *nvme) {
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
  if (ioctl(nvme->device, VFIO_DEVICE_GET_REGION_INFO, &config)) return "its configuration space";
  if (ioctl(nvme->device, VFIO_DEVICE_GET_REGION_INFO, &bar)) return "its registers";
  if (nvme->ignores_offsets) bar.offset = 0, config.offset = 7ull << 40;
  nvme->bar0 = bar.offset;
  nvme->bar0_size = bar.size;
  if (bar.flags & VFIO_REGION_INFO_FLAG_MMAP) {
    // Registers and doorbells: the MSI-X table may not be mapped.
    void *map = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED, nvme->device,
                     (off_t)bar.offset);
    if (map != MAP_FAILED) nvme->map = map;
  }
  // Memory decoding and bus mastering.
  const uint16_t command = 6;
  if (pwrite(nvme->device, &command, 2, (off_t)config.offset + 4) != 2) return "its command register";
  return NULL;
}

// Opens and binds the device, and attaches it to a new address space. Returns what failed.
static inline const char *nvme_open(struct nvme *nvme) {
  uint32_t id;
  if ((nvme->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC)) < 0) return "/dev/iommu";
  if ((nvme->device = open(nvme->node, O_RDWR | O_CLOEXEC)) < 0) return nvme->node;
  if (vfio_bind(nvme->device, nvme->iommu, &id)) return "VFIO_DEVICE_BIND_IOMMUFD";
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(nvme->iommu, IOMMU_IOAS_ALLOC, &alloc)) return "IOMMU_IOAS_ALLOC";
  nvme->ioas = alloc.out_ioas_id;
  if (vfio_attach(nvme->device, nvme->ioas)) return "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
  return nvme_enable(nvme);
}

static inline uint32_t nvme_read32(const struct nvme *nvme, unsigned offset) {
  if (nvme->map) return *(volatile uint32_t *)(nvme->map + offset);
  uint32_t value = ~0u;
  if (pread(nvme->device, &value, 4, (off_t)(nvme->bar0 + offset)) != 4) return ~0u;
  return value;
}

static inline void nvme_write32(const struct nvme *nvme, unsigned offset, uint32_t value) {
  if (nvme->map) {
    *(volatile uint32_t *)(nvme->map + offset) = value;
    return;
  }
  if (pwrite(nvme->device, &value, 4, (off_t)(nvme->bar0 + offset)) != 4) {
    perror("a register of the NVMe controller");
    exit(1);
  }
}

static inline uint64_t nvme_read64(const struct nvme *nvme, unsigned offset) {
  return nvme_read32(nvme, offset) | (uint64_t)nvme_read32(nvme, offset + 4) << 32;
}

static inline void nvme_write64(const struct nvme *nvme, unsigned offset, uint64_t value) {
  nvme_write32(nvme, offset, (uint32_t)value);
  nvme_write32(nvme, offset + 4, (uint32_t)(value >> 32));
}

// Waits for bits of CSTS, as long as CAP says that it may take.
static inline bool nvme_wait(const struct nvme *nvme, uint32_t mask, uint32_t wanted) {
  const unsigned halves = nvme_read64(nvme, NVME_CAP) >> 24 & 0xff;
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (;;) {
    const uint32_t status = nvme_read32(nvme, NVME_CSTS);
    if ((status & mask) == wanted) return true;
    if (status & CSTS_FATAL) return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - start.tv_sec) * 2 > (time_t)halves + 2) return false;
    sched_yield();
  }
}

// Where a driver keeps its queues: four pages, the first of memory that the controller reaches.
enum { NVME_ADMIN_SQ = 0x0, NVME_ADMIN_CQ = 0x1000, NVME_IO_SQ = 0x2000, NVME_IO_CQ = 0x3000 };
enum { NVME_QUEUE_BYTES = 0x4000 };

// Maps memory for the controller. Returns whether it could.
static inline bool nvme_map(const struct nvme *nvme, void *memory, uint64_t length,
                            uint64_t *iova) {
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = nvme->ioas, .user_va = (uintptr_t)memory,
                               .length = length};
  if (ioctl(nvme->iommu, IOMMU_IOAS_MAP, &map)) return false;
  *iova = map.iova;
  return true;
}

// Resets and enables the controller. Returns what took too long.
static inline const char *nvme_start(struct nvme *nvme, uint8_t *memory, uint64_t iova) {
  nvme->stride = 4ull << (nvme_read64(nvme, NVME_CAP) >> 32 & 0xf);
  nvme_write32(nvme, NVME_CC, 0);
  errno = ETIMEDOUT;
  if (!nvme_wait(nvme, CSTS_READY, 0)) return "disabling the controller";
  nvme->admin = (struct nvme_queue){.commands = (void *)(memory + NVME_ADMIN_SQ),
                                    .completions = (void *)(memory + NVME_ADMIN_CQ), .phase = 1};
  nvme->io = (struct nvme_queue){.commands = (void *)(memory + NVME_IO_SQ),
                                 .completions = (void *)(memory + NVME_IO_CQ), .number = 1,
                                 .phase = 1};
  nvme_write32(nvme, NVME_AQA, (QUEUE_ENTRIES - 1) | (QUEUE_ENTRIES - 1) << 16);
  nvme_write64(nvme, NVME_ASQ, iova + NVME_ADMIN_SQ);
  nvme_write64(nvme, NVME_ACQ, iova + NVME_ADMIN_CQ);
  nvme_write32(nvme, NVME_CC, 6u << 16 | 4u << 20 | 1);
  return nvme_wait(nvme, CSTS_READY, CSTS_READY) ? NULL : "enabling the controller";
}

static inline void nvme_ring(const struct nvme *nvme, unsigned doorbell, uint32_t value) {
  nvme_write32(nvme, NVME_DOORBELLS + doorbell * (unsigned)nvme->stride, value);
}

// Puts a command into a queue; `ring` says that it is there.
static inline void nvme_put(struct nvme_queue *queue, const struct nvme_command *command) {
  queue->commands[queue->tail] = *command;
  queue->tail = (queue->tail + 1) % QUEUE_ENTRIES;
}

static inline void nvme_submit(const struct nvme *nvme, struct nvme_queue *queue) {
  __atomic_thread_fence(__ATOMIC_RELEASE);
  nvme_ring(nvme, queue->number * 2, queue->tail);
}

// Takes the next completion, if it is there.
static inline bool nvme_poll(struct nvme_queue *queue, struct nvme_completion *completion) {
  volatile struct nvme_completion *next = &queue->completions[queue->head];
  if ((next->status & 1) != queue->phase) return false;
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  *completion = *next;
  if (++queue->head == QUEUE_ENTRIES) queue->head = 0, queue->phase ^= 1;
  return true;
}

static inline void nvme_release(const struct nvme *nvme, const struct nvme_queue *queue) {
  nvme_ring(nvme, queue->number * 2 + 1, queue->head);
}

// What nvme_run returns where no answer came.
enum { NVME_NO_ANSWER = 0x7ff };

// Carries one command out. Returns its status: type and code; 0 is success. Waits 30 seconds.
static inline unsigned nvme_run(const struct nvme *nvme, struct nvme_queue *queue,
                                const struct nvme_command *command) {
  struct nvme_completion completion;
  nvme_put(queue, command);
  nvme_submit(nvme, queue);
  for (const time_t end = time(NULL) + 30; !nvme_poll(queue, &completion); sched_yield())
    if (time(NULL) > end) return NVME_NO_ANSWER;
  nvme_release(nvme, queue);
  return completion.status >> 1 & 0x7ff;
}

// The commands that make the pair of I/O queues.
static inline struct nvme_command nvme_make_completions(uint64_t iova) {
  return (struct nvme_command){.opcode = 5, .prp1 = iova + NVME_IO_CQ,
                               .dwords = {1 | (QUEUE_ENTRIES - 1) << 16, 1}};
}

static inline struct nvme_command nvme_make_submissions(uint64_t iova) {
  return (struct nvme_command){.opcode = 1, .prp1 = iova + NVME_IO_SQ,
                               .dwords = {1 | (QUEUE_ENTRIES - 1) << 16, 1 | 1 << 16}};
}

#endif
