// SPDX-License-Identifier: Apache-2.0
//
// Makes each system call of x86-64, with arguments that do nothing, and says how a container's rules
// took it: refused (EPERM), unknown (ENOSYS), or let through to the kernel, whose answer it is then.

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// Those that end or stop the caller whatever their arguments are, and sync, which takes long.
static int is_left_out(int call) {
  static const int calls[] = {SYS_exit, SYS_exit_group, SYS_pause, SYS_rt_sigreturn, SYS_vfork,
                              SYS_fork, SYS_rt_sigsuspend, SYS_kill, SYS_reboot, SYS_sync};
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
    if (calls[i] == call) return 1;
  return 0;
}

int main(void) {
  enum { LAST = 470 };
  setvbuf(stdout, NULL, _IONBF, 0);
  for (int call = 0; call <= LAST; call++) {
    if (is_left_out(call)) continue;
    const pid_t child = fork();
    if (child < 0) return perror("fork"), 1;
    if (!child) {
      alarm(1);
      // Of families of sockets only some are allowed: a local one is.
      const long first = call == SYS_socket ? 1 : -1;
      const long result = syscall(call, first, -1L, -1L, -1L, -1L, -1L);
      _exit(result >= 0 ? 0 : errno);
    }
    int status;
    if (waitpid(child, &status, 0) != child) return perror("waitpid"), 1;
    const int error = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    printf("%d %s\n", call, error == EPERM ? "refused" : error == ENOSYS ? "unknown" : "let through");
  }
  return 0;
}
