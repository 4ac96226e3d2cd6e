// SPDX-License-Identifier: Apache-2.0
//
// Runs a program as a container would confine it: Docker's default seccomp profile, no capabilities
// beyond Docker's fourteen, no user namespaces. What a container has beside that, file systems and
// processes of its own, it does not have: nothing that is tested depends on it.
// Usage: confined PROGRAM [ARGUMENT…]

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rules.h"

static void fail(const char *what) {
  fprintf(stderr, "confined: %s: %s\n", what, strerror(errno));
  exit(125);
}

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

// A user namespace of our own, in which no other can be made. Who is outside has to map its ids.
static void enter_last_namespace(void) {
  const uid_t user = geteuid();
  const gid_t group = getegid();
  const pid_t here = getpid();
  int begin[2], done[2];
  if (pipe2(begin, O_CLOEXEC) || pipe2(done, O_CLOEXEC)) fail("pipe");
  const pid_t helper = fork();
  if (helper < 0) fail("fork");
  char byte = 0;
  if (!helper) {
    close(begin[1]);
    if (read(begin[0], &byte, 1) != 1) _exit(125);
    map_ids(here, user, group);
    _exit(0);
  }
  if (unshare(CLONE_NEWUSER)) fail("unshare(CLONE_NEWUSER)");
  if (write(begin[1], &byte, 1) != 1) fail("write");
  int status;
  if (waitpid(helper, &status, 0) != helper || status) exit(125);
  if (!store("/proc/sys/user/max_user_namespaces", "0")) fail("user.max_user_namespaces");
}

static uint64_t kept(void) {
  uint64_t set = 0;
  for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
    set |= UINT64_C(1) << capabilities[i];
  return set;
}

static void drop_capabilities(void) {
  const uint64_t set = kept();
  for (int number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++)
    if (!(set >> number & 1) && prctl(PR_CAPBSET_DROP, number, 0, 0, 0)) fail("PR_CAPBSET_DROP");
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {
      {.effective = (uint32_t)set, .permitted = (uint32_t)set}};
  if (syscall(SYS_capset, &header, data)) fail("capset");
}

static struct sock_filter code[2048];
static unsigned short length;

static void add(struct sock_filter instruction) { code[length++] = instruction; }
static void load(unsigned offset) { add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)); }
static void answer(unsigned action) { add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action)); }
static void unless(unsigned value, unsigned char skip) {
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip));
}

static unsigned argument(int index) {
  return (unsigned)offsetof(struct seccomp_data, args) + 8 * (unsigned)index;
}

static void install_filter(void) {
  enum { NAMESPACES = 0x7e020000, AF_VSOCK_ = 40 };
  const unsigned refused = SECCOMP_RET_ERRNO | EPERM;
  load(offsetof(struct seccomp_data, arch));
  unless(AUDIT_ARCH_X86_64, 1);
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0));
  answer(refused);
  load(offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
    unless((unsigned)allowed[i], 1);
    answer(SECCOMP_RET_ALLOW);
  }
  // What glibc knows how to do without.
  unless(SYS_clone3, 1);
  answer(SECCOMP_RET_ERRNO | ENOSYS);
  unless(SYS_clone, 4);
  load(argument(0));
  add((struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, NAMESPACES));
  unless(0, 1);
  answer(SECCOMP_RET_ALLOW);
  load(offsetof(struct seccomp_data, nr));
  unless(SYS_socket, 4);
  load(argument(0));
  unless(AF_VSOCK_, 1);
  answer(refused);
  answer(SECCOMP_RET_ALLOW);
  unless(SYS_personality, 11);
  load(argument(0));
  const unsigned personalities[] = {0, 8, 0x20000, 0x20008, 0xffffffff};
  for (int i = 0; i < 5; i++) {
    unless(personalities[i], 1);
    answer(SECCOMP_RET_ALLOW);
  }
  answer(refused);
  const struct sock_fprog program = {.len = length, .filter = code};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) fail("seccomp");
}

int main(int count, char **arguments) {
  if (count < 2) {
    fputs("Usage: confined PROGRAM [ARGUMENT…]\n", stderr);
    return 2;
  }
  enter_last_namespace();
  // While it may still be installed by who can get no privileges back.
  install_filter();
  drop_capabilities();
  execvp(arguments[1], arguments + 1);
  fail(arguments[1]);
}
