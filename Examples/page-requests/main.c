// SPDX-License-Identifier: Apache-2.0
//
// Copies memory that is not mapped for the device yet: the engine asks for each page, and gets it
// when it asks. A page table with a fault queue, poll, read, map, answer; and what happens where
// the answer is no, or never comes.

#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>

#include "copy_engine.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };
enum ending { SERVE, REFUSE, DETACH, CLOSE, RESET, LEAVE };

// Where the engine sees what we have. Nothing of it is mapped when it starts.
#define SOURCE 0x10000000ull
#define DESTINATION 0x20000000ull
#define CONTROL 0x30000000ull

static bool quiet;
#define TELL(...) (quiet ? (void)0 : (printf(__VA_ARGS__), (void)puts("")))

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "page-requests: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: page-requests [OPTIONS]\n"
      "\n"
      "Copies memory with a DMA copy engine (PCI 8086:2021) that asks for each page (ATS and PRI).\n"
      "\n"
      "  --pages N     pages of 4 KiB to copy, 1 to 256 (default 8)\n"
      "  --ending E    what becomes of the third group of requests: serve (the default: all are), refuse,\n"
      "                detach, close (the fault queue), reset (the engine), or leave (exit)\n"
      "  --quiet       say nothing unless something fails\n"
      "  --help        print this\n"
      "\n"
      "Exit status: 0 as it should be, 1 something failed, 2 wrong usage, 3 no engine.\n",
      stream);
}

static struct {
  int iommu;
  uint32_t ioas;
  int fault;  // descriptor of the fault queue
  uint8_t *memory[3];  // source, destination, control
  uint64_t length[3];
  unsigned requests, groups;
} space;

static void *allocate(uint64_t length) {
  void *bytes = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  return bytes;
}

// Maps the page that a request names, if it is one of ours.
static bool serve(const struct iommu_hwpt_pgfault *request) {
  static const uint64_t start[] = {SOURCE, DESTINATION, CONTROL};
  for (int i = 0; i < 3; i++) {
    if (request->addr < start[i] || request->addr - start[i] >= space.length[i]) continue;
    const uint64_t offset = (request->addr - start[i]) & ~0xfffull;
    struct iommu_ioas_map map = {
        .size = sizeof map, .ioas_id = space.ioas, .length = 4096, .iova = start[i] + offset,
        .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
                 (i ? IOMMU_IOAS_MAP_WRITEABLE : 0),
        .user_va = (uintptr_t)(space.memory[i] + offset)};
    if (ioctl(space.iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
    TELL("  page request: %s at 0x%llx, group %u%s: mapped",
         request->perm & IOMMU_PGFAULT_PERM_WRITE ? "write" : "read",
         (unsigned long long)request->addr, request->grpid, i == 2 ? ", the descriptors" : "");
    return true;
  }
  fprintf(stderr, "page-requests: the engine asks for 0x%llx\n",
          (unsigned long long)request->addr);
  return false;
}

// Waits for a group and answers it. Returns 1 for a group, 0 where none came, 2 where it was left.
static int handle(int timeout_ms, enum ending ending) {
  struct pollfd queue = {.fd = space.fault, .events = POLLIN};
  if (poll(&queue, 1, timeout_ms) != 1) return 0;
  struct iommu_hwpt_pgfault requests[32];
  const ssize_t bytes = read(space.fault, requests, sizeof requests);
  if (bytes < 0) fail("reading the fault queue");
  const size_t count = (size_t)bytes / sizeof requests[0];
  for (size_t i = 0; i < count; i++) {
    space.requests++;
    const bool last = requests[i].flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE;
    struct iommu_hwpt_page_response response = {.cookie = requests[i].cookie};
    if (ending != SERVE && space.groups == 2) {
      if (!last) continue;
      if (ending != REFUSE) return 2;
      TELL("  page request at 0x%llx: refused", (unsigned long long)requests[i].addr);
      response.code = IOMMUFD_PAGE_RESP_INVALID;
    } else if (!serve(&requests[i])) {
      response.code = IOMMUFD_PAGE_RESP_INVALID;
    }
    // A group has one answer, by its last request.
    if (!last) continue;
    space.groups++;
    if (write(space.fault, &response, sizeof response) != sizeof response)
      fail("answering a page request");
  }
  return 1;
}

static uint64_t status(struct engine *engine) { return engine_read(engine, CHANSTS, 8) & 7; }

// The copy must end in an error, though nobody answers.
static int expect_error(struct engine *engine, const char *what) {
  for (uint64_t end = milliseconds() + 5000; status(engine) == CHANSTS_ACTIVE;) {
    if (milliseconds() > end) {
      fprintf(stderr, "page-requests: the engine still waits after %s\n", what);
      return EXIT_FAILED;
    }
    usleep(200);
  }
  const uint32_t error = (uint32_t)engine_read(engine, CHANERR, 4);
  TELL("the engine ended: status %llu, error 0x%x (%s)", (unsigned long long)status(engine), error,
       engine_error(error));
  return EXIT_OK;
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  uint64_t pages = 8;
  enum ending ending = SERVE;
  static const char *const endings[] = {"serve", "refuse", "detach", "close", "reset", "leave"};
  static const struct option options[] = {{"pages", required_argument, NULL, 'p'},
                                          {"ending", required_argument, NULL, 'e'},
                                          {"quiet", no_argument, NULL, 'q'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "hq", options, NULL)) != -1;) {
    switch (option) {
      case 'p': pages = strtoull(optarg, NULL, 0); break;
      case 'e':
        for (ending = SERVE; ending <= LEAVE && strcmp(optarg, endings[ending]);) ending++;
        break;
      case 'q': quiet = true; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count || !pages || pages > 256 || ending > LEAVE) {
    usage(stderr);
    return EXIT_USAGE;
  }

  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) {
    fprintf(stderr, "page-requests: no copy engine (PCI 8086:2021) with a vfio-dev node; try: iommu "
                    "run --machine Examples/page-requests/machine.yaml -- page-requests\n");
    return EXIT_NO_DEVICE;
  }
  engine.iommu = space.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (engine.iommu < 0) fail("/dev/iommu");
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  if (engine.device < 0) fail(engine.node);
  if (engine_bind(&engine)) fail("VFIO_DEVICE_BIND_IOMMUFD");

  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
  space.ioas = alloc.out_ioas_id;
  struct iommu_fault_alloc queue = {.size = sizeof queue};
  if (ioctl(engine.iommu, IOMMU_FAULT_QUEUE_ALLOC, &queue)) fail("IOMMU_FAULT_QUEUE_ALLOC");
  space.fault = (int)queue.out_fault_fd;
  struct iommu_hwpt_alloc table = {.size = sizeof table,
                                   .flags = IOMMU_HWPT_FAULT_ID_VALID,
                                   .dev_id = engine.id,
                                   .pt_id = space.ioas,
                                   .fault_id = queue.out_fault_id};
  if (ioctl(engine.iommu, IOMMU_HWPT_ALLOC, &table)) fail("IOMMU_HWPT_ALLOC");
  if (engine_attach(&engine, table.out_hwpt_id)) {
    if (errno == ENODEV) {
      fprintf(stderr, "page-requests: %s makes no page requests, or its IOMMU takes none; try: iommu run "
              "--machine Examples/page-requests/machine.yaml -- page-requests\n",
              engine.bdf);
      return EXIT_NO_DEVICE;
    }
    fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
  }
  TELL("attached %s to a page table whose page requests come here; nothing is mapped", engine.bdf);
  if (engine_enable(&engine)) fail("the device's regions");
  if (!engine_reset(&engine)) errno = ETIMEDOUT, fail("resetting the channel");

  space.length[0] = space.length[1] = pages * 4096;
  space.length[2] = 4096;
  for (int i = 0; i < 3; i++) space.memory[i] = allocate(space.length[i]);
  for (uint64_t i = 0; i < pages * 4096; i++) space.memory[0][i] = (uint8_t)(i * 13 + i / 4096);
  volatile uint64_t *completion = (volatile uint64_t *)space.memory[2];
  *((struct descriptor *)space.memory[2] + 1) =
      (struct descriptor){.size = (uint32_t)(pages * 4096), .control = CONTROL_COMPLETION,
                          .source = SOURCE, .destination = DESTINATION, .next = CONTROL + 64};
  engine_start(&engine, CONTROL + 64, CONTROL, 1);
  TELL("started a copy of %llu pages", (unsigned long long)pages);

  int handled = 1;
  for (uint64_t end = milliseconds() + 20000; handled == 1 && !*completion;) {
    handled = handle(10, ending);
    if (handled == 0 && status(&engine) != CHANSTS_HALTED && milliseconds() < end) handled = 1;
  }
  TELL("%u requests in %u groups", space.requests, space.groups);
  switch (handled == 2 || ending == REFUSE ? ending : SERVE) {
    case REFUSE: return expect_error(&engine, "a refusal");
    case DETACH:
      if (engine_detach(&engine)) fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
      return expect_error(&engine, "a detach");
    case CLOSE:
      if (close(space.fault)) fail("close");
      return expect_error(&engine, "its user's end");
    case RESET:
      if (!engine_reset(&engine)) errno = ETIMEDOUT, fail("resetting the channel");
      TELL("the engine was reset while it waited");
      return EXIT_OK;
    case LEAVE: TELL("leaving with a request that has no answer"); return EXIT_OK;
    default: break;
  }
  if (!*completion) {
    fprintf(stderr, "page-requests: the copy did not end: status %llu, error 0x%llx\n",
            (unsigned long long)status(&engine),
            (unsigned long long)engine_read(&engine, CHANERR, 4));
    return EXIT_FAILED;
  }
  if (memcmp(space.memory[0], space.memory[1], pages * 4096)) {
    fprintf(stderr, "page-requests: the copy is wrong\n");
    return EXIT_FAILED;
  }
  TELL("copied, and every page was mapped when the engine asked for it");
  return EXIT_OK;
}
