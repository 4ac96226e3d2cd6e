// SPDX-License-Identifier: Apache-2.0
//
// One program, many small tests: the first argument names which. Exit status 0: as expected.

#include "client.h"
#include "client_tests.h"

int main(int count, char **arguments) {
  const struct test *all[] = {file_tests, lifetime_tests, process_tests, memory_tests, terminal_tests,
                               queue_tests, page_tests, crowd_tests, doorbell_tests, view_tests,
                               handover_tests, shared_tests};
  for (size_t i = 0; count > 1 && i < sizeof all / sizeof *all; i++)
    for (const struct test *test = all[i]; test->name; test++)
      if (strcmp(test->name, arguments[1]) == 0) return test->run(arguments + 2);
  fprintf(stderr, "no such test\n");
  return 2;
}
