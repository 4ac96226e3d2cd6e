// SPDX-License-Identifier: Apache-2.0
//
// The first process of the guest of Conformance/qemu-*. The kernel's command line says what to do,
// step by step: `step=NAME:SETTING=VALUE:…`. What comes of it is told on the second serial port, a
// line each; `end` is the last.

#define _GNU_SOURCE

#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int host = STDERR_FILENO;
static char settings[1024];

static void tell_all(const char *first, const char *format, va_list arguments) {
  char line[1024];
  int length = snprintf(line, sizeof line, "%s", first);
  length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
  if (length > (int)sizeof line - 2) length = sizeof line - 2;
  line[length++] = '\n';
  // In one piece: steps may have several processes.
  if (write(host, line, (size_t)length) < 0) perror("the host's port");
}

void tell(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tell_all("", format, arguments);
  va_end(arguments);
}

int judge(int good, const char *name, const char *format, ...) {
  char first[128];
  snprintf(first, sizeof first, "%s %s ", good ? "ok" : "not-ok", name);
  va_list arguments;
  va_start(arguments, format);
  tell_all(first, format, arguments);
  va_end(arguments);
  return good;
}

const char *setting(const char *name, const char *otherwise) {
  static char value[4][256];
  static unsigned turn;
  size_t length = strlen(name);
  for (const char *at = settings; *at;) {
    const char *end = strchrnul(at, ':');
    if (strncmp(at, name, length) == 0 && at[length] == '=') {
      char *into = value[turn++ % 4];
      snprintf(into, 256, "%.*s", (int)(end - at - (long)length - 1), at + length + 1);
      return into;
    }
    at = *end ? end + 1 : end;
  }
  return otherwise;
}

long number(const char *name, long otherwise) {
  const char *text = setting(name, NULL);
  return text ? strtol(text, NULL, 0) : otherwise;
}

const char *path(const char *format, ...) {
  static char paths[5][PATH_MAX];
  static unsigned turn;
  char *into = paths[turn++ % 5];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(into, PATH_MAX, format, arguments);
  va_end(arguments);
  return into;
}

double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_BOOTTIME, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int put(const char *where, const char *text) {
  int file = open(where, O_WRONLY | O_CLOEXEC);
  if (file < 0) return errno;
  int status = write(file, text, strlen(text)) < 0 ? errno : 0;
  close(file);
  return status;
}

int get(const char *where, char *text, size_t room) {
  int file = open(where, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  ssize_t length = read(file, text, room - 1);
  close(file);
  if (length < 0) return -1;
  while (length > 0 && text[length - 1] == '\n') length--;
  text[length] = 0;
  return (int)length;
}

const char *link_end(const char *link) {
  static char target[PATH_MAX];
  ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return "";
  target[length] = 0;
  char *slash = strrchr(target, '/');
  return slash ? slash + 1 : target;
}

int run(const char *const arguments[]) {
  pid_t child = fork();
  if (child == 0) {
    execv(arguments[0], (char *const *)(uintptr_t)arguments);
    perror(arguments[0]);
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return 126;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int wait_for(const char *what, double seconds) {
  for (double end = now() + seconds; access(what, F_OK) != 0; usleep(10000))
    if (now() > end) return 0;
  return 1;
}

int find_function(const char *vendor, const char *device, char name[64]) {
  DIR *functions = opendir("/sys/bus/pci/devices");
  int found = 0;
  for (struct dirent *entry; functions && !found && (entry = readdir(functions));) {
    char text[32];
    if (get(path("/sys/bus/pci/devices/%s/vendor", entry->d_name), text, sizeof text) < 0 || strcmp(text, vendor) != 0) continue;
    if (get(path("/sys/bus/pci/devices/%s/device", entry->d_name), text, sizeof text) < 0 || strcmp(text, device) != 0) continue;
    snprintf(name, 64, "%.63s", entry->d_name);
    found = 1;
  }
  if (functions) closedir(functions);
  return found;
}

static void mount_all(void) {
  static const char *const mounts[][2] = {
      {"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}};
  for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++)
    if (mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL) != 0) perror(mounts[i][1]);
}

/// Whether a text is in a file of /proc.
static int has_line(const char *where, const char *text) {
  static char contents[16384];
  return get(where, contents, sizeof contents) > 0 && strstr(contents, text) != NULL;
}

/// That the guest's own IOMMU is on. Settings: remapped (whether interrupts must go through it).
void step_iommu(void) {
  judge(access("/sys/class/iommu/dmar0", F_OK) == 0, "iommu", "dmar0 is there");
  int remapped = has_line("/proc/interrupts", "IR-PCI-MSI");
  judge(remapped == (number("remapped", 1) != 0), "remapping", "of interrupts is %s",
        remapped ? "on" : "off");
}

static void take(char *step) {
  static const struct {
    const char *name;
    void (*step)(void);
  } steps[] = {{"iommu", step_iommu}, {"dmatest", step_dmatest}, {"nvme", step_nvme},
               {"format", step_format}, {"write", step_write}, {"check", step_check},
               {"hostile", step_hostile}, {"hostile-nvme", step_hostile_nvme}};
  char *end = strchrnul(step, ':');
  snprintf(settings, sizeof settings, "%s", *end ? end + 1 : "");
  *end = 0;
  double start = now();
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
    if (strcmp(step, steps[i].name) == 0) {
      steps[i].step();
      tell("note %s took %.2f s", step, now() - start);
      return;
    }
  judge(0, step, "there is no such step");
}

int main(void) {
  mount_all();
  int port = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (port >= 0) host = port;
  tell("booted %.2f s", now());

  static char line[4096];
  if (get("/proc/cmdline", line, sizeof line) < 0) perror("/proc/cmdline");
  for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
    if (strncmp(word, "step=", 5) == 0) take(word + 5);
  tell("end");
  sync();
  if (port >= 0) fsync(port);
  usleep(50000);
  reboot(RB_AUTOBOOT); // The host takes a restart for the end.
  for (;;) pause();
}
