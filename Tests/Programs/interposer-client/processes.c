// SPDX-License-Identifier: Apache-2.0
//
// Threads, vfork, exec and signals.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

static int shared_fd;

static void *echo_many(void *argument) {
  uint64_t base = (uintptr_t)argument * 1000;
  for (uint64_t i = 0; i < 300; i++) {
    struct request request = {.a = base + i};
    CHECK(call(shared_fd, 1, &request) == (int)((base + i) & 0xFFFF));
    CHECK(request.b == base + i + 1);
    int other = open_iommu();
    CHECK(call(other, 1, &request) == (int)((base + i) & 0xFFFF));
    CHECK(close(other) == 0);
  }
  return NULL;
}

static int threads(char **arguments) {
  (void)arguments;
  shared_fd = open_iommu();
  pthread_t all[8];
  for (uintptr_t i = 0; i < 8; i++) CHECK(pthread_create(&all[i], 0, echo_many, (void *)i) == 0);
  for (int i = 0; i < 8; i++) CHECK(pthread_join(all[i], 0) == 0);
  for (int i = 0; i < 10000 && open_files(shared_fd) != 1; i++) usleep(10000);
  CHECK(open_files(shared_fd) == 1);
  return 0;
}

// The first thread ends; another goes on.
static void *go_on(void *argument) {
  (void)argument;
  usleep(50000);
  int fd = open_iommu();
  struct request request = {.a = 4};
  CHECK(call(fd, 1, &request) == 4);
  char *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory[1] = 77;
  struct request pin = {.a = (uintptr_t)memory, .b = 4096, .c = 1};
  CHECK(call(fd, 5, &pin) == 0);
  struct request get = {.a = 1};
  CHECK(call(fd, 7, &get) == 0 && get.b == 77);
  exit(0);
}

static int leader_ends(char **arguments) {
  (void)arguments;
  pthread_t thread;
  CHECK(pthread_create(&thread, 0, go_on, 0) == 0);
  pthread_exit(0);
}

static int vforks(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct request request = {.a = 2};
  pid_t child = vfork();
  if (child == 0) {
    struct request inner = {.a = 3};
    if (call(fd, 1, &inner) != 3) _exit(1);
    execlp("true", "true", (char *)0);
    _exit(2);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(call(fd, 1, &request) == 2);
  return 0;
}

// Executed by `executes` with the descriptor's number.
static int executed(char **arguments) {
  int fd = atoi(arguments[0]);
  struct request request = {.a = 6};
  CHECK(call(fd, 1, &request) == 6);
  // What was pinned belongs to the old image: nothing of this one is reached.
  struct request get = {.a = 0};
  CHECK(call(fd, 7, &get) == -1 && errno == EIO);
  struct request put = {.a = 0, .b = 0xEE};
  CHECK(call(fd, 6, &put) == -1 && errno == EIO);
  // And this image can be pinned anew.
  char *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory[0] = 9;
  struct request pin = {.a = (uintptr_t)memory, .b = 4096, .c = 1};
  CHECK(call(fd, 5, &pin) == 0);
  CHECK(call(fd, 7, &get) == 0 && get.b == 9);
  return 0;
}

static int executes(char **arguments) {
  int fd = open_iommu();
  char *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory[0] = 5;
  struct request pin = {.a = (uintptr_t)memory, .b = 4096, .c = 1};
  CHECK(call(fd, 5, &pin) == 0);
  // A failed exec changes nothing.
  CHECK(execl("/nonexistent", "x", (char *)0) == -1);
  struct request get = {.a = 0};
  CHECK(call(fd, 7, &get) == 0 && get.b == 5);
  char number[16];
  snprintf(number, sizeof number, "%d", fd);
  execl("/proc/self/exe", "client", "executed", number, (char *)0);
  (void)arguments;
  return 1;
}

static volatile int signals_seen;

static void count_signal(int number) {
  (void)number;
  signals_seen++;
}

// Signals with and without SA_RESTART come while calls are answered: no call is repeated and
// none is lost.
static int interrupted(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  for (int restart = 0; restart < 2; restart++) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = restart ? SA_RESTART : 0};
    CHECK(sigaction(SIGALRM, &action, 0) == 0);
    struct itimerval timer = {{0, 3000}, {0, 3000}};
    struct request before = {0}, after = {0};
    CHECK(call(fd, 3, &before) == 0);
    CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
    for (int i = 0; i < 100; i++) {
      struct request request = {.a = 5, .b = (uint64_t)i};
      // A call that is interrupted before anybody saw it has done nothing.
      int result;
      do result = call(fd, 11, &request);
      while (result < 0 && errno == EINTR);
      CHECK(result == i);
    }
    struct itimerval off = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &off, 0) == 0);
    CHECK(call(fd, 3, &after) == 0);
    CHECK(after.b - before.b == 101);
  }
  CHECK(signals_seen > 50);
  return 0;
}

// Opens under signals: nothing leaks.
static int interrupted_opens(char **arguments) {
  (void)arguments;
  int fd = open_iommu();
  struct sigaction action = {.sa_handler = count_signal};
  CHECK(sigaction(SIGALRM, &action, 0) == 0);
  struct itimerval timer = {{0, 50}, {0, 50}};
  CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
  for (int i = 0; i < 2000; i++) {
    int other = open("/dev/iommu", O_RDWR);
    CHECK(other >= 0 || errno == EINTR);
    if (other >= 0) CHECK(close(other) == 0);
  }
  struct itimerval off = {{0, 0}, {0, 0}};
  CHECK(setitimer(ITIMER_REAL, &off, 0) == 0);
  CHECK(open_files(fd) == 1);
  return 0;
}

// A child that lives on after its parent: exits with what it could do.
static int daemonizes(char **arguments) {
  int fd = open_iommu();
  pid_t child = fork();
  CHECK(child >= 0);
  if (child > 0) return 0;
  setsid();
  close(0);
  close(1);
  close(2);
  usleep(200000);
  struct request request = {.a = 8};
  int good = call(fd, 1, &request) == 8 && open("/dev/iommu", O_RDWR) >= 0;
  int file = open(arguments[0], O_CREAT | O_WRONLY, 0644);
  if (file >= 0 && write(file, good ? "good" : "bad!", 4) != 4) _exit(1);
  _exit(0);
}

// Executes the rest without any descriptor above 2 or blocked signal, in /. For the tests' driver.
static int clean(char **arguments) {
  sigset_t none;
  sigemptyset(&none);
  CHECK(chdir("/") == 0 && sigprocmask(SIG_SETMASK, &none, 0) == 0);
  for (int fd = 3; fd < 4096; fd++) close(fd);
  execvp(arguments[0], arguments);
  return 127;
}

// Executes the rest with SIGCHLD ignored, as some daemons start their children.
static int ignores_children(char **arguments) {
  signal(SIGCHLD, SIG_IGN);
  execv(arguments[0], arguments);
  return 127;
}

static int is_ignoring(char **arguments) {
  (void)arguments;
  struct sigaction action;
  CHECK(sigaction(SIGCHLD, 0, &action) == 0);
  return action.sa_handler == SIG_IGN ? 7 : 8;
}

const struct test process_tests[] = {
    {"ignores-children", ignores_children}, {"is-ignoring", is_ignoring},
    {"threads", threads},         {"leader-ends", leader_ends},
    {"vforks", vforks},           {"executed", executed},
    {"executes", executes},       {"interrupted", interrupted},
    {"interrupted-opens", interrupted_opens},
    {"daemonizes", daemonizes},   {"clean", clean},   {0, 0},
};
