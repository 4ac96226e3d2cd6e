// SPDX-License-Identifier: Apache-2.0
//
// fallocate(2) to make holes, memfd_create(2), and locks of parts of a file.

#define _GNU_SOURCE
#include "CBlockFile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int cblock_punch_hole(int fd, uint64_t offset, uint64_t length) {
  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

int cblock_lock(int fd, int is_exclusive, uint64_t offset, uint64_t length) {
  struct flock lock = {
      .l_type = (short)(is_exclusive < 0 ? F_UNLCK : is_exclusive ? F_WRLCK : F_RDLCK),
      .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = (off_t)length};
  int result;
  do result = fcntl(fd, F_OFD_SETLKW, &lock);
  while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : 0;
}

int cblock_memory(const char *name) {
  int fd = memfd_create(name, MFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}
