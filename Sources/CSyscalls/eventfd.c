// SPDX-License-Identifier: Apache-2.0
//
// Signalling somebody else's eventfd as the kernel itself does: never blocking, whatever the
// counter stands at and whoever else writes. write(2) cannot promise that, since O_NONBLOCK
// belongs to the description that is shared with its owner. Completions of asynchronous reads
// can: this reads nothing from /dev/null, and asks for the eventfd to be told.

#define _GNU_SOURCE
#include "CSyscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static aio_context_t context;
static int null = -1;

static void set_up(void) {
  null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null >= 0 && syscall(SYS_io_setup, 64, &context) != 0) {
    close(null);
    null = -1;
  }
}

int csys_eventfd_signal(int fd) {
  pthread_once(&once, set_up);
  if (null >= 0) {
    struct iocb read = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)null,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *list[] = {&read};
    struct io_event done[8];
    struct timespec at_once = {0, 0};
    for (int attempt = 0; attempt < 2; attempt++) {
      if (syscall(SYS_io_submit, context, 1, list) == 1) {
        syscall(SYS_io_getevents, context, 0, 8, done, &at_once);
        return 0;
      }
      if (errno != EAGAIN) return -errno;
      syscall(SYS_io_getevents, context, 0, 8, done, &at_once);
    }
    return -EAGAIN;
  }
  // A kernel without AIO: as near as write(2) comes to it.
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  if (poll(&room, 1, 0) != 1 || !(room.revents & POLLOUT)) return -EAGAIN;
  const uint64_t one = 1;
  return write(fd, &one, sizeof one) == sizeof one ? 0 : -errno;
}
