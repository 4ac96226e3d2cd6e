// SPDX-License-Identifier: Apache-2.0
//
// The use cases of the /dev/ioasid proposal of 2021 (MODEL K1), in its order and with its calls:
// 4.1 one space, 4.2 several, 4.3 one nested on another in software, 4.4 in hardware, by a page
// table of the guest's, 4.5 the same with page faults. A VMM gives two copy engines to a guest;
// "guest" is what this program plays when it programs an engine with the guest's addresses. Linux
// never had these calls: /dev/ioasid is there under `iommu run`.

#define _GNU_SOURCE
#include <sys/mman.h>

#include "copy_engine.h"
#include "ioasid_abi.h"

enum { PAGE = 4096 };

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "ioasid-use-cases: %s: %s\n", what, strerror(error));
  exit(1);
}

static void check(bool holds, const char *what) {
  if (holds) return;
  fflush(stdout);
  fprintf(stderr, "ioasid-use-cases: not so: %s\n", what);
  exit(1);
}

// The proposal's calls.

static void bind(struct engine *engine, int ioasid_fd, uint64_t cookie) {
  struct vfio_device_bind_iommu_fd bind = {
      .argsz = sizeof bind, .iommu_fd = ioasid_fd, .cookie = cookie};
  if (ioctl(engine->device, VFIO_DEVICE_BIND_IOMMU_FD, &bind)) fail("BIND_IOMMU_FD");
}

static int change(struct engine *engine, unsigned long call, int ioasid_fd, uint32_t ioasid) {
  struct vfio_device_attach_ioasid attach = {
      .argsz = sizeof attach, .iommu_fd = ioasid_fd, .ioasid = ioasid};
  return ioctl(engine->device, call, &attach);
}

static void attach(struct engine *engine, int ioasid_fd, uint32_t ioasid) {
  if (change(engine, VFIO_DEVICE_ATTACH_IOASID, ioasid_fd, ioasid)) fail("ATTACH_IOASID");
}

static void detach(struct engine *engine, int ioasid_fd, uint32_t ioasid) {
  if (change(engine, VFIO_DEVICE_DETACH_IOASID, ioasid_fd, ioasid)) fail("DETACH_IOASID");
}

static uint32_t alloc(int ioasid_fd, uint32_t flags, uint32_t parent) {
  struct ioasid_alloc alloc = {.argsz = sizeof alloc,
                               .flags = flags,
                               .type = IOASID_TYPE_KERNEL_TYPE1V2,
                               .parent = parent};
  const int ioasid = ioctl(ioasid_fd, IOASID_ALLOC, &alloc);
  if (ioasid < 0) fail("IOASID_ALLOC");
  return (uint32_t)ioasid;
}

static void map(int ioasid_fd, uint32_t ioasid, uint64_t iova, uint64_t address, uint64_t size) {
  struct ioasid_dma_map map = {
      .argsz = sizeof map,
      .ioasid = ioasid,
      .map = {.argsz = sizeof map.map,
              .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
              .vaddr = address,
              .iova = iova,
              .size = size}};
  if (ioctl(ioasid_fd, IOASID_MAP_DMA, &map)) fail("MAP_DMA");
}

static uint64_t unmap(int ioasid_fd, uint32_t ioasid, uint64_t iova, uint64_t size) {
  struct ioasid_dma_unmap unmap = {
      .argsz = sizeof unmap, .ioasid = ioasid, .unmap_argsz = 24, .iova = iova, .size = size};
  if (ioctl(ioasid_fd, IOASID_UNMAP_DMA, &unmap)) fail("UNMAP_DMA");
  return unmap.size;
}

static void print_information(int ioasid_fd, uint64_t cookie) {
  union {
    struct ioasid_device_info info;
    uint8_t bytes[4096];
  } buffer = {.info = {.argsz = sizeof buffer.bytes, .cookie = cookie}};
  if (ioctl(ioasid_fd, IOASID_DEVICE_GET_INFO, &buffer)) fail("DEVICE_GET_INFO");
  printf("     device %llu: %u-bit addresses, page sizes %#llx%s\n", (unsigned long long)cookie,
         buffer.info.addr_width, (unsigned long long)buffer.info.iova_pgsizes,
         buffer.info.flags & IOASID_DEVICE_INFO_ENFORCE_SNOOP ? ", snooping can be enforced" : "");
  check(buffer.info.cap_offset != 0, "the capabilities fit into a page");
  const struct ioasid_device_info_cap_iova_range *ranges =
      (const void *)(buffer.bytes + buffer.info.cap_offset);
  check(ranges->header.id == IOASID_DEVICE_INFO_CAP_IOVA_RANGE, "IOVA ranges come first");
  for (uint32_t i = 0; i < ranges->nr_iovas; i++)
    printf("       may map %#llx to %#llx\n", (unsigned long long)ranges->iova_ranges[i].start,
           (unsigned long long)ranges->iova_ranges[i].end);
}

// Whether the device's IOMMU walks page tables of one of the user's formats, and how: its widths as
// bits, 0 for not at all.
static uint64_t walks(int ioasid_fd, uint64_t cookie, uint32_t type) {
  union {
    struct ioasid_device_info info;
    uint8_t bytes[4096];
  } buffer = {.info = {.argsz = sizeof buffer.bytes, .cookie = cookie}};
  if (ioctl(ioasid_fd, IOASID_DEVICE_GET_INFO, &buffer)) fail("DEVICE_GET_INFO");
  for (uint32_t at = buffer.info.cap_offset; at;) {
    const struct ioasid_device_info_cap_user_table *tables = (const void *)(buffer.bytes + at);
    if (tables->header.id == IOASID_DEVICE_INFO_CAP_USER_PAGE_TABLE)
      for (uint32_t i = 0; i < tables->nr_formats; i++)
        if (tables->formats[i].type == type) return tables->formats[i].addr_widths;
    at = tables->header.next;
  }
  return 0;
}

static uint32_t alloc_table(int ioasid_fd, uint32_t parent, uint32_t type, uint64_t root) {
  struct ioasid_alloc alloc = {.argsz = sizeof alloc,
                               .flags = IOASID_ALLOC_USER_PAGE_TABLE | IOASID_ALLOC_PARENT,
                               .type = type,
                               .addr_width = 48,
                               .parent = parent,
                               .table = root};
  const int ioasid = ioctl(ioasid_fd, IOASID_ALLOC, &alloc);
  if (ioasid < 0) fail("IOASID_ALLOC of a user's page table");
  return (uint32_t)ioasid;
}

static void invalidate(int ioasid_fd, uint32_t ioasid, uint64_t address, uint64_t size) {
  struct ioasid_invalidate_cache cache = {.argsz = sizeof cache,
                                          .ioasid = ioasid,
                                          .granularity = IOASID_INVALIDATE_RANGE,
                                          .caches = IOASID_CACHE_IOTLB,
                                          .addr = address,
                                          .size = size};
  if (ioctl(ioasid_fd, IOASID_INVALIDATE_CACHE, &cache)) fail("INVALIDATE_CACHE");
}

// The guest's page table: four levels in four pages of its memory, in the format of x86-64, which
// Intel's first stage and AMD's guest tables share. `table` is where we have the root, `gpa` where
// the guest has it; the tables of the lower levels follow it. All that is mapped is within 2 MiB.

static void table_init(uint64_t *table, uint64_t gpa, uint64_t iova) {
  enum { ENTRIES = PAGE / sizeof *table };
  memset(table, 0, 4 * PAGE);
  for (int level = 0; level < 3; level++) {
    const unsigned index = iova >> (39 - 9 * level) & (ENTRIES - 1);
    table[level * ENTRIES + index] = (gpa + (level + 1) * PAGE) | 7;  // present, write, user
  }
}

static void table_map(uint64_t *table, uint64_t iova, uint64_t gpa) {
  uint64_t *leaf = &table[3 * PAGE / sizeof *table + (iova >> 12 & 511)];
  __atomic_store_n(leaf, gpa | 7, __ATOMIC_RELEASE);
}

static void table_unmap(uint64_t *table, uint64_t iova) {
  __atomic_store_n(&table[3 * PAGE / sizeof *table + (iova >> 12 & 511)], 0, __ATOMIC_RELEASE);
}

// The guest: three pages of its memory hold a descriptor, a source and a destination, and it
// tells the engine to copy. `dma` is where the engine finds them, `memory` where we do.

static void guest_starts(struct engine *engine, uint8_t *memory, uint64_t dma, uint8_t seed) {
  memset(memory + PAGE, seed, PAGE);
  memset(memory + 2 * PAGE, 0, PAGE);
  struct descriptor *descriptor = (struct descriptor *)memory;
  *descriptor = (struct descriptor){.size = PAGE,
                                    .control = CONTROL_COMPLETION,
                                    .source = dma + PAGE,
                                    .destination = dma + 2 * PAGE};
  if (!engine_reset(engine)) fail("resetting the engine");
  engine_start(engine, dma, dma + 256, 1);
}

static bool guest_copies(struct engine *engine, uint8_t *memory, uint64_t dma, uint8_t seed) {
  guest_starts(engine, memory, dma, seed);
  uint64_t status = CHANSTS_ACTIVE;
  for (uint64_t end = milliseconds() + 5000; milliseconds() < end; usleep(100)) {
    status = engine_read(engine, CHANSTS, 4) & 7;
    if (status != CHANSTS_ACTIVE) break;
  }
  return status != CHANSTS_HALTED && !memcmp(memory + PAGE, memory + 2 * PAGE, PAGE);
}

// 4.4: the guest has its vIOMMU's page table in its own memory, and the IOMMU walks it as it is,
// each of its addresses through the VMM's GPA space. Memory: 4 to 6 and 7 what is copied, 8 to 11
// the table.
static void nested_in_hardware(int fd, struct engine *engine, uint32_t gpa_ioasid, uint64_t gpa,
                               uint8_t *memory) {
  puts("4.4  I/O address spaces nested in hardware");
  const uint32_t type = IOASID_TYPE_INTEL_FIRST_STAGE;
  if (!(walks(fd, 2, type) >> 48 & 1)) {
    puts("     left out: the IOMMU takes no page tables of Intel's format");
    return;
  }
  check(ioctl(fd, IOASID_CHECK_EXTENSION, IOASID_EXT_USER_PAGE_TABLE) == 1, "the extension too");
  const uint64_t giova = 0x40000000;
  uint64_t *const table = (uint64_t *)(memory + 8 * PAGE);
  table_init(table, gpa + 8 * PAGE, giova);
  for (int page = 0; page < 3; page++)
    table_map(table, giova + page * PAGE, gpa + (4 + page) * PAGE);
  const uint32_t nested = alloc_table(fd, gpa_ioasid, type, gpa + 8 * PAGE);
  attach(engine, fd, nested);
  check(guest_copies(engine, memory + 4 * PAGE, giova, 0x51), "through both tables");
  check(ioctl(fd, IOASID_FREE, gpa_ioasid) && errno == EBUSY, "a parent stays");
  puts("     device 2 by GIOVA, through the guest's own page table");
  // The guest moves a page: its destination is page 7 now. It tells its vIOMMU, the VMM tells us.
  table_map(table, giova + 2 * PAGE, gpa + 7 * PAGE);
  invalidate(fd, nested, giova + 2 * PAGE, PAGE);
  memset(memory + 7 * PAGE, 0, PAGE);
  check(!guest_copies(engine, memory + 4 * PAGE, giova, 0x52), "not where it was");
  check(!memcmp(memory + 5 * PAGE, memory + 7 * PAGE, PAGE), "but where the guest says");
  puts("     what the guest changes and invalidates holds at once");
  // Its table may say what it likes.
  table_map(table, giova + 2 * PAGE, 0xDEAD000);
  invalidate(fd, nested, 0, UINT64_MAX);
  check(!guest_copies(engine, memory + 4 * PAGE, giova, 0x53), "only what the parent maps");
  puts("     what the parent does not map is not reached");
  detach(engine, fd, nested);
  if (ioctl(fd, IOASID_FREE, nested)) fail("IOASID_FREE");

  // The first proposal's order: nest, attach, bind the table.
  const uint32_t child = alloc(fd, IOASID_ALLOC_PARENT, gpa_ioasid);
  attach(engine, fd, child);
  table_map(table, giova + 2 * PAGE, gpa + 6 * PAGE);
  struct ioasid_bind_pgtable bind = {.argsz = sizeof bind,
                                     .ioasid = child,
                                     .format = type,
                                     .addr_width = 48,
                                     .addr = gpa + 8 * PAGE};
  check(!guest_copies(engine, memory + 4 * PAGE, giova, 0x54), "before the bind nothing is there");
  if (ioctl(fd, IOASID_BIND_PGTABLE, &bind)) fail("BIND_PGTABLE");
  check(guest_copies(engine, memory + 4 * PAGE, giova, 0x55), "a table that is bound later");
  struct ioasid_bind_pgtable unbind = {.argsz = sizeof unbind, .ioasid = child};
  if (ioctl(fd, IOASID_UNBIND_PGTABLE, &unbind)) fail("UNBIND_PGTABLE");
  check(!guest_copies(engine, memory + 4 * PAGE, giova, 0x56), "and after it nothing again");
  puts("     BIND_PGTABLE and UNBIND_PGTABLE give a child its table and take it back");
  detach(engine, fd, child);
  if (ioctl(fd, IOASID_FREE, child)) fail("IOASID_FREE");
}

// 4.5: the guest gives the device its own page table and pins nothing. Where a page is missing the
// device asks for it; the VMM passes the request on, the guest maps the page and answers.
static void guest_sva(int fd, struct engine *engine, uint32_t gpa_ioasid, uint64_t gpa,
                      uint8_t *memory) {
  puts("4.5  Guest SVA: page faults come to the user");
  const uint32_t type = IOASID_TYPE_INTEL_FIRST_STAGE;
  if (!(walks(fd, 2, type) >> 48 & 1)) {
    puts("     left out: the IOMMU takes no page tables of Intel's format");
    return;
  }
  const uint64_t gva = 0x7f0000000000;
  uint64_t *const table = (uint64_t *)(memory + 8 * PAGE);
  table_init(table, gpa + 8 * PAGE, gva);
  const uint32_t nested = alloc_table(fd, gpa_ioasid, type, gpa + 8 * PAGE);
  struct ioasid_page_fault_fd request = {.argsz = sizeof request, .ioasid = nested};
  const int faults = ioctl(fd, IOASID_PAGE_FAULT_FD, &request);
  if (faults < 0) fail("PAGE_FAULT_FD");
  if (change(engine, VFIO_DEVICE_ATTACH_IOASID, fd, nested)) {
    if (errno != ENODEV) fail("ATTACH_IOASID");
    puts("     left out: the device does not ask for pages (page-requests in the machine file)");
  } else {
    guest_starts(engine, memory + 4 * PAGE, gva, 0x61);
    int answered = 0;
    uint64_t status = CHANSTS_ACTIVE;
    for (uint64_t end = milliseconds() + 20000; milliseconds() < end;) {
      status = engine_read(engine, CHANSTS, 4) & 7;
      if (status != CHANSTS_ACTIVE) break;
      struct pollfd wait = {.fd = faults, .events = POLLIN};
      if (poll(&wait, 1, 10) <= 0) continue;
      struct ioasid_page_fault records[8];
      const ssize_t size = read(faults, records, sizeof records);
      check(size > 0 && size % (ssize_t)sizeof records[0] == 0, "whole records");
      for (int i = 0; i < (int)(size / (ssize_t)sizeof records[0]); i++) {
        const struct ioasid_page_fault *fault = &records[i];
        check(fault->ioasid == nested && fault->dev_cookie == 2, "the space and the device");
        const uint64_t page = fault->fault.addr & -(uint64_t)PAGE;
        check(page >= gva && page < gva + 3 * PAGE, "the address");
        // The guest's handler.
        table_map(table, page, gpa + 4 * PAGE + (page - gva));
        if (!(fault->fault.flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE)) continue;
        struct ioasid_page_response response = {.argsz = sizeof response,
                                                .ioasid = nested,
                                                .cookie = fault->fault.cookie,
                                                .code = IOMMUFD_PAGE_RESP_SUCCESS};
        if (ioctl(fd, IOASID_PAGE_RESPONSE, &response)) fail("PAGE_RESPONSE");
        answered++;
      }
    }
    check(status != CHANSTS_ACTIVE && status != CHANSTS_HALTED, "the copy comes to its end");
    check(!memcmp(memory + 5 * PAGE, memory + 6 * PAGE, PAGE), "and has copied");
    check(answered > 0, "pages were asked for");
    printf("     device 2 asked for pages, was answered %d times, and copied\n", answered);
    check(guest_copies(engine, memory + 4 * PAGE, gva, 0x62), "now they are there");
    table_unmap(table, gva + PAGE);
    invalidate(fd, nested, gva + PAGE, PAGE);
    guest_starts(engine, memory + 4 * PAGE, gva, 0x63);
    struct pollfd wait = {.fd = faults, .events = POLLIN};
    check(poll(&wait, 1, 20000) == 1, "what the guest takes away is asked for again");
    struct ioasid_page_fault fault;
    check(read(faults, &fault, sizeof fault) == sizeof fault, "one page");
    struct ioasid_page_response response = {.argsz = sizeof response,
                                            .ioasid = nested,
                                            .cookie = fault.fault.cookie,
                                            .code = IOMMUFD_PAGE_RESP_INVALID};
    if (ioctl(fd, IOASID_PAGE_RESPONSE, &response)) fail("PAGE_RESPONSE");
    for (uint64_t end = milliseconds() + 20000; milliseconds() < end; usleep(100)) {
      status = engine_read(engine, CHANSTS, 4) & 7;
      if (status != CHANSTS_ACTIVE) break;
    }
    check(status == CHANSTS_HALTED, "an invalid answer ends the access");
    puts("     an answer of invalid ends the device's access");
    detach(engine, fd, nested);
  }
  close(faults);
  if (ioctl(fd, IOASID_FREE, nested)) fail("IOASID_FREE");
}

static void open_engine(struct engine *engine, const char *wanted) {
  if (!engine_find(engine, wanted)) {
    fprintf(stderr, "ioasid-use-cases: %s is no copy engine that vfio-pci drives; try: iommu run -- "
                    "ioasid-use-cases\n", wanted);
    exit(1);
  }
  engine->device = open(engine->node, O_RDWR | O_CLOEXEC);
  if (engine->device < 0) fail(engine->node);
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (count > 3 || (count > 1 && arguments[1][0] == '-')) {
    const bool help = !strcmp(arguments[1], "--help");
    fputs("Usage: ioasid-use-cases [BDF [BDF]]\n"
          "\n"
          "Walks through the use cases of the /dev/ioasid proposal with two copy engines, which\n"
          "are in different IOMMU groups (default: 0000:e0:04.0 and 0000:e1:00.0).\n"
          "\n"
          "Examples:\n"
          "  iommu run -- ioasid-use-cases\n"
          "  iommu run --machine machine.yaml -- ioasid-use-cases    with page requests (4.5)\n"
          "\n"
          "Exit status: 0 all is as the proposal says, 1 something is not, 2 wrong usage.\n",
          help ? stdout : stderr);
    return help ? 0 : 2;
  }
  struct engine dev1 = {.event = -1}, dev2 = {.event = -1};
  open_engine(&dev1, count > 1 ? arguments[1] : "0000:e0:04.0");
  open_engine(&dev2, count > 2 ? arguments[2] : "0000:e1:00.0");

  // The guest's memory, as the VMM has it.
  enum { GUEST = 12 * PAGE };
  uint8_t *memory = mmap(NULL, GUEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  const uint64_t gpa = 0x1000;  // where the guest has the first page of it

  puts("4.1  A simple example: one device, one I/O address space");
  const int fd = open("/dev/ioasid", O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("/dev/ioasid");
  check(ioctl(fd, IOASID_CHECK_EXTENSION, IOASID_EXT_MAP_TYPE1V2) == 1, "type1v2 is there");
  check(ioctl(fd, IOASID_CHECK_EXTENSION, IOASID_EXT_NESTING) == 1, "nesting is there");
  bind(&dev1, fd, 1);
  print_information(fd, 1);
  if (engine_enable(&dev1)) fail("enabling the first engine");
  const uint32_t gpa_ioasid = alloc(fd, 0, 0);
  attach(&dev1, fd, gpa_ioasid);
  map(fd, gpa_ioasid, gpa, (uintptr_t)memory, GUEST);
  check(guest_copies(&dev1, memory, gpa, 0x41), "the guest's DMA by GPA reaches its memory");
  puts("     device 1 copies by guest-physical addresses");

  puts("4.2  Several I/O address spaces, no nesting");
  bind(&dev2, fd, 2);
  if (engine_enable(&dev2)) fail("enabling the second engine");
  attach(&dev2, fd, gpa_ioasid);
  check(guest_copies(&dev2, memory, gpa, 0x42), "two devices share the space");
  // The guest has its vIOMMU translate for device 2: the VMM shadows GIOVA to HVA by itself.
  const uint32_t giova_ioasid = alloc(fd, 0, 0);
  const uint64_t giova = 0x40000000;
  map(fd, giova_ioasid, giova, (uintptr_t)memory + 4 * PAGE, 3 * PAGE);
  detach(&dev2, fd, gpa_ioasid);
  check(!guest_copies(&dev2, memory, gpa, 0x43), "between the two it is blocked");
  attach(&dev2, fd, giova_ioasid);
  check(guest_copies(&dev2, memory + 4 * PAGE, giova, 0x44), "GIOVA reaches the guest's pages");
  check(!guest_copies(&dev2, memory, gpa, 0x45), "its old addresses lead nowhere");
  check(guest_copies(&dev1, memory, gpa, 0x46), "device 1 is where it was");
  puts("     device 1 by GPA, device 2 by GIOVA");
  detach(&dev2, fd, giova_ioasid);
  if (ioctl(fd, IOASID_FREE, giova_ioasid)) fail("IOASID_FREE");

  puts("4.3  I/O address spaces nested in software");
  // The VMM says GIOVA to GPA only: what is under it is the parent's.
  const uint32_t nested = alloc(fd, IOASID_ALLOC_PARENT, gpa_ioasid);
  attach(&dev2, fd, nested);
  map(fd, nested, giova, gpa + 4 * PAGE, 3 * PAGE);
  check(guest_copies(&dev2, memory + 4 * PAGE, giova, 0x47), "GIOVA to GPA to memory");
  check(ioctl(fd, IOASID_FREE, gpa_ioasid) && errno == EBUSY, "a parent stays");
  puts("     device 2 by GIOVA, through the parent's GPA");
  check(unmap(fd, gpa_ioasid, gpa, GUEST) == GUEST, "the parent can change");
  check(!guest_copies(&dev2, memory + 4 * PAGE, giova, 0x48), "and its child with it");
  map(fd, gpa_ioasid, gpa, (uintptr_t)memory, GUEST);
  check(guest_copies(&dev2, memory + 4 * PAGE, giova, 0x49), "both ways");
  puts("     what the parent unmaps, the child loses, and gets back with it");

  detach(&dev2, fd, nested);
  if (ioctl(fd, IOASID_FREE, nested)) fail("IOASID_FREE");

  nested_in_hardware(fd, &dev2, gpa_ioasid, gpa, memory);
  guest_sva(fd, &dev2, gpa_ioasid, gpa, memory);

  detach(&dev1, fd, gpa_ioasid);
  if (ioctl(fd, IOASID_FREE, gpa_ioasid)) fail("IOASID_FREE");
  puts("All as the proposal has it.");
  return 0;
}
