// SPDX-License-Identifier: Apache-2.0
//
// Copies between this process and another, or itself, by the kernel: calls that the C library's
// module for Swift leaves out. They return bytes, or a negative errno.

#ifndef CPROCESSMEMORY_H
#define CPROCESSMEMORY_H

#include <stddef.h>
#include <stdint.h>

// An address that may not be accessed ends the copy: EFAULT where it is the first byte.
long csys_process_vm_readv(int pid, void *local, uint64_t remote, size_t length);
long csys_process_vm_writev(int pid, const void *local, uint64_t remote, size_t length);
// Whether that is done by process_vm_readv(2) itself, and not, more slowly, by /proc/PID/mem.
int csys_process_vm_is_allowed(void);

#endif
