// SPDX-License-Identifier: Apache-2.0
//
// System calls, numbers and layouts that Swift cannot import: variadic calls, macros, and
// interfaces newer than the C library's headers. No policy. Every call returns what the kernel
// returns: a negative errno where it fails.

#ifndef CSYSCALLS_H
#define CSYSCALLS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/types.h>

// MARK: seccomp

struct csys_bpf {
  uint16_t code;
  uint8_t jt, jf;
  uint32_t k;
};

struct csys_seccomp_data {
  int32_t nr;
  uint32_t arch;
  uint64_t instruction_pointer;
  uint64_t args[6];
};

struct csys_notif {
  uint64_t id;
  uint32_t pid;
  uint32_t flags;
  struct csys_seccomp_data data;
};

struct csys_notif_resp {
  uint64_t id;
  int64_t val;
  int32_t error;
  uint32_t flags;
};

enum {
  CSYS_NEW_LISTENER = 1 << 3,
  CSYS_WAIT_KILLABLE_RECV = 1 << 5,
};

int csys_seccomp_install(const struct csys_bpf *program, size_t length, uint32_t flags);
int csys_notif_receive(int listener, struct csys_notif *notification);
int csys_notif_send(int listener, uint64_t id, int64_t value, int32_t error, uint32_t flags);
int csys_notif_id_valid(int listener, uint64_t id);
// Installs `source` as `target` of the notifying task, replacing what is there.
// target: the number, or -1 for the lowest that is free.
int csys_notif_add_fd(int listener, uint64_t id, int source, int target, uint32_t fd_flags);
int csys_notif_sync_wake_up(int listener);

// MARK: processes

int csys_fork(void);
int csys_pidfd_open(int pid, uint32_t flags);
int csys_pidfd_getfd(int pidfd, int fd);
int csys_pidfd_send_signal(int pidfd, int signal);
int csys_gettid(void);
// The soft or the hard limit on open files of a process (0: this one); 0 where it cannot be
// asked for.
uint64_t csys_open_limit(int pid, int hard);
// RLIMIT_MEMLOCK of a process, in bytes; UINT64_MAX is none. Returns 0 or a negative errno.
int csys_memory_lock_limit(int pid, uint64_t *limit);
// The effective and the permitted capabilities of a thread. Returns 0 or a negative errno.
int csys_capabilities(int thread, uint64_t *effective, uint64_t *permitted);
// The real user id of a task (Linux 6.13). Returns 0 or a negative errno.
int csys_pidfd_real_user(int pidfd, uint32_t *user);
int csys_no_new_privileges(void);
int csys_set_dumpable(int dumpable);
int csys_dumpable(void);
// This thread's real ids, and its capabilities.
struct csys_own_user {
  uint32_t user, group, rights[6];
};
// Gives this thread another user's real ids, and those for files; its effective ids and its capabilities
// stay. Returns 0, or a negative errno: nothing has changed then.
int csys_take_user(uint32_t user, uint32_t group, struct csys_own_user *own, int dumpable);
// Gives it back what it had, which cannot fail, and the process its being dumpable.
void csys_leave_user(const struct csys_own_user *own, int dumpable);
// Makes all ids of this thread another user's, for good.
int csys_become_user(uint32_t user, uint32_t group);
int csys_unshare(int flags);
// From here on what descendants leave behind becomes a child of this process.
int csys_adopt_orphans(void);
// stack: Its size in bytes; 0 is the system's.
int csys_thread_start(void (*body)(void *), void *argument, size_t stack);

// A wait status, taken apart.
struct csys_wait {
  int pid;
  int exited, signaled, stopped, continued;
  int code;  // exit status or signal
};
// options: 1 WUNTRACED, WCONTINUED and WNOHANG are always on. Returns the pid, 0 where nothing
// changed.
int csys_wait_change(int pid, struct csys_wait *out);
// Waits for the end of a child.
int csys_wait_end(int pid, struct csys_wait *out);

// MARK: files

int csys_memfd_create(const char *name, uint32_t flags);
int csys_fcntl(int fd, int command, long argument);
int csys_ioctl(int fd, unsigned long command, void *argument);
int csys_open(const char *path, int flags, uint32_t mode);
int csys_openat(int dirfd, const char *path, int flags);
// openat2(2): how is {flags, mode, resolve}.
int csys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve);
int csys_close_range(uint32_t first, uint32_t last);
int csys_mount(
    const char *source, const char *target, const char *type, unsigned long flags,
    const char *data);

struct csys_identity {
  uint64_t device, inode;
  uint32_t mode;
  uint64_t size;
};
int csys_identity(int fd, struct csys_identity *out);
// Without the size, and without asking the file system's server.
int csys_identity_known(int fd, struct csys_identity *out);
// The number of the mount that a path leads to (STATX_MNT_ID, Linux 5.8). flags: as fstatat(2) takes
// them.
int csys_mount_id(int dirfd, const char *path, int flags, uint64_t *out);
// The type of the file system that a path leads to, as statfs(2) has it; 0 where it cannot be asked for.
uint32_t csys_file_system(const char *path);
// Of a descriptor of another task, by the directory of its descriptors (/proc/TID/fd): what the file is;
// how it is open (O_RDONLY, O_WRONLY, O_RDWR). -ENOENT where it is not open, or the task is gone.
int csys_identity_at(int directory, int number, struct csys_identity *out);
int csys_access_mode_at(int directory, int number);
uint64_t csys_device_number(uint32_t major, uint32_t minor);
int csys_mknod_character(const char *path, uint32_t mode, uint32_t major, uint32_t minor);

// What lies at a path, and in which mount (0 before Linux 5.8). Nobody's server is asked anew.
struct csys_place {
  uint64_t device, inode, mount;
  uint32_t mode;
};
int csys_place(int directory, const char *path, int flags, struct csys_place *out);
// Any call, with its six arguments as they are. What they point at is for the caller to see to.
long csys_call(int32_t number, const uint64_t *arguments);

// How many bytes a pipe holds.
int csys_pipe_count(int end);
int csys_epoll_create(void);
// Ready when `fd` can be read (and `readable` is not 0) or has an error or a hang-up.
int csys_epoll_watch(int epoll, int fd, int readable);
int csys_epoll_forget(int epoll, int fd);
// The numbers of what is ready now, at most `capacity`; returns how many.
int csys_epoll_ready(int epoll, int *out, int capacity);

int csys_send_fd(int socket, int fd);
int csys_receive_fd(int socket);
// All descriptors of the next message, at most `capacity` (64), without waiting for one. Returns how many.
int csys_receive_fds(int socket, int *out, int capacity);
int csys_socketpair(int out[2], int sequenced);
// Both ends are close-on-exec and never block.
int csys_pipe(int out[2]);

// MARK: layouts that are written to a program

size_t csys_stat_size(void);
size_t csys_statx_size(void);
size_t csys_statfs_size(void);
struct csys_character_device {
  uint64_t inode;
  uint32_t major, minor, user, group, permissions;
  int is_anonymous;  // No device after all, but a file of no type.
  int64_t seconds;
};
// Fill the kernel's struct stat and struct statx for a character device.
void csys_fill_stat(void *out, const struct csys_character_device *device);
void csys_fill_statx(void *out, const struct csys_character_device *device);

struct csys_procmap {
  uint64_t start, end, flags, page_size, offset, inode;
  uint32_t major, minor;
};
enum {
  CSYS_VMA_READABLE = 1,
  CSYS_VMA_WRITABLE = 2,
  CSYS_VMA_SHARED = 8,
};
// The mapping at `address`; -ENOENT where there is none, -ENOTTY before Linux 6.11. `name` may be
// null; it holds `capacity` bytes and is terminated.
int csys_procmap_query(
    int maps, uint64_t address, struct csys_procmap *out, char *name, uint32_t capacity);
// Like pread and pwrite, with the offset as it is.
long csys_pread(int fd, void *buffer, size_t count, uint64_t offset);
long csys_pwrite(int fd, const void *buffer, size_t count, uint64_t offset);

/// Adds 1 to an eventfd's counter as the kernel's own eventfd_signal does: never blocks; a
/// counter at its limit stays there. 0, or a negative errno.
int csys_eventfd_signal(int fd);
// Maps a file shared. Returns 0 and the address.
int csys_map_shared(int fd, uint64_t offset, size_t length, int writable, uintptr_t *out);
// Whether a file's pages are those that Linux pins by descriptor: in tmpfs (memfds are) or
// hugetlbfs.
int csys_is_shared_memory(int fd);
// What mappings of a file are a multiple of: its huge pages' size on hugetlbfs, else 4096.
uint64_t csys_map_granule(int fd);
// Frees the pages of a part of a file; its size stays.
int csys_punch_hole(int fd, uint64_t offset, uint64_t length);
int csys_unmap(uintptr_t address, size_t length);
// Puts a part of a file into a pipe without a copy: what is stored to its pages later is in there.
// Returns bytes.
long csys_splice(int file, uint64_t offset, int pipe, size_t length);
// A word that others store to at any time. The load sees what they stored before they stored it.
uint32_t csys_word_load(uintptr_t address);
void csys_word_store(uintptr_t address, uint32_t value);

// MARK: signals

// Blocks every signal but the synchronous ones (SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS)
// and keeps the old mask for csys_signals_restore. SIGCHLD is no longer ignored.
void csys_signals_block(void);
// The mask that csys_signals_block found, and whether SIGCHLD was ignored.
void csys_signals_restore(void);
int csys_signalfd(int only_children);
struct csys_signal {
  int number, code, pid, uid;
};
// The next pending signal of a signalfd; -EAGAIN where there is none.
int csys_signal_next(int signalfd, struct csys_signal *out);
// Ends the process as `number` would, without a core file.
void csys_die_of(int number);
void csys_stop_self(void);
// From here on a change of `fd` interrupts a thread with SIGIO, which is noted; negative where the
// descriptor cannot do that. Thread 0 is the one that calls, which then takes the signal.
int csys_note_changes(int fd, int thread);
// This thread's number.
int csys_thread(void);
// Whether a change was noted since the last call.
int csys_changes_noted(void);
// From here on this thread does the call of a notification; id 0 is none.
void csys_serving(int listener, uint64_t id);
// Whether the caller of what this thread does is gone.
int csys_serving_is_over(void);
// From here on a fault on a page that a truncated file lost maps zeros there, and takes no more
// mappings than a process can spare.
int csys_guard_truncation(void);

// MARK: tracing (x86-64; -ENOSYS elsewhere)

// A thread's registers, as the kernel has them in NT_PRSTATUS.
struct csys_registers {
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip,
      cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs;
};
// What a traced or a waited-for task reports.
struct csys_trace_event {
  int thread;
  // The task is gone: by exit (code is its status), or by a signal (code).
  int exited, signaled;
  // Else it has stopped with this signal, of a system call (is_call), or for an event.
  int code, is_call, event;
};
enum {
  CSYS_TRACE_FORK = 1,
  CSYS_TRACE_VFORK = 2,
  CSYS_TRACE_CLONE = 3,
  CSYS_TRACE_EXEC = 4,
  // A thread is about to end: it has still its number, and no parent has been told.
  CSYS_TRACE_EXIT = 6,
  // A stop of the whole process (by code, a stop signal), or one that was asked for (SIGTRAP).
  CSYS_TRACE_STOP = 128,
};
// siginfo_t with what it says of a fault.
struct csys_signal_information {
  int number, error, code, padding;
  uint64_t address;
  uint64_t rest[13];
};
enum { CSYS_BUS_ADDRESS_ERROR = 2 };
// struct sigaction, as rt_sigaction(2) takes it.
struct csys_signal_action {
  uint64_t handler, flags, restorer, mask;
};
enum { CSYS_RESET_HANDLER = (int)0x80000000 };

// Attaches to a thread without stopping it. Its clones, forks, execs and end are told of, and what it
// starts is traced too; it dies with us. -EINTR where csys_interruptible's signal came meanwhile: it may
// be attached or not.
int csys_trace_seize(int thread);
int csys_trace_interrupt(int thread);
int csys_trace_continue(int thread, int signal);
// Until the next system call's begin or end.
int csys_trace_until_call(int thread, int signal);
// Leaves a thread in its process's stop, and hears of that's end.
int csys_trace_listen(int thread);
int csys_trace_detach(int thread, int signal);
// What an event is about: the new task, or the former number of a thread that executes.
int csys_trace_message(int thread, uint64_t *out);
int csys_trace_signal(int thread, struct csys_signal_information *out);
int csys_trace_set_signal(int thread, const struct csys_signal_information *signal);
int csys_trace_registers(int thread, struct csys_registers *out);
int csys_trace_set_registers(int thread, const struct csys_registers *registers);
// The XSAVE area. Returns its size in bytes; at most `capacity`.
int csys_trace_extended(int thread, void *out, size_t capacity);
int csys_trace_set_extended(int thread, const void *state, size_t size);
// Where a component of the XSAVE area lies in it, in bytes; 0 where the processor has none.
uint32_t csys_extended_offset(int component);
int csys_trace_mask(int thread, uint64_t *out);
int csys_trace_set_mask(int thread, uint64_t mask);
// Waits for a task (-1: any) that the calling thread traces. 0, or -EINTR, -ECHILD.
int csys_trace_wait(int task, struct csys_trace_event *out);
// The same where there is something already: 1, and 0 where there is nothing.
int csys_trace_poll(struct csys_trace_event *out);
// Sends a signal to one thread.
int csys_thread_signal(int process, int thread, int signal);
// Children that stop are not told of any more; those that end are.
int csys_ignore_stops(void);
// From here on this signal interrupts what the calling thread waits for.
int csys_interruptible(int signal);
// The calling thread runs on this processor only.
int csys_run_on(int processor);

// MARK: numbers

static const uint32_t CSYS_AUDIT_ARCH =
#if defined(__x86_64__)
    0xC000003E;
#elif defined(__aarch64__)
    0xC00000B7;
#else
#error "unsupported architecture"
#endif

// System call numbers; -1 where the architecture lacks the call.
extern const int32_t CSYS_NR_read, CSYS_NR_write, CSYS_NR_readv, CSYS_NR_writev, CSYS_NR_pread64,
    CSYS_NR_pwrite64, CSYS_NR_preadv, CSYS_NR_pwritev, CSYS_NR_preadv2, CSYS_NR_pwritev2,
    CSYS_NR_ioctl, CSYS_NR_mmap, CSYS_NR_open, CSYS_NR_openat, CSYS_NR_openat2, CSYS_NR_creat,
    CSYS_NR_fstat, CSYS_NR_newfstatat, CSYS_NR_statx, CSYS_NR_lseek, CSYS_NR_ftruncate,
    CSYS_NR_fallocate, CSYS_NR_dup, CSYS_NR_fcntl, CSYS_NR_execve, CSYS_NR_execveat, CSYS_NR_io_uring_setup,
    CSYS_NR_userfaultfd, CSYS_NR_rt_sigaction, CSYS_NR_rt_tgsigqueueinfo, CSYS_NR_close, CSYS_NR_munmap, CSYS_NR_sendmsg, CSYS_NR_access, CSYS_NR_faccessat, CSYS_NR_faccessat2;
// Those that take paths, or that change what paths mean.
extern const int32_t CSYS_NR_stat, CSYS_NR_lstat, CSYS_NR_readlink, CSYS_NR_readlinkat,
    CSYS_NR_getxattr, CSYS_NR_lgetxattr, CSYS_NR_listxattr, CSYS_NR_llistxattr, CSYS_NR_setxattr,
    CSYS_NR_lsetxattr, CSYS_NR_removexattr, CSYS_NR_lremovexattr, CSYS_NR_statfs, CSYS_NR_chdir,
    CSYS_NR_getcwd, CSYS_NR_inotify_add_watch, CSYS_NR_fanotify_mark, CSYS_NR_name_to_handle_at,
    CSYS_NR_truncate, CSYS_NR_chmod, CSYS_NR_fchmodat, CSYS_NR_fchmodat2, CSYS_NR_chown,
    CSYS_NR_lchown, CSYS_NR_fchownat, CSYS_NR_mkdir, CSYS_NR_mkdirat, CSYS_NR_rmdir,
    CSYS_NR_unlink, CSYS_NR_unlinkat, CSYS_NR_rename, CSYS_NR_renameat, CSYS_NR_renameat2,
    CSYS_NR_link, CSYS_NR_linkat, CSYS_NR_symlink, CSYS_NR_symlinkat, CSYS_NR_mknod,
    CSYS_NR_mknodat, CSYS_NR_utime, CSYS_NR_utimes, CSYS_NR_futimesat, CSYS_NR_utimensat,
    CSYS_NR_chroot, CSYS_NR_mount, CSYS_NR_umount2, CSYS_NR_pivot_root, CSYS_NR_unshare,
    CSYS_NR_setns, CSYS_NR_clone, CSYS_NR_clone3, CSYS_NR_open_tree, CSYS_NR_move_mount,
    CSYS_NR_mount_setattr, CSYS_NR_fchmod, CSYS_NR_fchown, CSYS_NR_fsetxattr, CSYS_NR_fremovexattr,
    CSYS_NR_setxattrat, CSYS_NR_getxattrat, CSYS_NR_listxattrat, CSYS_NR_removexattrat,
    CSYS_NR_file_getattr, CSYS_NR_file_setattr, CSYS_NR_bind, CSYS_NR_connect;

// Those that change a thread's user.
extern const int32_t CSYS_NR_setuid, CSYS_NR_setgid, CSYS_NR_setreuid, CSYS_NR_setregid,
    CSYS_NR_setresuid, CSYS_NR_setresgid, CSYS_NR_setfsuid, CSYS_NR_setfsgid, CSYS_NR_prctl;

#endif
