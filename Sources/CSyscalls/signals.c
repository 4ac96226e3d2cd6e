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

// A file that a program truncates takes its pages from under our mapping of it. A page of zeros
// takes the place of each that is touched, so that a DMA engine in the middle of a copy goes on.
//
// Each page alone would make up to two mappings more, and a process may have so many only. After
// `MOST_PAGES`, or where the kernel refuses, all that follows in the mapping is replaced (it lies
// beyond the end of the file too); after `MOST_TAILS` the mapping as a whole, which makes none.

enum { MOST_PAGES = 1024, MOST_TAILS = 2048 };

// `/proc/self/maps`.
static int own_maps = -1;
// One thread at a time replaces: another finds the page in place, with what was written to it.
static atomic_flag replacing = ATOMIC_FLAG_INIT;
static unsigned pages_replaced, tails_replaced;

struct mapping {
  uintptr_t start, end;
  int is_file;
};

// The mapping around an address, from the text, where there is no call for it.
static int parse_mapping(uintptr_t address, struct mapping *out) {
  static char text[4096];
  off_t offset = 0;
  // start-end flags offset device inode: fields that end with '-' or a space.
  uintptr_t value[2] = {0, 0};
  int field = 0, has_inode = 0;
  while (1) {
    ssize_t count = pread(own_maps, text, sizeof text, offset);
    if (count <= 0) return -1;
    offset += count;
    for (ssize_t i = 0; i < count; i++) {
      char c = text[i];
      if (c == '\n') {
        if (value[0] <= address && address < value[1]) {
          *out = (struct mapping){value[0], value[1], has_inode};
          return 0;
        }
        value[0] = value[1] = 0;
        field = has_inode = 0;
      } else if (field < 6 && (c == ' ' || (field == 0 && c == '-'))) {
        field++;
      } else if (field < 2) {
        value[field] = value[field] << 4 | (uintptr_t)(c <= '9' ? c - '0' : c - 'a' + 10);
      } else if (field == 5 && c != '0') {
        has_inode = 1;
      }
    }
  }
}

static int find_mapping(uintptr_t address, struct mapping *out) {
  struct csys_procmap map;
  int result = csys_procmap_query(own_maps, address, &map, NULL, 0);
  if (result == -ENOTTY || result == -EINVAL) return parse_mapping(address, out);
  if (result < 0 || address < map.start) return -1;
  *out = (struct mapping){(uintptr_t)map.start, (uintptr_t)map.end, map.inode != 0};
  return 0;
}

static int replace(uintptr_t start, uintptr_t end) {
  return mmap(
             (void *)start, end - start, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

// Whether the access may be tried again.
static int replace_lost_page(uintptr_t address) {
  struct mapping map;
  if (find_mapping(address, &map) < 0) return 0;
  // Replaced meanwhile.
  if (!map.is_file) return 1;
  // Of huge pages the kernel takes whole ones only.
  static const uintptr_t sizes[] = {4096, 65536, 2UL << 20, 1UL << 30};
  for (int kind = 0; kind < 2; kind++) {
    unsigned *count = kind ? &tails_replaced : &pages_replaced;
    if (*count >= (kind ? MOST_TAILS : MOST_PAGES)) continue;
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      uintptr_t start = address & ~(sizes[i] - 1);
      if (start < map.start) break;
      uintptr_t end = kind || map.end - start < sizes[i] ? map.end : start + sizes[i];
      if (replace(start, end)) {
        ++*count;
        return 1;
      }
      if (errno != EINVAL) break;
    }
  }
  return replace(map.start, map.end);
}

static void on_lost_page(int number, siginfo_t *info, void *context) {
  (void)context;
  if (info->si_code == BUS_ADRERR) {
    int error = errno;
    while (atomic_flag_test_and_set_explicit(&replacing, memory_order_acquire))
      syscall(SYS_sched_yield);
    int done = replace_lost_page((uintptr_t)info->si_addr);
    atomic_flag_clear_explicit(&replacing, memory_order_release);
    errno = error;
    if (done) return;
  }
  signal(number, SIG_DFL);
}

int csys_guard_truncation(void) {
  if (own_maps < 0) own_maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (own_maps < 0) return -errno;
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

int csys_thread(void) { return (int)syscall(SYS_gettid); }

static _Thread_local struct {
  int listener;
  uint64_t id;
} serving;

void csys_serving(int listener, uint64_t id) {
  serving.listener = listener;
  serving.id = id;
}

int csys_serving_is_over(void) {
  return serving.id && csys_notif_id_valid(serving.listener, serving.id) != 0;
}

int csys_note_changes(int fd, int thread) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_change;
  action.sa_flags = SA_RESTART;
  if (sigaction(SIGIO, &action, NULL) < 0) return -errno;
  struct {
    int type, pid;
  } owner = {0 /* F_OWNER_TID */, thread ? thread : csys_thread()};
  if (fcntl(fd, 15 /* F_SETOWN_EX */, &owner) < 0) return -errno;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_ASYNC) < 0) return -errno;
  atomic_store(&noted, 1);
  if (thread) return 0;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  return 0;
}

int csys_changes_noted(void) {
  if (!atomic_load_explicit(&noted, memory_order_relaxed)) return 0;
  return atomic_exchange(&noted, 0);
}
