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
#include <sys/socket.h>

#include "../common/check.h"

struct request {
  uint64_t a, b, c;
  int32_t d, e;
};

#define COMMAND(number) (0x3B00 | (number))

static inline int call(int fd, int number, struct request *request) {
  return ioctl(fd, COMMAND(number), request);
}

// How many of our files are open anywhere, `fd` included.
static inline int open_files(int fd) {
  struct request request = {0};
  CHECK(call(fd, 3, &request) == 0);
  return (int)request.a;
}

// Passes a descriptor over a socket, and takes one.
static inline void send_descriptor(int socket, int fd) {
  char byte = 0, space[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  CHECK(sendmsg(socket, &message, 0) == 1);
}

static inline int receive_descriptor(int socket) {
  char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  CHECK(recvmsg(socket, &message, 0) == 1);
  int fd;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

#endif
