// SPDX-License-Identifier: Apache-2.0
//
// The namespaces: of users, the last one in its line, and of mounts, with /dev, /sys and /proc as
// runc makes them for Docker. The root directory stays the host's: what is tested lies there.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "confined.h"

// <sys/mount.h> and <linux/mount.h> of Debian 12 cannot be included together.
int mount(const char *, const char *, const char *, unsigned long, const void *);

static bool store(const char *path, const char *text) {
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool done = write(file, text, strlen(text)) == (ssize_t)strlen(text);
  const int error = errno;
  close(file);
  errno = error;
  return done;
}

// Maps ids for a process that has a new user namespace: all of them where we may, or one.
static void map_ids(pid_t process, uid_t user, gid_t group) {
  char path[64], text[64];
  const bool all = user == 0;
  const char *names[] = {"uid_map", "gid_map"};
  const unsigned ids[] = {user, group};
  if (!all) {
    snprintf(path, sizeof path, "/proc/%d/setgroups", process);
    if (!store(path, "deny")) fail(path);
  }
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "/proc/%d/%s", process, names[i]);
    snprintf(text, sizeof text, "%u %u %u\n", all ? 0 : ids[i], all ? 0 : ids[i], all ? 65536 : 1);
    if (!store(path, text)) fail(path);
  }
}

bool may_make_namespaces(void) {
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (!child) _exit(unshare(CLONE_NEWUSER) != 0);
  int status;
  if (waitpid(child, &status, 0) != child) fail("waitpid");
  return status == 0;
}

// Who is outside has to map the ids.
void enter_namespaces(bool mounts) {
  const uid_t user = geteuid();
  const gid_t group = getegid();
  const pid_t here = getpid();
  int begin[2];
  if (pipe2(begin, O_CLOEXEC)) fail("pipe");
  const pid_t helper = fork();
  if (helper < 0) fail("fork");
  char byte = 0;
  if (!helper) {
    close(begin[1]);
    if (read(begin[0], &byte, 1) != 1) _exit(125);
    map_ids(here, user, group);
    _exit(0);
  }
  if (unshare(CLONE_NEWUSER | (mounts ? CLONE_NEWNS : 0))) fail("unshare(CLONE_NEWUSER)");
  if (write(begin[1], &byte, 1) != 1) fail("write");
  close(begin[0]);
  close(begin[1]);
  int status;
  if (waitpid(helper, &status, 0) != helper || status) exit(125);
  if (!store("/proc/sys/user/max_user_namespaces", "0")) fail("user.max_user_namespaces");
}

static void mount_new(const char *type, const char *path, unsigned long flags, const char *options) {
  if (mount(type, path, type, flags, options)) fail(path);
}

static void make_read_only(const char *path, unsigned flags, uint64_t more) {
  struct mount_attr change = {.attr_set = MOUNT_ATTR_RDONLY | more};
  if (syscall(SYS_mount_setattr, AT_FDCWD, path, flags, &change, sizeof change)) fail(path);
}

// A /dev of the container's own, with the six nodes that each has.
static void make_devices(void) {
  const char *nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
  enum { NODES = sizeof nodes / sizeof *nodes };
  char path[64], source[64];
  int places[NODES];
  for (int i = 0; i < NODES; i++) {
    snprintf(path, sizeof path, "/dev/%s", nodes[i]);
    places[i] = open(path, O_PATH | O_CLOEXEC);
  }
  const unsigned long plain = MS_NOSUID | MS_NOEXEC;
  mount_new("tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
  for (int i = 0; i < NODES; i++) {
    if (places[i] < 0) continue;
    snprintf(path, sizeof path, "/dev/%s", nodes[i]);
    snprintf(source, sizeof source, "/proc/self/fd/%d", places[i]);
    const int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || mount(source, path, NULL, MS_BIND, NULL)) fail(path);
    close(file);
    close(places[i]);
  }
  const char *directories[] = {"/dev/pts", "/dev/shm", "/dev/mqueue"};
  for (int i = 0; i < 3; i++)
    if (mkdir(directories[i], 0755)) fail(directories[i]);
  mount_new("devpts", "/dev/pts", plain, "newinstance,ptmxmode=0666,mode=0620");
  mount_new("tmpfs", "/dev/shm", plain | MS_NODEV, "mode=1777,size=65536k");
  const char *links[][2] = {
      {"/proc/self/fd", "/dev/fd"},         {"/proc/self/fd/0", "/dev/stdin"},
      {"/proc/self/fd/1", "/dev/stdout"},   {"/proc/self/fd/2", "/dev/stderr"},
      {"/proc/kcore", "/dev/core"},         {"pts/ptmx", "/dev/ptmx"},
  };
  for (size_t i = 0; i < sizeof links / sizeof *links; i++)
    if (symlink(links[i][0], links[i][1])) fail(links[i][1]);
}

static void mask(const char *path) {
  struct stat status;
  if (stat(path, &status)) return;
  if (S_ISDIR(status.st_mode))
    mount_new("tmpfs", path, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k,mode=755");
  else if (mount("/dev/null", path, NULL, MS_BIND, NULL))
    fail(path);
}

void make_mounts(void) {
  // In a chroot, whose root is no mount, there is nothing that they could spread to.
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) && errno != EINVAL) fail("/");
  make_devices();
  make_read_only("/sys", AT_RECURSIVE, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
  const char *masked[] = {
      "/proc/acpi",          "/proc/asound",     "/proc/interrupts",
      "/proc/kcore",         "/proc/keys",       "/proc/latency_stats",
      "/proc/sched_debug",   "/proc/scsi",       "/proc/timer_list",
      "/proc/timer_stats",   "/sys/firmware",    "/sys/devices/virtual/powercap",
  };
  for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) mask(masked[i]);
  char path[80];
  for (long i = 0; i < sysconf(_SC_NPROCESSORS_CONF); i++) {
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%ld/thermal_throttle", i);
    mask(path);
  }
  const char *readable[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
  for (size_t i = 0; i < sizeof readable / sizeof *readable; i++) {
    if (access(readable[i], F_OK)) continue;
    if (mount(readable[i], readable[i], NULL, MS_BIND | MS_REC, NULL)) fail(readable[i]);
    make_read_only(readable[i], 0, 0);
  }
}
