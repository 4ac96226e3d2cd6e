// SPDX-License-Identifier: Apache-2.0
//
// What our files look like: paths that lead to them, fstat, and the calls on them.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define REGION (1ULL << 45)

static int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  return fd;
}

static int hello(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct request request = {.a = 41};
  CHECK(call(fd, 1, &request) == 41);
  CHECK(request.b == 42);
  CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
  CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
  int plain = open("/dev/iommu", O_RDONLY);
  CHECK(plain >= 0 && fcntl(plain, F_GETFD) == 0);
  CHECK((fcntl(plain, F_GETFL) & O_ACCMODE) == O_RDONLY);
  // The supervisor's own threads know their numbers, as Swift's locks need them to.
  CHECK(call(fd, 3, &request) == 0 && request.a == 2 && request.c == 0);
  return 0;
}

static int opens(int fd) {
  CHECK(fd >= 0);
  struct request request = {.a = 1};
  CHECK(call(fd, 1, &request) == 1);
  CHECK(close(fd) == 0);
  return 1;
}

static int paths(char **arguments) {
  (void)arguments;
  char directory[] = "/tmp/iommu-paths-XXXXXX", path[128];
  CHECK(mkdtemp(directory));
  opens(open("/dev/char/10:124", O_RDWR));
  opens(open("//dev/./vfio/../iommu", O_RDWR));
  int dev = open("/dev", O_RDONLY | O_DIRECTORY);
  CHECK(dev >= 0);
  opens(openat(dev, "iommu", O_RDWR));
  opens(openat(dev, "./vfio/devices/vfio0", O_RDWR));
  CHECK(chdir("/dev/vfio") == 0);
  opens(open("../iommu", O_RDWR));
  opens(open("devices/vfio0", O_RDWR));
  CHECK(chdir(directory) == 0);
  CHECK(symlink("/dev/iommu", "iommu") == 0);
  opens(open("iommu", O_RDWR));
  snprintf(path, sizeof path, "%s/iommu", directory);
  opens(open(path, O_RDWR));
  CHECK(open(path, O_RDWR | O_NOFOLLOW) == -1 && errno == ELOOP);
  CHECK(symlink("/dev/vfio", "nodes") == 0);
  opens(open("nodes/devices/vfio0", O_RDWR));
  CHECK(unlink("iommu") == 0 && unlink("nodes") == 0);
  // Links with names of their own, and the program's own links in /proc.
  CHECK(symlink("/dev/iommu", "mine") == 0 && symlink("mine", "yours") == 0);
  opens(open("yours", O_RDWR));
  CHECK(open("yours", O_RDWR | O_NOFOLLOW) == -1 && errno == ELOOP);
  snprintf(path, sizeof path, "%s/mine", directory);
  opens(open(path, O_RDWR));
  int here = open(directory, O_RDONLY | O_DIRECTORY);
  CHECK(here >= 0);
  opens(openat(here, "mine", O_RDWR));
  opens(open("/proc/self/root/dev/iommu", O_RDWR));
  opens(open("/proc/thread-self/root/dev/iommu", O_RDWR));
  opens(open("/proc/self/cwd/mine", O_RDWR));
  opens(open("/proc/self/cwd/../../dev/iommu", O_RDWR));
  snprintf(path, sizeof path, "/proc/%d/root/dev/iommu", getpid());
  opens(open(path, O_RDWR));
  snprintf(path, sizeof path, "/proc/self/fd/%d/mine", here);
  opens(open(path, O_RDWR));
  int node = open("/dev/iommu", O_PATH);
  snprintf(path, sizeof path, "/proc/self/fd/%d", node);
  CHECK(node >= 0);
  opens(open(path, O_RDWR));
  snprintf(path, sizeof path, "/dev/fd/%d", node);
  opens(open(path, O_RDWR));
  CHECK(close(node) == 0 && close(here) == 0);
  CHECK(unlink("mine") == 0 && unlink("yours") == 0);
  // A file of the same name is not ours.
  int other = open("iommu", O_CREAT | O_RDWR, 0600);
  CHECK(other >= 0 && write(other, "x", 1) == 1);
  CHECK(ioctl(other, COMMAND(1), 0) == -1 && errno == ENOTTY);
  CHECK(unlink("iommu") == 0 && rmdir(directory) == 0);
  struct {
    uint64_t flags, mode, resolve;
  } how = {O_RDWR, 0, 0};
  opens((int)syscall(SYS_openat2, AT_FDCWD, "/dev/iommu", &how, sizeof how));
  how.resolve = 0x08;  // RESOLVE_BENEATH
  opens((int)syscall(SYS_openat2, dev, "iommu", &how, sizeof how));
  CHECK(syscall(SYS_openat2, dev, "/dev/iommu", &how, sizeof how) == -1 && errno == EXDEV);
#ifdef SYS_open
  opens((int)syscall(SYS_open, "/dev/iommu", O_RDWR, 0));
  opens((int)syscall(SYS_creat, "/dev/iommu", 0600) );
#endif
  return 0;
}

static int path_errors(char **arguments) {
  (void)arguments;
  CHECK(open("/dev/iommu/", O_RDWR) == -1 && errno == ENOTDIR);
  CHECK(open("/dev/iommu", O_RDWR | O_DIRECTORY) == -1 && errno == ENOTDIR);
  CHECK(open("/dev/iommu", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
  CHECK(open("/dev/vfio/devices/vfio77", O_RDWR) == -1 && errno == ENOENT);
  CHECK(open((char *)8, O_RDWR) == -1 && errno == EFAULT);
  CHECK(openat(-5, "iommu", O_RDWR) == -1 && errno == EBADF);
  int fd = open("/dev/iommu", O_PATH);
  CHECK(fd >= 0);
  CHECK(ioctl(fd, COMMAND(1), 0) == -1 && errno == EBADF);
  return 0;
}

static int status(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct stat status;
  CHECK(fstat(fd, &status) == 0);
  CHECK(S_ISCHR(status.st_mode) && status.st_rdev == makedev(10, 124));
  CHECK(fstatat(fd, "", &status, AT_EMPTY_PATH) == 0 && S_ISCHR(status.st_mode));
  struct statx extended;
  CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &extended) == 0);
  CHECK(S_ISCHR(extended.stx_mode) && extended.stx_rdev_major == 10);
  CHECK(extended.stx_rdev_minor == 124);
  CHECK(stat("/dev/iommu", &status) == 0 && S_ISCHR(status.st_mode));
  CHECK(syscall(SYS_fstat, fd, 8) == -1 && errno == EFAULT);
  return 0;
}

static int plain_calls(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  char byte;
  CHECK(lseek(fd, 0, SEEK_END) == -1 && errno == ESPIPE);
  CHECK(ftruncate(fd, 0) == -1 && errno == EINVAL);
  CHECK(fallocate(fd, 0, 0, 4096) == -1 && errno == ENODEV);
  CHECK(read(fd, &byte, 1) == -1 && errno == EINVAL);
  CHECK(write(fd, &byte, 1) == -1 && errno == EINVAL);
  CHECK(pread(fd, &byte, 1, 0) == -1 && errno == EINVAL);
  CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENXIO);
  CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, fd, 0) != MAP_FAILED);
  struct request request = {.a = 19};
  CHECK(call(fd, 2, &request) == -1 && errno == ENODEV);
  CHECK(call(fd, 99, &request) == -1 && errno == ENOTTY);
  CHECK(call(fd, 1, (void *)8) == -1 && errno == EFAULT);
  CHECK(ioctl(-1, COMMAND(1), 0) == -1 && errno == EBADF);
  CHECK(ioctl(0, COMMAND(1), 0) == -1 && (errno == ENOTTY || errno == EINVAL));
  return 0;
}

static int regions(char **arguments) {
  (void)arguments;
  int fd = open("/dev/vfio/devices/vfio0", O_RDWR);
  CHECK(fd >= 0);
  char out[32] = "thirty-one characters, and zero", in[32] = {0};
  CHECK(pwrite(fd, out, 32, REGION + 64) == 32);
  CHECK(pread(fd, in, 32, REGION + 64) == 32);
  CHECK(memcmp(in, out, 32) == 0);
  // Also under a number outside of the window.
  int low = dup2(fd, 5);
  CHECK(low == 5);
  memset(in, 0, 32);
  CHECK(pread(5, in, 32, REGION + 64) == 32 && memcmp(in, out, 32) == 0);
  // By hand, such a number is at its end and takes no data: nobody can fill memory with it.
  CHECK(read(5, in, 32) == 0);
  CHECK(write(5, out, 32) == -1 && pwrite(5, out, 32, 4096) == -1);
  CHECK(ftruncate(5, 1 << 20) == -1 && fallocate(5, 0, 0, 4096) == -1);
  CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 5, 0) == MAP_FAILED);
  memset(in, 0, 32);
  struct iovec pieces[2] = {{in, 8}, {in + 8, 24}};
  CHECK(preadv(fd, pieces, 2, REGION + 64) == 32 && memcmp(in, out, 32) == 0);
  CHECK(pwritev(fd, pieces, 2, REGION + 128) == 32);
  CHECK(preadv2(fd, pieces, 2, REGION + 128, 0) == 32 && memcmp(in, out, 32) == 0);
  CHECK(pread(fd, (void *)8, 4, REGION) == -1 && errno == EFAULT);
  CHECK(preadv(fd, (void *)8, 2, REGION) == -1 && errno == EFAULT);
  CHECK(preadv(fd, pieces, 5000, REGION) == -1 && errno == EINVAL);
  CHECK(pread(fd, in, 4, 0) == -1 && errno == EINVAL);
  // What runs into a hole moves what it can.
  char *edge = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(edge != MAP_FAILED && munmap(edge + 4096, 4096) == 0);
  struct iovec split[2] = {{edge, 4096}, {edge + 4096, 4096}};
  CHECK(preadv(fd, split, 2, REGION) == 4096);
  int readable = open("/dev/vfio/devices/vfio0", O_RDONLY);
  CHECK(pwrite(readable, out, 4, REGION) == -1 && errno == EBADF);
  return 0;
}

static int view(char **arguments) {
  (void)arguments;
  char text[16] = {0};
  int fd = open("/sys/bus/pci/devices/0000:e0:04.0/vendor", O_RDONLY);
  CHECK(fd >= 0 && read(fd, text, 15) == 7 && strcmp(text, "0x8086\n") == 0);
  CHECK(access("/sys/kernel", F_OK) == 0 && access("/dev/null", W_OK) == 0);
  CHECK(open("/sys/bus/pci/x", O_CREAT | O_WRONLY, 0600) == -1);
  CHECK(access("/dev/pts", F_OK) == 0 && access("/dev/shm", F_OK) == 0);
  fd = open("/dev/null", O_RDWR);
  CHECK(fd >= 0 && write(fd, text, 1) == 1);
  return 0;
}

// A program with more descriptors than the window has numbers, as far as its limit lets it.
static int crowded(char **arguments) {
  (void)arguments;
  struct rlimit limit;
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  if (limit.rlim_max < 1030) return 0;
  int plain = open("/dev/null", O_RDWR);
  while (plain >= 0 && plain < 1023) plain = dup(plain);
  CHECK(plain == 1023);
  int first = open_iommu(), second = open_iommu();
  CHECK(first > 1023 && second > first);
  struct request request = {.a = 5};
  CHECK(call(second, 1, &request) == 5 && open_files(first) == 2);
  CHECK(close(second) == 0 && open_files(first) == 1);
  return 0;
}

// Descriptors that were open before the program started, and no others.
static int inherited(char **arguments) {
  for (int fd = 3; fd < 1024; fd++) {
    int expected = 0;
    for (int i = 0; arguments[i]; i++) expected |= fd == atoi(arguments[i]);
    CHECK((fcntl(fd, F_GETFD) >= 0) == expected);
  }
  return 0;
}

const struct test file_tests[] = {
    {"hello", hello},         {"paths", paths},     {"path-errors", path_errors},
    {"status", status},       {"plain-calls", plain_calls},
    {"regions", regions},     {"view", view},       {"inherited", inherited},
    {"crowded", crowded},
    {0, 0},
};
