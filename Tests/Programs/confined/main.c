// SPDX-License-Identifier: Apache-2.0
//
// Runs a program as a container would confine it: Docker's default seccomp profile, its fourteen
// capabilities, its /dev, /sys and /proc, and no user namespaces. What a container has beside that,
// a root directory, processes and a network of its own and AppArmor's profile, it does not have.

#define _GNU_SOURCE
#include "confined.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "rules.h"

static const char usage[] =
    "Usage: confined [OPTIONS] [--] PROGRAM [ARGUMENT…]\n"
    "\n"
    "  --cap-add NAME    a capability more, such as SYS_PTRACE, with its rules of the profile\n"
    "  --profile 20.10   the seccomp profile of Docker 20.10, but for families of sockets\n"
    "  --without PART    leave out one of: seccomp, capabilities, mounts\n"
    "  --help            print this\n"
    "\n"
    "The program's user is ours; as another one: confined setpriv --reuid=65534 … PROGRAM\n"
    "Exit status: the program's; 125 could not confine, 126 could not execute, 127 no such program.\n";

void fail(const char *what) {
  fprintf(stderr, "confined: %s: %s\n", what, strerror(errno));
  exit(125);
}

static _Noreturn void misuse(const char *what, const char *value) {
  fprintf(stderr, "confined: %s '%s'\n%s", what, value, usage);
  exit(2);
}

static int capability_named(const char *name) {
  static const struct {
    const char *name;
    int number;
  } names[] = {
      {"BPF", CAP_BPF},                  {"DAC_READ_SEARCH", CAP_DAC_READ_SEARCH},
      {"IPC_LOCK", CAP_IPC_LOCK},        {"PERFMON", CAP_PERFMON},
      {"SYS_ADMIN", CAP_SYS_ADMIN},      {"SYS_BOOT", CAP_SYS_BOOT},
      {"SYS_MODULE", CAP_SYS_MODULE},    {"SYS_NICE", CAP_SYS_NICE},
      {"SYS_PACCT", CAP_SYS_PACCT},      {"SYS_PTRACE", CAP_SYS_PTRACE},
      {"SYS_RAWIO", CAP_SYS_RAWIO},      {"SYS_RESOURCE", CAP_SYS_RESOURCE},
      {"SYS_TIME", CAP_SYS_TIME},        {"SYS_TTY_CONFIG", CAP_SYS_TTY_CONFIG},
      {"SYSLOG", CAP_SYSLOG},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(name, names[i].name)) return names[i].number;
  misuse("there is no capability", name);
}

void keep_capabilities(uint64_t set) {
  for (int number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++)
    if (!(set >> number & 1) && prctl(PR_CAPBSET_DROP, number, 0, 0, 0)) fail("PR_CAPBSET_DROP");
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {0};
  for (int half = 0; half < 2; half++)
    data[half].effective = data[half].permitted = (uint32_t)(set >> (32 * half));
  if (syscall(SYS_capset, &header, data)) fail("capset");
}

// Whether somebody has confined us so before: then nobody can make the namespaces again. Other
// containers have fewer capabilities and a filter, too, and let their programs make some.
static bool is_confined(uint64_t set) {
  for (int number = 0;; number++) {
    const int kept = prctl(PR_CAPBSET_READ, number, 0, 0, 0);
    if (kept < 0) break;
    if (kept && !(set >> number & 1)) return false;
  }
  return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 && !may_make_namespaces();
}

static int execute(char **arguments) {
  execvp(arguments[0], arguments);
  const int error = errno;
  fprintf(stderr, "confined: %s: %s\n", arguments[0], strerror(error));
  return error == ENOENT ? 127 : 126;
}

int main(int count, char **arguments) {
  bool filters = true, drops = true, mounts = true, is_2010 = false;
  uint64_t set = 0;
  for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
    set |= UINT64_C(1) << capabilities[i];
  int at = 1;
  for (; at < count && arguments[at][0] == '-'; at++) {
    const char *option = arguments[at];
    if (!strcmp(option, "--")) {
      at++;
      break;
    }
    if (!strcmp(option, "--help")) {
      fputs(usage, stdout);
      return 0;
    }
    const bool adds = !strcmp(option, "--cap-add"), dates = !strcmp(option, "--profile");
    if (!adds && !dates && strcmp(option, "--without")) misuse("unknown option", option);
    if (++at == count) misuse("a value is missing after", option);
    const char *value = arguments[at];
    if (adds) set |= UINT64_C(1) << capability_named(value);
    else if (dates && !strcmp(value, "20.10")) is_2010 = true;
    else if (dates) misuse("there is no profile", value);
    else if (!strcmp(value, "seccomp")) filters = false;
    else if (!strcmp(value, "capabilities")) drops = false;
    else if (!strcmp(value, "mounts")) mounts = false;
    else misuse("there is no part", value);
  }
  if (at == count) {
    fputs(usage, stderr);
    return 2;
  }
  if (is_confined(set)) return execute(arguments + at);
  enter_namespaces(mounts);
  if (mounts) make_mounts();
  // While we have CAP_SYS_ADMIN: without no_new_privs, which containers do not have, it takes that.
  if (filters) install_filter(drops ? set : ~UINT64_C(0), is_2010);
  if (drops) keep_capabilities(set);
  return execute(arguments + at);
}
