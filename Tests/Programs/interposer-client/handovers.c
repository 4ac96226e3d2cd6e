// SPDX-License-Identifier: Apache-2.0
//
// Eventfds by number, where the supervisor may take no copies of descriptors: this program's threads hand
// them over, and nothing else of it changes.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  return fd;
}

static int signal_all(int fd, const int *events, int count, bool keep) {
  struct request request = {
      .a = (uint64_t)(uintptr_t)events, .b = (uint64_t)count, .c = keep};
  return call(fd, 13, &request);
}

static uint64_t count_of(int event) {
  uint64_t count = 0;
  const ssize_t got = read(event, &count, 8);
  CHECK(got == 8 || (got < 0 && errno == EAGAIN));
  return count;
}

static int open_count(void) {
  DIR *directory = opendir("/proc/self/fd");
  CHECK(directory);
  int count = 0;
  while (readdir(directory)) count++;
  closedir(directory);
  return count;
}

static uint64_t calls(int fd) {
  struct request request = {0};
  CHECK(call(fd, 3, &request) == 0);
  return request.b;
}

// All at once, and again; more than one message holds.
static int many(char **arguments) {
  enum { MOST = 200 };
  int fd = open_iommu(), events[MOST];
  for (int i = 0; i < MOST; i++) CHECK((events[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) >= 0);
  const int before = open_count();
  for (int round = 0; round < 3; round++)
    for (int count = 1; count <= MOST; count = count < 64 ? count * 2 : count + 68) {
      const uint64_t came = calls(fd);
      CHECK(signal_all(fd, events, count, false) == 0);
      for (int i = 0; i < MOST; i++) CHECK(count_of(events[i]) == (i < count));
      // Once, and what it took to hand over, which was one call more at most.
      CHECK(calls(fd) - came <= 3);
    }
  CHECK(open_count() == before);
  // What is not open, or no eventfd, is refused, and nothing is signalled.
  events[100] = fd;
  CHECK(signal_all(fd, events, MOST, false) == -1 && errno == EINVAL);
  events[100] = 9999;
  CHECK(signal_all(fd, events, MOST, false) == -1 && errno == EBADF);
  for (int i = 0; i < MOST; i++)
    if (i != 100) CHECK(count_of(events[i]) == 0);
  CHECK(open_count() == before);
  (void)arguments;
  return 0;
}

// A number that stands for another eventfd each time; one that came by a socket; one that is used on
// while its number is another's.
static int renumbered(char **arguments) {
  int fd = open_iommu();
  for (int i = 0; i < 100; i++) {
    int first = eventfd(0, EFD_NONBLOCK), second = eventfd(0, EFD_NONBLOCK), third;
    CHECK(signal_all(fd, &first, 1, true) == 0 && count_of(first) == 1);
    CHECK((third = fcntl(first, F_DUPFD, 700)) >= 700);
    CHECK(dup2(second, first) == first);
    CHECK(signal_all(fd, &first, 1, false) == 0 && count_of(second) == 1 && count_of(third) == 0);
    struct request request = {0};
    CHECK(call(fd, 14, &request) == 0 && count_of(third) == 1 && count_of(second) == 0);
    close(first);
    CHECK(signal_all(fd, &first, 1, false) == -1 && errno == EBADF);
    close(second);
    close(third);
  }
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  for (int i = 0; i < 20; i++) {
    const pid_t child = fork();
    if (child == 0) {
      const int event = eventfd(0, EFD_NONBLOCK);
      send_descriptor(ends[1], event);
      _exit(0);
    }
    const int event = receive_descriptor(ends[0]);
    CHECK(signal_all(fd, &event, 1, false) == 0 && count_of(event) == 1);
    close(event);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  (void)arguments;
  return 0;
}

struct race {
  int number, events[2], other;
  atomic_bool ends;
};

static void *renumber_for_ever(void *argument) {
  struct race *race = argument;
  for (unsigned i = 0; !atomic_load(&race->ends); i++) {
    if (i % 4 < 2) CHECK(dup2(race->events[i % 4], race->number) == race->number);
    if (i % 4 == 2) CHECK(dup2(race->other, race->number) == race->number);
    if (i % 4 == 3) close(race->number);
  }
  return NULL;
}

// A number that another thread makes something else all the while: one that the number stood for is
// signalled, or none is; and what came of it is not what comes of a later call.
static int raced(char **arguments) {
  const int fd = open_iommu();
  for (int round = 0; round < 30; round++) {
    struct race race = {.number = 600, .other = fd};
    for (int i = 0; i < 2; i++) CHECK((race.events[i] = eventfd(0, EFD_NONBLOCK)) >= 0);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, renumber_for_ever, &race) == 0);
    for (int i = 0; i < 20; i++) {
      const int result = signal_all(fd, &race.number, 1, false);
      CHECK(result == 0 || errno == EBADF || errno == EINVAL);
      CHECK(count_of(race.events[0]) + count_of(race.events[1]) == (result == 0));
    }
    atomic_store(&race.ends, true);
    CHECK(pthread_join(other, NULL) == 0);
    for (int i = 0; i < 2; i++) {
      CHECK(dup2(race.events[i], race.number) == race.number);
      CHECK(signal_all(fd, &race.number, 1, false) == 0);
      CHECK(count_of(race.events[i]) == 1 && count_of(race.events[!i]) == 0);
    }
    for (int i = 0; i < 2; i++) close(race.events[i]);
    close(race.number);
  }
  (void)arguments;
  return 0;
}

static volatile int handled;
static int handler_fd = -1;
static void on_alarm(int number) {
  const int error = errno;
  handled += number > 0;
  // A call of the same kind, between the two beginnings of one.
  if (handler_fd >= 0) {
    int event = eventfd(0, EFD_NONBLOCK);
    CHECK(signal_all(handler_fd, &event, 1, false) == 0 && count_of(event) == 1);
    close(event);
  }
  errno = error;
}

// Signals at each step: each call is done once.
static int interrupted(char **arguments) {
  int fd = open_iommu();
  for (int nested = 0; nested < 2; nested++) {
    handler_fd = nested ? fd : -1;
    handled = 0;
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = (int)SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {{0, nested ? 5000 : 1000}, {0, nested ? 5000 : 1000}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    for (int i = 0; i < 300 || handled < 50; i++) {
      int events[4];
      for (int j = 0; j < 4; j++) events[j] = eventfd(0, EFD_NONBLOCK);
      CHECK(signal_all(fd, events, 4, false) == 0);
      for (int j = 0; j < 4; j++) {
        CHECK(count_of(events[j]) == 1);
        close(events[j]);
      }
    }
    timer = (struct itimerval){0};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
  }
  (void)arguments;
  return 0;
}

static void *hand_over_for_ever(void *argument) {
  const int fd = *(int *)argument;
  for (;;) {
    int events[3];
    for (int j = 0; j < 3; j++) CHECK((events[j] = eventfd(0, EFD_NONBLOCK)) >= 0);
    CHECK(signal_all(fd, events, 3, false) == 0);
    for (int j = 0; j < 3; j++) {
      CHECK(count_of(events[j]) == 1);
      close(events[j]);
    }
  }
  return NULL;
}

static int killed(char **arguments) {
  int fd = open_iommu();
  for (int i = 0; i < 100; i++) {
    const pid_t child = fork();
    if (child == 0) {
      pthread_t other;
      if (i % 2) CHECK(pthread_create(&other, NULL, hand_over_for_ever, &fd) == 0);
      hand_over_for_ever(&fd);
    }
    usleep((unsigned)(random() % 4000));
    CHECK(kill(child, SIGKILL) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
  }
  int event = eventfd(0, EFD_NONBLOCK);
  CHECK(signal_all(fd, &event, 1, false) == 0 && count_of(event) == 1);
  (void)arguments;
  return 0;
}

static void *hand_over_some(void *argument) {
  const int fd = *(int *)argument;
  // Some with a table of their own, where that is allowed: containers forbid it.
  if (((uintptr_t)pthread_self() >> 12) % 2) CHECK(unshare(CLONE_FILES) == 0 || errno == EPERM);
  for (int i = 0; i < 100; i++) {
    int event = eventfd(0, EFD_NONBLOCK);
    CHECK(event >= 0 && signal_all(fd, &event, 1, false) == 0 && count_of(event) == 1);
    close(event);
  }
  return NULL;
}

static int in_threads(char **arguments) {
  int fd = open_iommu();
  pthread_t all[6];
  for (int i = 0; i < 6; i++) CHECK(pthread_create(&all[i], NULL, hand_over_some, &fd) == 0);
  for (int i = 0; i < 6; i++) CHECK(pthread_join(all[i], NULL) == 0);
  (void)arguments;
  return 0;
}

// Under a debugger: where copies can be had all is well, else the call is refused and nothing is done.
static int debugged(char **arguments) {
  int fd = open_iommu();
  const bool has_copies = arguments[0] && strcmp(arguments[0], "copies") == 0;
  const pid_t child = fork();
  if (child == 0) {
    int event = eventfd(0, EFD_NONBLOCK);
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    const int result = signal_all(fd, &event, 1, false);
    CHECK(has_copies ? result == 0 : result == -1 && errno == EPERM);
    CHECK(count_of(event) == has_copies);
    _exit(4);
  }
  int status;
  while (waitpid(child, &status, 0) == child && WIFSTOPPED(status))
    ptrace(PTRACE_CONT, child, NULL,
           WSTOPSIG(status) == SIGSTOP ? NULL : (void *)(uintptr_t)WSTOPSIG(status));
  CHECK(status == 4 << 8);
  return 0;
}

// Without a number to spare the program is told so.
static int crowded(char **arguments) {
  int fd = open_iommu(), event = eventfd(0, EFD_NONBLOCK);
  struct rlimit limit = {64, 64};
  CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  while (dup(0) >= 0) {}
  CHECK(errno == EMFILE);
  CHECK(signal_all(fd, &event, 1, false) == -1 && errno == EMFILE && count_of(event) == 0);
  close(63);
  CHECK(signal_all(fd, &event, 1, false) == 0 && count_of(event) == 1);
  CHECK(fcntl(63, F_GETFD) == -1);
  (void)arguments;
  return 0;
}

const struct test handover_tests[] = {
    {"hand-over-many", many},           {"hand-over-renumbered", renumbered},
    {"hand-over-interrupted", interrupted}, {"hand-over-killed", killed},
    {"hand-over-threads", in_threads},  {"hand-over-debugged", debugged},
    {"hand-over-crowded", crowded},     {"hand-over-raced", raced},
    {NULL, NULL}};
