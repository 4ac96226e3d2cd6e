// SPDX-License-Identifier: Apache-2.0
//
// process_vm_readv(2) and process_vm_writev(2), with one range on each side.

#define _GNU_SOURCE
#include "CProcessMemory.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long move(long number, int pid, void *local, uint64_t remote, size_t length) {
  struct iovec here = {local, length};
  struct iovec there = {(void *)(uintptr_t)remote, length};
  long result = syscall(number, pid, &here, 1UL, &there, 1UL, 0UL);
  return result < 0 ? -errno : result;
}

long csys_process_vm_readv(int pid, void *local, uint64_t remote, size_t length) {
  return move(SYS_process_vm_readv, pid, local, remote, length);
}

long csys_process_vm_writev(int pid, const void *local, uint64_t remote, size_t length) {
  return move(SYS_process_vm_writev, pid, (void *)local, remote, length);
}
