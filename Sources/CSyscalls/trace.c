// SPDX-License-Identifier: Apache-2.0
//
// ptrace(2) and what goes with it, one call each.

#define _GNU_SOURCE
#include "CSyscalls.h"
#include "wait_status.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

// What this thread traces, and no other's: children are somebody else's to wait for.
static int wait_for(int task, int options, struct csys_trace_event *out) {
  int status = 0;
  int result = (int)syscall(SYS_wait4, task, &status, __WALL | __WNOTHREAD | options, NULL);
  if (result <= 0) return result < 0 ? -errno : 0;
  struct csys_wait change;
  take_apart(result, status, &change);
  *out = (struct csys_trace_event){
      .thread = result, .exited = change.exited, .signaled = change.signaled, .code = change.code};
  if (change.stopped) {
    out->code = change.code & 0x7f;
    out->is_call = (change.code & 0x80) != 0;
    out->event = (int)((unsigned)status >> 16);
  }
  return 1;
}

int csys_trace_wait(int task, struct csys_trace_event *out) {
  int result = wait_for(task, 0, out);
  return result < 0 ? result : 0;
}

int csys_trace_poll(struct csys_trace_event *out) { return wait_for(-1, WNOHANG, out); }

int csys_thread_signal(int process, int thread, int number) {
  return syscall(SYS_tgkill, process, thread, number) < 0 ? -errno : 0;
}

int csys_ignore_stops(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = SIG_DFL;
  action.sa_flags = SA_NOCLDSTOP;
  return sigaction(SIGCHLD, &action, NULL) < 0 ? -errno : 0;
}

// Where a call goes on that is interrupted although the kernel would begin it anew for ever.
static _Thread_local sigjmp_buf interruption;
static _Thread_local volatile sig_atomic_t is_interruptible;

static void on_interruption(int number) {
  (void)number;
  if (!is_interruptible) return;
  is_interruptible = 0;
  siglongjmp(interruption, 1);
}

int csys_interruptible(int number) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_interruption;
  if (sigaction(number, &action, NULL) < 0) return -errno;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int csys_run_on(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (processor < 0 || processor >= CPU_SETSIZE) return -EINVAL;
  CPU_SET(processor, &set);
  return sched_setaffinity(0, sizeof set, &set) < 0 ? -errno : 0;
}

#if defined(__x86_64__)

#include <cpuid.h>

// The C library's <sys/ptrace.h> and the kernel's do not go together.
enum {
  CONT = 7,
  DETACH = 17,
  SYSCALL = 24,
  GETEVENTMSG = 0x4201,
  GETSIGINFO = 0x4202,
  SETSIGINFO = 0x4203,
  GETREGSET = 0x4204,
  SETREGSET = 0x4205,
  SEIZE = 0x4206,
  INTERRUPT = 0x4207,
  LISTEN = 0x4208,
  GETSIGMASK = 0x420a,
  SETSIGMASK = 0x420b,
};
enum {
  // TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACEEXIT, EXITKILL
  OPTIONS = 1 | 2 | 4 | 8 | 16 | 64 | 1 << 20,
  GENERAL = 1,       // NT_PRSTATUS
  EXTENDED = 0x202,  // NT_X86_XSTATE
};

_Static_assert(sizeof(struct csys_registers) == 27 * 8, "struct user_regs_struct");
_Static_assert(sizeof(struct csys_signal_information) == sizeof(siginfo_t), "siginfo_t");
_Static_assert(
    offsetof(struct csys_signal_information, address) == offsetof(siginfo_t, si_addr), "siginfo_t");

static int trace(long request, int thread, uintptr_t address, const void *data) {
  long result = syscall(SYS_ptrace, request, (long)thread, address, data);
  return result < 0 ? -errno : 0;
}
static const void *number(int signal) { return (const void *)(uintptr_t)signal; }

int csys_trace_seize(int thread) {
  // While a thread of that process executes another program the kernel waits here for all others to be
  // gone, those that we trace among them: they wait for us.
  if (sigsetjmp(interruption, 1)) return -EINTR;
  is_interruptible = 1;
  int result = trace(SEIZE, thread, 0, (const void *)(uintptr_t)OPTIONS);
  is_interruptible = 0;
  return result;
}
int csys_trace_interrupt(int thread) { return trace(INTERRUPT, thread, 0, NULL); }
int csys_trace_continue(int thread, int signal) { return trace(CONT, thread, 0, number(signal)); }
int csys_trace_until_call(int thread, int signal) {
  return trace(SYSCALL, thread, 0, number(signal));
}
int csys_trace_listen(int thread) { return trace(LISTEN, thread, 0, NULL); }
int csys_trace_detach(int thread, int signal) { return trace(DETACH, thread, 0, number(signal)); }
int csys_trace_message(int thread, uint64_t *out) { return trace(GETEVENTMSG, thread, 0, out); }
int csys_trace_signal(int thread, struct csys_signal_information *out) {
  return trace(GETSIGINFO, thread, 0, out);
}
int csys_trace_set_signal(int thread, const struct csys_signal_information *signal) {
  return trace(SETSIGINFO, thread, 0, signal);
}
int csys_trace_registers(int thread, struct csys_registers *out) {
  struct iovec iov = {out, sizeof *out};
  return trace(GETREGSET, thread, GENERAL, &iov);
}
int csys_trace_set_registers(int thread, const struct csys_registers *registers) {
  struct iovec iov = {(void *)registers, sizeof *registers};
  return trace(SETREGSET, thread, GENERAL, &iov);
}
int csys_trace_extended(int thread, void *out, size_t capacity) {
  struct iovec iov = {out, capacity};
  int result = trace(GETREGSET, thread, EXTENDED, &iov);
  return result < 0 ? result : (int)iov.iov_len;
}
int csys_trace_set_extended(int thread, const void *state, size_t size) {
  struct iovec iov = {(void *)state, size};
  return trace(SETREGSET, thread, EXTENDED, &iov);
}
uint32_t csys_extended_offset(int component) {
  uint32_t size, offset, flags, unused;
  return __get_cpuid_count(13, (unsigned)component, &size, &offset, &flags, &unused) && size ? offset : 0;
}
int csys_trace_mask(int thread, uint64_t *out) { return trace(GETSIGMASK, thread, 8, out); }
int csys_trace_set_mask(int thread, uint64_t mask) { return trace(SETSIGMASK, thread, 8, &mask); }

#else

int csys_trace_seize(int thread) { return -ENOSYS; }
int csys_trace_interrupt(int thread) { return -ENOSYS; }
int csys_trace_continue(int thread, int signal) { return -ENOSYS; }
int csys_trace_until_call(int thread, int signal) { return -ENOSYS; }
int csys_trace_listen(int thread) { return -ENOSYS; }
int csys_trace_detach(int thread, int signal) { return -ENOSYS; }
int csys_trace_message(int thread, uint64_t *out) { return -ENOSYS; }
int csys_trace_signal(int thread, struct csys_signal_information *out) { return -ENOSYS; }
int csys_trace_set_signal(int thread, const struct csys_signal_information *signal) {
  return -ENOSYS;
}
int csys_trace_registers(int thread, struct csys_registers *out) { return -ENOSYS; }
int csys_trace_set_registers(int thread, const struct csys_registers *registers) {
  return -ENOSYS;
}
int csys_trace_extended(int thread, void *out, size_t capacity) { return -ENOSYS; }
int csys_trace_set_extended(int thread, const void *state, size_t size) { return -ENOSYS; }
uint32_t csys_extended_offset(int component) { return 0; }
int csys_trace_mask(int thread, uint64_t *out) { return -ENOSYS; }
int csys_trace_set_mask(int thread, uint64_t mask) { return -ENOSYS; }

#endif
