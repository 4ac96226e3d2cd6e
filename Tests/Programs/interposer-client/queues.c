// SPDX-License-Identifier: Apache-2.0
//
// Queues of records: what poll says of their descriptors, and what read and write move. Records
// and responses of the test queue have 8 bytes.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int iommu;

struct queue {
  int fd;
  uint64_t index;
};

static struct queue make_queue(int writable) {
  struct request request = {.a = (uint64_t)writable, .c = 1};
  if (!iommu) iommu = open("/dev/iommu", O_RDWR);
  CHECK(iommu > 0 && call(iommu, 20, &request) == 0 && request.d >= 0);
  return (struct queue){request.d, request.b};
}

static void add(struct queue queue, uint64_t first, uint64_t count) {
  struct request request = {.a = first, .b = queue.index, .c = count};
  CHECK(call(iommu, 21, &request) == 0);
}

static void remove_all(struct queue queue) {
  struct request request = {.b = queue.index};
  CHECK(call(iommu, 22, &request) == 0);
}

static struct request look(struct queue queue) {
  struct request request = {.b = queue.index};
  CHECK(call(iommu, 23, &request) == 0);
  return request;
}

static void expect_closed(struct queue queue) {
  for (int i = 0; i < 10000 && !look(queue).d; i++) usleep(1000);
  CHECK(look(queue).d);
}

static int polled(int fd) {
  struct pollfd set = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDNORM};
  CHECK(poll(&set, 1, 0) >= 0);
  return set.revents;
}

#define IN (POLLIN | POLLRDNORM)

static int queue_polls(char **arguments) {
  (void)arguments;
  struct queue faults = make_queue(1), events = make_queue(0);
  uint64_t records[4];
  CHECK(polled(faults.fd) == POLLOUT && polled(events.fd) == 0);
  for (int round = 0; round < 3; round++) {
    add(faults, 1, 2);
    add(events, 1, 1);
    CHECK(polled(faults.fd) == (IN | POLLOUT) && polled(events.fd) == IN);
    CHECK(read(faults.fd, records, 8) == 8 && polled(faults.fd) == (IN | POLLOUT));
    CHECK(read(faults.fd, records, 32) == 8 && polled(faults.fd) == POLLOUT);
    CHECK(read(events.fd, records, 32) == 8 && polled(events.fd) == 0);
  }
  // Taken back by somebody else: no readiness is left behind.
  add(faults, 1, 5000);
  add(events, 1, 5000);
  CHECK(polled(faults.fd) == (IN | POLLOUT) && polled(events.fd) == IN);
  remove_all(faults);
  remove_all(events);
  CHECK(polled(faults.fd) == POLLOUT && polled(events.fd) == 0);

  fd_set in, out;
  FD_ZERO(&in);
  FD_ZERO(&out);
  FD_SET(events.fd, &in);
  FD_SET(faults.fd, &out);
  struct timeval now = {0, 0};
  CHECK(select(1024, &in, &out, NULL, &now) == 1 && FD_ISSET(faults.fd, &out));

  int level = epoll_create1(0), edge = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN}, got;
  CHECK(epoll_ctl(level, EPOLL_CTL_ADD, events.fd, &event) == 0);
  event.events = EPOLLIN | EPOLLET;
  CHECK(epoll_ctl(edge, EPOLL_CTL_ADD, events.fd, &event) == 0);
  CHECK(epoll_wait(level, &got, 1, 0) == 0 && epoll_wait(edge, &got, 1, 0) == 0);
  // Each record is an edge, also while others wait.
  for (int i = 0; i < 3; i++) {
    add(events, 7, 1);
    CHECK(epoll_wait(edge, &got, 1, 0) == 1 && got.events == EPOLLIN);
    CHECK(epoll_wait(edge, &got, 1, 0) == 0);
    CHECK(epoll_wait(level, &got, 1, 0) == 1 && epoll_wait(level, &got, 1, 0) == 1);
  }
  CHECK(read(events.fd, records, 32) == 24);
  CHECK(epoll_wait(edge, &got, 1, 0) == 0 && epoll_wait(level, &got, 1, 0) == 0);
  return 0;
}

static int queue_reads(char **arguments) {
  (void)arguments;
  struct queue queue = make_queue(1);
  uint64_t records[8] = {0};
  CHECK(read(queue.fd, records, 64) == 0);
  CHECK(read(queue.fd, (void *)8, 64) == 0);
  CHECK(read(queue.fd, records, 7) == -1 && errno == ESPIPE);
  add(queue, 10, 5);
  CHECK(read(queue.fd, records, 0) == 0);
  CHECK(read(queue.fd, records, 12) == -1 && errno == ESPIPE);
  CHECK(read(queue.fd, (void *)8, 64) == -1 && errno == EFAULT);
  CHECK(read(queue.fd, records, 16) == 16 && records[0] == 10 && records[1] == 11);
  // What runs into a hole delivers what it can; the rest stays first.
  char *edge = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(edge != MAP_FAILED && munmap(edge + 4096, 4096) == 0);
  CHECK(read(queue.fd, edge + 4088, 16) == 8);
  struct iovec pieces[3] = {{records, 8}, {0, 0}, {records + 1, 24}};
  CHECK(readv(queue.fd, pieces, 3) == 16 && records[0] == 13 && records[1] == 14);
  CHECK(readv(queue.fd, pieces, 3) == 0);
  add(queue, 20, 1);
  pieces[0].iov_len = 5;
  CHECK(readv(queue.fd, pieces, 3) == -1 && errno == ESPIPE);
  pieces[0].iov_len = 8;
  CHECK(preadv2(queue.fd, pieces, 3, -1, 0) == 8 && records[0] == 20);
  CHECK(preadv2(queue.fd, pieces, 3, -1, RWF_DSYNC) == -1 && errno == EOPNOTSUPP);
  CHECK(preadv2(queue.fd, pieces, 3, 0, 0) == -1 && errno == ESPIPE);
  CHECK(pread(queue.fd, records, 8, 0) == -1 && errno == ESPIPE);
  CHECK(pread(queue.fd, records, 8, -1) == -1 && errno == EINVAL);
  CHECK(pwrite(queue.fd, records, 8, 0) == -1 && errno == ESPIPE);
  CHECK(lseek(queue.fd, 0, SEEK_CUR) == -1 && errno == ESPIPE);
  CHECK(ftruncate(queue.fd, 0) == -1 && errno == EINVAL);
  CHECK(ioctl(queue.fd, COMMAND(1), records) == -1 && errno == ENOTTY);
  CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, queue.fd, 0) == MAP_FAILED && errno == ENODEV);
  struct stat status;
  CHECK(fstat(queue.fd, &status) == 0 && status.st_mode == 0600 && status.st_rdev == 0);
  return 0;
}

static int queue_writes(char **arguments) {
  (void)arguments;
  struct queue faults = make_queue(1), events = make_queue(0);
  uint64_t responses[4] = {1, 2, 0, 4};
  CHECK(write(faults.fd, responses, 0) == 0 && look(faults).a == 0);
  CHECK(write(faults.fd, responses, 8) == 8);
  CHECK(look(faults).a == 1 && look(faults).c == 1);
  CHECK(write(faults.fd, responses, 9) == -1 && errno == ESPIPE);
  CHECK(write(faults.fd, responses + 2, 16) == -1 && errno == EINVAL);
  // Those before the one that fails count.
  CHECK(write(faults.fd, responses, 32) == 16 && look(faults).a == 3 && look(faults).c == 2);
  CHECK(write(faults.fd, (void *)8, 8) == -1 && errno == EFAULT);
  char *edge = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(edge != MAP_FAILED && munmap(edge + 4096, 4096) == 0);
  memcpy(edge + 4088, responses, 8);
  CHECK(write(faults.fd, edge + 4088, 1 << 20) == 8 && look(faults).a == 4);
  struct iovec pieces[2] = {{responses, 8}, {responses + 3, 8}};
  CHECK(writev(faults.fd, pieces, 2) == 16 && look(faults).a == 6 && look(faults).c == 4);
  CHECK(polled(faults.fd) == POLLOUT);
  CHECK(write(events.fd, responses, 8) == -1 && errno == EINVAL);
  CHECK(writev(events.fd, pieces, 2) == -1 && errno == EINVAL);
  // Both look open for both, and never block.
  for (int i = 0; i < 2; i++) {
    int fd = i ? events.fd : faults.fd;
    CHECK(fcntl(fd, F_GETFL) == O_RDWR && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    CHECK(fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK));
    CHECK(read(fd, responses, 8) == 0 && fcntl(fd, F_SETFL, 0) == 0);
    CHECK(fcntl(fd, F_GETFL) == O_RDWR && read(fd, responses, 8) == 0);
  }
  return 0;
}

static int queue_copies(char **arguments) {
  (void)arguments;
  struct queue queue = make_queue(1);
  uint64_t record = 0;
  // Copies stay where their calls can be told.
  int copy = dup(queue.fd);
  CHECK(copy >= 768 && copy < 1024 && copy != queue.fd && fcntl(copy, F_GETFD) == 0);
  int above = fcntl(queue.fd, F_DUPFD_CLOEXEC, 900);
  CHECK(above >= 900 && above < 1024 && fcntl(above, F_GETFD) == FD_CLOEXEC);
  int any = fcntl(queue.fd, F_DUPFD, 3);
  CHECK(any >= 768 && any < 1024 && fcntl(any, F_GETFD) == 0);
  CHECK(dup2(queue.fd, 950) == 950);
  int all[] = {queue.fd, copy, above, any, 950};
  for (int i = 0; i < 5; i++) {
    add(queue, 30 + (uint64_t)i, 1);
    for (int j = 0; j < 5; j++) CHECK(polled(all[j]) == (IN | POLLOUT));
    CHECK(read(all[i], &record, 8) == 8 && record == 30 + (uint64_t)i);
    for (int j = 0; j < 5; j++) CHECK(polled(all[j]) == POLLOUT);
    CHECK(write(all[i], &record, 8) == 8 && look(queue).c == record);
  }
  // Below the window: poll is right; a read does not come by us, but never waits. Back in the
  // window everything is right again.
  CHECK(dup2(queue.fd, 7) == 7 && polled(7) == POLLOUT);
  CHECK(read(7, &record, 8) == -1 && errno == EAGAIN);
  add(queue, 40, 1);
  CHECK(polled(7) == (IN | POLLOUT));
  CHECK(dup2(7, 951) == 951 && read(951, &record, 8) == 8 && record == 40);
  CHECK(polled(7) == POLLOUT);
  // Who reads or writes there all the same deceives others until the next call at most.
  add(queue, 41, 1);
  CHECK(read(7, &record, 8) > 0 && !look(queue).d);
  CHECK(polled(queue.fd) == (IN | POLLOUT));
  CHECK(read(queue.fd, &record, 8) == 8 && record == 41 && polled(7) == POLLOUT);
  CHECK(write(7, &record, 8) == 8 && polled(queue.fd) == (IN | POLLOUT));
  CHECK(read(queue.fd, &record, 8) == 0 && close(make_queue(0).fd) == 0);
  CHECK(!look(queue).d && polled(queue.fd) == POLLOUT);
  for (int i = 0; i < 5; i++) CHECK(close(all[i]) == 0 && !look(queue).d);
  CHECK(close(951) == 0 && !look(queue).d && close(7) == 0 && look(queue).d);

  // A child has it, and so has the program that it executes.
  queue = make_queue(0);
  CHECK(fcntl(queue.fd, F_SETFD, 0) == 0);
  add(queue, 50, 2);
  pid_t child = fork();
  if (child == 0) {
    CHECK(read(queue.fd, &record, 8) == 8 && record == 50);
    char number[16];
    snprintf(number, sizeof number, "%d", queue.fd);
    execl("/proc/self/exe", "client", "queue-executed", number, (char *)0);
    _exit(9);
  }
  CHECK(close(queue.fd) == 0);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  expect_closed(queue);

  // Passed over a socket. The receiver's number is below the window.
  int sockets[2];
  queue = make_queue(0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  send_descriptor(sockets[0], queue.fd);
  CHECK(close(queue.fd) == 0 && !look(queue).d);
  add(queue, 60, 1);
  child = fork();
  if (child == 0) {
    int received = receive_descriptor(sockets[1]);
    CHECK(polled(received) == IN && dup2(received, 1000) == 1000);
    CHECK(read(1000, &record, 8) == 8 && record == 60 && polled(received) == 0);
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  expect_closed(queue);
  // Thrown away in flight.
  queue = make_queue(1);
  send_descriptor(sockets[0], queue.fd);
  CHECK(close(queue.fd) == 0 && !look(queue).d);
  CHECK(close(sockets[0]) == 0 && close(sockets[1]) == 0);
  expect_closed(queue);
  return 0;
}

static int queue_executed(char **arguments) {
  int fd = atoi(arguments[0]);
  uint64_t record = 0;
  CHECK(polled(fd) == IN && read(fd, &record, 8) == 8 && record == 51 && polled(fd) == 0);
  return 0;
}

static int queue_closes(char **arguments) {
  (void)arguments;
  for (int i = 0; i < 100; i++) {
    struct queue queue = make_queue(i & 1);
    if (i % 3 == 0) add(queue, 1, 3);
    CHECK(!look(queue).d && close(queue.fd) == 0);
    // Known at the very next call.
    CHECK(look(queue).d);
    add(queue, 1, 1);
  }
  // As many as there is room for in the window and more.
  struct queue many[300];
  for (int i = 0; i < 300; i++) many[i] = make_queue(i & 1);
  for (int i = 0; i < 300; i++) {
    CHECK(polled(many[i].fd) == (i & 1 ? POLLOUT : 0));
    CHECK(!look(many[i]).d && close(many[i].fd) == 0 && look(many[i]).d);
  }
  // Killed with one open, polled, and read.
  for (int i = 0; i < 20; i++) {
    struct queue queue = make_queue(i & 1);
    pid_t child = fork();
    if (child == 0) {
      uint64_t record;
      struct pollfd set = {.fd = queue.fd, .events = POLLIN};
      for (;;) poll(&set, 1, i & 2 ? -1 : 0), read(queue.fd, &record, 8);
    }
    CHECK(close(queue.fd) == 0);
    add(queue, 1, 1);
    usleep(3000 + 531 * (unsigned)i);
    int status;
    CHECK(!look(queue).d && kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    expect_closed(queue);
  }
  return 0;
}

static _Atomic uint64_t taken, sum;
static struct queue shared;

static void *reader(void *unused) {
  uint64_t records[4];
  while (taken < 3000) {
    struct pollfd set = {.fd = shared.fd, .events = POLLIN};
    CHECK(poll(&set, 1, 20) >= 0);
    ssize_t count = read(shared.fd, records, sizeof records);
    CHECK(count >= 0 && count % 8 == 0);
    for (ssize_t i = 0; i < count / 8; i++) sum += records[i];
    taken += (uint64_t)count / 8;
  }
  return unused;
}

static void *waiter(void *events) {
  struct pollfd set = {.fd = shared.fd, .events = POLLIN};
  *(int *)events = poll(&set, 1, 60000) == 1 ? set.revents : -1;
  return 0;
}

static int queue_waits(char **arguments) {
  (void)arguments;
  shared = make_queue(0);
  // Two threads read: each record once.
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], 0, reader, 0) == 0);
  for (uint64_t i = 0; i < 1000; i++) add(shared, 3 * i + 1, 3);
  for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], 0) == 0);
  CHECK(taken == 3000 && sum == 3000ULL * 3001 / 2 && polled(shared.fd) == 0);
  // A thread that waits is woken. Where its number was closed meanwhile, the kernel keeps the file
  // until it wakes, and then tells it so.
  int events = 0;
  CHECK(pthread_create(&threads[0], 0, waiter, &events) == 0);
  usleep(50000);
  add(shared, 5, 1);
  CHECK(pthread_join(threads[0], 0) == 0 && events == POLLIN);
  remove_all(shared);
  CHECK(pthread_create(&threads[0], 0, waiter, &events) == 0);
  usleep(50000);
  CHECK(close(shared.fd) == 0 && !look(shared).d);
  add(shared, 6, 1);
  CHECK(pthread_join(threads[0], 0) == 0 && events == POLLNVAL);
  expect_closed(shared);
  return 0;
}

const struct test queue_tests[] = {
    {"queue-polls", queue_polls},   {"queue-reads", queue_reads},
    {"queue-writes", queue_writes}, {"queue-copies", queue_copies},
    {"queue-closes", queue_closes}, {"queue-waits", queue_waits},
    {"queue-executed", queue_executed},
    {0, 0},
};
