// SPDX-License-Identifier: Apache-2.0
//
// A shell with a terminal, as small as can be: runs a job in the foreground, stops it with
// Ctrl-Z, continues it, ends it with Ctrl-C. Runs outside of the interposer; the job is one.

#define _GNU_SOURCE
#include "client.h"
#include "client_tests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static volatile int continued;

static void on_continue(int number) {
  (void)number;
  continued = 1;
}

// The job: says when it is ready and when it goes on.
static int job(char **arguments) {
  (void)arguments;
  signal(SIGCONT, on_continue);
  CHECK(isatty(0) && tcgetpgrp(0) == getpgrp());
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    usleep(2000);
    if (continued) {
      continued = 0;
      printf("again\n");
      fflush(stdout);
    }
  }
}

// Reads from the terminal's other end until `word` comes.
static void expect(int master, const char *word) {
  char text[4096] = {0};
  size_t length = 0;
  while (!strstr(text, word)) {
    long count = read(master, text + length, sizeof text - 1 - length);
    if (count <= 0) fprintf(stderr, "waited for %s, got: %s\n", word, text);
    CHECK(count > 0);
    length += (size_t)count;
  }
}

static int shell(char **arguments) {
  for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
  signal(SIGTTOU, SIG_IGN);
  pid_t job = fork();
  CHECK(job >= 0);
  if (job == 0) {
    setpgid(0, 0);
    tcsetpgrp(0, getpid());
    signal(SIGTTOU, SIG_DFL);
    execv(arguments[0], arguments);
    _exit(127);
  }
  setpgid(job, job);
  int status;
  CHECK(waitpid(job, &status, WUNTRACED) == job);
  CHECK(WIFSTOPPED(status));
  CHECK(tcsetpgrp(0, getpgrp()) == 0);
  printf("stopped\n");
  fflush(stdout);
  char byte;
  CHECK(read(0, &byte, 1) == 1);
  CHECK(tcsetpgrp(0, job) == 0 && kill(-job, SIGCONT) == 0);
  CHECK(waitpid(job, &status, WUNTRACED) == job);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
  CHECK(tcsetpgrp(0, getpgrp()) == 0);
  printf("interrupted\n");
  fflush(stdout);
  return 0;
}

static int terminal(char **arguments) {
  alarm(300);
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    setsid();
    int slave = open(ptsname(master), O_RDWR);
    if (slave < 0) _exit(9);
    dup2(slave, 0);
    dup2(slave, 1);
    dup2(slave, 2);
    close(slave);
    close(master);
    _exit(shell(arguments));
  }
  expect(master, "ready");
  CHECK(write(master, "\x1a", 1) == 1);
  expect(master, "stopped");
  CHECK(write(master, "\n", 1) == 1);
  expect(master, "again");
  CHECK(write(master, "\x03", 1) == 1);
  expect(master, "interrupted");
  int status;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status);
}

// A call as a 32-bit program makes it.
static int foreign(char **arguments) {
  (void)arguments;
#ifdef __x86_64__
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
  fprintf(stderr, "the call answered %ld\n", result);
#else
  raise(SIGKILL);
#endif
  return 0;
}

const struct test terminal_tests[] = {
    {"terminal", terminal}, {"job", job}, {"foreign", foreign}, {0, 0}};
