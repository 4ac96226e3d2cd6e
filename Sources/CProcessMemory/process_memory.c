// SPDX-License-Identifier: Apache-2.0
//
// process_vm_readv(2) and process_vm_writev(2), with one range on each side; by /proc/PID/mem where a
// container's profile refuses them, as Docker's did before version 23.

#define _GNU_SOURCE
#include "CProcessMemory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long call(long number, int pid, void *local, uint64_t remote, size_t length) {
  struct iovec here = {local, length};
  struct iovec there = {(void *)(uintptr_t)remote, length};
  long result = syscall(number, pid, &here, 1UL, &there, 1UL, 0UL);
  return result < 0 ? -errno : result;
}

// What a profile answers for a call that it does not allow.
static bool is_refusal(long result) { return result == -EPERM || result == -ENOSYS; }

int csys_process_vm_is_allowed(void) {
  static _Atomic int known = -1;
  int answer = atomic_load_explicit(&known, memory_order_relaxed);
  if (answer >= 0) return answer;
  char byte = 0, copy;
  answer = !is_refusal(
      call(SYS_process_vm_readv, getpid(), &copy, (uint64_t)(uintptr_t)&byte, 1));
  atomic_store_explicit(&known, answer, memory_order_relaxed);
  return answer;
}

// How many bytes from `address` on the process may read, or write, itself: by descriptor the kernel
// would force its way into pages that it may not.
static size_t permitted(int pid, uint64_t address, size_t length, char permission) {
  char path[32], line[512];
  snprintf(path, sizeof path, "/proc/%d/maps", pid);
  FILE *maps = fopen(path, "re");
  if (!maps) return 0;
  const uint64_t end = address + length < address ? UINT64_MAX : address + length;
  uint64_t at = address;
  while (at < end && fgets(line, sizeof line, maps)) {
    unsigned long long first, past;
    char allowed[5] = "";
    // A name may be longer than the line: what follows of it is none of ours.
    if (sscanf(line, "%llx-%llx %4s", &first, &past, allowed) != 3 || past <= at) continue;
    if (first > at || !strchr(allowed, permission)) break;
    at = past < end ? past : end;
  }
  fclose(maps);
  return (size_t)(at - address);
}

static long by_file(bool writes, int pid, void *local, uint64_t remote, size_t length) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d/mem", pid);
  const int file = open(path, (writes ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
  if (file < 0) return errno == ENOENT ? -ESRCH : -EPERM;
  const size_t count = permitted(pid, remote, length, writes ? 'w' : 'r');
  const long result = !count   ? 0
                      : writes ? pwrite(file, local, count, (off_t)remote)
                               : pread(file, local, count, (off_t)remote);
  close(file);
  return result > 0 || !length ? result : -EFAULT;
}

static long move(bool writes, int pid, void *local, uint64_t remote, size_t length) {
  const long number = writes ? SYS_process_vm_writev : SYS_process_vm_readv;
  const long result = call(number, pid, local, remote, length);
  // EPERM is Linux's own answer, too, where the process may not be looked at.
  if (!is_refusal(result) || csys_process_vm_is_allowed()) return result;
  return by_file(writes, pid, local, remote, length);
}

long csys_process_vm_readv(int pid, void *local, uint64_t remote, size_t length) {
  return move(false, pid, local, remote, length);
}

long csys_process_vm_writev(int pid, const void *local, uint64_t remote, size_t length) {
  return move(true, pid, (void *)local, remote, length);
}
