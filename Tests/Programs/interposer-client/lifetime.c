// SPDX-License-Identifier: Apache-2.0
//
// When a file of ours is closed: at the last reference anywhere, not before, not later.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_node(const char *path) {
  int fd = open(path, O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

// A close in another process may take a moment to be known.
static void expect_open(int fd, int expected) {
  for (int i = 0; i < 10000 && open_files(fd) != expected; i++) usleep(10000);
  if (open_files(fd) != expected) fprintf(stderr, "%d open files\n", open_files(fd));
  CHECK(open_files(fd) == expected);
}

static int closes(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu");
  CHECK(open_files(fd) == 1);
  for (int i = 0; i < 200; i++) {
    int other = open_node("/dev/iommu");
    CHECK(open_files(fd) == 2);
    CHECK(close(other) == 0);
    // Known at the very next call of the one who closed.
    CHECK(open_files(fd) == 1);
  }
  // Read-only too.
  int other = open("/dev/iommu", O_RDONLY);
  CHECK(open_files(fd) == 2 && close(other) == 0 && open_files(fd) == 1);
  return 0;
}

static int duplicates(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu"), other = open_node("/dev/iommu");
  int copy = dup(other);
  CHECK(copy >= 0 && copy < 768 && close(other) == 0);
  CHECK(open_files(fd) == 2);
  struct request request = {.a = 7};
  CHECK(call(copy, 1, &request) == 7);
  // A second description of the same file.
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", copy);
  int again = open(path, O_RDWR);
  CHECK(again >= 0 && call(again, 1, &request) == 7);
  CHECK(close(copy) == 0);
  usleep(20000);
  CHECK(open_files(fd) == 2 && call(again, 1, &request) == 7);
  CHECK(close(again) == 0);
  expect_open(fd, 1);
  return 0;
}

static int mappings(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu"), device = open_node("/dev/vfio/devices/vfio0");
  void *map = mmap(0, 4096, PROT_READ, MAP_SHARED, device, 1LL << 45);
  CHECK(map != MAP_FAILED);
  CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE, device, 1LL << 45) == MAP_FAILED);
  CHECK(errno == EINVAL);
  CHECK(close(device) == 0 && open_files(fd) == 2);
  CHECK(munmap(map, 4096) == 0);
  CHECK(open_files(fd) == 1);
  return 0;
}

static int forks(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu"), other = open_node("/dev/iommu");
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  pid_t child = fork();
  if (child == 0) {
    char byte;
    CHECK(read(pipes[0], &byte, 1) == 1);
    struct request request = {.a = 9};
    CHECK(call(other, 1, &request) == 9);
    _exit(3);
  }
  CHECK(close(other) == 0 && open_files(fd) == 2);
  CHECK(write(pipes[1], "x", 1) == 1);
  int status;
  CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 3);
  expect_open(fd, 1);
  return 0;
}

static int killed(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu");
  for (int i = 0; i < 20; i++) {
    pid_t child = fork();
    if (child == 0) {
      struct request request = {.a = 1};
      for (;;) {
        int other = open("/dev/iommu", O_RDWR);
        ioctl(other, COMMAND(4), &request);
        request.a = 0;
        ioctl(other, COMMAND(4), &request);
        close(request.d);
        close(other);
      }
    }
    usleep(5000 + 531 * i);
    int status;
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    expect_open(fd, 1);
  }
  return 0;
}

static int in_flight(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu"), other = open_node("/dev/iommu"), sockets[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  send_descriptor(sockets[0], other);
  CHECK(close(other) == 0);
  usleep(20000);
  CHECK(open_files(fd) == 2);
  // Another process takes it out and uses it.
  pid_t child = fork();
  if (child == 0) {
    close(fd);
    int received = receive_descriptor(sockets[1]);
    struct request request = {.a = 5};
    CHECK(call(received, 1, &request) == 5);
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  expect_open(fd, 1);
  // Thrown away in flight.
  other = open_node("/dev/iommu");
  send_descriptor(sockets[0], other);
  CHECK(close(other) == 0 && open_files(fd) == 2);
  CHECK(close(sockets[0]) == 0 && close(sockets[1]) == 0);
  expect_open(fd, 1);
  return 0;
}

static int installs(char **arguments) {
  (void)arguments;
  int fd = open_node("/dev/iommu");
  struct request request = {.a = 0, .b = 1};
  CHECK(call(fd, 4, &request) == 0 && request.d >= 0);
  CHECK(fcntl(request.d, F_GETFD) == FD_CLOEXEC);
  struct request echo = {.a = 3};
  CHECK(call(request.d, 1, &echo) == 3);
  CHECK(open_files(fd) == 2);
  struct request look = {.d = request.d};
  CHECK(call(fd, 9, &look) == 1);
  look.d = 0;
  CHECK(call(fd, 9, &look) == 0);
  look.d = 77;
  CHECK(call(fd, 9, &look) == -1 && errno == EBADF);
  CHECK(close(request.d) == 0 && open_files(fd) == 1);
  // Taken back where the call fails after all.
  request.a = 1;
  CHECK(call(fd, 4, &request) == -1 && errno == EINVAL);
  CHECK(open_files(fd) == 1);
  for (int number = 768; number < 1024; number++)
    CHECK(number == fd || fcntl(number, F_GETFD) == -1);
  // More than the window holds.
  int many[300];
  for (int i = 0; i < 300; i++) many[i] = open_node("/dev/iommu");
  CHECK(open_files(fd) == 301);
  for (int i = 0; i < 300; i++) {
    CHECK(call(many[i], 1, &echo) == 3);
    CHECK(close(many[i]) == 0);
  }
  CHECK(open_files(fd) == 1);
  return 0;
}

const struct test lifetime_tests[] = {
    {"closes", closes},       {"duplicates", duplicates}, {"mappings", mappings},
    {"forks", forks},         {"killed", killed},         {"in-flight", in_flight},
    {"installs", installs},   {0, 0},
};
