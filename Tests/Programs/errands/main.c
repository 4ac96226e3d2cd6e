// SPDX-License-Identifier: Apache-2.0
//
// Calls that threads make in place of others. Usage: errands TEST, with a socket as descriptor 3 that
// takes the listener of this program's own filter.

#include "errands.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static void send_listener(int listener) {
  char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &listener, sizeof listener);
  CHECK(sendmsg(3, &message, 0) == 1);
}

static void install_filter(void) {
  static const int calls[] = {SYS_open,   SYS_openat, SYS_newfstatat, SYS_chdir,
                              SYS_execve, SYS_rename, SYS_mkdir,      SYS_fcntl};
  enum { COUNT = sizeof calls / sizeof *calls };
  struct sock_filter code[COUNT + 3];
  unsigned short length = 0;
  code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (int i = 0; i < COUNT; i++)
    code[length++] = (struct sock_filter)BPF_JUMP(
        BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], (unsigned char)(COUNT - i), 0);
  code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  const struct sock_fprog program = {.len = length, .filter = code};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  enum { WAIT_KILLABLE_RECV = 1 << 5 };
  const int listener = (int)syscall(
      SYS_seccomp, SECCOMP_SET_MODE_FILTER,
      SECCOMP_FILTER_FLAG_NEW_LISTENER | WAIT_KILLABLE_RECV, &program);
  CHECK(listener >= 0);
  send_listener(listener);
  close(listener);
  close(3);
}

int main(int count, char **arguments) {
  CHECK(count > 1);
  // What a program that was executed in a test's place does.
  if (strcmp(arguments[1], "status") == 0) return count > 2 ? atoi(arguments[2]) : 0;
  install_filter();
  const struct test *all[] = {path_tests, process_tests};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    for (const struct test *test = all[i]; test->name; test++)
      if (strcmp(test->name, arguments[1]) == 0) {
        test->run();
        return 0;
      }
  fprintf(stderr, "no such test\n");
  return 2;
}
