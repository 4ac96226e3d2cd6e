// SPDX-License-Identifier: Apache-2.0
//
// A page table of our own, whatever the IOMMU is, as VMMs make them for their guests: ask what the
// hardware is, write a table in its format into memory of our own, nest it on one of the kernel's,
// copy by DMA through both, change the table, tell the IOMMU, copy again.

#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>

#include "copy_engine.h"
#include "tables.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3, EXIT_NO_TABLES = 4 };

static int step;

#define TELL(...) (printf("%2d  ", ++step), printf(__VA_ARGS__), (void)puts(""))

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "user-tables: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: user-tables [OPTIONS]\n"
      "\n"
      "Asks what the IOMMU of a copy engine (PCI 8086:2021) is (IOMMU_GET_HW_INFO), writes a page\n"
      "table in its format into memory of its own, nests it, and copies by DMA through both stages.\n"
      "\n"
      "  --info        only ask, and say which table would be made\n"
      "  --memfd       put the table and the data into a memory file, as VMMs do\n"
      "  --bdf BDF     use the engine at this address (default: the first that is found)\n"
      "  --help        print this\n"
      "\n"
      "Examples:\n"
      "  user-tables --info\n"
      "  user-tables --memfd\n"
      "\n"
      "Exit status: 0 all was as it should be, 1 something failed, 2 wrong usage, 3 no engine,\n"
      "4 the IOMMU takes no tables of users (by these calls).\n",
      stream);
}

// Every type is asked for by number, as a program does that knows one of them only.
static void check_types(struct engine *engine, const struct hardware *hardware) {
  for (uint32_t type = IOMMU_HW_INFO_TYPE_DEFAULT; type <= IOMMU_HW_INFO_TYPE_AMD; type++) {
    struct hardware again;
    const int result = hardware_ask_for(engine->iommu, engine->id, type, &again);
    // A driver that tells nothing takes any type, and says so.
    const bool fits = type == IOMMU_HW_INFO_TYPE_DEFAULT || type == hardware->type ||
                      hardware->type == IOMMU_HW_INFO_TYPE_NONE;
    if (fits && result) fail("IOMMU_GET_HW_INFO with its own type");
    if (fits && memcmp(&again, hardware, sizeof again))
      errno = EPROTO, fail("IOMMU_GET_HW_INFO answers otherwise by type");
    if (!fits && (!result || errno != EOPNOTSUPP))
      errno = EPROTO, fail("IOMMU_GET_HW_INFO with another type");
  }
}

// MARK: Memory

// Guest-physical addresses of what is not a table, and the addresses that the engine uses.
enum { PAGE = 4096 };
static const uint64_t GUEST_BASE = 0x40000000;
static const uint64_t GUEST_SIZE = 4 << 20;
static const uint64_t CONTROL = 0x12345678a000, SOURCE = 0x12345678b000, TARGET = 0x7fffffff0000;

static uint8_t *at(struct guest *guest, uint64_t address) {
  return guest->bytes + (address - guest->base);
}

static void make_guest(struct guest *guest, bool memfd, int *fd) {
  *fd = memfd ? memfd_create("guest", MFD_CLOEXEC) : -1;
  if (memfd && (*fd < 0 || ftruncate(*fd, (off_t)GUEST_SIZE))) fail("memfd");
  void *bytes = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE,
                     memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, *fd, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  *guest = (struct guest){.bytes = bytes, .size = GUEST_SIZE, .base = GUEST_BASE};
}

static void map_guest(int iommu, uint32_t ioas, struct guest *guest, int fd) {
  const uint32_t flags =
      IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
  if (fd >= 0) {
    struct iommu_ioas_map_file map = {.size = sizeof map, .flags = flags, .ioas_id = ioas,
                                      .fd = fd, .length = guest->size, .iova = guest->base};
    if (ioctl(iommu, IOMMU_IOAS_MAP_FILE, &map)) fail("IOMMU_IOAS_MAP_FILE");
    return;
  }
  struct iommu_ioas_map map = {.size = sizeof map, .flags = flags, .ioas_id = ioas,
                               .user_va = (uintptr_t)guest->bytes, .length = guest->size,
                               .iova = guest->base};
  if (ioctl(iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
}

// MARK: Page tables

struct nested {
  uint32_t parent;
  uint32_t viommu;
  uint32_t table;
};

static uint32_t allocate(int iommu, struct iommu_hwpt_alloc alloc, const char *what) {
  alloc.size = sizeof alloc;
  if (ioctl(iommu, IOMMU_HWPT_ALLOC, &alloc)) fail(what);
  return alloc.out_hwpt_id;
}

static struct nested make_nested(struct engine *engine, uint32_t ioas, struct tables *tables) {
  struct nested nested = {0};
  nested.parent = allocate(
      engine->iommu,
      (struct iommu_hwpt_alloc){
          .flags = IOMMU_HWPT_ALLOC_NEST_PARENT, .dev_id = engine->id, .pt_id = ioas},
      "IOMMU_HWPT_ALLOC of a table to nest on");
  uint32_t below = nested.parent;
  if (tables->choice.needs_viommu) {
    // AMD's have no type of their own: Linux makes one for any but DEFAULT.
    struct iommu_viommu_alloc viommu = {.size = sizeof viommu, .dev_id = engine->id,
                                        .type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
                                        .hwpt_id = nested.parent};
    if (ioctl(engine->iommu, IOMMU_VIOMMU_ALLOC, &viommu)) fail("IOMMU_VIOMMU_ALLOC");
    below = nested.viommu = viommu.out_viommu_id;
    // The guest calls the device 7.
    struct iommu_vdevice_alloc device = {.size = sizeof device, .viommu_id = nested.viommu,
                                         .dev_id = engine->id, .virt_id = 7};
    if (ioctl(engine->iommu, IOMMU_VDEVICE_ALLOC, &device)) fail("IOMMU_VDEVICE_ALLOC");
  }
  nested.table = allocate(
      engine->iommu,
      (struct iommu_hwpt_alloc){.dev_id = engine->id, .pt_id = below,
                                .data_type = tables->data_type,
                                .data_len = tables->data_length,
                                .data_uptr = (uintptr_t)&tables->data},
      "IOMMU_HWPT_ALLOC of our table");
  return nested;
}

// Tells the IOMMU that one page changed, in the vendor's own format.
static const char *invalidate(struct engine *engine, const struct nested *nested,
                              const struct tables *tables, uint64_t page) {
  struct iommu_hwpt_vtd_s1_invalidate vtd = {.addr = page, .npages = 1,
                                             .flags = IOMMU_VTD_INV_FLAGS_LEAF};
  // CMD_TLBI_NH_VA: ASID; the address, Leaf, TTL 3 of TG 4 KiB (IHI 0070, 4.4.3.2).
  struct iommu_viommu_arm_smmuv3_invalidate smmu = {
      .cmd = {0x12 | (uint64_t)GUEST_ID << 48, page | 1 | 3 << 8 | 1 << 10}};
  struct iommu_hwpt_invalidate call = {.size = sizeof call, .entry_num = 1};
  switch (tables->hardware->type) {
    case IOMMU_HW_INFO_TYPE_INTEL_VTD:
      call.hwpt_id = nested->table;
      call.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
      call.data_uptr = (uintptr_t)&vtd;
      call.entry_len = sizeof vtd;
      break;
    case IOMMU_HW_INFO_TYPE_ARM_SMMUV3:
      call.hwpt_id = nested->viommu;
      call.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
      call.data_uptr = (uintptr_t)&smmu;
      call.entry_len = sizeof smmu;
      break;
    default:
      // Linux has no call for AMD's yet: a table is invalidated by being attached anew.
      if (engine_attach(engine, nested->parent) || engine_attach(engine, nested->table))
        fail("attaching anew");
      return "by attaching it anew";
  }
  if (ioctl(engine->iommu, IOMMU_HWPT_INVALIDATE, &call) || call.entry_num != 1)
    fail("IOMMU_HWPT_INVALIDATE");
  return "by IOMMU_HWPT_INVALIDATE";
}

// MARK: DMA

// Copies a page by addresses that our table translates. Returns the engine's error bits.
static uint32_t copy(struct engine *engine, struct guest *guest, uint64_t control) {
  volatile uint64_t *completion = (volatile uint64_t *)at(guest, control);
  struct descriptor *chain = (struct descriptor *)at(guest, control) + 1;
  *completion = 0;
  *chain = (struct descriptor){.size = PAGE, .control = CONTROL_INTERRUPT | CONTROL_COMPLETION,
                               .source = SOURCE, .destination = TARGET,
                               .next = CONTROL + sizeof *chain};
  if (!engine_reset(engine)) errno = ETIMEDOUT, fail("resetting the channel");
  engine_start(engine, CONTROL + sizeof *chain, CONTROL, 1);
  for (uint64_t end = milliseconds() + 10000; milliseconds() < end;) {
    const uint32_t error = (uint32_t)engine_read(engine, CHANERR, 4);
    if (error) return error;
    if (engine_wait(engine, 100)) return (uint32_t)engine_read(engine, CHANERR, 4);
  }
  errno = ETIMEDOUT;
  fail("waiting for the copy");
  return 0;
}

static void expect(bool holds, const char *what) {
  if (!holds) errno = EPROTO, fail(what);
}

static void run(struct engine *engine, const struct hardware *hardware, struct choice choice,
                bool memfd) {
  struct guest guest;
  int fd;
  make_guest(&guest, memfd, &fd);
  const uint64_t control = guest_take(&guest, PAGE), one = guest_take(&guest, PAGE),
                 two = guest_take(&guest, PAGE), target = guest_take(&guest, PAGE);
  memset(at(&guest, one), 0x11, PAGE);
  memset(at(&guest, two), 0x22, PAGE);

  struct iommu_ioas_alloc ioas = {.size = sizeof ioas};
  if (ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &ioas)) fail("IOMMU_IOAS_ALLOC");
  map_guest(engine->iommu, ioas.out_ioas_id, &guest, fd);
  TELL("mapped %llu MiB for the guest, at its 0x%llx", (unsigned long long)guest.size >> 20,
       (unsigned long long)guest.base);

  struct tables tables;
  tables_make(&tables, hardware, choice, &guest);
  tables_set(&tables, CONTROL, control);
  tables_set(&tables, SOURCE, one);
  tables_set(&tables, TARGET, target);
  const struct nested nested = make_nested(engine, ioas.out_ioas_id, &tables);
  if (engine_attach(engine, nested.table)) fail("attaching the engine to our table");
  TELL("wrote a table there, nested it, and attached the engine to it");

  if (engine_enable(engine) || engine_arm(engine)) fail("the device");
  uint32_t error = copy(engine, &guest, control);
  if (error) fprintf(stderr, "user-tables: the engine says: %s\n", engine_error(error));
  expect(!error && at(&guest, target)[0] == 0x11 && at(&guest, target)[PAGE - 1] == 0x11,
         "the copy");
  TELL("copied a page through both stages");

  tables_set(&tables, SOURCE, two);
  const char *how = invalidate(engine, &nested, &tables, SOURCE);
  error = copy(engine, &guest, control);
  expect(!error && at(&guest, target)[0] == 0x22 && at(&guest, target)[PAGE - 1] == 0x22,
         "the copy after the change");
  TELL("changed the table and invalidated it %s: the engine reads the new page", how);

  // What the guest may not reach it cannot map: beside its memory there is nothing.
  tables_set(&tables, SOURCE, guest.base + guest.size);
  invalidate(engine, &nested, &tables, SOURCE);
  error = copy(engine, &guest, control);
  expect(error && at(&guest, target)[0] == 0x22, "an address past the guest's memory");
  TELL("an entry that points past the guest's memory leads nowhere: %s", engine_error(error));

  tables_set(&tables, SOURCE, 0);
  invalidate(engine, &nested, &tables, SOURCE);
  error = copy(engine, &guest, control);
  expect(error && at(&guest, target)[0] == 0x22, "an address without an entry");
  TELL("neither does an address without an entry: %s", engine_error(error));

  tables_set(&tables, SOURCE, one);
  invalidate(engine, &nested, &tables, SOURCE);
  expect(!copy(engine, &guest, control) && at(&guest, target)[0] == 0x11, "the last copy");
  if (engine_detach(engine)) fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
  TELL("all as it was: copied again, and detached");
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  bool memfd = false, info = false;
  const char *bdf = NULL;
  static const struct option options[] = {{"info", no_argument, NULL, 'i'},
                                          {"memfd", no_argument, NULL, 'm'},
                                          {"bdf", required_argument, NULL, 'b'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "h", options, NULL)) != -1;) {
    switch (option) {
      case 'i': info = true; break;
      case 'm': memfd = true; break;
      case 'b': bdf = optarg; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count) {
    fprintf(stderr, "user-tables: unexpected argument '%s'\n", arguments[optind]);
    return EXIT_USAGE;
  }

  struct engine engine = {.event = -1};
  if (!engine_find(&engine, bdf)) {
    fprintf(stderr, "user-tables: no copy engine (PCI 8086:2021)%s%s; try: iommu run -- "
                    "user-tables\n",
            bdf ? " at " : "", bdf ? bdf : "");
    return EXIT_NO_DEVICE;
  }
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (engine.iommu < 0) fail("/dev/iommu");
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  if (engine.device < 0) fail(engine.node);
  if (engine_bind(&engine)) fail("VFIO_DEVICE_BIND_IOMMUFD");

  struct hardware hardware;
  if (hardware_ask(engine.iommu, engine.id, &hardware)) fail("IOMMU_GET_HW_INFO");
  check_types(&engine, &hardware);
  const struct choice choice = hardware_choose(&hardware);
  if (info) {
    hardware_print(&hardware);
    printf("%s\n", choice_name(&hardware, &choice));
    return EXIT_OK;
  }
  TELL("asked what the IOMMU of %s is: tables of type %u", engine.bdf, hardware.type);
  TELL("chose: %s", choice_name(&hardware, &choice));
  if (!choice.nests) return EXIT_NO_TABLES;
  run(&engine, &hardware, choice, memfd);
  return EXIT_OK;
}
