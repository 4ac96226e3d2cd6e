// SPDX-License-Identifier: Apache-2.0
//
// What a program can do with /proc/TID/fail-nth where `iommu run --self-test-driver` offers it:
// arm a failure for one of its threads, meet it, and see that it was met. Exits with 0 where
// all is so; prints what is not.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "iommufd_abi.h"

static int iommu;

static void check(int holds, const char *what) {
  if (holds) return;
  printf("not so: %s (errno %d)\n", what, errno);
  exit(1);
}

static int allocate(void) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  return ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc);
}

static void arm(int file, const char *nth) {
  const ssize_t length = (ssize_t)strlen(nth);
  check(pwrite(file, nth, (size_t)length, 0) == length, "fail-nth takes a number");
}

static int left(int file) {
  char text[16] = "";
  check(pread(file, text, sizeof text - 1, 0) > 1, "fail-nth can be read");
  return atoi(text);
}

static void *other_thread(void *unused) {
  (void)unused;
  check(allocate() == 0, "another thread's calls do not fail");
  return NULL;
}

int main(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/fail-nth", (int)syscall(SYS_gettid));
  const int file = open(path, O_RDWR);
  check(file >= 0, "fail-nth can be opened");
  iommu = open("/dev/iommu", O_RDWR);
  check(iommu >= 0, "/dev/iommu can be opened");

  check(left(file) == 0, "nothing is armed at first");
  int failures = 0;
  for (int nth = 1; nth < 20; nth++) {
    char text[16];
    snprintf(text, sizeof text, "%d", nth);
    arm(file, text);
    const int result = allocate();
    if (left(file) != 0) {
      check(result == 0, "a call without a failure succeeds");
      break;
    }
    check(result == -1 && (errno == ENOMEM || errno == EFAULT), "the armed call fails");
    failures++;
  }
  check(failures >= 3, "there is a copy in, an id and a copy out to fail");
  arm(file, "0");
  check(allocate() == 0, "a disarmed call succeeds");

  arm(file, "1\n");
  pthread_t thread;
  check(pthread_create(&thread, NULL, other_thread, NULL) == 0, "a thread starts");
  pthread_join(thread, NULL);
  check(left(file) == 1, "another thread's calls do not count");
  check(allocate() == -1, "the armed thread's call fails still");

  char text[16];
  check(read(file, text, sizeof text) == 2 && read(file, text, sizeof text) == 0,
        "read comes to an end");
  check(pwrite(file, "x", 1, 0) == -1 && errno == EINVAL, "a word is no number");
  check(open("/proc/self/task/1/fail-nth", O_RDWR) == -1 && errno == ENOENT,
        "no other process's thread is there");
  check(open("/proc/thread-self/fail-nth", O_RDONLY) >= 0, "thread-self is the thread");
  return 0;
}
