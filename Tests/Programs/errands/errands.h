// SPDX-License-Identifier: Apache-2.0
//
// What the tests of errands share. Paths below /shown are those of the directory that the test was given:
// who serves the calls has the threads make them with those.

#ifndef ERRANDS_H
#define ERRANDS_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../common/check.h"

struct test {
  const char *name;
  void (*run)(void);
};
extern const struct test path_tests[], process_tests[];

// What `PREFIX/file` says.
static inline void check_file(const char *path) {
  char text[8] = {0};
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(file >= 0);
  CHECK(read(file, text, sizeof text) == 5 && memcmp(text, "text\n", 5) == 0);
  close(file);
}

static inline int wait_for(pid_t child) {
  int status;
  while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
  return status;
}

static inline void check_end(pid_t child, int expected) {
  const int status = wait_for(child);
  if (status == expected) return;
  fprintf(stderr, "process %d ended with %#x, not %#x\n", child, (unsigned)status, (unsigned)expected);
  exit(1);
}

#endif
