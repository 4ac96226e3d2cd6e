// SPDX-License-Identifier: Apache-2.0
//
// Calls that take paths: one that has nothing to do with a machine's view, and what a build does.

#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void measure_path(size_t count, const char *name) {
  uint64_t *samples = calloc(count, sizeof *samples);
  for (size_t i = 0; i < count; i++) {
    struct stat status;
    const uint64_t start = nanoseconds();
    if (syscall(SYS_newfstatat, AT_FDCWD, "/usr/bin/env", &status, 0)) fail("/usr/bin/env");
    samples[i] = nanoseconds() - start;
  }
  print_median(name, samples, count);
}

enum { DIRECTORIES = 16, FILES = 32 };

static void make_files(void) {
  char path[64];
  for (int i = 0; i < DIRECTORIES; i++) {
    snprintf(path, sizeof path, "include%d", i);
    if (mkdir(path, 0755) && errno != EEXIST) fail(path);
    snprintf(path, sizeof path, "include%d/deep", i);
    if (mkdir(path, 0755) && errno != EEXIST) fail(path);
    for (int file = 0; file < FILES; file++) {
      snprintf(path, sizeof path, "include%d/deep/%d.h", i, file);
      const int made = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
      if (made < 0) fail(path);
      close(made);
    }
  }
  if (symlink("include0", "link") && errno != EEXIST) fail("link");
}

static void must(int result, const char *path) {
  if (result < 0) fail(path);
}

static void must_not(int result, const char *path) {
  if (result < 0) return;
  fprintf(stderr, "%s is there\n", path);
  exit(1);
}

static void open_one(int directory, const char *path) {
  const int file = openat(directory, path, O_RDONLY | O_CLOEXEC);
  must(file, path);
  close(file);
}

// One of ten calls of a build that looks for its headers: half of what it asks for is not there.
static void look(size_t number, const char *home, int directory) {
  char path[4200];
  struct stat status;
  const int place = (int)(number / 10 % DIRECTORIES), file = (int)(number % FILES);
  switch (number % 10) {
    case 0:
      snprintf(path, sizeof path, "%s/include%d/deep/%d.h", home, place, file);
      return open_one(AT_FDCWD, path);
    case 1:
      snprintf(path, sizeof path, "%s/include%d/deep/%d.h", home, place, file);
      return must(stat(path, &status), path);
    case 2:
      snprintf(path, sizeof path, "%s/include%d/deep/none%d.h", home, place, file);
      return must_not(stat(path, &status), path);
    case 3:
      snprintf(path, sizeof path, "%s/include%d/none/%d.h", home, place, file);
      return must_not(open(path, O_RDONLY | O_CLOEXEC), path);
    case 4:
      snprintf(path, sizeof path, "include%d/deep/%d.h", place, file);
      return open_one(AT_FDCWD, path);
    case 5:
      snprintf(path, sizeof path, "include%d/deep/none%d.h", place, file);
      return must_not(open(path, O_RDONLY | O_CLOEXEC), path);
    case 6:
      snprintf(path, sizeof path, "include%d/none/%d.h", place, file);
      return must_not(access(path, R_OK), path);
    case 7:
      snprintf(path, sizeof path, "%s/link/deep/%d.h", home, file);
      return open_one(AT_FDCWD, path);
    case 8:
      snprintf(path, sizeof path, "link/deep/none%d.h", file);
      return must_not(stat(path, &status), path);
    default:
      snprintf(path, sizeof path, "deep/%d.h", file);
      return open_one(directory, path);
  }
}

void measure_files(size_t rounds, const char *home, const char *name) {
  enum { CALLS = 10000 };
  if (chdir(home)) fail(home);
  make_files();
  const int directory = open("include0", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  must(directory, "include0");
  uint64_t *samples = calloc(rounds, sizeof *samples);
  for (size_t round = 0; round < rounds; round++) {
    const uint64_t start = nanoseconds();
    for (size_t i = 0; i < CALLS; i++) look(i, home, directory);
    samples[round] = (nanoseconds() - start) / CALLS;
  }
  print_median(name, samples, rounds);
}
