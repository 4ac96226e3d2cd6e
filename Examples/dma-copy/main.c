// SPDX-License-Identifier: Apache-2.0
//
// Copies memory by DMA, the shortest whole way through /dev/iommu: bind a copy engine, make an
// address space, attach, map, program the engine, wait for its interrupt, compare.

#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "copy_engine.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };
enum kind { ANONYMOUS, SHARED, FILE_BACKED, MEMFD };

static bool quiet, maps;
static int step;

#define TELL(...) (quiet ? (void)0 : (printf("%2d  ", ++step), printf(__VA_ARGS__), (void)puts("")))

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "dma-copy: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: dma-copy [OPTIONS]\n"
      "\n"
      "Copies memory with a DMA copy engine (PCI 8086:2021) through /dev/iommu, and compares.\n"
      "\n"
      "  --size N      bytes to copy: 65536, 64K, 16M… (default 1M)\n"
      "  --anonymous   into private anonymous memory (the default)\n"
      "  --shared      into shared anonymous memory\n"
      "  --file PATH   into a file (made or overwritten; Linux itself wants one on tmpfs)\n"
      "  --memfd       into a memory file that is mapped by descriptor (IOMMU_IOAS_MAP_FILE)\n"
      "  --container C the older way: through the device's group and a type1 container, which C\n"
      "                opens: /dev/vfio/vfio or /dev/iommu\n"
      "  --mmap        reach the engine's registers by loads and stores, not by pread and pwrite\n"
      "  --bdf BDF     use the engine at this address (default: the first that is found)\n"
      "  --repeat N    copy N times, with new data each time (default 1)\n"
      "  --quiet       say nothing unless something fails\n"
      "  --help        print this\n"
      "\n"
      "Examples:\n"
      "  dma-copy\n"
      "  dma-copy --size 64M --shared\n"
      "  dma-copy --bdf 0000:00:04.0 --repeat 100 --quiet\n"
      "\n"
      "Exit status: 0 the copy is right, 1 something failed, 2 wrong usage, 3 no engine.\n",
      stream);
}

static uint64_t parse_number(const char *text) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 0);
  const unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
  if (shift) end++;
  if (errno || end == text || *end || text[0] == '-' || !value || value >> (40 - shift)) {
    fprintf(stderr, "dma-copy: '%s' is no size or count\n", text);
    exit(EXIT_USAGE);
  }
  return value << shift;
}

// Memory that the engine shall reach: where we see it, and where the engine does.
struct buffer {
  uint8_t *bytes;
  uint64_t length;  // in bytes, whole pages
  uint64_t iova;
};

static void make_buffer(struct buffer *buffer, uint64_t size, enum kind kind, const char *path,
                        int *fd) {
  const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  buffer->length = (size + page - 1) / page * page;
  *fd = -1;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  if (kind == SHARED) flags = MAP_SHARED | MAP_ANONYMOUS;
  if (kind == FILE_BACKED || kind == MEMFD) {
    flags = MAP_SHARED;
    *fd = kind == MEMFD ? memfd_create("dma-copy", MFD_CLOEXEC)
                        : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*fd < 0 || ftruncate(*fd, (off_t)buffer->length)) fail(path ? path : "memfd");
  }
  void *bytes = mmap(NULL, buffer->length, PROT_READ | PROT_WRITE, flags, *fd, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  buffer->bytes = bytes;
}

// As a container maps: at an address that we choose.
static void map_type1(int container, struct buffer *buffer, bool writable) {
  static uint64_t next = 0x1000000;
  struct vfio_iommu_type1_dma_map map = {
      .argsz = sizeof map,
      .flags = VFIO_DMA_MAP_FLAG_READ | (writable ? VFIO_DMA_MAP_FLAG_WRITE : 0),
      .vaddr = (uintptr_t)buffer->bytes, .iova = next, .size = buffer->length};
  if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) fail("VFIO_IOMMU_MAP_DMA");
  buffer->iova = next;
  next += buffer->length;
}

static void map(int iommu, uint32_t ioas, struct buffer *buffer, uint32_t flags, int fd) {
  if (fd >= 0) {
    struct iommu_ioas_map_file map = {.size = sizeof map, .flags = flags, .ioas_id = ioas,
                                      .fd = fd, .length = buffer->length};
    if (ioctl(iommu, IOMMU_IOAS_MAP_FILE, &map)) fail("IOMMU_IOAS_MAP_FILE");
    buffer->iova = map.iova;
    return;
  }
  struct iommu_ioas_map map = {.size = sizeof map, .flags = flags, .ioas_id = ioas,
                               .user_va = (uintptr_t)buffer->bytes, .length = buffer->length};
  if (ioctl(iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
  buffer->iova = map.iova;
}

static void fill(uint8_t *bytes, uint64_t size, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (uint64_t i = 0; i < size; i++) {
    if (i % 8 == 0) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
    }
    bytes[i] = (uint8_t)(state >> i % 8 * 8);
  }
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  uint64_t size = 1 << 20, repeat = 1;
  enum kind kind = ANONYMOUS;
  const char *path = NULL, *bdf = NULL, *container = NULL;
  static const struct option options[] = {
      {"size", required_argument, NULL, 's'},   {"anonymous", no_argument, NULL, 'a'},
      {"shared", no_argument, NULL, 'S'},       {"file", required_argument, NULL, 'f'},
      {"memfd", no_argument, NULL, 'm'},        {"bdf", required_argument, NULL, 'b'},
      {"repeat", required_argument, NULL, 'r'}, {"quiet", no_argument, NULL, 'q'},
      {"help", no_argument, NULL, 'h'},         {"container", required_argument, NULL, 'c'},
      {"mmap", no_argument, NULL, 'M'},
      {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "hq", options, NULL)) != -1;) {
    switch (option) {
      case 's': size = parse_number(optarg); break;
      case 'a': kind = ANONYMOUS; break;
      case 'S': kind = SHARED; break;
      case 'f': kind = FILE_BACKED, path = optarg; break;
      case 'm': kind = MEMFD; break;
      case 'M': maps = true; break;
      case 'b': bdf = optarg; break;
      case 'c': container = optarg; break;
      case 'r': repeat = parse_number(optarg); break;
      case 'q': quiet = true; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count) {
    fprintf(stderr, "dma-copy: unexpected argument '%s'\n", arguments[optind]);
    return EXIT_USAGE;
  }

  struct engine engine = {.event = -1};
  if (!engine_find(&engine, bdf)) {
    fprintf(stderr,
            "dma-copy: no copy engine (PCI 8086:2021)%s%s with a vfio-dev node in "
            "/sys/bus/pci/devices; try: iommu run -- dma-copy\n",
            bdf ? " at " : "", bdf ? bdf : "");
    return EXIT_NO_DEVICE;
  }
  TELL("found a copy engine at %s: %s", engine.bdf, engine.node);

  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (container) {
    const char *failed = engine_open_by_group(&engine, container);
    if (failed) fail(failed);
    TELL("put its group into %s, and took the device from the group", container);
  } else {
    engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    if (engine.iommu < 0) fail("/dev/iommu");
    engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
    if (engine.device < 0) fail(engine.node);
    TELL("opened /dev/iommu and the device");

    if (engine_bind(&engine)) fail("VFIO_DEVICE_BIND_IOMMUFD");
    TELL("bound them: the device is number %u there, and its DMA is blocked", engine.id);

    if (ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
    if (engine_attach(&engine, alloc.out_ioas_id)) fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
    TELL("attached it to a new address space, number %u", alloc.out_ioas_id);
  }

  if (engine_enable(&engine)) fail("the device's regions");
  if (maps) {
    if (engine_map(&engine)) fail("mapping the registers");
    TELL("mapped its registers");
  }
  if (!engine_reset(&engine)) errno = ETIMEDOUT, fail("resetting the channel");
  const unsigned log2_limit = engine_read(&engine, XFERCAP, 1) & 0x1f;
  const uint64_t limit = log2_limit ? 1ull << log2_limit : 1ull << 31;
  const unsigned version = (unsigned)engine_read(&engine, VERSION, 1);
  const uint64_t descriptors = (size + limit - 1) / limit;
  if (descriptors > 0xffff) errno = EFBIG, fail("--size");

  struct buffer source, destination, control;
  int source_fd, destination_fd, control_fd;
  make_buffer(&source, size, kind == FILE_BACKED ? SHARED : kind, NULL, &source_fd);
  make_buffer(&destination, size, kind, path, &destination_fd);
  make_buffer(&control, (descriptors + 1) * sizeof(struct descriptor), ANONYMOUS, NULL,
              &control_fd);
  const uint32_t read_only = IOMMU_IOAS_MAP_READABLE;
  const uint32_t read_write = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
  if (container) {
    map_type1(engine.iommu, &source, false);
    map_type1(engine.iommu, &destination, true);
    map_type1(engine.iommu, &control, true);
  } else {
    map(engine.iommu, alloc.out_ioas_id, &source, read_only, kind == MEMFD ? source_fd : -1);
    map(engine.iommu, alloc.out_ioas_id, &destination, read_write,
        kind == MEMFD ? destination_fd : -1);
    map(engine.iommu, alloc.out_ioas_id, &control, read_write, -1);
  }
  TELL("mapped the source read-only at IOVA 0x%llx, the destination at 0x%llx,\n"
       "    the descriptors at 0x%llx",
       (unsigned long long)source.iova, (unsigned long long)destination.iova,
       (unsigned long long)control.iova);

  if (engine_arm(&engine)) fail("VFIO_DEVICE_SET_IRQS");
  TELL("armed MSI-X vector 0 with an eventfd");

  // The completion word comes first, then the chain.
  volatile uint64_t *completion = (volatile uint64_t *)control.bytes;
  struct descriptor *chain = (struct descriptor *)control.bytes + 1;
  const uint64_t chain_iova = control.iova + sizeof *chain;
  for (uint64_t i = 0; i < descriptors; i++) {
    const bool last = i + 1 == descriptors;
    chain[i] = (struct descriptor){
        .size = (uint32_t)(last ? size - i * limit : limit),
        .control = last ? CONTROL_INTERRUPT | CONTROL_COMPLETION : 0,
        .source = source.iova + i * limit,
        .destination = destination.iova + i * limit,
        .next = last ? chain_iova : chain_iova + (i + 1) * sizeof *chain};
  }
  // 10 seconds, and one more for each 16 MiB: what is stuck must not keep us for ever.
  const uint64_t seconds = 10 + (size >> 24);
  const int patience = seconds < 1000000 ? (int)seconds * 1000 : 1000000000;
  const uint64_t last_iova = chain_iova + (descriptors - 1) * sizeof *chain;

  for (uint64_t round = 1; round <= repeat; round++) {
    fill(source.bytes, size, round);
    *completion = 0;
    if (round > 1 && !engine_reset(&engine)) errno = ETIMEDOUT, fail("resetting the channel");
    const uint64_t start = milliseconds();
    engine_start(&engine, chain_iova, control.iova, (uint16_t)descriptors);
    if (round == 1)
      TELL("programmed the engine (version %u.%u): %llu descriptor%s, %llu bytes", version >> 4,
           version & 0xf, (unsigned long long)descriptors, descriptors == 1 ? "" : "s",
           (unsigned long long)size);
    const uint64_t interrupts = engine_wait(&engine, patience);
    const uint32_t error = (uint32_t)engine_read(&engine, CHANERR, 4);
    const unsigned status = (unsigned)engine_read(&engine, CHANSTS, 8) & 7;
    if (!interrupts && !error && status == CHANSTS_ACTIVE) {
      fflush(stdout);
      fprintf(stderr, "dma-copy: no interrupt came in %d s, and the engine is still at work "
              "(status 0, error 0): it is stuck, or very slow\n", patience / 1000);
      return EXIT_FAILED;
    }
    if (error || !interrupts) {
      fflush(stdout);
      fprintf(stderr, "dma-copy: the engine reports status %u, error 0x%x (%s)%s\n", status, error,
              engine_error(error), interrupts ? "" : "; no interrupt came");
      return EXIT_FAILED;
    }
    if (round == 1)
      TELL("the interrupt came after %llu ms", (unsigned long long)(milliseconds() - start));
    if ((*completion & ~0x3full) != last_iova || (*completion & 7) != CHANSTS_DONE) {
      fprintf(stderr, "dma-copy: the completion word is 0x%llx, not 0x%llx\n",
              (unsigned long long)*completion, (unsigned long long)last_iova | CHANSTS_DONE);
      return EXIT_FAILED;
    }
    if (memcmp(source.bytes, destination.bytes, size)) {
      fprintf(stderr, "dma-copy: round %llu: the copy differs from its source\n",
              (unsigned long long)round);
      return EXIT_FAILED;
    }
  }
  TELL("compared: all %llu bytes are right%s", (unsigned long long)size,
       repeat > 1 ? ", each time" : "");

  if (engine_unmap(&engine)) fail("unmapping the registers");
  if (container) {
    close(engine.device);
    if (ioctl(engine.group, VFIO_GROUP_UNSET_CONTAINER)) fail("VFIO_GROUP_UNSET_CONTAINER");
  } else if (engine_detach(&engine)) {
    fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
  }
  if (kind == FILE_BACKED && ftruncate(destination_fd, (off_t)size)) fail(path);
  TELL("%s; closing the files frees the rest",
       container ? "closed the device and took its group out of the container" : "detached");
  if (!container) close(engine.device);
  close(engine.iommu);
  return EXIT_OK;
}
