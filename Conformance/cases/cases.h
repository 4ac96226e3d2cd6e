// SPDX-License-Identifier: Apache-2.0
//
// The harness of the cases: each CASE registers itself and runs in a child of its own, so that
// nothing it opens, maps or leaves behind reaches the next one.

#ifndef CASES_H
#define CASES_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/// The first Linux that answers a case as it expects: one of 6.12's runs on both, and can be held
/// against a real kernel.
enum since { LINUX_6_12, LINUX_7_1 };

struct test_case {
  const char *group, *name;
  enum since since;
  void (*body)(void);
  struct test_case *next;
};

void register_case(struct test_case *test);

/// CASE(group, name, since) { … }: a case `group.name`.
#define CASE(group_, name_, since_)                                                                \
  static void group_##_##name_(void);                                                              \
  __attribute__((constructor)) static void register_##group_##_##name_(void) {                     \
    static struct test_case test = {#group_, #name_, since_, group_##_##name_, NULL};              \
    register_case(&test);                                                                          \
  }                                                                                                \
  static void group_##_##name_(void)

bool expect(const char *file, int line, const char *text, long long wanted, long long got);
long long get(const char *file, int line, const char *text, long long got);
void fail(const char *file, int line, const char *text);
_Noreturn void end_case(void);
_Noreturn void skip(const char *why);

/// The call's value must be the wanted one: 0 or another value, or a negative errno.
#define EXPECT(wanted, call) expect(__FILE__, __LINE__, #call, wanted, call)
/// The same; the case ends here where it is not.
#define NEED(wanted, call)                                                                         \
  do {                                                                                             \
    if (!EXPECT(wanted, call)) end_case();                                                         \
  } while (0)
/// The call's value, which must not be an error.
#define GET(call) get(__FILE__, __LINE__, #call, call)
/// A condition that must hold.
#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) fail(__FILE__, __LINE__, #condition);                                        \
  } while (0)

#endif
