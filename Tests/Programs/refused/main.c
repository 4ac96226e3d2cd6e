// SPDX-License-Identifier: Apache-2.0
//
// Runs a program to which some system calls are refused with EPERM, as a container's profile refuses them.
// Usage: refused CALL… -- PROGRAM [ARGUMENT…]; a call is pidfd_getfd or ptrace.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static const struct {
  const char *name;
  unsigned number;
} calls[] = {{"pidfd_getfd", SYS_pidfd_getfd}, {"ptrace", SYS_ptrace}};

int main(int count, char **arguments) {
  enum { MOST = 8 };
  struct sock_filter code[2 * MOST + 2];
  unsigned short length = 0;
  code[length++] =
      (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  int place = 1;
  for (; place < count && place <= MOST && strcmp(arguments[place], "--") != 0; place++)
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
      if (strcmp(arguments[place], calls[i].name) == 0) {
        code[length++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, 0, 1);
        code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
      }
  code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  if (place + 1 >= count) {
    fputs("Usage: refused CALL… -- PROGRAM [ARGUMENT…]\n", stderr);
    return 2;
  }
  const struct sock_fprog program = {.len = length, .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) {
    perror("refused");
    return 125;
  }
  execvp(arguments[place + 1], arguments + place + 1);
  perror(arguments[place + 1]);
  return 127;
}
