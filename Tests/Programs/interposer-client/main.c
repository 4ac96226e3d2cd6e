// SPDX-License-Identifier: Apache-2.0
//
// One program, many small tests: the first argument names which. Exit status 0: as expected.

#define _GNU_SOURCE
#include "client.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int hello(char **arguments) {
  (void)arguments;
  int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  struct request request = {.a = 41};
  CHECK(call(fd, 1, &request) == 41);
  CHECK(request.b == 42);
  return 0;
}

static const struct {
  const char *name;
  int (*run)(char **arguments);
} tests[] = {
    {"hello", hello},
};

int main(int count, char **arguments) {
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
    if (count > 1 && strcmp(tests[i].name, arguments[1]) == 0)
      return tests[i].run(arguments + 2);
  fprintf(stderr, "no such test\n");
  return 2;
}
