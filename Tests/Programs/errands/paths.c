// SPDX-License-Identifier: Apache-2.0
//
// One thread's calls with other paths: what they return, what they leave as it was, signals.

#include "errands.h"

#include <sys/syscall.h>

static void results(void) {
  for (int i = 0; i < 200; i++) {
    check_file("/shown/file");
    struct stat status;
    CHECK(stat("/shown/file", &status) == 0 && status.st_size == 5);
    CHECK(stat("/shown/none", &status) == -1 && errno == ENOENT);
    CHECK(open("/shown/file/none", O_RDONLY) == -1 && errno == ENOTDIR);
  }
  // Two paths, and what they change.
  CHECK(rename("/shown/file", "/shown/other") == 0);
  check_file("/shown/other");
  CHECK(rename("/shown/other", "/shown/file") == 0);
  // A side effect on the process.
  CHECK(chdir("/shown/directory") == 0);
  const int file = open("../file", O_RDONLY);
  CHECK(file >= 0);
  close(file);
}

// A result of our own in place of the call's.
static void own_results(void) {
  const int file = open("/shown/file", O_RDONLY);
  CHECK(file >= 0);
  // Who serves makes a seek of this.
  CHECK(syscall(SYS_fcntl, file, 7777, 2) == 42 && lseek(file, 0, SEEK_CUR) == 2);
  CHECK(syscall(SYS_fcntl, -1, 7777, 2) == -1 && errno == EBADF);
}

// Longer than what a stack has to spare.
static void long_paths(void) {
  char path[4200] = "/shown";
  for (int i = 0; i < 2000; i++) strcat(path, "/.");
  const size_t length = strlen(path);
  for (int i = 0; i < 50; i++) {
    strcpy(path + length, "/file");
    check_file(path);
    strcpy(path + length, "/none");
    CHECK(open(path, O_RDONLY) == -1 && errno == ENOENT);
  }
}

static int mappings(void) {
  // Not by a call of ours.
  const int maps = (int)syscall(SYS_openat2, AT_FDCWD, "/proc/self/maps", &(uint64_t[3]){0}, 24);
  CHECK(maps >= 0);
  char text[4096];
  int lines = 0;
  for (ssize_t count; (count = read(maps, text, sizeof text)) > 0;)
    for (ssize_t i = 0; i < count; i++) lines += text[i] == '\n';
  close(maps);
  return lines;
}

static void *idle(void *argument) {
  pause();
  return argument;
}

// All registers and what is below the stack, but the red zone, which the C library's code has not.
static void leaves_no_trace(void) {
  for (int threads = 0; threads < 2; threads++) {
    if (threads) {
      pthread_t other;
      CHECK(pthread_create(&other, NULL, idle, NULL) == 0);
      check_file("/shown/file");
    }
    const int before = mappings();
    for (int i = 0; i < 100; i++) {
      uint64_t results[2], stack[2];
      register uint64_t r12 __asm__("r12") = 0x1212121212121212, r13 __asm__("r13") = 0x1313131313131313;
      register uint64_t r14 __asm__("r14") = 0x1414141414141414, r15 __asm__("r15") = 0x1515151515151515;
      register uint64_t r10 __asm__("r10") = 0x1010101010101010, r8 __asm__("r8") = 0x0808080808080808;
      register uint64_t r9 __asm__("r9") = 0x0909090909090909;
      uint64_t number = SYS_open;
      __asm__ volatile(
          "movq %%rsp, %[sp0]\n\tmovl $0x5a5a5a5a, -256(%%rsp)\n\tmovl $0x5b5b5b5b, -8(%%rsp)\n\t"
          "syscall\n\tmovl -256(%%rsp), %%ecx\n\tmovl -8(%%rsp), %%r11d\n\tmovq %%rsp, %[sp1]"
          : "+a"(number), "=c"(results[0]), [sp0] "=m"(stack[0]), [sp1] "=m"(stack[1]), "+r"(r8),
            "+r"(r9), "+r"(r10), "+r"(r12), "+r"(r13), "+r"(r14), "+r"(r15)
          : "D"("/shown/file"), "S"(O_RDONLY), "d"(0)
          : "r11", "memory");
      __asm__ volatile("movq %%r11, %0" : "=r"(results[1]));
      CHECK((int64_t)number >= 0 && results[0] == 0x5a5a5a5a && stack[0] == stack[1]);
      CHECK(r12 == 0x1212121212121212 && r13 == 0x1313131313131313);
      CHECK(r14 == 0x1414141414141414 && r15 == 0x1515151515151515);
      CHECK(r10 == 0x1010101010101010 && r8 == 0x0808080808080808 && r9 == 0x0909090909090909);
      close((int)number);
    }
    CHECK(mappings() == before);
  }
}

// MARK: signals

static volatile int handled;
static void on_signal(int number) {
  (void)number;
  handled++;
}

static void handle_alarms(int flags) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
}

static void set_timer(int microseconds) {
  const struct itimerval timer = {{0, microseconds}, {0, microseconds}};
  CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

// Calls that do not wait are never interrupted; but for what a filter's listener does to them without
// SA_RESTART, before anybody has looked at them.
static void signals(void) {
  handle_alarms(SA_RESTART);
  set_timer(2000);
  // Until there were as many as can have come at each place.
  for (int i = 0; i < 300 || handled < 100; i++) {
    struct stat status;
    CHECK(stat("/shown/file", &status) == 0 && status.st_size == 5);
    CHECK(stat("/shown/none", &status) == -1 && errno == ENOENT);
    const int file = open("/shown/file", O_RDONLY);
    CHECK(file >= 0);
    close(file);
  }
}

static void *opens_later(void *argument) {
  usleep(100000);
  // Not by way of who serves.
  const int file = (int)syscall(
      SYS_openat2, AT_FDCWD, argument, &(uint64_t[3]){O_WRONLY | O_CLOEXEC, 0, 0}, 24);
  CHECK(file >= 0);
  return NULL;
}

static char fifo[4096];
static void find_fifo(void) {
  CHECK(chdir("/shown") == 0 && syscall(SYS_getcwd, fifo, sizeof fifo) > 0);
  strcat(fifo, "/fifo");
}

// One that waits is: EINTR, or it goes on waiting, as the handler says.
static void waits(void) {
  find_fifo();
  handle_alarms(0);
  alarm(1);
  CHECK(open("/shown/fifo", O_RDONLY) == -1 && errno == EINTR && handled == 1);
  handle_alarms(SA_RESTART);
  set_timer(10000);
  pthread_t other;
  CHECK(pthread_create(&other, NULL, opens_later, fifo) == 0);
  const int file = open("/shown/fifo", O_RDONLY);
  CHECK(file >= 0);
  set_timer(0);
  CHECK(pthread_join(other, NULL) == 0);
  close(file);
}

static void *waits_in_open(void *argument) {
  *(int *)argument = open("/shown/fifo", O_RDONLY);
  return NULL;
}

// Whoever waits holds nobody else up.
static void others_go_on(void) {
  find_fifo();
  enum { COUNT = 8 };
  pthread_t all[COUNT];
  int files[COUNT];
  for (int i = 0; i < COUNT; i++) CHECK(pthread_create(&all[i], NULL, waits_in_open, &files[i]) == 0);
  for (int i = 0; i < 100; i++) {
    check_file("/shown/file");
    const pid_t child = fork();
    if (child == 0) {
      check_file("/shown/file");
      _exit(5);
    }
    check_end(child, 5 << 8);
  }
  opens_later(fifo);
  for (int i = 0; i < COUNT; i++) CHECK(pthread_join(all[i], NULL) == 0 && files[i] >= 0);
}

const struct test path_tests[] = {{"results", results},
                                  {"own-results", own_results},
                                  {"long-paths", long_paths},
                                  {"leaves-no-trace", leaves_no_trace},
                                  {"signals", signals},
                                  {"waits", waits},
                                  {"others-go-on", others_go_on},
                                  {NULL, NULL}};
