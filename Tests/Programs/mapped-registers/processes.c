// SPDX-License-Identifier: Apache-2.0
//
// Processes with registers mapped: forks and executions, stops, ends at any moment, debuggers.

#define _GNU_SOURCE
#include "registers.h"

#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

extern char **environ;

static int wait_for(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  return status;
}

static void forks(void) {
  for (int i = 0; i < 20; i++) {
    *word(PLAIN) = (uint32_t)i;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      CHECK(*word(PLAIN) == (uint32_t)i);
      *word(PLAIN) = 100u + (uint32_t)i;
      // Grandchildren too.
      pid_t other = fork();
      if (other == 0) _exit(*word(PLAIN) == 100u + (uint32_t)i ? 0 : 1);
      _exit(wait_for(other));
    }
    CHECK(wait_for(child) == 0 && *word(PLAIN) == 100u + (uint32_t)i);
    child = vfork();
    if (child == 0) {
      *word(PLAIN) = 7;
      _exit(0);
    }
    CHECK(wait_for(child) == 0 && *word(PLAIN) == 7);
    char *arguments[] = {"true", NULL};
    CHECK(posix_spawnp(&child, "true", NULL, NULL, arguments, environ) == 0);
    CHECK(wait_for(child) == 0);
    CHECK(system("exit 3") == 3 << 8);
    *word(PLAIN) = 8;
  }
}

static void *touch_for_ever(void *argument) {
  for (uint32_t i = 0;; i++) __atomic_store_n(word(PLAIN), i, __ATOMIC_RELAXED);
  return argument;
}

// A thread that is not the first executes another program, while others are in the middle of
// accesses.
static void *execute(void *argument) {
  usleep(20000);
  execlp("sh", "sh", "-c", "test $(ulimit -c) -ge 0 || true; exit 5", (char *)NULL);
  return argument;
}

static void executes(void) {
  for (int i = 0; i < 10; i++) {
    pid_t child = fork();
    if (child == 0) {
      pthread_t all[4];
      for (int j = 0; j < 3; j++) CHECK(pthread_create(&all[j], NULL, touch_for_ever, NULL) == 0);
      CHECK(pthread_create(&all[3], NULL, execute, NULL) == 0);
      touch_for_ever(NULL);
    }
    CHECK(wait_for(child) == 5 << 8);
    *word(PLAIN) = 1;
  }
}

// What is ignored stays so in another program, which nobody traces; what is handled does not.
static void executes_ignoring(void) {
  for (int ignores = 0; ignores < 2; ignores++) {
    pid_t child = fork();
    if (child == 0) {
      CHECK(signal(SIGBUS, ignores ? SIG_IGN : SIG_DFL) == SIG_DFL);
      *word(PLAIN) = 1;
      execlp("sh", "sh", "-c",
             ignores ? "grep -q 'SigIgn:.*4[0-9a-f]$' /proc/self/status && "
                       "grep -q 'TracerPid:\t0' /proc/self/status"
                     : "grep -q 'SigIgn:.*0[0-9a-f]$' /proc/self/status && "
                       "grep -q 'SigCgt:.*[0189][0-9a-f]$' /proc/self/status",
             (char *)NULL);
    }
    CHECK(wait_for(child) == 0);
  }
}

static void killed(void) {
  for (int i = 0; i < 100; i++) {
    pid_t child = fork();
    if (child == 0) {
      pthread_t other;
      CHECK(pthread_create(&other, NULL, touch_for_ever, NULL) == 0);
      touch_for_ever(NULL);
    }
    usleep((unsigned)(random() % 3000));
    CHECK(kill(child, SIGKILL) == 0);
    int status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  *word(PLAIN) = 3;
  CHECK(*word(PLAIN) == 3);
}

static void stops(void) {
  pid_t child = fork();
  if (child == 0) touch_for_ever(NULL);
  for (int i = 0; i < 50; i++) {
    int status;
    CHECK(kill(child, SIGSTOP) == 0);
    CHECK(waitpid(child, &status, WUNTRACED) == child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    uint32_t value = *word(PLAIN);
    usleep(2000);
    CHECK(*word(PLAIN) == value);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
    for (uint64_t end = milliseconds() + 10000; *word(PLAIN) == value;) CHECK(milliseconds() < end);
  }
  CHECK(kill(child, SIGTERM) == 0);
  int status = wait_for(child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

// Who is under a debugger maps no registers, and is told so.
static void debugged(void) {
  pid_t child = fork();
  if (child == 0) {
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    map = mmap(NULL, bar.size, PROT_READ, MAP_SHARED, engine.device, (off_t)bar.offset);
    CHECK(map == MAP_FAILED && errno == EPERM);
    uint8_t version;
    CHECK(pread(engine.device, &version, 1, (off_t)(bar.offset + VERSION)) == 1 && version != 0);
    _exit(4);
  }
  int status;
  while (waitpid(child, &status, 0) == child && WIFSTOPPED(status))
    ptrace(PTRACE_CONT, child, NULL, WSTOPSIG(status) == SIGSTOP ? NULL : (void *)(uintptr_t)WSTOPSIG(status));
  CHECK(status == 4 << 8);
}

// Who is told of a child's end by a pidfd finds it ended. The kernel's test harness goes by that.
static void polled(void) {
  *word(PLAIN) = 1;
  for (int i = 0; i < 300; i++) {
    pid_t child = fork();
    if (child == 0) {
      if (i % 2) *word(PLAIN) = 2;
      _exit(i & 15);
    }
    CHECK(child > 0);
    struct pollfd event = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
    CHECK(event.fd >= 0 && poll(&event, 1, -1) == 1);
    int status = -1;
    CHECK(waitpid(child, &status, WNOHANG) == child && status == (i & 15) << 8);
    close(event.fd);
  }
}

// Threads and processes that come and go while others touch registers.
static void *quick(void *argument) {
  __atomic_store_n(word(PLAIN), 1, __ATOMIC_RELAXED);
  return argument;
}
static void comings(void) {
  for (int i = 0; i < 200; i++) {
    pthread_t all[4];
    for (int j = 0; j < 4; j++) CHECK(pthread_create(&all[j], NULL, quick, NULL) == 0);
    for (int j = 0; j < 4; j++) CHECK(pthread_join(all[j], NULL) == 0);
  }
}

// The first thread ends, others go on.
static void *outlive(void *argument) {
  usleep(20000);
  for (uint32_t i = 0; i < 100; i++) {
    *word(PLAIN) = i;
    CHECK(*word(PLAIN) == i);
  }
  exit(0);
  return argument;
}
static void leader_ends(void) {
  pthread_t other;
  CHECK(pthread_create(&other, NULL, outlive, NULL) == 0);
  pthread_exit(NULL);
}

// A process that shares the memory, but not the threads: both touch registers.
static int add_and_end(void *argument) {
  for (int i = 0; i < 300; i++) __atomic_fetch_add(wide(PLAIN), 1, __ATOMIC_RELAXED);
  (void)argument;
  return 9;
}
static int touch_shared(void *argument) {
  touch_for_ever(argument);
  return 0;
}
static void shares_memory(void) {
  const size_t size = 256 << 10;
  uint8_t *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 20; i++) {
    *wide(PLAIN) = 0;
    pid_t child = clone(add_and_end, stack + size, CLONE_VM | SIGCHLD, NULL);
    CHECK(child > 0);
    for (int j = 0; j < 300; j++) __atomic_fetch_add(wide(PLAIN), 1, __ATOMIC_RELAXED);
    CHECK(wait_for(child) == 9 << 8 && *wide(PLAIN) == 600);
    child = clone(touch_shared, stack + size, CLONE_VM | SIGCHLD, NULL);
    CHECK(child > 0);
    for (int j = 0; j < 50; j++) CHECK(map[VERSION] != 0);
    CHECK(kill(child, SIGKILL) == 0);
    int status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
}

const struct test process_tests[] = {{"forks", forks},       {"executes", executes},
                                     {"executes-ignoring", executes_ignoring},
                                     {"killed", killed},     {"stops", stops},
                                     {"debugged", debugged}, {"comings", comings},
                                     {"leader-ends", leader_ends},
                                     {"polled", polled},     {"shares-memory", shares_memory},
                                     {NULL, NULL}};
