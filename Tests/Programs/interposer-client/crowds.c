// SPDX-License-Identifier: Apache-2.0
//
// Programs that others could be harmed by: hundreds of threads whose calls wait, directories that are
// renamed all the time; and opens that a kernel refuses before it looks at the path.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLERS = 400 };

struct crowd {
  atomic_int calling, done, isReleased;
};
static struct crowd *crowd;
static char *area;
static int node;

static void *ask(void *argument) {
  atomic_fetch_add(&crowd->calling, 1);
  // The request is read from memory that is not there yet.
  struct request *request = (struct request *)(area + (uintptr_t)argument * 4096);
  CHECK(call(node, 1, request) == 0);
  atomic_fetch_add(&crowd->done, 1);
  return NULL;
}

// A process whose calls all wait until it is told that they may go on.
static int wait_in_calls(void) {
  int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  if (faults < 0 || ioctl(faults, UFFDIO_API, &api)) return 3;
  area = mmap(0, CALLERS * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_register range = {
      .range = {(uintptr_t)area, CALLERS * 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  CHECK(ioctl(faults, UFFDIO_REGISTER, &range) == 0);
  pthread_attr_t attributes;
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstacksize(&attributes, 1 << 18) == 0);
  pthread_t threads[CALLERS];
  for (uintptr_t i = 0; i < CALLERS; i++)
    CHECK(pthread_create(&threads[i], &attributes, ask, (void *)i) == 0);
  while (!atomic_load(&crowd->isReleased)) usleep(1000);
  CHECK(close(faults) == 0);
  for (int i = 0; i < CALLERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(atomic_load(&crowd->done) == CALLERS);
  return 0;
}

// More calls wait than the supervisor has for one process: others are served, and in the end all of
// them are.
static int crowds(char **arguments) {
  (void)arguments;
  alarm(200);
  crowd = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  node = open("/dev/iommu", O_RDWR);
  CHECK(node >= 0);
  for (int isKilled = 0; isKilled < 2; isKilled++) {
    memset(crowd, 0, sizeof *crowd);
    pid_t process = fork();
    if (process == 0) _exit(wait_in_calls());
    int status;
    while (atomic_load(&crowd->calling) < CALLERS) {
      if (waitpid(process, &status, WNOHANG) == process) {
        // No userfaultfd here.
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
        return 0;
      }
      usleep(1000);
    }
    for (int i = 0; i < 200; i++) {
      struct request request = {.a = 7};
      CHECK(call(node, 1, &request) == 7);
      int another = open("/dev/iommu", O_RDWR);
      CHECK(another >= 0 && close(another) == 0);
      int plain = open("/etc/passwd", O_RDONLY);
      CHECK(plain >= 0 && close(plain) == 0);
    }
    CHECK(atomic_load(&crowd->done) == 0);
    if (isKilled) {
      kill(process, SIGKILL);
    } else {
      atomic_store(&crowd->isReleased, 1);
    }
    CHECK(waitpid(process, &status, 0) == process);
    CHECK(isKilled ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  struct request request = {.a = 8};
  CHECK(call(node, 1, &request) == 8 && open_files(node) == 1);
  return 0;
}

static void rename_for_ever(int number) {
  char names[2][64];
  for (int i = 0; i < 2; i++)
    snprintf(names[i], 64, "/tmp/iommu-renamed-%d-%d-%d", getppid(), number, i);
  CHECK(mkdir(names[0], 0755) == 0);
  pid_t parent = getppid();
  while (getppid() == parent)
    for (int i = 0; i < 2000; i++) rename(names[i & 1], names[~i & 1]);
  for (int i = 0; i < 2; i++) rmdir(names[i]);
  _exit(0);
}

// The kernel does not look `..` up in a confined way while anything is renamed.
static int renames(char **arguments) {
  (void)arguments;
  // Long enough for a rename to come between.
  const char *attribute =
      "/sys/devices/test/../test/../test/../test/../test/../test/../test/../test/../test/../test/"
      "../../devices/../devices/test/value";
  // The renamers end with this process, which ends with what it found.
  pid_t process = fork();
  if (process == 0) {
    for (int i = 0; i < 3; i++)
      if (fork() == 0) rename_for_ever(i);
    usleep(10000);
    for (int i = 0; i < 5000; i++) {
      int fd = open(attribute, O_RDWR);
      CHECK(fd >= 0);
      char text[16];
      CHECK(read(fd, text, sizeof text) > 0);
      CHECK(close(fd) == 0);
      CHECK(access(attribute, W_OK) == 0);
      fd = open("/dev/../sys/../dev/iommu", O_RDWR);
      struct request request = {.a = 6};
      CHECK(fd >= 0 && call(fd, 1, &request) == 6 && close(fd) == 0);
    }
    _exit(0);
  }
  int status;
  CHECK(waitpid(process, &status, 0) == process);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

struct long_how {
  struct open_how how;
  char tail[8192];
};

static int open_how(const char *path, const struct open_how *how, size_t size, char tail) {
  static struct long_how all;
  memset(&all, 0, sizeof all);
  all.how = *how;
  if (size > sizeof *how) ((char *)&all)[size - 1] = tail;
  int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &all, size);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

static int wrong_opens(char **arguments) {
  (void)arguments;
  const char *paths[] = {"/dev/iommu", "/sys/devices/test/value", "/dev/null"};
  const struct {
    struct open_how how;
    size_t size;
    char tail;
    int expected;
  } cases[] = {
      {{O_RDWR, 0, 0}, 24, 0, 0},
      {{O_RDWR, 0, 0}, 32, 0, 0},
      {{O_RDWR, 0, 0}, 4096, 0, 0},
      {{O_RDWR, 0, 0}, 4096, 1, E2BIG},
      {{O_RDWR, 0, 0}, 32, 1, E2BIG},
      {{O_RDWR, 0, 0}, 8192, 0, E2BIG},
      {{O_RDWR, 0, 0}, 16, 0, EINVAL},
      {{O_RDWR | 1ULL << 40, 0, 0}, 24, 0, EINVAL},
      {{O_RDWR | 4, 0, 0}, 24, 0, EINVAL},
      {{O_RDWR, 0600, 0}, 24, 0, EINVAL},
      {{O_RDWR, 0, 0x100}, 24, 0, EINVAL},
      {{O_RDWR, 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT}, 24, 0, EINVAL},
  };
  for (size_t p = 0; p < sizeof paths / sizeof *paths; p++)
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
      int result = open_how(paths[p], &cases[i].how, cases[i].size, cases[i].tail);
      if (result != cases[i].expected) {
        fprintf(stderr, "%s, case %zu: %d, not %d\n", paths[p], i, result, cases[i].expected);
        return 1;
      }
    }
  int path = open(paths[1], O_PATH);
  CHECK(path >= 0);
  CHECK(syscall(SYS_faccessat2, AT_FDCWD, paths[1], W_OK, 0x8000) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_faccessat2, AT_FDCWD, paths[1], W_OK, AT_EACCESS) == 0);
  CHECK(syscall(SYS_faccessat2, path, "", W_OK, AT_EMPTY_PATH) == 0);
  CHECK(syscall(SYS_faccessat2, path, "", W_OK, 0) == -1 && errno == ENOENT);
  path = open("/sys/devices/test/vendor", O_PATH);
  CHECK(path >= 0);
  CHECK(syscall(SYS_faccessat2, path, "", W_OK, AT_EMPTY_PATH) == -1);
  return 0;
}

const struct test crowd_tests[] = {
    {"crowds", crowds}, {"renames", renames}, {"wrong-opens", wrong_opens},
    {0, 0},
};
