// SPDX-License-Identifier: Apache-2.0
//
// A thread's own user ids, which only the plain system calls change: the C library's change those of all
// threads.

#define _GNU_SOURCE
#include "CSyscalls.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NUMBER(name) const int32_t CSYS_NR_##name = SYS_##name
NUMBER(setuid);
NUMBER(setgid);
NUMBER(setreuid);
NUMBER(setregid);
NUMBER(setresuid);
NUMBER(setresgid);
NUMBER(setfsuid);
NUMBER(setfsgid);
NUMBER(prctl);

static const uint32_t unchanged = UINT32_MAX;

struct header {
  uint32_t version;
  int thread;
};
static const uint32_t version = 0x20080522;

static int set_rights(const struct csys_own_user *own) {
  struct header header = {version, 0};
  return syscall(SYS_capset, &header, own->rights) ? -errno : 0;
}

static int get_own(struct csys_own_user *own) {
  struct header header = {version, 0};
  uint32_t effective, saved;
  if (syscall(SYS_getresuid, &own->user, &effective, &saved)) return -errno;
  if (syscall(SYS_getresgid, &own->group, &effective, &saved)) return -errno;
  return syscall(SYS_capget, &header, own->rights) ? -errno : 0;
}

// What was changed can be changed back: what fails then is want of memory, which goes by. A thread that
// stays somebody else is of no use to anybody.
static void persist(long number, uint32_t real) {
  while (syscall(number, real, unchanged, unchanged)) (void)sched_yield();
}

// The effective ids stay: only where all ids of a thread are another user's may that one trace it.
int csys_take_user(uint32_t user, uint32_t group, struct csys_own_user *own, int dumpable) {
  int result = get_own(own);
  // Who may not set what it has shall not begin.
  if (result == 0) result = set_rights(own);
  if (result < 0) return result;
  if (syscall(SYS_setresgid, group, unchanged, unchanged)) return -errno;
  if (syscall(SYS_setresuid, user, unchanged, unchanged)) {
    result = -errno;
    persist(SYS_setresgid, own->group);
    return result;
  }
  // Their results are the ids of before.
  (void)syscall(SYS_setfsgid, group);
  (void)syscall(SYS_setfsuid, user);
  // With a user's id for files go root's rights to files.
  result = set_rights(own);
  if (result < 0) csys_leave_user(own, dumpable);
  return result;
}

void csys_leave_user(const struct csys_own_user *own, int dumpable) {
  // The ids for files become the effective ones with that.
  persist(SYS_setresgid, own->group);
  persist(SYS_setresuid, own->user);
  while (set_rights(own) < 0) (void)sched_yield();
  // A change of the ids for files has made the process one that nobody may look at.
  if (csys_dumpable() != dumpable) (void)prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0);
}

int csys_dumpable(void) { return prctl(PR_GET_DUMPABLE, 0, 0, 0, 0); }

int csys_become_user(uint32_t user, uint32_t group) {
  if (syscall(SYS_setresgid, group, group, group)) return -errno;
  return syscall(SYS_setresuid, user, user, user) ? -errno : 0;
}
