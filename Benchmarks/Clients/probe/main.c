// SPDX-License-Identifier: Apache-2.0
//
// Measures from outside what the engine's benchmarks cannot: a trapped call, an empty
// notification, the copy engine against memcpy across processes, an NVMe controller, the time to start.
// Prints lines of a name, a tab, and the median in nanoseconds.

#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "copy_engine.h"
#include "probe.h"

#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

extern char **environ;

uint64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int ascending(const void *left, const void *right) {
  const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
  return (a > b) - (a < b);
}

void print_median(const char *name, uint64_t *samples, size_t count) {
  qsort(samples, count, sizeof *samples, ascending);
  printf("%s\t%llu\n", name, (unsigned long long)samples[count / 2]);
  fflush(stdout);
}

void fail(const char *what) {
  perror(what);
  exit(1);
}

// The shortest trapped call: a command of /dev/iommu that finds nothing to destroy.
static void measure_calls(size_t count) {
  const int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (iommu < 0) fail("/dev/iommu");
  uint64_t *samples = calloc(count, sizeof *samples);
  for (size_t i = 0; i < count; i++) {
    struct iommu_destroy destroy = {.size = sizeof destroy, .id = 0x7fffffff};
    const uint64_t start = nanoseconds();
    ioctl(iommu, IOMMU_DESTROY, &destroy);
    samples[i] = nanoseconds() - start;
  }
  print_median("call", samples, count);
}

enum supervisor {
  // Answers getppid at once.
  ANSWERS,
  // Lets a stat go on.
  LETS_GO_ON,
  // As that, after the least that can tell where its path leads: it reads the path and looks it up. As
  // any supervisor that a terminal shall not interrupt, it is in a session of its own, where many
  // kernels give it a share of the processor of its own too.
  DECIDES,
};

static void decide(const struct seccomp_notif *call) {
  char path[256];
  const uint64_t address = call->data.args[1], rest = 4096 - (address & 4095);
  struct iovec ours = {.iov_base = path, .iov_len = rest < sizeof path ? rest : sizeof path};
  struct iovec theirs = {.iov_base = (void *)(uintptr_t)address, .iov_len = ours.iov_len};
  struct statx status;
  if (process_vm_readv((pid_t)call->pid, &ours, 1, &theirs, 1, 0) < 0) fail("process_vm_readv");
  // The last one, of the standard output itself, has an empty path.
  syscall(SYS_statx, AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_INO | STATX_MNT_ID, &status);
}

// A process one of whose calls is notified to another one.
static void measure_notifications(size_t count, enum supervisor supervisor) {
  const bool goes_on = supervisor != ANSWERS;
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) fail("socketpair");
  const pid_t child = fork();
  if (child == 0) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, goes_on ? SYS_newfstatat : SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {.len = 4, .filter = filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const int listener =
        (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0) fail("seccomp");
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec byte = {.iov_base = &(char){1}, .iov_len = 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &listener, sizeof listener);
    if (sendmsg(sockets[1], &message, 0) != 1) fail("sendmsg");
    close(listener);
    if (goes_on) {
      measure_path(count, supervisor == DECIDES ? "path floor" : "path notification");
      _exit(0);
    }
    uint64_t *samples = calloc(count, sizeof *samples);
    for (size_t i = 0; i < count; i++) {
      const uint64_t start = nanoseconds();
      syscall(SYS_getppid);
      samples[i] = nanoseconds() - start;
    }
    print_median("notification", samples, count);
    _exit(0);
  }
  close(sockets[1]);
  char control[CMSG_SPACE(sizeof(int))], byte;
  struct iovec vector = {.iov_base = &byte, .iov_len = 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
                           .msg_controllen = sizeof control};
  if (recvmsg(sockets[0], &message, 0) != 1) exit(1);
  int listener;
  memcpy(&listener, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof listener);
  ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
  if (supervisor == DECIDES) setsid();
  for (;;) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) break;
    if (supervisor == DECIDES) decide(&call);
    struct seccomp_notif_resp answer = {
        .id = call.id, .flags = goes_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
  }
  waitpid(child, NULL, 0);
}

// A load from a page that a file has not, skipped by a tracer that does nothing else: what is the
// least of an access to a mapped register. The tracer runs where the program does.
static void measure_faults(size_t count) {
  int begin[2];
  if (pipe(begin)) fail("pipe");
  const pid_t child = fork();
  if (child == 0) {
    const int file = memfd_create("probe", MFD_CLOEXEC);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint64_t *samples = calloc(count, sizeof *samples);
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(0, sizeof here, &here);
    sched_setaffinity(getppid(), sizeof here, &here);
    char byte;
    if (read(begin[0], &byte, 1) != 1) fail("read");
    for (size_t i = 0; i < count; i++) {
      const uint64_t start = nanoseconds();
#if defined(__x86_64__)
      uint32_t value;
      __asm__ volatile("movl (%%rdx), %%eax" : "=a"(value) : "d"(page) : "memory");
#endif
      samples[i] = nanoseconds() - start;
    }
    print_median("fault", samples, count);
    _exit(0);
  }
#if defined(__x86_64__)
  if (ptrace(PTRACE_SEIZE, child, NULL, NULL)) fail("PTRACE_SEIZE");
  if (write(begin[1], "", 1) != 1) fail("write");
  for (int status; waitpid(child, &status, __WALL) == child && WIFSTOPPED(status);) {
    struct user_regs_struct registers;
    struct iovec vector = {.iov_base = &registers, .iov_len = sizeof registers};
    siginfo_t information;
    long signal = WSTOPSIG(status);
    if (signal == SIGBUS) {
      // What the fault was, and where the program goes on: movl (%rdx), %eax has two bytes.
      ptrace(PTRACE_GETSIGINFO, child, NULL, &information);
      ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &vector);
      registers.rip += 2;
      ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &vector);
      signal = 0;
    }
    ptrace(PTRACE_CONT, child, NULL, signal);
  }
#else
  waitpid(child, NULL, 0);
#endif
}

// A load from a mapped register of a copy engine, which nothing else happens at.
static void measure_registers(size_t count) {
  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) errno = ENODEV, fail("no copy engine");
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  if (engine_bind(&engine) || engine_enable(&engine) || engine_map(&engine))
    fail("setting up the engine");
  uint64_t *samples = calloc(count, sizeof *samples);
  for (size_t i = 0; i < count; i++) {
    const uint64_t start = nanoseconds();
    (void)*(volatile uint32_t *)(engine.registers + CHANSTS);
    samples[i] = nanoseconds() - start;
  }
  print_median("register", samples, count);
  for (size_t i = 0; i < count; i++) {
    const uint64_t start = nanoseconds();
    engine_read(&(struct engine){.device = engine.device, .bar0 = engine.bar0}, CHANSTS, 4);
    samples[i] = nanoseconds() - start;
  }
  print_median("register by pread", samples, count);
}

enum { COPIES = 64 };

static void *memory(size_t size, bool shared) {
  void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_ANONYMOUS | MAP_POPULATE | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
  if (bytes == MAP_FAILED) fail("mmap");
  memset(bytes, 0x5a, size);
  return bytes;
}

static uint64_t map(int iommu, uint32_t space, void *bytes, uint64_t size) {
  struct iommu_ioas_map map = {
      .size = sizeof map, .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = space, .user_va = (uintptr_t)bytes, .length = size};
  if (ioctl(iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
  return map.iova;
}

// Copies of 1 MiB, 64 in a chain; completion by polling memory, so that no call is measured.
// One sample of memcpy, over the same buffers, follows each chain.
static void measure_copies(size_t count, bool shared) {
  const uint64_t size = 1 << 20;
  struct engine engine = {.event = -1};
  if (!engine_find(&engine, NULL)) errno = ENODEV, fail("no copy engine");
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (engine_bind(&engine) || ioctl(engine.iommu, IOMMU_IOAS_ALLOC, &alloc) ||
      engine_attach(&engine, alloc.out_ioas_id) || engine_enable(&engine))
    fail("setting up the engine");
  uint8_t *source = memory(8 * size, shared), *destination = memory(8 * size, shared);
  struct descriptor *ring = memory(2 * 4096, true);
  const uint64_t from = map(engine.iommu, alloc.out_ioas_id, source, 8 * size);
  const uint64_t to = map(engine.iommu, alloc.out_ioas_id, destination, 8 * size);
  const uint64_t base = map(engine.iommu, alloc.out_ioas_id, ring, 2 * 4096);
  volatile uint64_t *completion = (volatile uint64_t *)((uint8_t *)ring + 4096);
  for (unsigned i = 0; i < COPIES; i++)
    ring[i] = (struct descriptor){.size = size,
                                  .control = i + 1 == COPIES ? CONTROL_COMPLETION : 0,
                                  .source = from + i % 8 * size,
                                  .destination = to + i % 8 * size,
                                  .next = base + (i + 1) % COPIES * sizeof *ring};
  uint64_t *engines = calloc(count, sizeof *engines), *copies = calloc(count, sizeof *copies);
  for (size_t i = 0; i < count; i++) {
    if (!engine_reset(&engine)) fail("resetting the channel");
    *completion = 0;
    engine_write(&engine, CHANCTRL, CHANCTRL_ABORT_ON_ERROR, 2);
    engine_write_address(&engine, CHANCMP, base + 4096);
    engine_write_address(&engine, CHAINADDR, base);
    uint64_t start = nanoseconds();
    engine_write(&engine, DMACOUNT, COPIES, 2);
    while (!*completion) sched_yield();
    engines[i] = (nanoseconds() - start) / COPIES;
    start = nanoseconds();
    for (unsigned j = 0; j < COPIES; j++) {
      memcpy(destination + j % 8 * size, source + j % 8 * size, size);
      __asm__ volatile("" ::: "memory");
    }
    copies[i] = (nanoseconds() - start) / COPIES;
  }
  print_median(shared ? "copy shared" : "copy private", engines, count);
  print_median(shared ? "memcpy shared" : "memcpy private", copies, count);
}

static uint64_t start_once(char **arguments) {
  const uint64_t start = nanoseconds();
  pid_t child;
  int status;
  if (posix_spawnp(&child, arguments[0], NULL, NULL, arguments, environ)) fail(arguments[0]);
  waitpid(child, &status, 0);
  if (status) errno = EIO, fail(arguments[0]);
  return nanoseconds() - start;
}

// The program alone and under `iommu run`, in turn.
static void measure_starts(size_t count, char *iommu) {
  char *alone[] = {"true", NULL}, *under[] = {iommu, "run", "--", "true", NULL};
  uint64_t *short_samples = calloc(count, sizeof(uint64_t));
  uint64_t *long_samples = calloc(count, sizeof(uint64_t));
  for (size_t i = 0; i < count; i++) {
    short_samples[i] = start_once(alone);
    long_samples[i] = start_once(under);
  }
  print_median("true", short_samples, count);
  print_median("run true", long_samples, count);
}

int main(int count, char **arguments) {
  const char *what = count > 1 ? arguments[1] : "";
  const size_t samples = count > 2 ? strtoul(arguments[2], NULL, 10) : 0;
  if (!samples) {
    fprintf(stderr, "Usage: probe calls|notifications|path-notifications|path-floor|registers|faults|copies|shared-copies|nvme|shared-nvme|starts|path|"
            "files COUNT [IOMMU|DIRECTORY NAME]\n");
    return 2;
  }
  if (!strcmp(what, "calls")) measure_calls(samples);
  else if (!strcmp(what, "notifications")) measure_notifications(samples, ANSWERS);
  else if (!strcmp(what, "path-notifications")) measure_notifications(samples, LETS_GO_ON);
  else if (!strcmp(what, "path-floor")) measure_notifications(samples, DECIDES);
  else if (!strcmp(what, "registers")) measure_registers(samples);
  else if (!strcmp(what, "faults")) measure_faults(samples);
  else if (!strcmp(what, "copies")) measure_copies(samples, false);
  else if (!strcmp(what, "shared-copies")) measure_copies(samples, true);
  else if (!strcmp(what, "nvme")) measure_nvme(samples, false);
  else if (!strcmp(what, "shared-nvme")) measure_nvme(samples, true);
  else if (!strcmp(what, "starts") && count > 3) measure_starts(samples, arguments[3]);
  else if (!strcmp(what, "path")) measure_path(samples, "path");
  else if (!strcmp(what, "files") && count > 4) measure_files(samples, arguments[3], arguments[4]);
  else return 2;
  return 0;
}
