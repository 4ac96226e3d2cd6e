// SPDX-License-Identifier: Apache-2.0
//
// One copy engine, two users: makes two mediated devices through sysfs, opens each with a context
// of its own, copies in both where equal IOVAs are other memory, and shows that neither reaches
// the other's. Then removes them.

#define _GNU_SOURCE
#include <getopt.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "copy_engine.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };
enum { PAGE = 4096, UUID_LENGTH = 36 };

// Where each user's memory is to its slice: the same for both.
static const uint64_t CHAIN = 0x100000, SOURCE = 0x101000, DESTINATION = 0x102000;
// Only the second user has anything here.
static const uint64_t SECRET = 0x40000000;

static bool quiet;
static int step;

#define TELL(...) (quiet ? (void)0 : (printf("%2d  ", ++step), printf(__VA_ARGS__), (void)puts("")))

static void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "mdev-copy: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

static void wrong(const char *what) {
  fflush(stdout);
  fprintf(stderr, "mdev-copy: %s\n", what);
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: mdev-copy [OPTIONS]\n"
      "\n"
      "Makes two mediated devices of one copy engine, copies with both, removes them.\n"
      "\n"
      "  --parent BDF  the engine to share (default: the first in /sys/class/mdev_bus)\n"
      "  --type NAME   of the mediated devices, as mdev_supported_types has it, or its end:\n"
      "                pasid (default), fixed or software\n"
      "  --quiet       say nothing unless something fails\n"
      "  --help        print this\n"
      "\n"
      "Exit status: 0 all is as it should be, 1 something failed, 2 wrong usage, 3 no engine.\n",
      stream);
}

// The first entry of a directory that is named so at its end, in alphabetical order.
static bool find_entry(const char *directory, const char *end, char *name, size_t size) {
  struct dirent **entries;
  int count = scandir(directory, &entries, NULL, alphasort);
  bool found = false;
  for (int i = 0; i < count; i++) {
    const char *entry = entries[i]->d_name;
    const size_t length = strlen(entry), wanted = end ? strlen(end) : 0;
    if (!found && entry[0] != '.' && length >= wanted &&
        (!wanted || !strcmp(entry + length - wanted, end))) {
      snprintf(name, size, "%.127s", entry);
      found = true;
    }
    free(entries[i]);
  }
  if (count >= 0) free(entries);
  return found;
}

static int write_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  const ssize_t length = (ssize_t)strlen(text);
  const ssize_t written = write(fd, text, (size_t)length);
  const int error = errno;
  close(fd);
  errno = error;
  return written == length ? 0 : -1;
}

static void read_text(const char *path, char *text, size_t size) {
  FILE *stream = fopen(path, "re");
  if (!stream || !fgets(text, (int)size, stream)) fail(path);
  text[strcspn(text, "\n")] = 0;
  fclose(stream);
}

struct user {
  char uuid[UUID_LENGTH + 1];
  char path[64 + UUID_LENGTH];  // /sys/bus/mdev/devices/<uuid>
  struct engine engine;
  uint32_t ioas;
  uint8_t *memory;  // chain, source, destination
};

static void map(struct user *user, void *memory, uint64_t length, uint64_t iova) {
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = user->ioas,
      .user_va = (uintptr_t)memory,
      .length = length,
      .iova = iova};
  if (ioctl(user->engine.iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
}

static void make_device(struct user *user, const char *type) {
  read_text("/proc/sys/kernel/random/uuid", user->uuid, sizeof user->uuid);
  char path[512];
  snprintf(path, sizeof path, "%s/create", type);
  if (write_text(path, user->uuid)) fail(path);
  snprintf(user->path, sizeof user->path, "/sys/bus/mdev/devices/%s", user->uuid);

  char directory[256], name[128];
  snprintf(directory, sizeof directory, "%s/vfio-dev", user->path);
  if (!find_entry(directory, NULL, name, sizeof name)) fail(directory);
  snprintf(user->engine.node, sizeof user->engine.node, "/dev/vfio/devices/%.64s", name);
}

static void connect_user(struct user *user) {
  struct engine *engine = &user->engine;
  engine->event = -1;
  engine->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (engine->iommu < 0) fail("/dev/iommu");
  engine->device = open(engine->node, O_RDWR | O_CLOEXEC);
  if (engine->device < 0) fail(engine->node);
  if (engine_bind(engine)) fail("VFIO_DEVICE_BIND_IOMMUFD");
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
  user->ioas = alloc.out_ioas_id;
  if (engine_attach(engine, user->ioas)) fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
  if (engine_enable(engine)) fail("the device's regions");
  if (engine_arm(engine)) fail("VFIO_DEVICE_SET_IRQS");
  void *memory =
      mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  user->memory = memory;
  map(user, memory, 3 * PAGE, CHAIN);
}

// Starts a copy of a page within a user's own addresses.
static void start(struct user *user, uint64_t source, uint64_t destination) {
  struct descriptor *chain = (struct descriptor *)user->memory + 1;
  *(volatile uint64_t *)user->memory = 0;
  *chain = (struct descriptor){.size = PAGE,
                               .control = CONTROL_INTERRUPT | CONTROL_COMPLETION,
                               .source = source,
                               .destination = destination,
                               .next = CHAIN + sizeof *chain};
  if (!engine_reset(&user->engine)) errno = ETIMEDOUT, fail("resetting the channel");
  engine_start(&user->engine, CHAIN + sizeof *chain, CHAIN, 1);
}

// Waits until the channel is done or halted; returns CHANERR.
static uint32_t finish(struct user *user) {
  for (uint64_t end = milliseconds() + 10000; milliseconds() < end; usleep(100)) {
    const uint64_t status = engine_read(&user->engine, CHANSTS, 8) & 7;
    if (status == CHANSTS_DONE || status == CHANSTS_HALTED)
      return (uint32_t)engine_read(&user->engine, CHANERR, 4);
  }
  errno = ETIMEDOUT;
  fail("waiting for the channel");
  return 0;
}

static void remove_device(struct user *user) {
  char path[160];
  snprintf(path, sizeof path, "%s/remove", user->path);
  if (write_text(path, "1")) fail(path);
  if (!access(user->path, F_OK)) wrong("a removed device is still in /sys/bus/mdev/devices");
  if (!access(user->engine.node, F_OK)) wrong("a removed device still has its node");
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char *wanted_parent = NULL, *wanted_type = "pasid";
  static const struct option options[] = {{"parent", required_argument, NULL, 'p'},
                                          {"type", required_argument, NULL, 't'},
                                          {"quiet", no_argument, NULL, 'q'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "hq", options, NULL)) != -1;) {
    switch (option) {
      case 'p': wanted_parent = optarg; break;
      case 't': wanted_type = optarg; break;
      case 'q': quiet = true; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count) {
    fprintf(stderr, "mdev-copy: unexpected argument '%s'\n", arguments[optind]);
    return EXIT_USAGE;
  }

  char parent[128], type_name[128], types[256], type[400], text[256], path[512];
  if (!find_entry("/sys/class/mdev_bus", wanted_parent, parent, sizeof parent)) {
    fprintf(stderr,
            "mdev-copy: nothing in /sys/class/mdev_bus can be shared; try: iommu run --machine "
            "Examples/mdev-copy/machine.yaml -- mdev-copy\n");
    return EXIT_NO_DEVICE;
  }
  snprintf(types, sizeof types, "/sys/class/mdev_bus/%s/mdev_supported_types", parent);
  if (!find_entry(types, wanted_type, type_name, sizeof type_name)) {
    fprintf(stderr, "mdev-copy: %s has no type '%s'\n", parent, wanted_type);
    return EXIT_NO_DEVICE;
  }
  snprintf(type, sizeof type, "%s/%s", types, type_name);
  snprintf(path, sizeof path, "%s/name", type);
  read_text(path, text, sizeof text);
  TELL("%s offers %s: %s", parent, type_name, text);
  snprintf(path, sizeof path, "%s/device_api", type);
  read_text(path, text, sizeof text);
  if (strcmp(text, "vfio-pci")) wrong("it is no PCI function to its user");
  snprintf(path, sizeof path, "%s/available_instances", type);
  read_text(path, text, sizeof text);
  const long available = strtol(text, NULL, 10);
  TELL("%ld of them can be made", available);

  struct user users[2] = {0};
  for (int i = 0; i < 2; i++) {
    make_device(&users[i], type);
    TELL("made %s: %s", users[i].uuid, users[i].engine.node);
  }
  read_text(path, text, sizeof text);
  if (strtol(text, NULL, 10) != available - 2) wrong("available_instances did not follow");
  for (int i = 0; i < 2; i++) {
    connect_user(&users[i]);
    TELL("user %d bound it to a context of its own as %u, and attached it to space %u", i + 1,
         users[i].engine.id, users[i].ioas);
  }

  // Both at once, at the same addresses.
  for (int i = 0; i < 2; i++) {
    memset(users[i].memory + PAGE, 'A' + i, PAGE);
    start(&users[i], SOURCE, DESTINATION);
  }
  for (int i = 0; i < 2; i++) {
    const uint32_t error = finish(&users[i]);
    if (error) wrong(engine_error(error));
    if (!engine_wait(&users[i].engine, 10000)) wrong("no interrupt came");
    if (memcmp(users[i].memory + PAGE, users[i].memory + 2 * PAGE, PAGE) ||
        users[i].memory[2 * PAGE] != 'A' + i)
      wrong("a copy differs from its source");
  }
  TELL("both copied 0x%llx to 0x%llx, each in its own memory",
       (unsigned long long)SOURCE, (unsigned long long)DESTINATION);

  // The first user tries what only the second has.
  uint8_t *secret =
      mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (secret == MAP_FAILED) fail("mmap");
  memset(secret, 's', PAGE);
  map(&users[1], secret, PAGE, SECRET);
  start(&users[0], SECRET, DESTINATION);
  uint32_t error = finish(&users[0]);
  if (!error || users[0].memory[2 * PAGE] != 'A') wrong("user 1 read user 2's memory");
  TELL("user 1 read 0x%llx, which only user 2 has: %s", (unsigned long long)SECRET,
       engine_error(error));
  start(&users[0], SOURCE, SECRET);
  error = finish(&users[0]);
  if (!error || secret[0] != 's') wrong("user 1 wrote user 2's memory");
  TELL("user 1 wrote there: %s", engine_error(error));
  start(&users[1], SECRET, DESTINATION);
  if (finish(&users[1]) || users[1].memory[2 * PAGE] != 's') wrong("user 2 is disturbed");
  TELL("user 2 goes on undisturbed");

  // Users come first: Linux waits for them here, `iommu run` says EBUSY.
  for (int i = 0; i < 2; i++) {
    close(users[i].engine.device);
    close(users[i].engine.iommu);
    remove_device(&users[i]);
  }
  snprintf(path, sizeof path, "%s/available_instances", type);
  read_text(path, text, sizeof text);
  if (strtol(text, NULL, 10) != available) wrong("available_instances did not come back");
  TELL("both are closed and removed");
  return EXIT_OK;
}
