// SPDX-License-Identifier: Apache-2.0
//
// A work-queue engine's portal, mapped, and the instructions that are made for it: MOVDIRI, MOVDIR64B and
// ENQCMD, whether the processor has them or not. Exit status 0: as expected.

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>

#include "copy_engine.h"
#include "../common/check.h"

enum { CAPABILITY = 0x00, OCCUPANCY = 0x04, CONTROL = 0x08, ERRORS = 0x0c, PORTAL = 0x1000 };
enum { COPY = 1, COMPLETION = 0x100 };

// As the engine takes it; what lies in `pasid` ENQCMD replaces.
struct command {
  uint32_t pasid;
  uint32_t operation;
  uint64_t completion;
  uint64_t source;
  uint64_t destination;
  uint64_t length;
  uint64_t zero[3];
} __attribute__((aligned(64)));

static struct engine engine = {.event = -1};
static volatile uint8_t *map;
static uint8_t *memory;
static uint64_t iova;
// Made from one IOAS: for PASIDs.
static uint32_t table;

static volatile siginfo_t seen;
static sigjmp_buf back;

static void on_fault(int number, siginfo_t *information, void *context) {
  (void)context;
  *(siginfo_t *)&seen = *information;
  siglongjmp(back, number);
}

static volatile uint32_t *word(uint64_t offset) { return (volatile uint32_t *)(map + offset); }

static void store_word(volatile void *to, uint32_t value) {
  __asm__ volatile(".byte 0x0f, 0x38, 0xf9, 0x08" ::"a"(to), "c"(value) : "memory");
}
static void store_64(volatile void *to, const void *from) {
  __asm__ volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x06" ::"a"(to), "S"(from) : "memory");
}
// Returns whether it was taken; `flags` is what all of them are afterwards.
static bool enqueue(volatile void *to, const void *from, uint64_t *flags) {
  uint64_t after;
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp\n\t"  // The red zone.
      "stc\n\t"
      ".byte 0xf2, 0x0f, 0x38, 0xf8, 0x06\n\t"
      "pushfq\n\t"
      "popq %0\n\t"
      "lea 128(%%rsp), %%rsp"
      : "=r"(after)
      : "a"(to), "S"(from)
      : "memory", "cc");
  if (flags) *flags = after & 0x8d5;
  return !(after & 0x40);
}

// The signal that `enqueue`, or a store, ends in; 0 for none.
static int signal_of(volatile void *to, const void *from, bool enqueues) {
  int number = sigsetjmp(back, 1);
  if (number) return number;
  if (enqueues)
    (void)enqueue(to, from, NULL);
  else
    store_64(to, from);
  return 0;
}

static bool attach(uint32_t pasid) {
  struct vfio_device_attach_iommufd_pt attach = {
      .argsz = sizeof attach, .flags = VFIO_DEVICE_ATTACH_PASID, .pt_id = table, .pasid = pasid};
  return ioctl(engine.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == 0;
}

static void set_memory(bool enabled) {
  uint16_t value = enabled ? 6 : 4;
  CHECK(pwrite(engine.device, &value, 2, (off_t)(engine.config + 4)) == 2);
}

static void set_up(void) {
  struct dirent **entries;
  int count = scandir("/sys/bus/pci/devices", &entries, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    unsigned vendor, device;
    const char *bdf = entries[i]->d_name;
    if (bdf[0] != '.' && read_id(bdf, "vendor", &vendor) && read_id(bdf, "device", &device) &&
        vendor == 0x1234 && device == 0x0e40)
      CHECK(find_node(bdf, engine.node, sizeof engine.node));
  }
  CHECK(engine.node[0]);
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  CHECK(engine_bind(&engine) == 0 && engine_enable(&engine) == 0);
  map = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED, engine.device, (off_t)engine.bar0);
  CHECK(map != MAP_FAILED);
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) == 0);
  memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct iommu_ioas_map dma = {.size = sizeof dma,
                               .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = alloc.out_ioas_id,
                               .user_va = (uintptr_t)memory,
                               .length = 1 << 20};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_MAP, &dma) == 0);
  iova = dma.iova;
  struct iommu_hwpt_alloc hwpt = {.size = sizeof hwpt,
                                  .flags = IOMMU_HWPT_ALLOC_PASID,
                                  .dev_id = engine.id,
                                  .pt_id = alloc.out_ioas_id};
  CHECK(ioctl(engine.iommu, IOMMU_HWPT_ALLOC, &hwpt) == 0);
  table = hwpt.out_hwpt_id;
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  for (int i = 0; i < 3; i++)
    CHECK(sigaction((int[]){SIGILL, SIGSEGV, SIGBUS}[i], &action, NULL) == 0);
}

// Copies 4 KiB from the memory's start to `page`; its completion lies in the last page.
static struct command copy_to(unsigned page, unsigned completion) {
  for (unsigned i = 0; i < 4096; i++) memory[i] = (uint8_t)(i * 7 + page);
  return (struct command){.operation = COPY | COMPLETION,
                          .completion = iova + (1 << 20) - 4096 + 8 * completion,
                          .source = iova,
                          .destination = iova + 4096ull * page,
                          .length = 4096};
}

static void wait_for(unsigned completion) {
  volatile uint64_t *status = (volatile uint64_t *)(memory + (1 << 20) - 4096) + completion;
  for (uint64_t end = milliseconds() + 10000; !*status;) CHECK(milliseconds() < end);
  CHECK(*status == (1 | 4096 << 8));
}

static void words(void) {
  store_word(map + CONTROL, 1);
  CHECK(*word(CONTROL) == 1);
  store_word(map + CONTROL, 0);
  CHECK(*word(CONTROL) == 0);
  // Ordinary memory is the processor's affair: done, or refused.
  uint32_t plain = 0;
  int number = sigsetjmp(back, 1);
  if (number == 0) store_word(&plain, 7);
  CHECK(number == SIGILL || plain == 7);
  // What is no instruction anywhere is told as ever.
  number = sigsetjmp(back, 1);
  if (number == 0) __asm__ volatile("ud2");
  CHECK(number == SIGILL && seen.si_code == ILL_ILLOPN);
}

static void commands(void) {
  struct command command = copy_to(1, 0);
  volatile void *portal = map + PORTAL;
  // No PASID: as on a processor that has none for the thread.
  CHECK(signal_of(portal, &command, true) == SIGSEGV && seen.si_code == SI_KERNEL);
  CHECK(attach(3));
  // The PASID that the command brings does not count.
  command.pasid = 0xfffff;
  uint64_t flags = ~0ull;
  CHECK(enqueue(portal, &command, &flags) && flags == 0);
  wait_for(0);
  CHECK(memcmp(memory, memory + 4096, 4096) == 0);
  // Anywhere in its page, by a multiple of 64.
  command = copy_to(2, 1);
  CHECK(enqueue(map + PORTAL + 0xfc0, &command, NULL));
  wait_for(1);
  CHECK(memcmp(memory, memory + 8192, 4096) == 0);
  CHECK(signal_of(map + PORTAL + 32, &command, true) == SIGSEGV);
  // Registers take none, and stay as they are.
  CHECK(!enqueue(map, &command, &flags) && flags == 0x40 && *word(CONTROL) == 0);
  CHECK(*word(ERRORS) == 0);
  // A posted store: with the PASID that it names; a wrong one is dropped.
  command = copy_to(3, 2);
  command.pasid = 3;
  CHECK(signal_of(portal, &command, false) == 0);
  wait_for(2);
  CHECK(memcmp(memory, memory + 3 * 4096, 4096) == 0);
  command.pasid = 4;
  CHECK(signal_of(portal, &command, false) == 0 && *word(OCCUPANCY) == 0);
}

// Retry: until there is room again.
static void full(void) {
  const unsigned depth = *word(CAPABILITY) & 0xff;
  CHECK(*word(CAPABILITY) >> 31 && depth > 0 && depth < 100);
  *word(CONTROL) = 1;
  uint64_t flags;
  for (unsigned i = 0; i < depth; i++) {
    struct command command = copy_to(4, 8 + i);
    CHECK(enqueue(map + PORTAL, &command, &flags) && flags == 0);
  }
  struct command command = copy_to(5, 7);
  for (int i = 0; i < 5; i++) CHECK(!enqueue(map + PORTAL, &command, &flags) && flags == 0x40);
  // Posted, it is lost.
  command.pasid = 3;
  CHECK(signal_of(map + PORTAL, &command, false) == 0 && *word(OCCUPANCY) == depth);
  *word(CONTROL) = 0;
  for (unsigned i = 0; i < depth; i++) wait_for(8 + i);
  for (uint64_t end = milliseconds() + 10000; !enqueue(map + PORTAL, &command, NULL);)
    CHECK(milliseconds() < end);
  wait_for(7);
  CHECK(memcmp(memory, memory + 5 * 4096, 4096) == 0);
}

static void refusals(void) {
  struct command command = copy_to(6, 3);
  // Nobody answers.
  set_memory(false);
  for (int i = 0; i < 2; i++) {
    CHECK(signal_of(map + PORTAL, &command, i) == SIGBUS);
    CHECK(seen.si_code == BUS_ADRERR && seen.si_addr == (void *)(map + PORTAL));
  }
  set_memory(true);
  CHECK(enqueue(map + PORTAL, &command, NULL));
  wait_for(3);
  // The source is not there.
  CHECK(signal_of(map + PORTAL, (void *)64, true) == SIGSEGV && seen.si_addr == (void *)64);
  // Which of two PASIDs?
  CHECK(attach(5));
  CHECK(signal_of(map + PORTAL, &command, true) == SIGSEGV && seen.si_code == SI_KERNEL);
}

int main(void) {
  set_up();
  words();
  commands();
  full();
  refusals();
  return 0;
}
