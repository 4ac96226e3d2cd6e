// SPDX-License-Identifier: Apache-2.0
//
// /dev and /sys as programs walk through them: by descriptors of directories, from current directories,
// in many threads; what lies there, and what cannot be done with it.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define FAILS(what, error) CHECK((errno = 0, (what) < 0) && errno == (error))

static void reads_vendor(int fd) {
  char text[16] = {0};
  CHECK(fd >= 0 && read(fd, text, sizeof text - 1) == 7 && !strcmp(text, "0x8086\n"));
  close(fd);
}

static int lists(int directory, const char *name) {
  int found = 0, copy = dup(directory);
  CHECK(copy >= 0);
  DIR *list = fdopendir(copy);
  CHECK(list);
  rewinddir(list);
  for (struct dirent *entry; (entry = readdir(list));) found += !strcmp(entry->d_name, name);
  closedir(list);
  return found;
}

// As libudev and DPDK do it: lists, links, attributes by descriptors of directories.
static int walk(char **arguments) {
  (void)arguments;
  int bus = open("/sys/bus/pci/devices", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CHECK(bus >= 0 && fcntl(bus, F_GETFD) == FD_CLOEXEC);
  CHECK(lists(bus, "0000:e0:04.0") == 1);
  char text[PATH_MAX], real[PATH_MAX];
  ssize_t count = readlinkat(bus, "0000:e0:04.0", text, sizeof text);
  CHECK(count == 21 && !memcmp(text, "../../../devices/test", 21));
  CHECK(readlinkat(bus, "0000:e0:04.0", text, 5) == 5);
  struct stat link, directory, vendor;
  CHECK(fstatat(bus, "0000:e0:04.0", &link, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(link.st_mode));
  CHECK(fstatat(bus, "0000:e0:04.0", &directory, 0) == 0 && S_ISDIR(directory.st_mode));
  reads_vendor(openat(bus, "0000:e0:04.0/vendor", O_RDONLY));
  int device = openat(bus, "0000:e0:04.0", O_PATH | O_DIRECTORY);
  CHECK(device >= 0);
  reads_vendor(openat(device, "vendor", O_RDONLY));
  reads_vendor(openat(device, "../test/./vendor", O_RDONLY));
  reads_vendor(openat(device, "../../bus/pci/devices/0000:e0:04.0/vendor", O_RDONLY));
  reads_vendor(openat(device, "/sys/devices/test/vendor", O_RDONLY));
  CHECK(fstatat(device, "vendor", &vendor, 0) == 0 && vendor.st_size == 7);
  struct stat again;
  CHECK(fstat(device, &again) == 0 && again.st_ino == directory.st_ino);
  CHECK(faccessat(device, "vendor", R_OK, 0) == 0 && faccessat(device, "none", F_OK, 0) < 0);
  // The host's, from there.
  CHECK(fstatat(device, "../../../etc/passwd", &again, 0) == 0 && S_ISREG(again.st_mode));
  close(openat(device, "../../../etc/passwd", O_RDONLY));
  CHECK(realpath("/sys/bus/pci/devices/0000:e0:04.0/vendor", real));
  CHECK(!strcmp(real, "/sys/devices/test/vendor"));
  // A descriptor of ours says where it is as programs know it.
  char place[64];
  snprintf(place, sizeof place, "/proc/self/fd/%d", device);
  count = readlink(place, text, sizeof text);
  CHECK(count == 17 && !memcmp(text, "/sys/devices/test", 17));
  snprintf(place, sizeof place, "/proc/self/fd/%d/vendor", device);
  reads_vendor(open(place, O_RDONLY));
  struct statfs system;
  CHECK(statfs("/sys/devices/test", &system) == 0 && statfs("/dev/iommu", &system) == 0);
  struct statx extended;
  CHECK(statx(device, "vendor", 0, STATX_BASIC_STATS, &extended) == 0 && extended.stx_size == 7);
  return 0;
}

static int current(char **arguments) {
  (void)arguments;
  char text[PATH_MAX];
  CHECK(chdir("/sys/bus/pci/devices/0000:e0:04.0") == 0);
  CHECK(getcwd(text, sizeof text) && !strcmp(text, "/sys/devices/test"));
  CHECK(syscall(SYS_getcwd, text, 18) == 18);
  FAILS(syscall(SYS_getcwd, text, 17), ERANGE);
  FAILS(syscall(SYS_getcwd, 8, 100), EFAULT);
  reads_vendor(open("vendor", O_RDONLY));
  CHECK(chdir("..") == 0 && getcwd(text, sizeof text) && !strcmp(text, "/sys/devices"));
  int here = open(".", O_RDONLY | O_DIRECTORY);
  CHECK(here >= 0 && chdir("/") == 0 && fchdir(here) == 0);
  CHECK(getcwd(text, sizeof text) && !strcmp(text, "/sys/devices"));
  reads_vendor(open("test/vendor", O_RDONLY));
  // Who is started there is there, and finds programs by a relative path.
  pid_t child = fork();
  if (child == 0) {
    reads_vendor(open("test/vendor", O_RDONLY));
    execl("../../bin/sh", "sh", "-c", "test \"$(pwd -P)\" = /sys/devices && test -e test/vendor", NULL);
    _exit(9);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  // The host's entries of such a directory, and places beside it.
  CHECK(chdir("/dev") == 0 && access("null", W_OK) == 0);
  int null = open("null", O_WRONLY);
  CHECK(null >= 0 && write(null, text, 5) == 5);
  struct stat one, other;
  CHECK(stat("null", &one) == 0 && stat("/dev/null", &other) == 0 && one.st_ino == other.st_ino);
  CHECK(fstat(null, &other) == 0 && one.st_ino == other.st_ino);
  int scratch = open("shm/iommu-view-test", O_RDWR | O_CREAT | O_EXCL, 0600);
  CHECK(scratch >= 0 && unlink("shm/iommu-view-test") == 0);
  CHECK(chdir("..") == 0 && getcwd(text, sizeof text) && !strcmp(text, "/"));
  CHECK(access("dev/iommu", R_OK | W_OK) == 0 && access("./dev/iommu", R_OK) == 0);
  CHECK(access("etc/../dev/iommu", R_OK) == 0 && access("dev/none", F_OK) < 0);
  return 0;
}

static int errors(char **arguments) {
  (void)arguments;
  struct stat status;
  char text[64];
  int device = open("/sys/devices/test", O_PATH);
  CHECK(device >= 0);
  FAILS(open("/sys/devices/test/none", O_RDONLY), ENOENT);
  FAILS(open("/sys/devices/test/vendor/", O_RDONLY), ENOTDIR);
  FAILS(open("/sys/devices/test/vendor/x", O_RDONLY), ENOTDIR);
  FAILS(open("/sys/devices/test/vendor", O_RDONLY | O_DIRECTORY), ENOTDIR);
  FAILS(open("/sys/devices/test/vendor", O_WRONLY), EACCES);
  FAILS(open("/sys/devices/test", O_WRONLY), EISDIR);
  FAILS(open("/sys/devices/test/new", O_WRONLY | O_CREAT, 0600), EACCES);
  FAILS(open("/sys/devices/test/vendor", O_RDONLY | O_CREAT | O_EXCL, 0600), EEXIST);
  FAILS(open("/sys/bus/pci/devices/0000:e0:04.0", O_RDONLY | O_NOFOLLOW), ELOOP);
  FAILS(open("/dev/iommu", O_RDONLY | O_DIRECTORY), ENOTDIR);
  FAILS(open("/dev/iommu/", O_RDWR), ENOTDIR);
  FAILS(open("/dev/vfio/none", O_RDWR), ENOENT);
  FAILS(openat(device, "none", O_RDONLY), ENOENT);
  FAILS(openat(999, "vendor", O_RDONLY), EBADF);
  FAILS(open((const char *)8, O_RDONLY), EFAULT);
  FAILS(stat("/dev/iommu/x", &status), ENOTDIR);
  FAILS(stat("/dev/iommu", (struct stat *)8), EFAULT);
  FAILS(lstat("", &status), ENOENT);
  FAILS(readlink("/sys/devices/test", text, sizeof text), EINVAL);
  FAILS(readlink("/sys/bus/pci/devices/0000:e0:04.0", text, 0), EINVAL);
  FAILS(access("/sys/devices/test/vendor", W_OK), geteuid() ? EACCES : EROFS);
  FAILS(access("/sys/devices/test/vendor", X_OK), EACCES);
  FAILS(access("/dev/iommu", 8), EINVAL);
  FAILS(getxattr("/dev/iommu", "user.x", text, sizeof text), ENODATA);
  CHECK(listxattr("/sys/devices/test", text, sizeof text) == 0);
  FAILS(chdir("/sys/devices/test/vendor"), ENOTDIR);
  FAILS(execl("/sys/devices/test/vendor", "x", NULL), EACCES);
  FAILS(mkdir("/sys/devices/new", 0700), EROFS);
  FAILS(mkdir("/sys/devices/test", 0700), EEXIST);
  FAILS(mkdir("/sys/devices/test/", 0700), EEXIST);
  FAILS(symlink("x", "/sys/devices/new"), EROFS);
  FAILS(mknodat(device, "new", S_IFIFO, 0), EROFS);
  FAILS(unlinkat(device, "vendor", 0), EROFS);
  FAILS(rmdir("/sys/devices/test"), EROFS);
  FAILS(rmdir("/sys/devices/test/."), EINVAL);
  FAILS(rmdir("/sys/devices/test/.."), ENOTEMPTY);
  FAILS(unlink("/sys/devices/test/.."), EISDIR);
  FAILS(unlinkat(device, ".", AT_REMOVEDIR), EINVAL);
  FAILS(rename("/sys/devices/test/.", "/sys/devices/new"), EBUSY);
  FAILS((int)readlink("/sys/devices/none", text, 0), EINVAL);
  FAILS(rename("/sys/devices/test/value", "/sys/devices/test/vendor"), EROFS);
  FAILS(rename("/sys/devices/test/value", "/tmp/iommu-view-test"), EXDEV);
  // What comes first where more than one thing is wrong.
  FAILS(rename("/sys/devices/test/none/x", "/tmp/iommu-view-test"), ENOENT);
  FAILS(rename("/tmp/iommu-view-none/x", "/sys/devices/test/value"), ENOENT);
  FAILS(rename("/etc/passwd/x", "/sys/devices/test/."), ENOTDIR);
  FAILS(rename("/sys/devices", "/sys"), EXDEV);
  FAILS(rmdir("/sys"), geteuid() ? EACCES : EBUSY);
  FAILS(mknod("/sys/devices/new/", S_IFIFO, 0), ENOENT);
  FAILS(unlink("/sys/"), EISDIR);
  FAILS(open("/dev/iommu/", O_CREAT | O_WRONLY, 0600), EISDIR);
  FAILS(link("/sys/devices", "/tmp/iommu-view-none/"), ENOENT);
  CHECK(chdir("/sys") == 0);
  FAILS(rmdir(".."), ENOTEMPTY);
  FAILS(truncate("/dev/iommu", 3), EINVAL);
  int node = open("/dev/iommu", O_PATH);
  FAILS(renameat(device, "vendor", node, "x"), ENOTDIR);
  snprintf(text, sizeof text, "/proc/self/fd/%d/", node);
  FAILS(open(text, O_RDWR), ENOTDIR);
  FAILS(open("/sys/devices/", O_CREAT | O_EXCL | O_WRONLY, 0600), EISDIR);
  FAILS(link("/etc/none", "/sys/devices/test/vendor/x"), ENOENT);
  FAILS(rename("/none", "/sys"), ENOENT);
  FAILS(mkdir("/sys/devices/new/", 0700), EROFS);
  FAILS(rename("/dev/none", "/dev/null"), geteuid() ? EROFS : ENOENT);
  FAILS(link("/etc/passwd", "/dev/iommu"), EEXIST);
  FAILS(link("/sys/devices/test/value", "/dev/null"), EEXIST);
  FAILS(link("/etc/passwd", "/sys/devices/test/new"), EROFS);
  FAILS(link("/etc/none", "/sys/devices/test/new"), ENOENT);
  FAILS(link("/sys/devices/test/value", "/sys/devices/test/new"), EROFS);
  FAILS(link("/sys/devices/test/value", "/tmp/iommu-view-test"), EXDEV);
  FAILS(chmod("/sys/devices/test/vendor", 0666), EROFS);
  FAILS(fchmodat(device, "vendor", 0666, 0), EROFS);
  FAILS(chown("/sys/devices/test/vendor", 1, 1), EROFS);
  FAILS(truncate("/sys/devices/test/value", 0), EROFS);
  FAILS(truncate("/sys/devices/test", 0), EISDIR);
  FAILS(utimensat(device, "vendor", NULL, 0), EROFS);
  FAILS(setxattr("/sys/devices/test/vendor", "user.x", "", 0, 0), EROFS);
  FAILS((int)readlinkat(device, "", text, sizeof text), ENOENT);
  int error = (open("", O_CREAT | O_DIRECTORY, 0), errno);
  FAILS(open("/sys/devices/none/x", O_CREAT | O_DIRECTORY, 0), error);
  CHECK(access("/dev", W_OK) == (geteuid() ? -1 : 0) && access("/sys", R_OK | X_OK) == 0);
  int listed = open("/sys/devices/test", O_RDONLY | O_DIRECTORY);
  CHECK(listed >= 0);
  FAILS(fchmod(listed, 0), EROFS);
  FAILS(fchown(listed, geteuid(), -1), EROFS);
  FAILS(futimens(listed, NULL), EROFS);
  FAILS(fsetxattr(listed, "user.x", "", 0, 0), EROFS);
  int shown = open("/sys/devices/test/vendor", O_RDONLY);
  CHECK(shown >= 0);
  FAILS(fchmod(shown, 0666), EROFS);
  FAILS((int)syscall(SYS_faccessat2, shown, "", W_OK, AT_EMPTY_PATH), geteuid() ? EACCES : EROFS);
  struct {
    uint64_t flags, mode, resolve;
  } how = {O_RDONLY, 0, 4};
  FAILS((int)syscall(SYS_openat2, device, "../../bus/pci/devices/0000:e0:04.0/vendor", &how, sizeof how),
        ELOOP);
  how.resolve = 8;
  FAILS((int)syscall(SYS_openat2, device, "../test/vendor", &how, sizeof how), EXDEV);
  reads_vendor((int)syscall(SYS_openat2, device, "vendor", &how, sizeof how));
  how.resolve = 0x10;
  reads_vendor((int)syscall(SYS_openat2, device, "/../vendor", &how, sizeof how));
  CHECK(stat("/dev/iommu", &status) == 0 && S_ISCHR(status.st_mode));
  // In a user namespace nobody makes nodes with numbers.
  CHECK(status.st_rdev == makedev(10, 124) || (geteuid() && status.st_rdev == 0));
  CHECK((status.st_mode & 0777) == 0666);
  return 0;
}

static int watch(char **arguments) {
  (void)arguments;
  int events = inotify_init1(IN_CLOEXEC);
  CHECK(events >= 0 && inotify_add_watch(events, "/sys/class/test", IN_CREATE | IN_MOVED_TO) > 0);
  FAILS(inotify_add_watch(events, "/sys/class/none", IN_CREATE), ENOENT);
  int create = open("/sys/devices/test/create", O_WRONLY);
  CHECK(create >= 0 && write(create, "seen", 4) == 4);
  struct pollfd ready = {.fd = events, .events = POLLIN};
  CHECK(poll(&ready, 1, 60000) == 1);
  char buffer[512] __attribute__((aligned(8)));
  CHECK(read(events, buffer, sizeof buffer) > 0);
  CHECK(!strcmp(((struct inotify_event *)buffer)->name, "seen"));
  CHECK(access("/sys/class/test/seen/name", R_OK) == 0 && access("/dev/test/seen", R_OK) == 0);
  int remove = open("/sys/devices/test/remove", O_WRONLY);
  CHECK(remove >= 0 && write(remove, "seen", 4) == 4);
  FAILS(access("/sys/class/test/seen/name", R_OK), ENOENT);
  return 0;
}

static int at_address(int (*call)(int, const struct sockaddr *, socklen_t), int socket, const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  socklen_t size = offsetof(struct sockaddr_un, sun_path) + strlen(path);
  return call(socket, (struct sockaddr *)&address, size);
}

// Sockets whose addresses are paths from directories of ours, and through them.
static int sockets(char **arguments) {
  (void)arguments;
  char directory[] = "/tmp/iommu-view-XXXXXX", up[64], path[64];
  CHECK(mkdtemp(directory));
  snprintf(path, sizeof path, "%s/socket", directory);
  snprintf(up, sizeof up, "../../..%s", path);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0), caller = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(chdir("/sys/devices/test") == 0);
  FAILS(at_address(bind, listener, "new"), EROFS);
  FAILS(at_address(bind, listener, "vendor"), EADDRINUSE);
  CHECK(at_address(bind, listener, up) == 0 && listen(listener, 1) == 0);
  struct stat status;
  CHECK(lstat(path, &status) == 0 && S_ISSOCK(status.st_mode));
  FAILS(at_address(connect, caller, "vendor"), geteuid() ? EACCES : ECONNREFUSED);
  FAILS(at_address(connect, caller, "none"), ENOENT);
  CHECK(at_address(connect, caller, up) == 0);
  close(accept(listener, NULL, NULL));
  close(caller);
  CHECK((caller = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0 && chdir("/") == 0);
  FAILS(at_address(bind, caller, "/sys/devices/test/new"), EROFS);
  FAILS(at_address(bind, caller, "/dev/iommu"), EADDRINUSE);
  FAILS(at_address(connect, caller, "dev/iommu"), ECONNREFUSED);
  FAILS(at_address(connect, caller, "/sys/devices/test/vendor/x"), ENOTDIR);
  snprintf(up, sizeof up, "/sys/bus/../..%s", path);
  CHECK(at_address(connect, caller, up) == 0);
  CHECK(unlink(path) == 0 && rmdir(directory) == 0);
  return 0;
}

// Nobody but root may look into a process that says so.
static int unseen(char **arguments) {
  (void)arguments;
  CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
  CHECK(access("/sys/devices/test/vendor", R_OK) == (geteuid() ? -1 : 0));
  CHECK(access("/etc/passwd", R_OK) == 0);
  return 0;
}

enum { THREADS = 6, ROUNDS = 150 };

static void *walks(void *argument) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/iommu-view-none-%d", *(int *)argument);
  int bus = open("/sys/bus/pci/devices", O_PATH | O_DIRECTORY);
  CHECK(bus >= 0);
  for (int i = 0; i < ROUNDS; i++) {
    struct stat status;
    reads_vendor(openat(bus, "0000:e0:04.0/vendor", O_RDONLY));
    CHECK(stat("/etc/passwd", &status) == 0 && S_ISREG(status.st_mode));
    FAILS(stat(path, &status), ENOENT);
    FAILS(openat(bus, "none", O_RDONLY), ENOENT);
    int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    CHECK(iommu >= 0 && fstat(iommu, &status) == 0 && minor(status.st_rdev) == 124);
    close(iommu);
  }
  close(bus);
  return NULL;
}

static int threads(char **arguments) {
  (void)arguments;
  pthread_t all[THREADS];
  int numbers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    numbers[i] = i;
    CHECK(pthread_create(&all[i], NULL, walks, &numbers[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(all[i], NULL) == 0);
  return 0;
}

const struct test view_tests[] = {
    {"view-walk", walk},       {"view-current", current}, {"view-errors", errors},
    {"view-watch", watch}, {"view-threads", threads}, {"view-sockets", sockets},
    {"view-unseen", unseen},   {NULL, NULL},
};
