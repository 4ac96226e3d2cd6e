// SPDX-License-Identifier: Apache-2.0
//
// Calls on files of blocks that the C library's module for Swift leaves out.

#ifndef CBLOCKFILE_H
#define CBLOCKFILE_H

#include <stdint.h>

// Makes bytes zero and gives back their room; the file's size stays. 0 or a negative errno.
int cblock_punch_hole(int fd, uint64_t offset, uint64_t length);

// An empty file in memory, closed on exec. A descriptor or a negative errno.
int cblock_memory(const char *name);

// Waits until bytes are this description's alone (1), or its own and other readers' (0), among all
// that ask; -1 gives them back. 0 or a negative errno.
int cblock_lock(int fd, int is_exclusive, uint64_t offset, uint64_t length);

#endif
