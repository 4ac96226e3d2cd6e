// SPDX-License-Identifier: Apache-2.0
//
// What the test programs share: the test devices' request and a way to say what went wrong.

#ifndef CLIENT_H
#define CLIENT_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

struct request {
  uint64_t a, b, c;
  int32_t d, e;
};

#define COMMAND(number) (0x3B00 | (number))

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
      exit(1);                                                                           \
    }                                                                                    \
  } while (0)

static inline int call(int fd, int number, struct request *request) {
  return ioctl(fd, COMMAND(number), request);
}

// How many of our files are open anywhere, `fd` included.
static inline int open_files(int fd) {
  struct request request = {0};
  CHECK(call(fd, 3, &request) == 0);
  return (int)request.a;
}

#endif
