// SPDX-License-Identifier: Apache-2.0
//
// The shims: one system call each, errno turned into a negative result.

#define _GNU_SOURCE
#include "CSyscalls.h"
#include "wait_status.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESULT(call)               \
  ({                               \
    long result_ = (call);         \
    result_ < 0 ? -errno : result_; \
  })

// The numbers from 424 up are the same on every architecture.
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif

#define NUMBER(name) const int32_t CSYS_NR_##name = SYS_##name
NUMBER(read);
NUMBER(write);
NUMBER(readv);
NUMBER(writev);
NUMBER(pread64);
NUMBER(pwrite64);
NUMBER(preadv);
NUMBER(pwritev);
NUMBER(preadv2);
NUMBER(pwritev2);
NUMBER(ioctl);
NUMBER(mmap);
NUMBER(openat);
NUMBER(openat2);
NUMBER(fstat);
NUMBER(statx);
NUMBER(lseek);
NUMBER(ftruncate);
NUMBER(fallocate);
NUMBER(dup);
NUMBER(fcntl);
NUMBER(execve);
NUMBER(execveat);
NUMBER(userfaultfd);
NUMBER(rt_sigaction);
NUMBER(rt_tgsigqueueinfo);
NUMBER(close);
NUMBER(munmap);
NUMBER(sendmsg);
NUMBER(io_uring_setup);
NUMBER(newfstatat);
NUMBER(faccessat);
NUMBER(faccessat2);
#ifdef SYS_open
NUMBER(open);
NUMBER(creat);
NUMBER(access);
#else
const int32_t CSYS_NR_open = -1, CSYS_NR_creat = -1, CSYS_NR_access = -1;
#endif

// MARK: seccomp

struct filter_program {
  unsigned short length;
  const struct csys_bpf *code;
};
struct add_fd {
  uint64_t id;
  uint32_t flags, srcfd, newfd, newfd_flags;
};
#define NOTIF_RECV _IOWR('!', 0, struct csys_notif)
#define NOTIF_SEND _IOWR('!', 1, struct csys_notif_resp)
#define NOTIF_ID_VALID _IOW('!', 2, uint64_t)
#define NOTIF_ADDFD _IOW('!', 3, struct add_fd)
#define NOTIF_SET_FLAGS _IOW('!', 4, uint64_t)

_Static_assert(sizeof(struct csys_notif) == 80, "struct seccomp_notif");
_Static_assert(sizeof(struct csys_notif_resp) == 24, "struct seccomp_notif_resp");
_Static_assert(sizeof(struct add_fd) == 24, "struct seccomp_notif_addfd");

int csys_seccomp_install(const struct csys_bpf *program, size_t length, uint32_t flags) {
  struct filter_program filter = {(unsigned short)length, program};
  return RESULT(syscall(SYS_seccomp, 1 /* SET_MODE_FILTER */, flags, &filter));
}

int csys_notif_receive(int listener, struct csys_notif *notification) {
  memset(notification, 0, sizeof *notification);
  return RESULT(ioctl(listener, NOTIF_RECV, notification));
}

// Where others are at the same listener, a signal that comes meanwhile ends these, SA_RESTART or not:
// nothing has been done then.
static int persist(int listener, unsigned long request, const void *argument) {
  int result;
  do {
    result = RESULT(ioctl(listener, request, argument));
  } while (result == -EINTR);
  return result;
}

int csys_notif_send(int listener, uint64_t id, int64_t value, int32_t error, uint32_t flags) {
  const struct csys_notif_resp response = {id, value, error, flags};
  return persist(listener, NOTIF_SEND, &response);
}

int csys_notif_id_valid(int listener, uint64_t id) {
  return persist(listener, NOTIF_ID_VALID, &id);
}

int csys_notif_add_fd(int listener, uint64_t id, int source, int target, uint32_t fd_flags) {
  struct add_fd add = {id, target < 0 ? 0 : 1 /* SETFD */, (uint32_t)source,
                       target < 0 ? 0 : (uint32_t)target, fd_flags};
  return persist(listener, NOTIF_ADDFD, &add);
}

int csys_notif_sync_wake_up(int listener) {
  return RESULT(ioctl(listener, NOTIF_SET_FLAGS, 1UL));
}

// MARK: processes

int csys_fork(void) { return RESULT(fork()); }
int csys_pidfd_open(int pid, uint32_t flags) {
  return RESULT(syscall(SYS_pidfd_open, pid, flags));
}
int csys_pidfd_getfd(int pidfd, int fd) {
  return RESULT(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}
int csys_pidfd_send_signal(int pidfd, int signal) {
  return RESULT(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

uint64_t csys_open_limit(int pid, int hard) {
  struct rlimit limit;
  return prlimit(pid, RLIMIT_NOFILE, NULL, &limit) < 0 ? 0 : hard ? limit.rlim_max : limit.rlim_cur;
}
int csys_memory_lock_limit(int pid, uint64_t *limit) {
  struct rlimit current;
  if (prlimit(pid, RLIMIT_MEMLOCK, NULL, &current) < 0) return -errno;
  *limit = current.rlim_cur == RLIM_INFINITY ? UINT64_MAX : current.rlim_cur;
  return 0;
}
int csys_capabilities(int thread, uint64_t *effective, uint64_t *permitted) {
  struct {
    uint32_t version;
    int pid;
  } header = {0x20080522, thread};
  struct {
    uint32_t effective, permitted, inheritable;
  } data[2];
  if (syscall(SYS_capget, &header, data) < 0) return -errno;
  *effective = (uint64_t)data[1].effective << 32 | data[0].effective;
  *permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
  return 0;
}
int csys_pidfd_real_user(int pidfd, uint32_t *user) {
  struct {
    uint64_t mask, cgroup;
    uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
    int32_t exit_code;
  } info = {.mask = 2};
  _Static_assert(sizeof info == 64, "struct pidfd_info, version 0");
  // PIDFD_GET_INFO
  if (ioctl(pidfd, 0xc0000000u | (unsigned)sizeof info << 16 | 0xff << 8 | 11, &info) < 0)
    return -errno;
  if (!(info.mask & 2)) return -ENODATA;
  *user = info.ruid;
  return 0;
}
int csys_gettid(void) { return (int)syscall(SYS_gettid); }
int csys_no_new_privileges(void) { return RESULT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); }
int csys_set_dumpable(int dumpable) { return RESULT(prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0)); }
int csys_unshare(int flags) { return RESULT(unshare(flags)); }
int csys_adopt_orphans(void) { return RESULT(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)); }

struct start {
  void (*body)(void *);
  void *argument;
};
static void *start_thread(void *argument) {
  struct start start = *(struct start *)argument;
  free(argument);
  start.body(start.argument);
  return NULL;
}
int csys_thread_start(void (*body)(void *), void *argument, size_t stack) {
  struct start *start = malloc(sizeof *start);
  if (!start) return -ENOMEM;
  *start = (struct start){body, argument};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  if (stack) pthread_attr_setstacksize(&attributes, stack);
  pthread_t thread;
  int error = pthread_create(&thread, &attributes, start_thread, start);
  pthread_attr_destroy(&attributes);
  if (error) {
    free(start);
    return -error;
  }
  return 0;
}

int csys_wait_change(int pid, struct csys_wait *out) {
  int status = 0;
  int result = RESULT(waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG));
  if (result > 0) take_apart(result, status, out);
  return result;
}

int csys_wait_end(int pid, struct csys_wait *out) {
  int status = 0, result;
  do result = RESULT(waitpid(pid, &status, 0));
  while (result == -EINTR);
  if (result > 0) take_apart(result, status, out);
  return result;
}

// MARK: files

int csys_memfd_create(const char *name, uint32_t flags) {
  return RESULT(syscall(SYS_memfd_create, name, flags));
}
int csys_fcntl(int fd, int command, long argument) { return RESULT(fcntl(fd, command, argument)); }
int csys_ioctl(int fd, unsigned long command, void *argument) {
  return RESULT(ioctl(fd, command, argument));
}
int csys_open(const char *path, int flags, uint32_t mode) {
  return RESULT(open(path, flags, (mode_t)mode));
}
int csys_openat(int dirfd, const char *path, int flags) {
  return RESULT(openat(dirfd, path, flags));
}
int csys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve) {
  uint64_t how[3] = {flags, 0, resolve};
  return RESULT(syscall(SYS_openat2, dirfd, path, how, sizeof how));
}
int csys_close_range(uint32_t first, uint32_t last) {
  if (first > last) return 0;
  return RESULT(syscall(SYS_close_range, first, last, 0));
}
int csys_mount(
    const char *source, const char *target, const char *type, unsigned long flags,
    const char *data) {
  return RESULT(mount(source, target, type, flags, data));
}

int csys_identity(int fd, struct csys_identity *out) {
  struct stat status;
  // The plain call: the C library's asks by an empty path, which is slower.
  int result = RESULT(syscall(SYS_fstat, fd, &status));
  if (result < 0) return result;
  *out = (struct csys_identity){
      status.st_dev, status.st_ino, status.st_mode, (uint64_t)status.st_size};
  return 0;
}
int csys_identity_known(int fd, struct csys_identity *out) {
  struct statx status;
  int result = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &status);
  if (result < 0) return -errno;
  *out = (struct csys_identity){
      makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino, status.stx_mode, 0};
  return 0;
}
int csys_mount_id(int dirfd, const char *path, int flags, uint64_t *out) {
  // Musl's and older C libraries' structure ends before the field, which is 18 words of 8 bytes in.
  union {
    struct statx status;
    uint64_t words[32];
  } all;
  enum { MOUNT_ID = 0x1000, WORD = 18 };
  memset(&all, 0, sizeof all);
  const int result = RESULT(syscall(
      SYS_statx, dirfd, path, flags | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, MOUNT_ID, &all));
  if (result < 0) return result;
  if (!(all.status.stx_mask & MOUNT_ID)) return -ENOSYS;
  *out = all.words[WORD];
  return 0;
}
uint32_t csys_file_system(const char *path) {
  struct statfs status;
  return statfs(path, &status) == 0 ? (uint32_t)status.f_type : 0;
}
// As printf would, which takes longer than the call.
static const char *decimal(int number, char text[16]) {
  char *place = text + 15;
  *place = 0;
  unsigned value = (unsigned)number;
  do *--place = (char)('0' + value % 10);
  while (value /= 10);
  return place;
}
int csys_identity_at(int directory, int number, struct csys_identity *out) {
  struct stat status;
  char text[16];
  if (number < 0) return -ENOENT;
  int result = RESULT(syscall(SYS_newfstatat, directory, decimal(number, text), &status, 0));
  if (result < 0) return result;
  *out = (struct csys_identity){
      status.st_dev, status.st_ino, status.st_mode, (uint64_t)status.st_size};
  return 0;
}
int csys_access_mode_at(int directory, int number) {
  // The link's own permissions say it.
  struct stat status;
  char text[16];
  if (number < 0) return -ENOENT;
  int result = RESULT(
      syscall(SYS_newfstatat, directory, decimal(number, text), &status, AT_SYMLINK_NOFOLLOW));
  if (result < 0) return result;
  if (!(status.st_mode & S_IWUSR)) return O_RDONLY;
  return status.st_mode & S_IRUSR ? O_RDWR : O_WRONLY;
}
uint64_t csys_device_number(uint32_t major, uint32_t minor) { return makedev(major, minor); }
int csys_mknod_character(const char *path, uint32_t mode, uint32_t major, uint32_t minor) {
  return RESULT(mknod(path, S_IFCHR | (mode & 07777), makedev(major, minor)));
}

int csys_pipe_count(int end) {
  int count = 0, result = RESULT(ioctl(end, FIONREAD, &count));
  return result < 0 ? result : count;
}

int csys_epoll_create(void) { return RESULT(epoll_create1(EPOLL_CLOEXEC)); }
int csys_epoll_watch(int epoll, int fd, int readable) {
  struct epoll_event event = {.events = readable ? EPOLLIN : 0, .data.fd = fd};
  return RESULT(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}
int csys_epoll_forget(int epoll, int fd) {
  return RESULT(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL));
}
int csys_epoll_ready(int epoll, int *out, int capacity) {
  struct epoll_event events[32];
  int count = RESULT(epoll_wait(epoll, events, capacity < 32 ? capacity : 32, 0));
  for (int i = 0; i < count; i++) out[i] = events[i].data.fd;
  return count;
}

int csys_send_fd(int socket, int fd) {
  char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  long result;
  do result = RESULT(sendmsg(socket, &message, MSG_NOSIGNAL));
  while (result == -EINTR);
  return (int)result;
}

int csys_receive_fd(int socket) {
  char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  long result;
  do result = RESULT(recvmsg(socket, &message, MSG_CMSG_CLOEXEC));
  while (result == -EINTR);
  if (result < 0) return (int)result;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (result == 0 || !header || header->cmsg_type != SCM_RIGHTS) return -EPIPE;
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

int csys_receive_fds(int socket, int *out, int capacity) {
  enum { MOST = 64 };
  char byte = 0, space[CMSG_SPACE(MOST * sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  long result;
  do result = RESULT(recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
  while (result == -EINTR);
  if (result < 0) return (int)result;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (result == 0 || !header || header->cmsg_type != SCM_RIGHTS) return -EPIPE;
  int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
  for (int i = 0; i < count; i++) {
    int fd;
    memcpy(&fd, CMSG_DATA(header) + (size_t)i * sizeof fd, sizeof fd);
    if (i < capacity)
      out[i] = fd;
    else
      close(fd);
  }
  return count < capacity ? count : capacity;
}

int csys_pipe(int out[2]) { return RESULT(pipe2(out, O_CLOEXEC | O_NONBLOCK)); }

int csys_socketpair(int out[2], int sequenced) {
  int type = sequenced ? SOCK_SEQPACKET : SOCK_STREAM;
  return RESULT(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, out));
}

// MARK: layouts that are written to a program

size_t csys_stat_size(void) { return sizeof(struct stat); }
size_t csys_statx_size(void) { return 256; }

void csys_fill_stat(void *out, const struct csys_character_device *device) {
  struct stat status;
  memset(&status, 0, sizeof status);
  status.st_dev = makedev(0, 6);
  status.st_ino = device->inode;
  status.st_nlink = 1;
  status.st_mode = (device->is_anonymous ? 0 : S_IFCHR) | device->permissions;
  status.st_uid = device->user;
  status.st_gid = device->group;
  status.st_rdev = makedev(device->major, device->minor);
  status.st_blksize = 4096;
  status.st_atim.tv_sec = status.st_mtim.tv_sec = status.st_ctim.tv_sec = device->seconds;
  memcpy(out, &status, sizeof status);
}

// struct statx as Linux has had it since 4.11; later fields stay zero.
struct statx_layout {
  uint32_t mask, blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, spare0;
  uint64_t ino, size, blocks, attributes_mask;
  struct {
    int64_t seconds;
    uint32_t nanoseconds;
    int32_t reserved;
  } atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t spare[14];
};
_Static_assert(sizeof(struct statx_layout) == 256, "struct statx");

void csys_fill_statx(void *out, const struct csys_character_device *device) {
  struct statx_layout status;
  memset(&status, 0, sizeof status);
  status.mask = 0x7ff;  // STATX_BASIC_STATS
  status.blksize = 4096;
  status.nlink = 1;
  status.uid = device->user;
  status.gid = device->group;
  status.mode = (uint16_t)((device->is_anonymous ? 0 : S_IFCHR) | device->permissions);
  status.ino = device->inode;
  status.atime.seconds = status.ctime.seconds = status.mtime.seconds = device->seconds;
  status.rdev_major = device->major;
  status.rdev_minor = device->minor;
  status.dev_minor = 6;
  memcpy(out, &status, sizeof status);
}

struct procmap_query {
  uint64_t size, query_flags, query_addr;
  uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
  uint64_t vma_name_addr, build_id_addr;
};
_Static_assert(sizeof(struct procmap_query) == 104, "struct procmap_query");

int csys_procmap_query(
    int maps, uint64_t address, struct csys_procmap *out, char *name, uint32_t capacity) {
  struct procmap_query query;
  memset(&query, 0, sizeof query);
  query.size = sizeof query;
  query.query_addr = address;
  if (name) {
    name[0] = 0;
    query.vma_name_size = capacity;
    query.vma_name_addr = (uint64_t)(uintptr_t)name;
  }
  int result = RESULT(ioctl(maps, _IOWR('f', 17, struct procmap_query), &query));
  if (result < 0) return result;
  out->start = query.vma_start;
  out->end = query.vma_end;
  out->flags = query.vma_flags;
  out->page_size = query.vma_page_size;
  out->offset = query.vma_offset;
  out->inode = query.inode;
  out->major = query.dev_major;
  out->minor = query.dev_minor;
  return 0;
}

long csys_pread(int fd, void *buffer, size_t count, uint64_t offset) {
  return RESULT(pread(fd, buffer, count, (off_t)offset));
}
long csys_pwrite(int fd, const void *buffer, size_t count, uint64_t offset) {
  return RESULT(pwrite(fd, buffer, count, (off_t)offset));
}
int csys_map_shared(int fd, uint64_t offset, size_t length, int writable, uintptr_t *out) {
  void *base = mmap(
      NULL, length, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)offset);
  if (base == MAP_FAILED) return -errno;
  *out = (uintptr_t)base;
  return 0;
}
int csys_punch_hole(int fd, uint64_t offset, uint64_t length) {
  return RESULT(fallocate(
      fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}
long csys_splice(int file, uint64_t offset, int pipe, size_t length) {
  loff_t from = (loff_t)offset;
  return RESULT(splice(file, &from, pipe, NULL, length, SPLICE_F_NONBLOCK));
}
uint32_t csys_word_load(uintptr_t address) {
  return __atomic_load_n((const uint32_t *)address, __ATOMIC_ACQUIRE);
}
void csys_word_store(uintptr_t address, uint32_t value) {
  __atomic_store_n((uint32_t *)address, value, __ATOMIC_RELEASE);
}
int csys_unmap(uintptr_t address, size_t length) {
  return RESULT(munmap((void *)address, length));
}
int csys_is_shared_memory(int fd) {
  struct statfs status;
  return fstatfs(fd, &status) == 0 &&
         (status.f_type == 0x958458f6 /* hugetlbfs */ || status.f_type == 0x01021994 /* tmpfs */);
}
uint64_t csys_map_granule(int fd) {
  struct statfs status;
  if (fstatfs(fd, &status) == 0 && status.f_type == 0x958458f6 /* hugetlbfs */)
    return (uint64_t)status.f_bsize;
  return 4096;
}
