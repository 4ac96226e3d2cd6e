// SPDX-License-Identifier: Apache-2.0
//
// Loads and stores: their widths, a whole copy, many threads, what takes registers away.

#define _GNU_SOURCE
#include "registers.h"

static void widths(void) {
  uint64_t value = 0x1122334455667788;
  *wide(PLAIN) = value;
  CHECK(engine_read(&engine, PLAIN, 8) == value);
  CHECK(*wide(PLAIN) == value && *word(PLAIN) == 0x55667788 && *word(PLAIN + 4) == 0x11223344);
  CHECK(*(volatile uint16_t *)(map + PLAIN + 2) == 0x5566 && map[PLAIN + 7] == 0x11);
  *word(PLAIN) = 0xdeadbeef;
  *(volatile uint16_t *)(map + PLAIN + 4) = 0xcafe;
  map[PLAIN + 6] = 0x42;
  CHECK(engine_read(&engine, PLAIN, 8) == 0x1142cafedeadbeef);
  // Sign extension, immediates, and what becomes of the flags.
  CHECK(*(volatile int8_t *)(map + PLAIN + 5) == (int8_t)0xca);
  CHECK(*(volatile int16_t *)(map + PLAIN + 4) == (int16_t)0xcafe);
  *word(PLAIN) = 5;
  *word(PLAIN) |= 0x80;
  *word(PLAIN) += 1;
  CHECK(*word(PLAIN) == 0x86);
  // What the device says of itself.
  CHECK(map[VERSION] == engine_read(&engine, VERSION, 1) && map[VERSION] != 0);
  CHECK(*wide(CHANSTS) == engine_read(&engine, CHANSTS, 8));
}

static void wait_until(bool (*done)(void)) {
  for (uint64_t end = milliseconds() + 10000; !done();) CHECK(milliseconds() < end);
}
static bool is_reset(void) { return !(map[CHANCMD] & CHANCMD_RESET); }
static bool is_done(void) { return (*wide(CHANSTS) & 7) == CHANSTS_DONE; }

// As drivers do it: no call from the reset to the end.
static void transfer(uint32_t control) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) == 0);
  CHECK(engine_attach(&engine, alloc.out_ioas_id) == 0);
  uint8_t *memory = mmap(NULL, 3 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct iommu_ioas_map dma = {.size = sizeof dma,
                               .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = alloc.out_ioas_id,
                               .user_va = (uintptr_t)memory,
                               .length = 3 << 20};
  CHECK(ioctl(engine.iommu, IOMMU_IOAS_MAP, &dma) == 0);
  struct descriptor *chain = (struct descriptor *)(memory + (2 << 20) + 64);
  for (size_t i = 0; i < 1 << 20; i++) memory[i] = (uint8_t)(i * 31 + i / 251);
  *chain = (struct descriptor){.size = 1 << 20,
                               .control = CONTROL_COMPLETION | control,
                               .source = dma.iova,
                               .destination = dma.iova + (1 << 20),
                               .next = dma.iova + (2 << 20) + 64};
  map[CHANCMD] = CHANCMD_RESET;
  wait_until(is_reset);
  *word(CHANERR) = *word(CHANERR);
  *(volatile uint16_t *)(map + CHANCTRL) = CHANCTRL_ABORT_ON_ERROR;
  *wide(CHANCMP) = dma.iova + (2 << 20);
  *wide(CHAINADDR) = dma.iova + (2 << 20) + 64;
  *(volatile uint16_t *)(map + DMACOUNT) = 1;
  wait_until(is_done);
  CHECK(*word(CHANERR) == 0 && memcmp(memory, memory + (1 << 20), 1 << 20) == 0);
}

static void copy(void) { transfer(0); }

// The MSI-X table and the pending bits, of vector 0.
enum { TABLE = 0x2000, PENDING = 0x3000 };

static uint64_t signals(void) {
  uint64_t count = 0;
  return read(engine.event, &count, sizeof count) == sizeof count ? count : 0;
}

// One copy with an interrupt; how many signals came of it. A reset is done when all that it ends is.
static uint64_t interrupts(void) {
  transfer(CONTROL_INTERRUPT);
  map[CHANCMD] = CHANCMD_RESET;
  wait_until(is_reset);
  return signals();
}

// The table as the device has it: what SET_IRQS put there, a mask, a message of one's own.
static void table(void) {
  CHECK(*word(TABLE + 12) == 1);
  CHECK(engine_arm(&engine) == 0);
  const uint64_t address = *wide(TABLE);
  const uint32_t data = *word(TABLE + 8);
  CHECK(address >> 20 == 0xfee && *word(TABLE + 12) == 0);
  CHECK(engine_read(&engine, TABLE, 8) == UINT64_MAX);
  map[INTRCTRL] = INTRCTRL_MSIX;
  CHECK(interrupts() == 1 && !(*word(PENDING) & 1));
  // Masked, it waits.
  *word(TABLE + 12) |= 1;
  CHECK(interrupts() == 0 && (*word(PENDING) & 1));
  *word(TABLE + 12) = 0;
  CHECK(signals() == 1 && !(*word(PENDING) & 1));
  // A message that is nobody's signals nobody, and the device goes on.
  *wide(TABLE) = 0xfee00000;
  *word(TABLE + 8) = 0xffffffff;
  for (uint64_t offset = 16; offset < PENDING - TABLE; offset += 16) *wide(TABLE + offset) = ~offset;
  CHECK(interrupts() == 0);
  *wide(TABLE) = address;
  *wide(TABLE + 8) = data;
  CHECK(interrupts() == 1);
}

static void *hammer(void *argument) {
  const unsigned lane = (unsigned)(uintptr_t)argument;
  volatile uint8_t *byte = map + PLAIN + lane;
  for (unsigned i = 0; i < 2000; i++) {
    *byte = (uint8_t)(i + lane);
    CHECK(*byte == (uint8_t)(i + lane));
  }
  return NULL;
}

static void threads(void) {
  pthread_t all[8];
  for (uintptr_t i = 0; i < 8; i++) CHECK(pthread_create(&all[i], NULL, hammer, (void *)i) == 0);
  for (int i = 0; i < 8; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

// No increment is lost.
static void *add(void *argument) {
  for (int i = 0; i < 500; i++) __atomic_fetch_add(wide(PLAIN), 1, __ATOMIC_RELAXED);
  return argument;
}

static void counts(void) {
  *wide(PLAIN) = 0;
  pthread_t all[8];
  for (int i = 0; i < 8; i++) CHECK(pthread_create(&all[i], NULL, add, NULL) == 0);
  for (int i = 0; i < 8; i++) CHECK(pthread_join(all[i], NULL) == 0);
  CHECK(*wide(PLAIN) == 4000);
}

static sigjmp_buf back;
static volatile siginfo_t seen;
static void on_bus_error(int number, siginfo_t *information, void *context) {
  (void)context;
  *(siginfo_t *)&seen = *information;
  siglongjmp(back, number);
}
static bool faults(volatile uint32_t *address) {
  if (sigsetjmp(back, 1)) return true;
  (void)*address;
  return false;
}

// Where the registers do not answer the program gets SIGBUS, as on Linux.
static void memory_off(void) {
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO}, old;
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
  *word(PLAIN) = 7;
  for (int i = 0; i < 20; i++) {
    uint16_t command = 0;
    CHECK(pwrite(engine.device, &command, 2, (off_t)(engine.config + 4)) == 2);
    CHECK(faults(word(PLAIN)));
    CHECK(seen.si_signo == SIGBUS && seen.si_code == BUS_ADRERR);
    CHECK(seen.si_addr == (void *)word(PLAIN));
    command = 6;
    CHECK(pwrite(engine.device, &command, 2, (off_t)(engine.config + 4)) == 2);
    CHECK(!faults(word(PLAIN)) && *word(PLAIN) == 7);
  }
  CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_sigaction == on_bus_error);
  uint16_t power = 3;
  CHECK(pwrite(engine.device, &power, 2, (off_t)(engine.config + 0xe4)) == 2);
  CHECK(faults(word(PLAIN)));
  power = 0;
  CHECK(pwrite(engine.device, &power, 2, (off_t)(engine.config + 0xe4)) == 2);
  CHECK(!faults(word(PLAIN)));
  // A reset does not take them away.
  CHECK(ioctl(engine.device, VFIO_DEVICE_RESET) == 0 && !faults(word(PLAIN)));
}

// What is where is looked at each time.
static void remaps(void) {
  uint8_t *old = (uint8_t *)map;
  *word(PLAIN) = 11;
  uint8_t *other = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mremap(old, bar.size, bar.size, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
  map = other;
  CHECK(*word(PLAIN) == 11);
  // Memory where registers were.
  uint8_t *memory = mmap(old, bar.size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(memory == old && memory[PLAIN] == 0);
  memory[PLAIN] = 3;
  CHECK(*word(PLAIN) == 11);
  // Registers where memory was.
  CHECK(mmap(old, bar.size, PROT_READ, MAP_SHARED | MAP_FIXED, engine.device,
             (off_t)bar.offset) == old);
  CHECK(*(volatile uint32_t *)(old + PLAIN) == 11);
  CHECK(munmap((void *)map, bar.size) == 0 && munmap(old, bar.size) == 0);
  // As with any memory: who may not write gets SIGSEGV.
  map = mmap(NULL, bar.size, PROT_READ, MAP_SHARED, engine.device, (off_t)bar.offset);
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
  CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
  if (!sigsetjmp(back, 1)) {
    *word(PLAIN) = 1;
    CHECK(false);
  }
  CHECK(seen.si_signo == SIGSEGV && *word(PLAIN) == 11);
}

// A mapping keeps the device open, and answers.
static void lifetime(void) {
  *word(PLAIN) = 99;
  struct engine second = engine;
  second.device = open(engine.node, O_RDWR | O_CLOEXEC);
  CHECK(close(engine.device) == 0);
  CHECK(*word(PLAIN) == 99);
  CHECK(engine_bind(&second) == -1 && errno == EINVAL);
  CHECK(munmap((void *)map, bar.size) == 0);
  CHECK(engine_bind(&second) == 0);
  map = mmap(NULL, bar.size, PROT_READ, MAP_SHARED, second.device, (off_t)bar.offset);
  CHECK(map != MAP_FAILED && *word(PLAIN) == 0);
}

// Instructions with more than one access.
static void strings(void) {
  uint8_t from[16], to[16];
  for (int i = 0; i < 16; i++) from[i] = (uint8_t)(i * 17 + 1);
  const void *source = from;
  volatile void *target = map + PLAIN;
  size_t count = 8;
  __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
  CHECK(count == 0 && source == from + 8 && target == map + PLAIN + 8);
  source = (const void *)(map + PLAIN);
  target = to;
  count = 2;
  __asm__ volatile("rep movsl" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
  CHECK(memcmp(from, to, 8) == 0 && count == 0);
  // The program's own memory may fault in the middle.
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
  CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
  uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(mprotect(page + 4096, 4096, PROT_READ) == 0);
  if (!sigsetjmp(back, 1)) {
    source = (const void *)(map + PLAIN);
    target = page + 4096 - 4;
    count = 8;
    __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
    CHECK(false);
  }
  CHECK(seen.si_signo == SIGSEGV && seen.si_addr == page + 4096 && seen.si_code == SEGV_ACCERR);
  CHECK(memcmp(page + 4092, from, 4) == 0);
  // Sixteen bytes in one.
  uint64_t pair[2] __attribute__((aligned(16))) = {0x1234, 0};
  __asm__ volatile("movdqa %0, %%xmm3\n\tmovq %%xmm3, %1"
                   : : "m"(*(uint64_t(*)[2])pair), "m"(*wide(PLAIN)) : "xmm3", "memory");
  CHECK(*wide(PLAIN) == 0x1234);
  __asm__ volatile("movdqu %1, %%xmm9\n\tmovdqa %%xmm9, %0"
                   : "=m"(*(uint64_t(*)[2])pair) : "m"(*wide(PLAIN)) : "xmm9");
  CHECK(pair[0] == 0x1234);
}

// Where Linux's vfio-pci happens to have regions: region n at n << 40. Some programs do not ask.
static void linux_offsets(void) {
  uint16_t id;
  CHECK(pread(engine.device, &id, sizeof id, (off_t)(7ull << 40)) == 2 && id == 0x8086);
  volatile uint8_t *other =
      mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, engine.device, 0);
  CHECK(other != MAP_FAILED && other[VERSION] == map[VERSION]);
  *(volatile uint32_t *)(other + PLAIN) = 0x12345678;
  CHECK(*word(PLAIN) == 0x12345678);
  uint32_t value = 0;
  CHECK(pread(engine.device, &value, 4, PLAIN) == 4 && value == 0x12345678);
  value = 0x42;
  CHECK(pwrite(engine.device, &value, 4, PLAIN) == 4 && *word(PLAIN) == 0x42);
  // No BAR 1 there, and nothing after the end.
  CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, engine.device, (off_t)(1ull << 40)) == MAP_FAILED);
  CHECK(errno == EINVAL);
  CHECK(mmap(NULL, bar.size + 4096, PROT_READ, MAP_SHARED, engine.device, 0) == MAP_FAILED);
  CHECK(errno == EINVAL);
  // As often as one likes.
  CHECK(munmap((void *)map, bar.size) == 0);
  for (int i = 0; i < 100; i++) {
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, engine.device, 0);
    CHECK(map != MAP_FAILED);
    *word(PLAIN) = (uint32_t)i;
    CHECK(*(volatile uint32_t *)(other + PLAIN) == (uint32_t)i);
    CHECK(munmap((void *)map, 4096) == 0);
  }
  CHECK(fcntl(engine.device, F_GETFD) >= 0 && open("/dev/null", O_RDONLY) < 100);
}

// What the C library makes of registers: vectors as wide as the processor has them.
static void library(void) {
  enum { SIZE = 256 };
  uint8_t *copy = calloc(1, SIZE + 1);
  uint8_t *registers = (uint8_t *)map;
  *wide(PLAIN) = 0x4443424144434241;
  for (uint64_t i = 0; i < SIZE; i += 8) {
    uint64_t value = engine_read(&engine, i, 8);
    memcpy(copy + i, &value, 8);
  }
  for (size_t length = 1; length < 150; length += 13) {
    uint8_t other[SIZE];
    memcpy(other, registers + PLAIN - 64, length);
    CHECK(memcmp(other, copy + PLAIN - 64, length) == 0);
    CHECK(memcmp(registers + PLAIN - 64, copy + PLAIN - 64, length) == 0);
    CHECK(memcmp(registers + PLAIN, registers + PLAIN, length) == 0);
  }
  copy[PLAIN + 7]++;
  CHECK(memcmp(registers + PLAIN, copy + PLAIN, 8) < 0);
  CHECK(memcmp(copy + 64, registers + 64, 128) > 0);
  copy[PLAIN + 7]--;
  CHECK(memchr(registers + 64, 'C', SIZE - 64) == registers + PLAIN + 2);
  CHECK(memrchr(registers, 'C', SIZE) == registers + PLAIN + 6);
  CHECK(memmem(registers, SIZE, "DABC", 4) == registers + PLAIN + 3);
  CHECK(strnlen((char *)registers + PLAIN, 5) == 5);
  CHECK(strlen((char *)registers + PLAIN) == strlen((char *)copy + PLAIN));
  CHECK(strncmp((char *)registers + PLAIN, "ABCDABCD", 8) == 0);
  CHECK(strcmp((char *)registers + PLAIN, (char *)copy + PLAIN) == 0);
  CHECK(strchr((char *)registers + PLAIN, 'D') == (char *)registers + PLAIN + 3);
  CHECK(strspn((char *)registers + PLAIN, "CBA") == 3);
  CHECK(strcspn((char *)registers + PLAIN, "D") == 3);
  memset(registers + PLAIN, 0x5a, 8);
  CHECK(*wide(PLAIN) == 0x5a5a5a5a5a5a5a5a);
  memmove(registers + PLAIN + 1, registers + PLAIN, 7);
  CHECK(*wide(PLAIN) == 0x5a5a5a5a5a5a5a5a);
  // What compilers make of a register that is read as a number.
  *wide(PLAIN) = (uint64_t)-3;
  CHECK((double)*(volatile int64_t *)wide(PLAIN) == -3.0);
  CHECK((float)*(volatile int32_t *)word(PLAIN) == -3.0f);
  free(copy);
}

const struct test access_tests[] = {
    {"widths", widths},   {"copy", copy},         {"threads", threads}, {"memory-off", memory_off},
    {"remaps", remaps},   {"lifetime", lifetime}, {"strings", strings}, {"linux-offsets", linux_offsets},
    {"counts", counts},   {"library", library},   {"table", table},     {NULL, NULL}};
