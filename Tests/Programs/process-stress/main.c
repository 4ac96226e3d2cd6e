// SPDX-License-Identifier: Apache-2.0
//
// Several processes and threads on one open of /dev/iommu: they map, unmap, copy, make, destroy,
// attach and do DMA with copy engines at once, and check all the while that no DMA sees or
// changes what is unmapped. The descriptor reaches them over sockets. Runs under `iommu run`, and
// on a machine whose copy engines vfio-pci drives.

#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "stress.h"

struct shared *shared;
int iommu = -1;

void broken(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int first = 0;
  if (atomic_compare_exchange_strong(&shared->failed, &first, 1))
    vsnprintf(shared->sentence, sizeof shared->sentence, format, arguments);
  va_end(arguments);
  atomic_store(&shared->stop, 1);
}

static void usage(FILE *stream) {
  fputs("Usage: process-stress [--seconds N] [--processes N] [--threads N] [--seed N]\n\n"
        "Stresses one /dev/iommu from several processes, with DMA of all copy engines.\n\n"
        "  --seconds N     how long to run (5)\n"
        "  --processes N   processes that map and unmap, 1 to 16 (4)\n"
        "  --threads N     threads of each, 1 to 8 (2)\n"
        "  --seed N        what to choose by (the time)\n"
        "  --help          print this\n\n"
        "Example: swift run iommu run -- .build/debug/process-stress --seconds 60\n"
        "Exit status: 0 all invariants held, 1 one was broken (the sentence and the seed are on\n"
        "standard error), 2 wrong usage, 3 nothing to run on.\n",
        stream);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most) {
  char *end = NULL;
  const uint64_t value = text ? strtoull(text, &end, 0) : 0;
  if (!text || !*text || *end || value < least || value > most) {
    usage(stderr);
    exit(2);
  }
  return value;
}

// Hands the descriptor to a process that has none.
static void send_descriptor(int socket, int descriptor) {
  char byte = 0;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.header = {.cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS,
                          .cmsg_len = CMSG_LEN(sizeof(int))}};
  memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
  struct iovec part = {&byte, 1};
  const struct msghdr message = {.msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = control.bytes,
                                 .msg_controllen = sizeof control.bytes};
  if (sendmsg(socket, &message, 0) != 1) broken("sendmsg: errno %d", errno);
}

static int receive_descriptor(int socket) {
  char byte;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  int descriptor = -1;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message))
    memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof descriptor);
  if (descriptor < 0) broken("no descriptor came over the socket");
  return descriptor;
}

// Every copy engine that there is; the one that is alone in its group comes first.
static int find_engines(struct engine *engines) {
  struct dirent **entries;
  const int listed = scandir("/sys/bus/pci/devices", &entries, NULL, alphasort);
  int found = 0;
  for (int i = 0; i < listed; i++) {
    struct engine engine = {.event = -1};
    if (entries[i]->d_name[0] != '.' && found < MOST_ENGINES &&
        engine_find(&engine, entries[i]->d_name)) {
      engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
      if (engine.device >= 0) engines[found++] = engine;
    }
    free(entries[i]);
  }
  if (listed >= 0) free(entries);
  return found;
}

// With everything closed and destroyed but the open itself, no id may name anything.
static void check_empty(void) {
  for (uint32_t id = 1; id < 4096; id++)
    if (!destroy(id) || errno != ENOENT) broken("A1: object %u is left", id);
}

static void print_rates(double seconds) {
  static const char *const names[OPERATIONS] = {
      "map",    "unmap",    "map by copy",    "space made and destroyed", "table made and destroyed",
      "attach", "replace",  "detach",         "attach refused",           "engine chain read",
      "engine chain written", "engine stopped by a fault", "process killed"};
  for (int i = 0; i < OPERATIONS; i++) {
    const uint64_t done = atomic_load(&shared->counts[i]);
    printf("%-26s %llu (%.0f/s)\n", names[i], (unsigned long long)done, (double)done / seconds);
  }
}

static pid_t start(int role, int threads, struct engine *engines, int engine_count, int seconds) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets)) return -1;
  const pid_t child = fork();
  if (child == 0) {
    close(iommu);
    close(sockets[0]);
    iommu = receive_descriptor(sockets[1]);
    if (role < 0) driver_process(engines, engine_count, seconds);
    mapper_process(role, threads);
  }
  close(sockets[1]);
  if (child > 0) send_descriptor(sockets[0], iommu);
  close(sockets[0]);
  return child;
}

int main(int argument_count, char **arguments) {
  int seconds = 5, processes = 4, threads = 2;
  uint64_t seed = milliseconds();
  for (int i = 1; i < argument_count; i++) {
    if (!strcmp(arguments[i], "--help")) {
      usage(stdout);
      return 0;
    }
    const char *value = i + 1 < argument_count ? arguments[i + 1] : NULL;
    if (!strcmp(arguments[i], "--seconds")) seconds = (int)number(value, 1, 1000000);
    else if (!strcmp(arguments[i], "--processes")) processes = (int)number(value, 1, MOST_MAPPERS);
    else if (!strcmp(arguments[i], "--threads")) threads = (int)number(value, 1, MOST_THREADS);
    else if (!strcmp(arguments[i], "--seed")) seed = number(value, 0, UINT64_MAX);
    else number(NULL, 0, 0);
    i++;
  }
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 3;
  shared->seed = seed;
  shared->mappers = processes;

  struct engine engines[MOST_ENGINES];
  const int engine_count = find_engines(engines);
  iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (iommu < 0 || engine_count == 0) {
    fputs("process-stress: no /dev/iommu, or no copy engine that vfio-pci drives\n", stderr);
    return 3;
  }
  printf("process-stress: %d processes of %d threads, %d engines, %d s, seed %llu\n", processes,
         threads, engine_count, seconds, (unsigned long long)seed);
  fflush(stdout);
  for (int i = 0; i < SPACES; i++) {
    struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
    if (ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc)) broken("L: IOAS_ALLOC: errno %d", errno);
    shared->spaces[i] = alloc.out_ioas_id;
  }
  for (int i = 0; i < engine_count; i++) {
    engines[i].iommu = iommu;
    if (engine_bind(&engines[i]) || engine_enable(&engines[i]))
      broken("engine %d cannot be set up: errno %d", i, errno);
  }
  for (int i = 0; i < SPACES; i++)
    shared->tables[i] = make_table(engines[0].id, shared->spaces[i]);
  const uint64_t started = milliseconds();
  int children = 0;
  for (int role = -1; role < processes; role++) {
    if (start(role, threads, engines, engine_count, seconds) < 0) broken("fork: errno %d", errno);
    else children++;
  }
  // The engines are the driver's: with its end they are unbound.
  for (int i = 0; i < engine_count; i++) close(engines[i].device);
  for (int i = 0; i < children; i++) {
    int status;
    wait(&status);
    if (!WIFEXITED(status)) broken("a process ended by signal %d", WTERMSIG(status));
  }
  const double elapsed = (double)(milliseconds() - started) / 1000;
  for (int i = 0; i < SPACES; i++) {
    uint64_t all = UINT64_MAX;
    if (unmap_range(shared->spaces[i], 0, &all) || destroy(shared->spaces[i]))
      broken("A1: space %u cannot be destroyed: errno %d", shared->spaces[i], errno);
  }
  check_empty();
  print_rates(elapsed);
  if (atomic_load(&shared->failed)) {
    fprintf(stderr, "process-stress: broken with seed %llu: %s\n", (unsigned long long)seed,
            shared->sentence);
    return 1;
  }
  puts("every invariant held; nothing is left");
  return 0;
}
