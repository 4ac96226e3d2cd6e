// SPDX-License-Identifier: Apache-2.0
//
// Writes to an NVMe namespace and reads back, polling: the shortest whole way from /dev/iommu to
// blocks. With --bench it reads at random, 32 commands at a time, and says how many a second.

#define _GNU_SOURCE
#include "nvme.h"

#include <getopt.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };
enum { DEPTH = 32, PIECE = 4096 };
enum { IDENTIFY = 6, FLUSH = 0, WRITE = 1, READ = 2 };

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "nvme-rw: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: nvme-rw [OPTIONS]\n"
      "\n"
      "Drives an NVMe controller (PCI class 010802) through /dev/iommu and VFIO, polling.\n"
      "It writes to the namespace: use one that holds nothing of value.\n"
      "\n"
      "  --namespace N  use namespace N (default 1)\n"
      "  --block B      write 64 KiB from block B on, read back and compare (default 0)\n"
      "  --read         only read them, and print the first bytes\n"
      "  --bench        read 4 KiB at random, 32 at a time, and print how many a second\n"
      "  --count N      of --bench: reads (default 400000)\n"
      "  --linux-offsets  take BAR 0 at file offset 0, as drivers do that do not ask where it is\n"
      "  --bdf BDF      use the controller at this address (default: the first that is found)\n"
      "  --help         print this\n"
      "\n"
      "Exit status: 0 the data is right, 1 something failed, 2 wrong usage, 3 no controller.\n",
      stream);
}

static uint64_t parse_number(const char *text) {
  char *end;
  errno = 0;
  const unsigned long long value = strtoull(text, &end, 0);
  if (errno || end == text || *end || text[0] == '-') {
    fprintf(stderr, "nvme-rw: '%s' is no number\n", text);
    exit(EXIT_USAGE);
  }
  return value;
}

// All that the controller reaches: the queues, a page for lists, 64 KiB or 32 pieces of data.
enum { LIST = NVME_QUEUE_BYTES, DATA = 0x10000, BYTES = DATA + DEPTH * PIECE };

static uint8_t *memory;
static uint64_t iova;

static void make_memory(struct nvme *nvme) {
  memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  if (!nvme_map(nvme, memory, BYTES, &iova)) fail("IOMMU_IOAS_MAP");
}

static void run(struct nvme *nvme, struct nvme_queue *queue, struct nvme_command command,
                const char *what) {
  const unsigned status = nvme_run(nvme, queue, &command);
  if (!status) return;
  fflush(stdout);
  fprintf(stderr, "nvme-rw: %s: status type %u, code 0x%02x\n", what, status >> 8, status & 0xff);
  exit(EXIT_FAILED);
}

static void trim(char *text, const uint8_t *field, unsigned length) {
  memcpy(text, field, length);
  text[length] = 0;
  while (length && text[length - 1] == ' ') text[--length] = 0;
}

static uint64_t moment(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(void) {
  static uint64_t state = 0x9e3779b97f4a7c15u;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static struct nvme_command transfer(uint8_t opcode, uint32_t namespace, uint64_t block,
                                    unsigned blocks, unsigned slot) {
  return (struct nvme_command){
      .opcode = opcode, .id = (uint16_t)slot, .namespace = namespace,
      .prp1 = iova + DATA + (uint64_t)slot * PIECE,
      .dwords = {(uint32_t)block, (uint32_t)(block >> 32), blocks - 1}};
}

// Reads at random; each completion makes room for the next command.
static void bench(struct nvme *nvme, uint32_t namespace, uint64_t pieces, unsigned blocks,
                  uint64_t count) {
  uint64_t begun = 0, done = 0;
  const uint64_t start = moment();
  for (; begun < DEPTH && begun < count; begun++) {
    const struct nvme_command command =
        transfer(READ, namespace, next_random() % pieces * blocks, blocks, (unsigned)begun);
    nvme_put(&nvme->io, &command);
  }
  nvme_submit(nvme, &nvme->io);
  while (done < count) {
    struct nvme_completion completion;
    unsigned taken = 0;
    while (taken < DEPTH / 4 && nvme_poll(&nvme->io, &completion)) {
      if (completion.status >> 1) errno = EIO, fail("a read");
      taken++;
      if (begun == count) continue;
      const struct nvme_command command =
          transfer(READ, namespace, next_random() % pieces * blocks, blocks, completion.id);
      nvme_put(&nvme->io, &command);
      begun++;
    }
    if (!taken) continue;
    done += taken;
    nvme_release(nvme, &nvme->io);
    nvme_submit(nvme, &nvme->io);
  }
  const double seconds = (double)(moment() - start) / 1e9;
  printf("%.0f reads of 4 KiB a second, %d at a time\n", (double)count / seconds, DEPTH);
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char *bdf = NULL;
  uint64_t namespace = 1, block = 0, reads = 400000;
  bool benches = false, only_reads = false;
  struct nvme nvme = {0};
  static const struct option options[] = {
      {"namespace", required_argument, NULL, 'n'}, {"block", required_argument, NULL, 'B'},
      {"read", no_argument, NULL, 'r'},            {"bench", no_argument, NULL, 'p'},
      {"count", required_argument, NULL, 'c'},     {"bdf", required_argument, NULL, 'b'},
      {"help", no_argument, NULL, 'h'},
      {"linux-offsets", no_argument, NULL, 'o'},   {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "h", options, NULL)) != -1;) {
    switch (option) {
      case 'n': namespace = parse_number(optarg); break;
      case 'B': block = parse_number(optarg); break;
      case 'r': only_reads = true; break;
      case 'p': benches = true; break;
      case 'c': reads = parse_number(optarg); break;
      case 'b': bdf = optarg; break;
      case 'o': nvme.ignores_offsets = true; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count) {
    fprintf(stderr, "nvme-rw: unexpected argument '%s'\n", arguments[optind]);
    return EXIT_USAGE;
  }

  if (!nvme_find(&nvme, bdf)) {
    fprintf(stderr,
            "nvme-rw: no NVMe controller (PCI class 010802)%s%s with a vfio-dev node in "
            "/sys/bus/pci/devices; try: iommu run --machine Examples/nvme-rw/machine.yaml -- "
            "nvme-rw\n",
            bdf ? " at " : "", bdf ? bdf : "");
    return EXIT_NO_DEVICE;
  }
  const char *failed = nvme_open(&nvme);
  if (failed) fail(failed);
  make_memory(&nvme);
  failed = nvme_start(&nvme, memory, iova);
  if (failed) fail(failed);

  run(&nvme, &nvme.admin,
      (struct nvme_command){.opcode = IDENTIFY, .prp1 = iova + DATA, .dwords = {1}}, "identify");
  char model[41], serial[21];
  trim(serial, memory + DATA + 4, 20);
  trim(model, memory + DATA + 24, 40);
  run(&nvme, &nvme.admin,
      (struct nvme_command){.opcode = IDENTIFY, .namespace = (uint32_t)namespace,
                            .prp1 = iova + DATA, .dwords = {0}}, "identify the namespace");
  uint64_t blocks;
  memcpy(&blocks, memory + DATA, 8);
  const unsigned format = memory[DATA + 26] & 0xf;
  const unsigned shift = memory[DATA + 128 + 4 * format + 2];
  printf("%s: %s, serial number %s: namespace %u has %llu blocks of %u bytes; registers are %s\n",
         nvme.bdf, model, serial, (unsigned)namespace, (unsigned long long)blocks, 1u << shift,
         nvme.map ? "mapped" : "read and written");
  const uint64_t whole = DEPTH * PIECE / 2;  // 64 KiB
  if (shift < 9 || shift > 12 || blocks << shift < whole || block > blocks - (whole >> shift)) {
    fprintf(stderr, "nvme-rw: the namespace has no 64 KiB at block %llu\n",
            (unsigned long long)block);
    return EXIT_FAILED;
  }

  run(&nvme, &nvme.admin, nvme_make_completions(iova), "a completion queue");
  run(&nvme, &nvme.admin, nvme_make_submissions(iova), "a submission queue");
  const unsigned per_piece = PIECE >> shift;
  if (benches) {
    bench(&nvme, (uint32_t)namespace, blocks / per_piece, per_piece, reads);
  } else {
    // 16 pages: a list of all but the first.
    uint64_t *list = (uint64_t *)(memory + LIST);
    for (unsigned page = 1; page < whole / PIECE; page++) list[page - 1] = iova + DATA + page * PIECE;
    struct nvme_command command =
        transfer(WRITE, (uint32_t)namespace, block, (unsigned)(whole >> shift), 0);
    command.prp2 = iova + LIST;
    uint8_t *expected = malloc(whole);
    if (!expected) fail("malloc");
    if (!only_reads) {
      for (uint64_t i = 0; i < whole; i++) expected[i] = (uint8_t)(next_random() >> 32);
      memcpy(memory + DATA, expected, whole);
      run(&nvme, &nvme.io, command, "a write");
      run(&nvme, &nvme.io,
          (struct nvme_command){.opcode = FLUSH, .namespace = (uint32_t)namespace}, "a flush");
      memset(memory + DATA, 0, whole);
    }
    command.opcode = READ;
    run(&nvme, &nvme.io, command, "a read");
    if (!only_reads && memcmp(memory + DATA, expected, whole)) {
      fprintf(stderr, "nvme-rw: what was read is not what was written\n");
      return EXIT_FAILED;
    }
    free(expected);
    if (only_reads) {
      for (unsigned i = 0; i < 16; i++) printf("%02x%s", memory[DATA + i], i < 15 ? " " : "\n");
    } else {
      printf("64 KiB written at block %llu, read back, the same\n", (unsigned long long)block);
    }
  }
  nvme_write32(&nvme, NVME_CC, 6u << 16 | 4u << 20 | 1u << 14 | 1);
  if (!nvme_wait(&nvme, CSTS_SHUTDOWN, CSTS_SHUTDOWN_DONE)) errno = ETIMEDOUT, fail("shutdown");
  return EXIT_OK;
}
