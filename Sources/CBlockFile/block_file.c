// SPDX-License-Identifier: Apache-2.0
//
// fallocate(2) to make holes, and memfd_create(2).

#define _GNU_SOURCE
#include "CBlockFile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

int cblock_punch_hole(int fd, uint64_t offset, uint64_t length) {
  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

int cblock_memory(const char *name) {
  int fd = memfd_create(name, MFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}
