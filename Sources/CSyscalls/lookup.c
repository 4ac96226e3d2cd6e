// SPDX-License-Identifier: Apache-2.0
//
// Looking a path up without waiting long: what the kernel has at hand at once, everything else
// in a thread that may hang (a file system may be served by the very program that waits for us).

#define _GNU_SOURCE
#include "CSyscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define CACHED 0x20  // RESOLVE_CACHED

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER, answered;
static enum { ABSENT, IDLE, BUSY, DONE, ABANDONED } state;
static struct {
  int directory, result;
  uint64_t flags, resolve;
  char path[8192];
} job;

static void *look(void *argument) {
  pthread_mutex_lock(&lock);
  for (;;) {
    while (state != BUSY) pthread_cond_wait(&asked, &lock);
    pthread_mutex_unlock(&lock);
    int result = csys_openat2(job.directory, job.path, job.flags, job.resolve);
    pthread_mutex_lock(&lock);
    if (state == ABANDONED) {
      if (result >= 0) close(result);
      state = IDLE;
    } else {
      job.result = result;
      state = DONE;
      pthread_cond_signal(&answered);
    }
  }
  return argument;
}

static int start(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&answered, &attributes);
  pthread_t thread;
  int error = pthread_create(&thread, NULL, look, NULL);
  if (error) return -error;
  pthread_detach(thread);
  state = IDLE;
  return 0;
}

int csys_look_up(
    int directory, const char *path, uint64_t flags, uint64_t resolve, int milliseconds) {
  int result = csys_openat2(directory, path, flags, resolve | CACHED);
  if (result != -EAGAIN || strlen(path) >= sizeof job.path) return result;
  pthread_mutex_lock(&lock);
  if (state == ABSENT && start() < 0) goto out;
  if (state != IDLE) goto out;
  job.directory = directory;
  job.flags = flags;
  job.resolve = resolve;
  strcpy(job.path, path);
  state = BUSY;
  pthread_cond_signal(&asked);
  struct timespec end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_nsec += milliseconds * 1000000L;
  end.tv_sec += end.tv_nsec / 1000000000L;
  end.tv_nsec %= 1000000000L;
  while (state == BUSY && pthread_cond_timedwait(&answered, &lock, &end) == 0) {
  }
  if (state == DONE) {
    result = job.result;
    state = IDLE;
  } else {
    state = ABANDONED;
  }
out:
  pthread_mutex_unlock(&lock);
  return result;
}

int csys_identity_known(int fd, struct csys_identity *out) {
  struct statx status;
  int result = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &status);
  if (result < 0) return -errno;
  *out = (struct csys_identity){
      makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino, status.stx_mode, 0};
  return 0;
}
