// SPDX-License-Identifier: Apache-2.0
//
// The tests of each file, by name.

#ifndef CLIENT_TESTS_H
#define CLIENT_TESTS_H

struct test {
  const char *name;
  int (*run)(char **arguments);
};

extern const struct test file_tests[], lifetime_tests[], process_tests[], memory_tests[],
    terminal_tests[], queue_tests[], page_tests[], crowd_tests[], doorbell_tests[], view_tests[],
    handover_tests[], shared_tests[];

#endif
