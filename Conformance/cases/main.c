// SPDX-License-Identifier: Apache-2.0
//
// Runs the cases, each in a child. The last line is `N passed, N failed, N skipped`.

#include "cases.h"

#include <fnmatch.h>
#include <signal.h>
#include <sys/wait.h>

enum { PASSED = 0, FAILED = 1, SKIPPED = 4, SECONDS = 20 };

static struct test_case *first, **last = &first;
static bool failed;

void register_case(struct test_case *test) {
  *last = test;
  last = &test->next;
}

// --- What a case says ------------------------------------------------------------------------

static const char *value(long long number, char *buffer, size_t size) {
  const char *name = NULL;
  if (number < 0 && number > -4096) name = strerrorname_np((int)-number);
  if (name) return name;
  snprintf(buffer, size, "%lld (0x%llx)", number, (unsigned long long)number);
  return buffer;
}

bool expect(const char *file, int line, const char *text, long long wanted, long long got) {
  char one[64], other[64];
  if (wanted == got) return true;
  printf("    %s:%d: %s gave %s, not %s\n", file, line, text, value(got, one, sizeof one),
         value(wanted, other, sizeof other));
  failed = true;
  return false;
}

long long get(const char *file, int line, const char *text, long long got) {
  char buffer[64];
  if (got >= 0) return got;
  printf("    %s:%d: %s failed: %s\n", file, line, text, value(got, buffer, sizeof buffer));
  failed = true;
  end_case();
}

void fail(const char *file, int line, const char *text) {
  printf("    %s:%d: not so: %s\n", file, line, text);
  failed = true;
}

void end_case(void) {
  fflush(stdout);
  _exit(failed ? FAILED : PASSED);
}

void skip(const char *why) {
  printf("    %s\n", why);
  fflush(stdout);
  _exit(failed ? FAILED : SKIPPED);
}

// --- The run -----------------------------------------------------------------------------------

static int run(const struct test_case *test) {
  int status;
  pid_t child;
  fflush(stdout);
  child = fork();
  if (child == 0) {
    alarm(SECONDS);
    test->body();
    end_case();
  }
  if (child < 0) return FAILED;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return FAILED;
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  if (WTERMSIG(status) == SIGALRM) printf("    did not end in %d seconds\n", SECONDS);
  else printf("    killed by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return FAILED;
}

static bool wanted(const struct test_case *test, char **patterns, const char *name) {
  (void)test;
  if (!*patterns) return true;
  for (; *patterns; patterns++)
    if (fnmatch(*patterns, name, 0) == 0) return true;
  return false;
}

static int usage(FILE *stream) {
  fputs("Usage: cases [--list] [--linux-6.12] [PATTERN…]\n"
        "Runs the cases whose names (GROUP.NAME) match one of the patterns, or all.\n"
        "  --list         print the names and stop\n"
        "  --linux-6.12   only what Linux 6.12 answers in the same way\n",
        stream);
  return stream == stderr ? 2 : 0;
}

int main(int count, char **arguments) {
  int passed = 0, failures = 0, skipped = 0;
  enum since newest = LINUX_7_1;
  bool list = false;
  (void)count;
  for (arguments++; *arguments && **arguments == '-'; arguments++) {
    if (strcmp(*arguments, "--list") == 0) list = true;
    else if (strcmp(*arguments, "--linux-6.12") == 0) newest = LINUX_6_12;
    else if (strcmp(*arguments, "--help") == 0) return usage(stdout);
    else return usage(stderr);
  }
  for (char **pattern = arguments; *pattern; pattern++) {
    char *only[] = {*pattern, NULL}, name[128];
    bool matches = false;
    for (const struct test_case *test = first; test && !matches; test = test->next) {
      snprintf(name, sizeof name, "%s.%s", test->group, test->name);
      matches = wanted(test, only, name);
    }
    if (!matches) {
      fprintf(stderr, "cases: no case matches %s; --list prints their names\n", *pattern);
      return 2;
    }
  }
  for (const struct test_case *test = first; test; test = test->next) {
    char name[128];
    int result;
    snprintf(name, sizeof name, "%s.%s", test->group, test->name);
    if (test->since > newest || !wanted(test, arguments, name)) continue;
    if (list) {
      puts(name);
      continue;
    }
    result = run(test);
    printf("%s %s\n", result == PASSED ? "ok" : result == SKIPPED ? "skipped" : "FAILED", name);
    passed += result == PASSED;
    skipped += result == SKIPPED;
    failures += result != PASSED && result != SKIPPED;
  }
  if (list) return 0;
  if (passed + failures + skipped == 0) {
    fputs("cases: no case matches; --list prints their names\n", stderr);
    return 2;
  }
  printf("%d passed, %d failed, %d skipped\n", passed, failures, skipped);
  return failures != 0;
}
