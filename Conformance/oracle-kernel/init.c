// SPDX-License-Identifier: Apache-2.0
//
// The first process of Conformance/oracle's machine: runs one program, copies its output to
// the host as it comes, tells the host how the program ended, and switches off.
//
// The host gives the program's arguments in /oracle/arguments, each ended by a zero byte, and
// three virtio ports: 1 takes standard output, 2 standard error, 3 the last word: `exit N`,
// `signal N` or `failed SENTENCE`.

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int control = -1;

static void say(const char *word, int number) {
  char line[64];
  int length = snprintf(line, sizeof line, "%s %d\n", word, number);
  if (write(control, line, (size_t)length) < 0) perror("control port");
}

static void power_off(void) {
  reboot(RB_AUTOBOOT); // The host takes a restart for the end.
  for (;;) pause();
}

static void fail(const char *what) {
  fprintf(stderr, "oracle: %s: %s\n", what, strerror(errno));
  char line[256];
  int length = snprintf(line, sizeof line, "failed %s: %s\n", what, strerror(errno));
  if (control >= 0 && write(control, line, (size_t)length) < 0) perror("control port");
  power_off();
}

static void mount_all(void) {
  static const struct {
    const char *type, *where;
  } mounts[] = {
      {"devtmpfs", "/dev"}, {"proc", "/proc"},      {"sysfs", "/sys"},
      {"tmpfs", "/tmp"},    {"debugfs", "/sys/kernel/debug"}, {"tmpfs", "/dev/shm"},
      {"hugetlbfs", "/dev/hugepages"},
  };
  for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
    mkdir(mounts[i].where, 0755);
    if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL) != 0)
      fprintf(stderr, "oracle: mount %s: %s\n", mounts[i].where, strerror(errno));
  }
}

/// Opens a virtio port; the host announces them one after the other while we start.
static int open_port(const char *path) {
  for (int tries = 0; tries < 10000; tries++) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) return fd;
    usleep(1000);
  }
  fail(path);
  return -1;
}

static char **read_arguments(void) {
  static char text[65536];
  static char *arguments[4096];
  int fd = open("/oracle/arguments", O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (length <= 0) fail("/oracle/arguments");
  close(fd);
  size_t count = 0;
  for (char *at = text; at < text + length && count < 4095; at += strlen(at) + 1)
    arguments[count++] = at;
  return arguments;
}

static void run(char **arguments, int output, int errors) {
  setsid();
  dup2(output, STDOUT_FILENO);
  dup2(errors, STDERR_FILENO);
  setenv("HOME", "/tmp", 1);
  setenv("PATH", "/program", 1);
  unsetenv("TERM");
  if (chdir("/program") != 0) perror("oracle: /program");
  execv(arguments[0], arguments);
  fprintf(stderr, "oracle: %s: %s\n", arguments[0], strerror(errno));
  _exit(errno == ENOENT ? 127 : 126);
}

/// Copies what there is from a pipe to a port; false where the pipe has ended.
static int copy(int from, int to) {
  static char buffer[65536];
  ssize_t length = read(from, buffer, sizeof buffer);
  if (length == 0) return 0;
  if (length < 0) return errno == EAGAIN || errno == EINTR;
  for (ssize_t done = 0; done < length;) {
    ssize_t wrote = write(to, buffer + done, (size_t)(length - done));
    if (wrote < 0 && errno != EINTR && errno != EAGAIN) return 0;
    if (wrote > 0) done += wrote;
  }
  return 1;
}

int main(void) {
  mount_all();
  control = open_port("/dev/vport0p3");
  int ports[2] = {open_port("/dev/vport0p1"), open_port("/dev/vport0p2")};
  char **arguments = read_arguments();

  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  int output[2], errors[2];
  if (pipe2(output, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0) fail("pipe");
  pid_t program = fork();
  if (program < 0) fail("fork");
  if (program == 0) run(arguments, output[1], errors[1]);
  close(output[1]);
  close(errors[1]);
  fcntl(output[0], F_SETFL, O_NONBLOCK);
  fcntl(errors[0], F_SETFL, O_NONBLOCK);

  struct pollfd from[2] = {{output[0], POLLIN, 0}, {errors[0], POLLIN, 0}};
  int status = 0, ended = 0;
  while (!ended) {
    poll(from, 2, 20);
    for (int i = 0; i < 2; i++)
      if (from[i].revents && !copy(from[i].fd, ports[i])) from[i].fd = -1;
    int one;
    for (pid_t pid; (pid = waitpid(-1, &one, WNOHANG)) > 0;)
      if (pid == program) {
        status = one;
        ended = 1;
      }
  }
  // What the program left in the pipes; children of it that live on are not waited for.
  for (int i = 0; i < 2; i++)
    while (from[i].fd >= 0 && poll(&from[i], 1, 0) > 0)
      if (!copy(from[i].fd, ports[i])) from[i].fd = -1;
  if (WIFSIGNALED(status))
    say("signal", WTERMSIG(status));
  else
    say("exit", WEXITSTATUS(status));
  power_off();
}
