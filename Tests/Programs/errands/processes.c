// SPDX-License-Identifier: Apache-2.0
//
// Processes and threads in the middle of errands: executions, ends, stops, debuggers.

#include "errands.h"

#include <sched.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

extern char **environ;
static char *const status_7[] = {"errands", "status", "7", NULL};

static void *touch_for_ever(void *argument) {
  for (;;) check_file("/shown/file");
  return argument;
}

static void *execute(void *argument) {
  execv("/shown/program", status_7);
  return argument;
}

static void *execute_for_ever(void *argument) {
  for (;;) {
    execv("/shown/none", status_7);
    CHECK(errno == ENOENT);
    check_file("/shown/file");
  }
  return argument;
}

static void executes(void) {
  for (int i = 0; i < 30; i++) {
    CHECK(execv("/shown/none", status_7) == -1 && errno == ENOENT);
    CHECK(execv("/shown/file", status_7) == -1 && errno == EACCES);
    pid_t child = fork();
    if (child == 0) {
      execute(NULL);
      _exit(1);
    }
    check_end(child, 7 << 8);
    child = vfork();
    if (child == 0) {
      execv("/shown/program", status_7);
      _exit(1);
    }
    check_end(child, 7 << 8);
    CHECK(posix_spawn(&child, "/shown/program", NULL, NULL, status_7, environ) == 0);
    check_end(child, 7 << 8);
    CHECK(posix_spawn(&child, "/shown/none", NULL, NULL, status_7, environ) == ENOENT);
  }
}

// What a vfork child's call takes of its parent's stack is as it was.
static void executes_on_a_stack(void) {
  for (int i = 0; i < 30; i++) {
    volatile uint8_t deep[16384];
    for (size_t j = 0; j < sizeof deep; j++) deep[j] = (uint8_t)j;
    const pid_t child = vfork();
    if (child == 0) {
      execv("/shown/program", status_7);
      _exit(1);
    }
    check_end(child, 7 << 8);
    for (size_t j = 0; j < sizeof deep; j++) CHECK(deep[j] == (uint8_t)j);
  }
}

// Of several threads one executes, the first or another one, while the others are in errands.
static void executes_among_threads(void) {
  for (int i = 0; i < 40; i++) {
    const pid_t child = fork();
    if (child == 0) {
      pthread_t all[4];
      for (int j = 0; j < 3; j++)
        CHECK(pthread_create(&all[j], NULL, j ? touch_for_ever : execute_for_ever, NULL) == 0);
      usleep((unsigned)(random() % 3000));
      if (i % 2) execute(NULL);
      CHECK(pthread_create(&all[3], NULL, execute, NULL) == 0);
      touch_for_ever(NULL);
    }
    check_end(child, 7 << 8);
  }
}

// A thread executes another program by a call that nobody touches.
static void *execute_natively(void *argument) {
  usleep((unsigned)(random() % 2000));
  execl(argument, "errands", "status", "7", (char *)NULL);
  return argument;
}
static void executes_elsewhere(void) {
  for (int i = 0; i < 200; i++) {
    const pid_t child = fork();
    if (child == 0) {
      pthread_t all[3];
      for (int j = 0; j < 2; j++) CHECK(pthread_create(&all[j], NULL, touch_for_ever, NULL) == 0);
      CHECK(pthread_create(&all[2], NULL, execute_natively, "/proc/self/exe") == 0);
      touch_for_ever(NULL);
    }
    check_end(child, 7 << 8);
  }
}

static void killed(void) {
  for (int i = 0; i < 200; i++) {
    const pid_t child = fork();
    if (child == 0) {
      pthread_t other;
      if (i % 2) CHECK(pthread_create(&other, NULL, i % 4 == 1 ? touch_for_ever : execute_for_ever, NULL) == 0);
      touch_for_ever(NULL);
    }
    usleep((unsigned)(random() % 3000));
    CHECK(kill(child, SIGKILL) == 0);
    const int status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  check_file("/shown/file");
}

// One that waits is killed as soon as any.
static void killed_waiting(void) {
  for (int i = 0; i < 20; i++) {
    const pid_t child = fork();
    if (child == 0) {
      open("/shown/fifo", O_RDONLY);
      _exit(1);
    }
    usleep((unsigned)(random() % 20000));
    CHECK(kill(child, i % 2 ? SIGKILL : SIGTERM) == 0);
    const int status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == (i % 2 ? SIGKILL : SIGTERM));
  }
}

static void stops(void) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  for (int threads = 1; threads < 3; threads++) {
    const pid_t child = fork();
    if (child == 0) {
      pthread_t other;
      if (threads == 2) CHECK(pthread_create(&other, NULL, execute_for_ever, NULL) == 0);
      for (;;) {
        check_file("/shown/file");
        CHECK(write(ends[1], "", 1) == 1);
      }
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    char bytes[65536];
    for (int i = 0; i < 150; i++) {
      int status;
      usleep((unsigned)(random() % 1500));
      CHECK(kill(child, SIGSTOP) == 0);
      CHECK(waitpid(child, &status, WUNTRACED) == child);
      CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
      // What it wrote before it stopped; then no more.
      usleep(1000);
      while (read(ends[0], bytes, sizeof bytes) > 0) {}
      usleep(1000);
      CHECK(read(ends[0], bytes, sizeof bytes) == -1 && errno == EAGAIN);
      CHECK(kill(child, SIGCONT) == 0);
      CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
      // It goes on.
      while (read(ends[0], bytes, 1) != 1) usleep(100);
    }
    CHECK(kill(child, SIGKILL) == 0);
    wait_for(child);
  }
}

static void debugged(void) {
  const pid_t child = fork();
  if (child == 0) {
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    CHECK(open("/shown/file", O_RDONLY) == -1 && errno == EPERM);
    const int file = open("/etc/passwd", O_RDONLY);
    CHECK(file >= 0);
    _exit(4);
  }
  int status;
  while (waitpid(child, &status, 0) == child && WIFSTOPPED(status))
    ptrace(PTRACE_CONT, child, NULL, WSTOPSIG(status) == SIGSTOP ? NULL : (void *)(uintptr_t)WSTOPSIG(status));
  CHECK(status == 4 << 8);
}

// Nobody stays traced.
static void leaves(void) {
  check_file("/shown/file");
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    _exit(4);
  }
  check_end(child, 4 << 8);
  CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
}

// A process that shares the memory, but not the threads.
static int touch_shared(void *argument) {
  for (int i = 0; i < 300; i++) check_file("/shown/file");
  (void)argument;
  return 9;
}
static void shares_memory(void) {
  const size_t size = 256 << 10;
  uint8_t *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 5; i++) {
    const pid_t child = clone(touch_shared, stack + size, CLONE_VM | SIGCHLD, NULL);
    CHECK(child > 0);
    for (int j = 0; j < 300; j++) check_file("/shown/file");
    check_end(child, 9 << 8);
  }
}

static void *touch_some(void *argument) {
  for (int i = 0; i < 300; i++) check_file("/shown/file");
  return argument;
}
static void threads(void) {
  enum { COUNT = 6 };
  pthread_t all[COUNT];
  for (int i = 0; i < COUNT; i++) CHECK(pthread_create(&all[i], NULL, touch_some, NULL) == 0);
  touch_some(NULL);
  for (int i = 0; i < COUNT; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

const struct test process_tests[] = {{"executes", executes},
                                     {"executes-on-a-stack", executes_on_a_stack},
                                     {"executes-among-threads", executes_among_threads},
                                     {"executes-elsewhere", executes_elsewhere},
                                     {"killed", killed},
                                     {"killed-waiting", killed_waiting},
                                     {"stops", stops},
                                     {"debugged", debugged},
                                     {"leaves", leaves},
                                     {"shares-memory", shares_memory},
                                     {"threads", threads},
                                     {NULL, NULL}};
