// SPDX-License-Identifier: Apache-2.0
//
// What a container may call: the rules of Docker's default seccomp profile (github.com/moby/profiles,
// seccomp, as published in 2026) for x86-64. What has no rule is EPERM; what is newer than all rules
// is ENOSYS, which runc puts before them.

#ifndef CONFINED_RULES_H
#define CONFINED_RULES_H

#include <linux/capability.h>
#include <sys/syscall.h>

// Calls that are younger than Debian 12's headers.
enum {
  CALL_uretprobe = 335,
  CALL_memfd_secret = 447,
  CALL_cachestat = 451,
  CALL_fchmodat2 = 452,
  CALL_map_shadow_stack = 453,
  CALL_futex_wake = 454,
  CALL_futex_wait = 455,
  CALL_futex_requeue = 456,
  CALL_statmount = 457,
  CALL_listmount = 458,
  CALL_lsm_get_self_attr = 459,
  CALL_lsm_set_self_attr = 460,
  CALL_lsm_list_modules = 461,
  CALL_mseal = 462,
  CALL_setxattrat = 463,
  CALL_getxattrat = 464,
  CALL_listxattrat = 465,
  CALL_removexattrat = 466,
};

// Above it runc answers ENOSYS, so that libraries fall back: the rule with the highest number.
enum { LAST_CALL_WITH_RULE = CALL_removexattrat };

// Allowed whatever the arguments are. (ptrace and process_vm_* from Linux 4.8 on, as all that we run on.)
static const int allowed[] = {
    // Files by path.
    SYS_access, SYS_chdir, SYS_chmod, SYS_chown, SYS_creat, SYS_execve, SYS_execveat, SYS_faccessat,
    SYS_faccessat2, SYS_fchmodat, CALL_fchmodat2, SYS_fchownat, SYS_futimesat, SYS_getcwd,
    SYS_getxattr, CALL_getxattrat, SYS_inotify_add_watch, SYS_lchown, SYS_lgetxattr, SYS_link,
    SYS_linkat, SYS_listxattr, CALL_listxattrat, SYS_llistxattr, SYS_lremovexattr, SYS_lsetxattr,
    SYS_lstat, SYS_mkdir, SYS_mkdirat, SYS_mknod, SYS_mknodat, SYS_name_to_handle_at,
    SYS_newfstatat, SYS_open, SYS_openat, SYS_openat2, SYS_readlink, SYS_readlinkat,
    SYS_removexattr, CALL_removexattrat, SYS_rename, SYS_renameat, SYS_renameat2, SYS_rmdir,
    SYS_setxattr, CALL_setxattrat, SYS_stat, SYS_statfs, SYS_statx, SYS_symlink, SYS_symlinkat,
    SYS_truncate, SYS_unlink, SYS_unlinkat, SYS_utime, SYS_utimensat, SYS_utimes,
    // Mounts, to look at.
    CALL_listmount, CALL_statmount,
    // Files by descriptor.
    CALL_cachestat, SYS_close, SYS_close_range, SYS_copy_file_range, SYS_dup, SYS_dup2, SYS_dup3,
    SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod, SYS_fchown, SYS_fcntl,
    SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsetxattr,
    SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_getdents, SYS_getdents64,
    SYS_inotify_init, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_ioctl, SYS_lseek, SYS_pipe,
    SYS_pipe2, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2,
    SYS_read, SYS_readahead, SYS_readv, SYS_sendfile, SYS_splice, SYS_sync, SYS_sync_file_range,
    SYS_syncfs, SYS_tee, SYS_umask, SYS_vmsplice, SYS_write, SYS_writev,
    // Waiting.
    SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_ctl_old, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_eventfd2, SYS_futex,
    CALL_futex_requeue, CALL_futex_wait, SYS_futex_waitv, CALL_futex_wake, SYS_poll, SYS_ppoll,
    SYS_pselect6, SYS_select, SYS_signalfd, SYS_signalfd4, SYS_timerfd_create, SYS_timerfd_gettime,
    SYS_timerfd_settime,
    // Sockets, queues, semaphores.
    SYS_accept, SYS_accept4, SYS_bind, SYS_connect, SYS_getpeername, SYS_getsockname,
    SYS_getsockopt, SYS_listen, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive,
    SYS_mq_timedsend, SYS_mq_unlink, SYS_msgctl, SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_recvfrom,
    SYS_recvmmsg, SYS_recvmsg, SYS_semctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendmmsg,
    SYS_sendmsg, SYS_sendto, SYS_setsockopt, SYS_shutdown, SYS_socketpair,
    // Asynchronous files.
    SYS_io_cancel, SYS_io_destroy, SYS_io_getevents, SYS_io_pgetevents, SYS_io_setup, SYS_io_submit,
    SYS_ioprio_get, SYS_ioprio_set,
    // Memory.
    SYS_brk, SYS_madvise, CALL_map_shadow_stack, SYS_membarrier, SYS_memfd_create,
    CALL_memfd_secret, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_mprotect,
    SYS_mremap, CALL_mseal, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap, SYS_pkey_alloc,
    SYS_pkey_free, SYS_pkey_mprotect, SYS_process_mrelease, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_remap_file_pages, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget,
    // Processes.
    SYS_alarm, SYS_arch_prctl, SYS_capget, SYS_capset, SYS_exit, SYS_exit_group, SYS_fork,
    SYS_get_robust_list, SYS_get_thread_area, SYS_getcpu, SYS_getegid, SYS_geteuid, SYS_getgid,
    SYS_getgroups, SYS_getpgid, SYS_getpgrp, SYS_getpid, SYS_getppid, SYS_getpriority,
    SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_getrusage, SYS_getsid,
    SYS_gettid, SYS_getuid, SYS_landlock_add_rule, SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self, SYS_modify_ldt, SYS_pause, SYS_pidfd_open, SYS_pidfd_send_signal,
    SYS_prctl, SYS_prlimit64, SYS_ptrace, SYS_restart_syscall, SYS_rseq, SYS_sched_get_priority_max,
    SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam,
    SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr,
    SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_set_robust_list,
    SYS_set_thread_area, SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups,
    SYS_setpgid, SYS_setpriority, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid,
    SYS_setrlimit, SYS_setsid, SYS_setuid, SYS_sysinfo, SYS_uname, CALL_uretprobe, SYS_vfork,
    SYS_wait4, SYS_waitid,
    // Signals and time.
    SYS_adjtimex, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_getitimer, SYS_gettimeofday, SYS_kill, SYS_nanosleep, SYS_rt_sigaction, SYS_rt_sigpending,
    SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_setitimer, SYS_sigaltstack, SYS_tgkill, SYS_time,
    SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime,
    SYS_times, SYS_tkill,
};

// Docker 20.10, which Debian 12 has, does not yet allow these of them, and knows no younger calls.
static const int not_in_2010[] = {
    SYS_name_to_handle_at, SYS_pkey_alloc,        SYS_pkey_free,
    SYS_pkey_mprotect,     SYS_process_vm_readv,  SYS_process_vm_writev,
};
enum { LAST_CALL_IN_2010 = SYS_futex_waitv };
// And allowed these.
static const int only_in_2010[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};

// Allowed to containers that have a capability, whatever the arguments are.
struct privileged {
  int capability, call;
};
static const struct privileged privileged[] = {
    {CAP_DAC_READ_SEARCH, SYS_open_by_handle_at},
    {CAP_SYS_ADMIN, SYS_bpf},
    {CAP_SYS_ADMIN, SYS_clone},
    {CAP_SYS_ADMIN, SYS_clone3},
    {CAP_SYS_ADMIN, SYS_fanotify_init},
    {CAP_SYS_ADMIN, SYS_fsconfig},
    {CAP_SYS_ADMIN, SYS_fsmount},
    {CAP_SYS_ADMIN, SYS_fsopen},
    {CAP_SYS_ADMIN, SYS_fspick},
    {CAP_SYS_ADMIN, SYS_lookup_dcookie},
    {CAP_SYS_ADMIN, CALL_lsm_get_self_attr},
    {CAP_SYS_ADMIN, CALL_lsm_list_modules},
    {CAP_SYS_ADMIN, CALL_lsm_set_self_attr},
    {CAP_SYS_ADMIN, SYS_mount},
    {CAP_SYS_ADMIN, SYS_mount_setattr},
    {CAP_SYS_ADMIN, SYS_move_mount},
    {CAP_SYS_ADMIN, SYS_open_tree},
    {CAP_SYS_ADMIN, SYS_perf_event_open},
    {CAP_SYS_ADMIN, SYS_quotactl},
    {CAP_SYS_ADMIN, SYS_quotactl_fd},
    {CAP_SYS_ADMIN, SYS_setdomainname},
    {CAP_SYS_ADMIN, SYS_sethostname},
    {CAP_SYS_ADMIN, SYS_setns},
    {CAP_SYS_ADMIN, SYS_syslog},
    {CAP_SYS_ADMIN, SYS_umount2},
    {CAP_SYS_ADMIN, SYS_unshare},
    {CAP_SYS_BOOT, SYS_reboot},
    {CAP_SYS_CHROOT, SYS_chroot},
    {CAP_SYS_MODULE, SYS_delete_module},
    {CAP_SYS_MODULE, SYS_init_module},
    {CAP_SYS_MODULE, SYS_finit_module},
    {CAP_SYS_PACCT, SYS_acct},
    {CAP_SYS_PTRACE, SYS_kcmp},
    {CAP_SYS_PTRACE, SYS_pidfd_getfd},
    {CAP_SYS_PTRACE, SYS_process_madvise},
    {CAP_SYS_PTRACE, SYS_process_vm_readv},
    {CAP_SYS_PTRACE, SYS_process_vm_writev},
    {CAP_SYS_RAWIO, SYS_iopl},
    {CAP_SYS_RAWIO, SYS_ioperm},
    {CAP_SYS_TIME, SYS_settimeofday},
    {CAP_SYS_TIME, SYS_clock_settime},
    {CAP_SYS_TTY_CONFIG, SYS_vhangup},
    {CAP_SYS_NICE, SYS_get_mempolicy},
    {CAP_SYS_NICE, SYS_mbind},
    {CAP_SYS_NICE, SYS_set_mempolicy},
    {CAP_SYS_NICE, SYS_set_mempolicy_home_node},
    {CAP_SYSLOG, SYS_syslog},
    {CAP_BPF, SYS_bpf},
    {CAP_PERFMON, SYS_perf_event_open},
};

// socket(2): families that are allowed, besides those below the first.
enum { FAMILIES_BELOW = 12 };
static const unsigned families[] = {13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30,
                                    31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45};

// personality(2): PER_LINUX, PER_LINUX32, either with UNAME26, and the question.
static const unsigned personalities[] = {0, 8, 0x20000, 0x20008, 0xffffffff};

// clone(2): flags that no container without CAP_SYS_ADMIN may have, each of which makes a namespace.
enum { NAMESPACE_FLAGS = 0x7e020000 };

// Docker's fourteen capabilities.
static const int capabilities[] = {
    CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FOWNER,           CAP_FSETID,  CAP_KILL,
    CAP_SETGID, CAP_SETUID,       CAP_SETPCAP,          CAP_MKNOD,   CAP_NET_BIND_SERVICE,
    CAP_NET_RAW, CAP_SYS_CHROOT,  CAP_AUDIT_WRITE,      CAP_SETFCAP,
};

#endif
