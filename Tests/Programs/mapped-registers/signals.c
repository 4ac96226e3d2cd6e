// SPDX-License-Identifier: Apache-2.0
//
// Signals while registers are touched: the program's own SIGBUS, blocked or ignored or handled, and
// all others.

#define _GNU_SOURCE
#include "registers.h"

#include <sys/syscall.h>
#include <sys/time.h>

static volatile int count;
static volatile siginfo_t seen;
static sigjmp_buf back;

static void on_signal(int number) {
  (void)number;
  count++;
}
static void on_bus_error(int number, siginfo_t *information, void *context) {
  (void)context;
  *(siginfo_t *)&seen = *information;
  count++;
  if (information->si_code == BUS_ADRERR) siglongjmp(back, number);
}

static void touch(void) {
  *word(PLAIN) = 21;
  CHECK(*word(PLAIN) == 21);
}

static bool blocks(void) {
  sigset_t set;
  CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0);
  return sigismember(&set, SIGBUS);
}

static void block(bool blocked) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGBUS);
  CHECK(sigprocmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL) == 0);
}

// A page that a file has lost.
static volatile uint32_t *lost_page(void) {
  int file = memfd_create("lost", MFD_CLOEXEC);
  return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
}

static void own_handler(void) {
  volatile uint32_t *lost = lost_page();
  struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO}, old;
  touch();
  CHECK(sigaction(SIGBUS, &action, &old) == 0 && old.sa_handler == SIG_DFL);
  for (int i = 1; i <= 50; i++) {
    touch();
    if (!sigsetjmp(back, 1)) *lost = 1;
    CHECK(count == 2 * i - 1 && seen.si_addr == (void *)lost && seen.si_code == BUS_ADRERR);
    touch();
    // From another process, or this one.
    union sigval value = {.sival_int = i};
    CHECK(sigqueue(getpid(), SIGBUS, value) == 0);
    CHECK(count == 2 * i && seen.si_code == SI_QUEUE && seen.si_value.sival_int == i);
    CHECK(seen.si_pid == getpid());
  }
  CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_sigaction == on_bus_error);
  CHECK(old.sa_flags == SA_SIGINFO || old.sa_flags == (SA_SIGINFO | 0x04000000));
  // Once only.
  action.sa_flags |= (int)SA_RESETHAND;
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
  touch();
  count = 0;
  CHECK(raise(SIGBUS) == 0 && count == 1);
  touch();
  CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
  CHECK(syscall(SYS_rt_sigaction, SIGBUS, NULL, &old, 4) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_rt_sigaction, SIGBUS, (void *)8, NULL, 8) == -1 && errno == EFAULT);
}

// The default ends the process, by SIGBUS.
static void default_action(void) {
  volatile uint32_t *lost = lost_page();
  for (int way = 0; way < 3; way++) {
    pid_t child = fork();
    if (child == 0) {
      touch();
      if (way == 0) *lost = 1;
      if (way == 1) raise(SIGBUS);
      if (way == 2) {
        block(true);
        touch();
        CHECK(blocks());
        *lost = 1;
      }
      _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  }
}

static void blocked(void) {
  touch();
  CHECK(!blocks());
  block(true);
  for (int i = 0; i < 20; i++) {
    touch();
    CHECK(blocks());
  }
  // One that is sent stays pending.
  CHECK(raise(SIGBUS) == 0);
  touch();
  sigset_t pending;
  CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGBUS) && blocks());
  struct sigaction action = {.sa_handler = on_signal}, old;
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
  touch();
  CHECK(count == 0 && blocks());
  block(false);
  CHECK(count == 1 && !blocks());
  touch();
  CHECK(!blocks());
  CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == on_signal);
  // With a handler, all signals blocked.
  sigset_t all, now;
  sigfillset(&all);
  CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
  for (int i = 0; i < 20; i++) touch();
  CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
  for (int i = 1; i < 32; i++)
    CHECK(i == SIGKILL || i == SIGSTOP || sigismember(&now, i));
  CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == on_signal && count == 1);
}

// After many accesses with no call in between, a call or a handler changes the mask.
static void on_nested(int number) {
  (void)number;
  CHECK(blocks());
  touch();
  CHECK(blocks());
  count++;
}
static void block_in_loop(void) {
  struct sigaction action = {.sa_handler = on_nested};
  sigfillset(&action.sa_mask);
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  for (int i = 0; i < 200; i++) {
    for (int j = 0; j < i; j++) *word(PLAIN) = (uint32_t)j;
    block(true);
    for (int j = 0; j < i % 20; j++) touch();
    CHECK(blocks());
    block(false);
    touch();
    CHECK(!blocks());
    for (int j = 0; j < i; j++) touch();
    CHECK(raise(SIGUSR1) == 0 && count == i + 1 && !blocks());
  }
}

static void ignored(void) {
  CHECK(signal(SIGBUS, SIG_IGN) == SIG_DFL);
  touch();
  CHECK(raise(SIGBUS) == 0);
  touch();
  CHECK(signal(SIGBUS, SIG_IGN) == SIG_IGN);
  CHECK(kill(getpid(), SIGBUS) == 0);
  touch();
  CHECK(!blocks());
}

// A timer interrupts all the time; its handler touches registers too.
static void on_timer(int number) {
  (void)number;
  count++;
  CHECK(map[VERSION] != 0);
}

static void timers(void) {
  struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  struct itimerval timer = {{0, 300}, {0, 300}};
  CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
  const uint64_t end = milliseconds() + 60000;
  for (uint32_t i = 0; i < 5000 || count < 50; i++) {
    *word(PLAIN) = i;
    CHECK(*word(PLAIN) == i);
    // A sanitizer that holds signals back lets them through in a call.
    CHECK(milliseconds() < end);
  }
  timer = (struct itimerval){{0, 0}, {0, 0}};
  CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

// A handler on a stack of its own touches registers, and one that does leaves by a jump.
static void on_alternate(int number) {
  (void)number;
  char here;
  stack_t stack;
  CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_flags == SS_ONSTACK);
  CHECK(&here > (char *)stack.ss_sp && &here < (char *)stack.ss_sp + stack.ss_size);
  touch();
  count++;
}
static void alternate_stack(void) {
  stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
  CHECK(sigaltstack(&stack, NULL) == 0);
  struct sigaction action = {.sa_handler = on_alternate, .sa_flags = SA_ONSTACK};
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  for (int i = 0; i < 100; i++) {
    touch();
    CHECK(raise(SIGUSR1) == 0 && count == 2 * i + 1);
    // With SIGBUS blocked, too, where a call has to be made for the thread on that stack.
    block(true);
    CHECK(raise(SIGUSR1) == 0 && count == 2 * i + 2 && blocks());
    block(false);
    touch();
  }
}

static void on_jump(int number) {
  touch();
  count++;
  siglongjmp(back, number);
}
static void jumps(void) {
  struct sigaction action = {.sa_handler = on_jump};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  for (volatile int i = 0; i < 200; i++) {
    const int before = count;
    if (sigsetjmp(back, 1) == 0) {
      struct itimerval timer = {{0, 0}, {0, 200 + i}};
      CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
      for (uint64_t end = milliseconds() + 10000;;) {
        *word(PLAIN) = 1;
        CHECK(milliseconds() < end);
      }
    }
    CHECK(count == before + 1 && !blocks());
    touch();
  }
}

// A thread ends in the middle of its accesses.
static void on_end(int number) {
  (void)number;
  *word(PLAIN + 4) = 2;
  syscall(SYS_exit, 0);
}
static int numbers[4];
static void *touch_to_the_end(void *argument) {
  __atomic_store_n((int *)argument, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
  for (;;) *word(PLAIN + 4) = 1;
  return NULL;
}
static bool lives(int thread) { return syscall(SYS_tgkill, getpid(), thread, 0) == 0; }
static void ends(void) {
  struct sigaction action = {.sa_handler = on_end};
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  for (int i = 0; i < 25; i++) {
    pthread_t all[4];
    for (int j = 0; j < 4; j++) {
      numbers[j] = 0;
      CHECK(pthread_create(&all[j], NULL, touch_to_the_end, &numbers[j]) == 0);
    }
    for (int j = 0; j < 4; j++) {
      while (!__atomic_load_n(&numbers[j], __ATOMIC_ACQUIRE)) usleep(100);
      *word(PLAIN) = (uint32_t)j;
      CHECK(syscall(SYS_tgkill, getpid(), numbers[j], SIGUSR1) == 0);
      CHECK(*word(PLAIN) == (uint32_t)j);
    }
    for (int j = 0; j < 4; j++)
      for (uint64_t end = milliseconds() + 10000; lives(numbers[j]);) CHECK(milliseconds() < end);
    for (int j = 0; j < 4; j++) CHECK(pthread_join(all[j], NULL) == 0);
  }
  CHECK(*word(PLAIN + 4) == 2);
}

const struct test signal_tests[] = {{"own-handler", own_handler}, {"default-action", default_action},
                                    {"blocked", blocked}, {"block-in-loop", block_in_loop},         {"ignored", ignored},
                                    {"timers", timers},
                                    {"alternate-stack", alternate_stack}, {"jumps", jumps},
                                    {"ends", ends},               {NULL, NULL}};
