// SPDX-License-Identifier: Apache-2.0
//
// Signals: masks, signalfd, an end that mirrors another process's, and the guard against pages
// that vanish under a mapping.

#define _GNU_SOURCE
#include "CSyscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static sigset_t old_mask;
static int children_were_ignored;

void csys_signals_block(void) {
  sigset_t set;
  sigfillset(&set);
  sigdelset(&set, SIGBUS);
  sigdelset(&set, SIGSEGV);
  sigdelset(&set, SIGILL);
  sigdelset(&set, SIGFPE);
  sigdelset(&set, SIGTRAP);
  sigdelset(&set, SIGSYS);
  sigprocmask(SIG_SETMASK, &set, &old_mask);
  // Where SIGCHLD is ignored the kernel reaps children by itself and tells nobody.
  children_were_ignored = signal(SIGCHLD, SIG_DFL) == SIG_IGN;
}

void csys_signals_restore(void) {
  if (children_were_ignored) signal(SIGCHLD, SIG_IGN);
  sigprocmask(SIG_SETMASK, &old_mask, NULL);
}

int csys_signalfd(int only_children) {
  sigset_t set;
  if (only_children) {
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
  } else {
    sigfillset(&set);
  }
  int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

int csys_signal_next(int fd, struct csys_signal *out) {
  struct signalfd_siginfo info;
  long count = read(fd, &info, sizeof info);
  if (count < 0) return -errno;
  if (count != sizeof info) return -EAGAIN;
  *out = (struct csys_signal){
      (int)info.ssi_signo, info.ssi_code, (int)info.ssi_pid, (int)info.ssi_uid};
  return 0;
}

void csys_die_of(int number) {
  struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  signal(number, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  sigprocmask(SIG_UNBLOCK, &set, NULL);
  kill(getpid(), number);
  _exit(128 + number);
}

void csys_stop_self(void) { kill(getpid(), SIGSTOP); }

// A file that a program truncates takes its pages from under our mapping of it. The page is
// replaced by one of zeros, so that a DMA engine in the middle of a copy goes on.
static void on_lost_page(int number, siginfo_t *info, void *context) {
  (void)context;
  if (info->si_code == BUS_ADRERR) {
    int error = errno;
    static const uintptr_t sizes[] = {4096, 65536, 2UL << 20, 1UL << 30};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      void *page = (void *)((uintptr_t)info->si_addr & ~(sizes[i] - 1));
      if (mmap(
              page, sizes[i], PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED) {
        errno = error;
        return;
      }
    }
  }
  signal(number, SIG_DFL);
}

int csys_guard_truncation(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_lost_page;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

static atomic_int noted;

static void on_change(int number) {
  (void)number;
  atomic_store_explicit(&noted, 1, memory_order_relaxed);
}

int csys_note_changes(int fd) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_change;
  action.sa_flags = SA_RESTART;
  if (sigaction(SIGIO, &action, NULL) < 0) return -errno;
  struct {
    int type, pid;
  } owner = {0 /* F_OWNER_TID */, (int)syscall(SYS_gettid)};
  if (fcntl(fd, 15 /* F_SETOWN_EX */, &owner) < 0) return -errno;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_ASYNC) < 0) return -errno;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  atomic_store(&noted, 1);
  return 0;
}

int csys_changes_noted(void) {
  if (!atomic_load_explicit(&noted, memory_order_relaxed)) return 0;
  return atomic_exchange(&noted, 0);
}
