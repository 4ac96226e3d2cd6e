// SPDX-License-Identifier: Apache-2.0
//
// What a program may do beside its accesses, and finds as it would where nobody traces it.

#define _GNU_SOURCE
#include "registers.h"

#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>

static sigjmp_buf back;
static volatile int entered;
static void *volatile fault;
static void note(int which, siginfo_t *information) {
  entered = which;
  fault = information->si_addr;
  siglongjmp(back, 1);
}
static void on_one(int number, siginfo_t *information, void *context) {
  (void)number, (void)context;
  note(1, information);
}
static void on_other(int number, siginfo_t *information, void *context) {
  (void)number, (void)context;
  note(2, information);
}
static void handle(void (*handler)(int, siginfo_t *, void *)) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
  CHECK(sigaction(SIGBUS, &action, NULL) == 0);
}
static int faults(volatile uint32_t *address) {
  entered = 0;
  if (!sigsetjmp(back, 1)) *address = 1;
  return entered;
}

static volatile int wrong;
static void on_timer(int number) {
  (void)number;
  if (map[VERSION] != 0x33) wrong = 1;
}

// The handler is the one that was set last, also after one was called; and a signal handler that comes
// between the fault and it finds its registers.
static void handlers_change(void) {
  const int file = memfd_create("lost", MFD_CLOEXEC);
  volatile uint32_t *lost = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  struct sigaction timer = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
  CHECK(sigaction(SIGALRM, &timer, NULL) == 0);
  const struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
  CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
  for (int i = 0; i < 300; i++) {
    handle(i & 1 ? on_one : on_other);
    CHECK(faults(lost) == (i & 1 ? 1 : 2) && fault == (void *)lost);
  }
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && !wrong);
  signal(SIGBUS, SIG_IGN);
  CHECK(raise(SIGBUS) == 0 && entered == 1);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGBUS, SIG_DFL);
    *lost = 1;
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

// Each thread has the mask that it has set, however their accesses meet.
enum { KEEPERS = 3 };
static atomic_int met;
static void check_mask(bool blocked) {
  sigset_t set;
  CHECK(map[VERSION] == 0x33 && pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
  CHECK(sigismember(&set, SIGBUS) == blocked);
}
static void *keep_mask(void *argument) {
  const bool blocked = argument != NULL;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGBUS);
  CHECK(pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL) == 0);
  // What a thread has is learnt at its first access, which meets nobody else's.
  check_mask(blocked);
  met++;
  while (met < KEEPERS) sched_yield();
  for (int i = 0; i < 400; i++) {
    for (int j = 0; j < 2; j++) CHECK(map[VERSION] == 0x33);
    check_mask(blocked);
  }
  return NULL;
}
static void masks(void) {
  pthread_t all[KEEPERS];
  met = 0;
  for (int i = 0; i < KEEPERS; i++) {
    CHECK(pthread_create(&all[i], NULL, keep_mask, i == 0 ? (void *)&met : NULL) == 0);
    while (met <= i) sched_yield();
  }
  for (size_t i = 0; i < KEEPERS; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

// Nothing below a stack is touched: it may be somebody else's.
static uint8_t small[4096] __attribute__((aligned(4096)));
static void check_small(void) {
  for (size_t i = 0; i < sizeof small; i++) CHECK(small[i] == 0xA5);
}
static void small_stack(void) {
  memset(small, 0xA5, sizeof small);
  register long call __asm__("rax") = SYS_mmap;
  register long flags __asm__("r10") = MAP_SHARED;
  register long file __asm__("r8") = engine.device;
  register long offset __asm__("r9") = (long)bar.offset;
  __asm__ volatile("mov %%rsp, %%rbx; mov %[top], %%rsp; syscall; mov %%rbx, %%rsp"
                   : "+a"(call)
                   : [top] "r"(small + sizeof small), "D"(0L), "S"(bar.size),
                     "d"((long)(PROT_READ | PROT_WRITE)), "r"(flags), "r"(file), "r"(offset)
                   : "rbx", "rcx", "r11", "memory");
  CHECK(call > 0);
  map = (volatile uint8_t *)call;
  check_small();
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGBUS);
  CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
  uint8_t version;
  __asm__ volatile("mov %%rsp, %%rbx; mov %[top], %%rsp; movb (%[at]), %[value]; mov %%rbx, %%rsp"
                   : [value] "=q"(version)
                   : [top] "r"(small + sizeof small), [at] "r"(map + VERSION)
                   : "rbx", "memory");
  CHECK(version == 0x33);
  check_small();
  CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0 && sigismember(&set, SIGBUS));
}

// What may be written can be read on x86.
static void write_only(void) {
  CHECK(mprotect((void *)map, bar.size, PROT_WRITE) == 0);
  *word(PLAIN) = 5;
  CHECK(*word(PLAIN) == 5 && map[VERSION] == 0x33);
}

// Who makes processes is killed in the middle of it: each of them goes on, and ends.
static void orphans(void) {
  for (int i = 0; i < 20; i++) {
    int ends_of[2];
    CHECK(pipe(ends_of) == 0);
    const pid_t maker = fork();
    if (maker == 0) {
      close(ends_of[0]);
      for (;;) {
        if (fork() == 0) {
          for (int j = 0; j < 3; j++) (void)map[VERSION];
          _exit(0);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
      }
    }
    close(ends_of[1]);
    usleep(10000 + 1370 * (useconds_t)i);
    CHECK(kill(maker, SIGKILL) == 0 && waitpid(maker, NULL, 0) == maker);
    char byte;
    struct pollfd event = {.fd = ends_of[0], .events = POLLIN};
    CHECK(poll(&event, 1, 60000) == 1 && read(ends_of[0], &byte, 1) == 0);
    close(ends_of[0]);
  }
}

// Memory that somebody else has to supply first cannot be reached by an instruction that touches
// registers, too; and nobody else waits for it.
static void missing_memory(void) {
  const int faults_of = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (faults_of < 0) return;
  struct uffdio_api interface = {.api = UFFD_API};
  CHECK(ioctl(faults_of, UFFDIO_API, &interface) == 0);
  uint8_t *memory =
      mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_register range = {.range = {(uintptr_t)memory, 4096},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  CHECK(ioctl(faults_of, UFFDIO_REGISTER, &range) == 0);
  handle(on_one);
  entered = 0;
  if (!sigsetjmp(back, 1)) {
    void *to = memory;
    const volatile void *from = map + VERSION;
    __asm__ volatile("movsb" : "+D"(to), "+S"(from) : : "memory");
  }
  CHECK(entered == 1 && map[VERSION] == 0x33);
}

const struct test edge_tests[] = {{"handlers-change", handlers_change}, {"masks", masks},
                                  {"small-stack", small_stack},         {"write-only", write_only},
                                  {"orphans", orphans},                 {"missing-memory", missing_memory},
                                  {NULL, NULL}};
