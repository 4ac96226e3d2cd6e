// SPDX-License-Identifier: Apache-2.0
//
// Tries everything that /dev/iommu must refuse, with calls and with a copy engine's DMA, and
// reports each attempt. Succeeds only if all of them are refused.

#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "copy_engine.h"

enum { EXIT_OK = 0, EXIT_NOT_REFUSED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3, EXIT_SETUP = 4 };

// Where the engine sees what. Each area is one page, except where something says otherwise.
#define IOVA_CONTROL 0x10000000ull
#define IOVA_SOURCE 0x20000000ull
#define IOVA_TARGET 0x30000000ull
#define IOVA_READ_ONLY 0x40000000ull
#define IOVA_WRITE_ONLY 0x50000000ull
#define IOVA_NOWHERE 0x70000000ull

static int refused, not_refused;
static bool quiet;
static uint64_t page;

static void report(bool ok, const char *what, const char *how) {
  if (ok) refused++;
  else not_refused++;
  if (ok && quiet) return;
  printf(ok ? "ok  refused: %s (%s)\n" : "NOT REFUSED: %s (%s)\n", what, how);
  fflush(stdout);
}

// A call that must fail. `result` is what it returned, errno is as it left it.
static void must_fail(long result, const char *what) {
  const int error = errno;
  report(result < 0, what, result < 0 ? strerrorname_np(error) : "the call succeeded");
}

static void section(const char *title) {
  if (!quiet) printf("\n%s\n", title);
}

static void setup_failed(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "trespass: cannot try: %s: %s\n", what, strerror(error));
  exit(EXIT_SETUP);
}

static void *pages(uint64_t count) {
  void *bytes = mmap(NULL, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) setup_failed("mmap");
  memset(bytes, 0x5a, count * page);
  return bytes;
}

static uint32_t make_ioas(int iommu) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc)) setup_failed("IOMMU_IOAS_ALLOC");
  return alloc.out_ioas_id;
}

static int map_at(int iommu, uint32_t ioas, void *bytes, uint64_t length, uint64_t iova,
                  uint32_t permissions) {
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = IOMMU_IOAS_MAP_FIXED_IOVA | permissions,
                               .ioas_id = ioas,
                               .user_va = (uintptr_t)bytes,
                               .length = length,
                               .iova = iova};
  return ioctl(iommu, IOMMU_IOAS_MAP, &map);
}

static int unmap(int iommu, uint32_t ioas, uint64_t iova, uint64_t length) {
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = ioas, .iova = iova, .length = length};
  return ioctl(iommu, IOMMU_IOAS_UNMAP, &unmap);
}

static int destroy(int iommu, uint32_t id) {
  struct iommu_destroy command = {.size = sizeof command, .id = id};
  return ioctl(iommu, IOMMU_DESTROY, &command);
}

// The memory that the engine works with.
struct memory {
  uint8_t *control, *source, *target, *read_only, *write_only;
};

enum { READ = IOMMU_IOAS_MAP_READABLE, WRITE = IOMMU_IOAS_MAP_WRITEABLE };

// Lets the engine copy, and says what came of it: 0 it did not, 1 it copied. A refused copy has
// to show in CHANERR, raise no interrupt and leave `watched` alone.
static bool dma(struct engine *engine, struct memory *memory, uint64_t from, uint64_t to,
                uint32_t size, uint8_t *watched, char *how, size_t how_size) {
  struct descriptor *chain = (struct descriptor *)memory->control + 1;
  *chain = (struct descriptor){.size = size,
                               .control = CONTROL_INTERRUPT | CONTROL_COMPLETION,
                               .source = from,
                               .destination = to,
                               .next = IOVA_CONTROL + sizeof *chain};
  memset(memory->source, 0xc3, page);
  memset(memory->write_only, 0xc3, page);
  if (watched != memory->write_only) memset(watched, 0x5a, page);
  if (!engine_reset(engine)) setup_failed("resetting the channel");
  uint64_t old;
  while (read(engine->event, &old, sizeof old) == sizeof old) continue;
  engine_start(engine, IOVA_CONTROL + sizeof *chain, IOVA_CONTROL, 1);
  uint32_t error = 0;
  uint64_t status = CHANSTS_ACTIVE;
  for (uint64_t end = milliseconds() + 5000; milliseconds() < end; usleep(200)) {
    status = engine_read(engine, CHANSTS, 8) & 7;
    error = (uint32_t)engine_read(engine, CHANERR, 4);
    if (error || status == CHANSTS_HALTED || status == CHANSTS_DONE) break;
  }
  // The channel may have halted between the two reads.
  status = engine_read(engine, CHANSTS, 8) & 7;
  error = (uint32_t)engine_read(engine, CHANERR, 4);
  const uint64_t interrupts = engine_wait(engine, 50);
  bool touched = false;
  const uint8_t expected = watched == memory->write_only ? 0xc3 : 0x5a;
  for (uint64_t i = 0; i < page; i++) touched |= watched[i] != expected;
  if (interrupts) snprintf(how, how_size, "an interrupt came, status %d", (int)status);
  else if (touched) snprintf(how, how_size, "memory was written, CHANERR 0x%x", error);
  else if (error) snprintf(how, how_size, "CHANERR 0x%x, %s; no interrupt", error, engine_error(error));
  else snprintf(how, how_size, "status %d, no error", (int)status);
  return interrupts || touched || !error || status != CHANSTS_HALTED;
}

static void dma_must_fail(struct engine *engine, struct memory *memory, uint64_t from, uint64_t to,
                          uint32_t size, uint8_t *watched, const char *what) {
  char how[128];
  const bool copied = dma(engine, memory, from, to, size, watched, how, sizeof how);
  report(!copied, what, how);
}

// Without this, an engine that never copies would pass everything.
static void dma_must_work(struct engine *engine, struct memory *memory, const char *when) {
  char how[128];
  dma(engine, memory, IOVA_SOURCE, IOVA_TARGET, (uint32_t)page, memory->target, how, sizeof how);
  if (memcmp(memory->source, memory->target, page)) {
    fprintf(stderr, "trespass: a permitted copy %s did not work: %s\n", when, how);
    exit(EXIT_SETUP);
  }
  if (!quiet) printf("--  a permitted copy works\n");
}

static void open_both(struct engine *engine) {
  engine->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (engine->iommu < 0) setup_failed("/dev/iommu");
  engine->device = open(engine->node, O_RDWR | O_CLOEXEC);
  if (engine->device < 0) setup_failed(engine->node);
}

static void close_both(struct engine *engine) {
  close(engine->device);
  close(engine->iommu);
}

// Where the regions are can be asked only of a bound device: a first session finds out.
static void learn_regions(struct engine *engine) {
  open_both(engine);
  if (engine_bind(engine)) setup_failed("VFIO_DEVICE_BIND_IOMMUFD");
  if (engine_enable(engine)) setup_failed("the device's regions");
  close_both(engine);
}

static void before_binding(struct engine *engine) {
  section("Before binding");
  char bytes[4] = {0};
  const off_t registers = (off_t)engine->bar0, config = (off_t)engine->config;
  must_fail(pread(engine->device, bytes, 4, registers), "read a register");
  must_fail(pwrite(engine->device, bytes, 4, registers + CHANCTRL), "write a register");
  must_fail(pread(engine->device, bytes, 4, config), "read configuration space");
  void *mapped = mmap(NULL, page, PROT_READ, MAP_SHARED, engine->device, registers);
  must_fail(mapped == MAP_FAILED ? -1 : 0, "map a register page");
  struct vfio_device_info info = {.argsz = sizeof info};
  must_fail(ioctl(engine->device, VFIO_DEVICE_GET_INFO, &info), "ask what the device has");
  must_fail(engine_arm(engine), "arm an interrupt");
  must_fail(ioctl(engine->device, VFIO_DEVICE_RESET), "reset the device");
  must_fail(engine_attach(engine, make_ioas(engine->iommu)), "attach an address space");

  struct engine wrong = *engine;
  wrong.iommu = -1;
  must_fail(engine_bind(&wrong), "bind to a file that is not open");
  wrong.iommu = open("/dev/null", O_RDWR | O_CLOEXEC);
  must_fail(engine_bind(&wrong), "bind to a file that is no context");
  close(wrong.iommu);
  wrong.iommu = engine->device;
  must_fail(engine_bind(&wrong), "bind to the device itself");
}

static void as_someone_else(struct engine *engine, uint32_t ioas) {
  section("From another context, and from another process");
  struct engine other = *engine;
  other.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (other.iommu < 0) setup_failed("/dev/iommu");
  must_fail(engine_bind(&other), "bind a bound device to a second context");
  other.device = open(engine->node, O_RDWR | O_CLOEXEC);
  must_fail(other.device < 0 ? -1 : engine_bind(&other), "bind it through a second open");
  uint8_t *bytes = pages(1);
  must_fail(map_at(other.iommu, ioas, bytes, page, IOVA_TARGET, READ | WRITE),
            "map into the first context's address space");
  must_fail(unmap(other.iommu, ioas, IOVA_SOURCE, page), "unmap its memory");
  must_fail(destroy(other.iommu, ioas), "destroy its address space");
  must_fail(destroy(other.iommu, engine->id), "destroy its device");
  struct iommu_hw_info info = {.size = sizeof info, .dev_id = engine->id};
  must_fail(ioctl(other.iommu, IOMMU_GET_HW_INFO, &info), "ask about its device");
  uint32_t foreign = 0;
  for (int i = 0; i < 32; i++) foreign = make_ioas(other.iommu);
  must_fail(engine_attach(engine, foreign), "attach to the second context's address space");
  close(other.iommu);
  if (other.device >= 0) close(other.device);

  fflush(stdout);
  pid_t child = fork();
  if (child < 0) setup_failed("fork");
  if (child == 0) {
    close_both(engine);
    other.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    other.device = open(engine->node, O_RDWR | O_CLOEXEC);
    _exit(other.device < 0 || engine_bind(&other) < 0 ? errno : 0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) setup_failed("waitpid");
  errno = WEXITSTATUS(status);
  must_fail(errno ? -1 : 0, "bind it from another process");
}

static void bad_calls(struct engine *engine, uint32_t ioas) {
  section("Calls that ask for too much");
  must_fail(engine_bind(engine), "bind twice");
  must_fail(engine_attach(engine, 0x7fffffff), "attach to an address space that is not there");
  must_fail(engine_attach(engine, engine->id), "attach to an object that is no page table");
  must_fail(destroy(engine->iommu, ioas), "destroy an address space with a device attached");
  must_fail(destroy(engine->iommu, engine->id), "destroy a bound device");
  uint8_t *bytes = pages(2);
  must_fail(map_at(engine->iommu, ioas, bytes, page, IOVA_SOURCE, READ | WRITE),
            "map over a live mapping");
  must_fail(map_at(engine->iommu, ioas, bytes, page, 0xfee00000, READ | WRITE),
            "map the interrupt window");
  must_fail(map_at(engine->iommu, ioas, bytes, 0, IOVA_NOWHERE, READ), "map nothing");
  must_fail(map_at(engine->iommu, ioas, bytes, page, UINT64_MAX - page + 1, READ),
            "map the end of 64 bits");
  must_fail(map_at(engine->iommu, ioas, bytes, UINT64_MAX - page + 1, IOVA_NOWHERE, READ),
            "map more than there is");
  must_fail(map_at(engine->iommu, ioas, bytes, page, IOVA_NOWHERE + 1, READ),
            "map at an address that is no page's");
  must_fail(map_at(engine->iommu, ioas, bytes, page, IOVA_NOWHERE, 0x100), "map with unknown flags");
  must_fail(map_at(engine->iommu, ioas, (void *)(uintptr_t)page, page, IOVA_NOWHERE, READ),
            "map memory that is not there");
  munmap(bytes + page, page);
  must_fail(map_at(engine->iommu, ioas, bytes, 2 * page, IOVA_NOWHERE, READ),
            "map memory that ends too early");
  mprotect(bytes, page, PROT_READ);
  must_fail(map_at(engine->iommu, ioas, bytes, page, IOVA_NOWHERE, READ | WRITE),
            "map read-only memory for writing");
  must_fail(unmap(engine->iommu, ioas, IOVA_NOWHERE, page), "unmap what is not mapped");
  must_fail(unmap(engine->iommu, ioas, IOVA_CONTROL, page), "unmap one half of a mapping");
  must_fail(ioctl(engine->iommu, IOMMU_IOAS_MAP, NULL), "pass a structure that is not there");
  struct {
    struct iommu_ioas_alloc alloc;
    uint32_t tail;
  } longer = {.alloc = {.size = sizeof longer}, .tail = 1};
  must_fail(ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &longer), "pass what a later kernel may know");
  longer.alloc.size = 4;
  must_fail(ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &longer), "pass a structure that is too short");
  must_fail(ioctl(engine->iommu, 0x3bff, &longer), "call a command that is not there");

  struct vfio_irq_set irq = {.argsz = sizeof irq,
                             .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                             .index = VFIO_PCI_MSIX_IRQ_INDEX,
                             .start = 0x1000,
                             .count = 1};
  must_fail(ioctl(engine->device, VFIO_DEVICE_SET_IRQS, &irq), "raise an interrupt it has not");
  struct vfio_region_info region = {.argsz = sizeof region, .index = 1000};
  must_fail(ioctl(engine->device, VFIO_DEVICE_GET_REGION_INFO, &region),
            "ask for a region it has not");
}

static void dma_attempts(struct engine *engine, struct memory *memory, uint32_t ioas) {
  section("DMA with an address space");
  dma_must_work(engine, memory, "with an address space");
  const uint32_t size = (uint32_t)page;
  uint8_t *target = memory->target;
  dma_must_fail(engine, memory, IOVA_SOURCE, IOVA_NOWHERE, size, target, "write outside a mapping");
  dma_must_fail(engine, memory, IOVA_NOWHERE, IOVA_TARGET, size, target, "read outside a mapping");
  dma_must_fail(engine, memory, IOVA_SOURCE, 1ull << 60, size, target, "write past the address width");
  dma_must_fail(engine, memory, IOVA_SOURCE, (uintptr_t)target, size, target,
                "write to a virtual address");
  dma_must_fail(engine, memory, IOVA_SOURCE, IOVA_READ_ONLY, size, memory->read_only,
                "write to a read-only mapping");
  dma_must_fail(engine, memory, IOVA_WRITE_ONLY, IOVA_TARGET, size, target,
                "read from a write-only mapping");
  dma_must_fail(engine, memory, IOVA_SOURCE + page, IOVA_TARGET, size, target,
                "read one page past a mapping");

  if (unmap(engine->iommu, ioas, IOVA_TARGET, page)) setup_failed("IOMMU_IOAS_UNMAP");
  dma_must_fail(engine, memory, IOVA_SOURCE, IOVA_TARGET, size, target, "write after unmap");
  if (map_at(engine->iommu, ioas, target, page, IOVA_TARGET, READ | WRITE))
    setup_failed("IOMMU_IOAS_MAP");
  dma_must_work(engine, memory, "after mapping again");
}

static void usage(FILE *stream) {
  fputs(
      "Usage: trespass [OPTIONS]\n"
      "\n"
      "Tries everything that /dev/iommu must refuse, with a DMA copy engine (PCI 8086:2021).\n"
      "\n"
      "  --bdf BDF   use the engine at this address (default: the first that is found)\n"
      "  --quiet     print only what was not refused, and the count\n"
      "  --help      print this\n"
      "\n"
      "Examples:\n"
      "  trespass\n"
      "  trespass --bdf 0000:00:04.0 --quiet\n"
      "\n"
      "Exit status: 0 all was refused, 1 something was not, 2 wrong usage, 3 no engine,\n"
      "4 what must work did not, so nothing could be tried.\n",
      stream);
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char *bdf = NULL;
  static const struct option options[] = {{"bdf", required_argument, NULL, 'b'},
                                          {"quiet", no_argument, NULL, 'q'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "hq", options, NULL)) != -1;) {
    switch (option) {
      case 'b': bdf = optarg; break;
      case 'q': quiet = true; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count) {
    fprintf(stderr, "trespass: unexpected argument '%s'\n", arguments[optind]);
    return EXIT_USAGE;
  }
  page = (uint64_t)sysconf(_SC_PAGESIZE);

  struct engine engine = {.event = -1};
  if (!engine_find(&engine, bdf)) {
    fprintf(stderr, "trespass: no copy engine (PCI 8086:2021)%s%s with a vfio-dev node in "
                    "/sys/bus/pci/devices; try: iommu run -- trespass\n",
            bdf ? " at " : "", bdf ? bdf : "");
    return EXIT_NO_DEVICE;
  }
  if (!quiet) printf("--  the device is %s, %s\n", engine.bdf, engine.node);
  learn_regions(&engine);
  open_both(&engine);
  struct memory memory = {.control = pages(2), .source = pages(1), .target = pages(1),
                          .read_only = pages(1), .write_only = pages(1)};

  before_binding(&engine);
  if (engine_bind(&engine)) setup_failed("VFIO_DEVICE_BIND_IOMMUFD");
  if (engine_enable(&engine)) setup_failed("the device's regions");
  if (engine_arm(&engine)) setup_failed("VFIO_DEVICE_SET_IRQS");

  section("Bound, not attached: the device is blocked");
  dma_must_fail(&engine, &memory, IOVA_SOURCE, IOVA_TARGET, (uint32_t)page, memory.target,
                "copy, and raise an interrupt");

  const uint32_t ioas = make_ioas(engine.iommu);
  if (map_at(engine.iommu, ioas, memory.control, 2 * page, IOVA_CONTROL, READ | WRITE) ||
      map_at(engine.iommu, ioas, memory.source, page, IOVA_SOURCE, READ) ||
      map_at(engine.iommu, ioas, memory.target, page, IOVA_TARGET, READ | WRITE) ||
      map_at(engine.iommu, ioas, memory.read_only, page, IOVA_READ_ONLY, READ) ||
      map_at(engine.iommu, ioas, memory.write_only, page, IOVA_WRITE_ONLY, WRITE))
    setup_failed("IOMMU_IOAS_MAP");
  dma_must_fail(&engine, &memory, IOVA_SOURCE, IOVA_TARGET, (uint32_t)page, memory.target,
                "copy through an address space that is not attached");
  if (engine_attach(&engine, ioas)) setup_failed("VFIO_DEVICE_ATTACH_IOMMUFD_PT");

  dma_attempts(&engine, &memory, ioas);
  bad_calls(&engine, ioas);
  as_someone_else(&engine, ioas);
  section("After all that, and detached");
  dma_must_work(&engine, &memory, "after all attempts");
  if (engine_detach(&engine)) setup_failed("VFIO_DEVICE_DETACH_IOMMUFD_PT");
  dma_must_fail(&engine, &memory, IOVA_SOURCE, IOVA_TARGET, (uint32_t)page, memory.target,
                "copy after detach");

  printf("%s%d refused, %d not refused\n", quiet ? "" : "\n", refused, not_refused);
  return not_refused ? EXIT_NOT_REFUSED : EXIT_OK;
}
