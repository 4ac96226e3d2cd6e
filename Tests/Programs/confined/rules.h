// SPDX-License-Identifier: Apache-2.0
//
// What a container may call: Docker's default profile (moby, profiles/seccomp/default.json, of 2024),
// as it is for x86-64 and a container with Docker's fourteen capabilities. What is not here is EPERM.

#ifndef CONFINED_RULES_H
#define CONFINED_RULES_H

#include <sys/syscall.h>

// Allowed whatever the arguments are.
static const int allowed[] = {
    // Files by path.
    SYS_access, SYS_chdir, SYS_chmod, SYS_chown, SYS_creat, SYS_execve, SYS_execveat, SYS_faccessat,
    SYS_faccessat2, SYS_fchmodat, SYS_fchownat, SYS_futimesat, SYS_getcwd, SYS_getxattr,
    SYS_inotify_add_watch, SYS_lchown, SYS_lgetxattr, SYS_link, SYS_linkat, SYS_listxattr,
    SYS_llistxattr, SYS_lremovexattr, SYS_lsetxattr, SYS_lstat, SYS_mkdir, SYS_mkdirat, SYS_mknod,
    SYS_mknodat, SYS_name_to_handle_at, SYS_newfstatat, SYS_open, SYS_openat, SYS_openat2,
    SYS_readlink, SYS_readlinkat, SYS_removexattr, SYS_rename, SYS_renameat, SYS_renameat2, SYS_rmdir,
    SYS_setxattr, SYS_stat, SYS_statfs, SYS_statx, SYS_symlink, SYS_symlinkat, SYS_truncate,
    SYS_unlink, SYS_unlinkat, SYS_utime, SYS_utimensat, SYS_utimes,
    // Files by descriptor.
    SYS_close, SYS_close_range, SYS_copy_file_range, SYS_dup, SYS_dup2, SYS_dup3, SYS_fadvise64,
    SYS_fallocate, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod, SYS_fchown, SYS_fcntl, SYS_fdatasync,
    SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat,
    SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_getdents, SYS_getdents64, SYS_inotify_init,
    SYS_inotify_init1, SYS_inotify_rm_watch, SYS_ioctl, SYS_lseek, SYS_pipe, SYS_pipe2, SYS_pread64,
    SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead,
    SYS_readv, SYS_sendfile, SYS_splice, SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_tee,
    SYS_umask, SYS_vmsplice, SYS_write, SYS_writev,
    // Waiting.
    SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_ctl_old, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_eventfd2, SYS_futex,
    SYS_futex_waitv, SYS_poll, SYS_ppoll, SYS_pselect6, SYS_select, SYS_signalfd, SYS_signalfd4,
    SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime,
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
    SYS_brk, SYS_madvise, SYS_membarrier, SYS_memfd_create, SYS_mincore, SYS_mlock, SYS_mlock2,
    SYS_mlockall, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_msync, SYS_munlock, SYS_munlockall,
    SYS_munmap, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_process_mrelease,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_remap_file_pages, SYS_shmat, SYS_shmctl,
    SYS_shmdt, SYS_shmget,
    // Processes.
    SYS_alarm, SYS_arch_prctl, SYS_capget, SYS_capset, SYS_chroot, SYS_exit, SYS_exit_group, SYS_fork,
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
    SYS_setrlimit, SYS_setsid, SYS_setuid, SYS_sysinfo, SYS_uname, SYS_vfork, SYS_wait4, SYS_waitid,
    // Signals and time.
    SYS_adjtimex, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_getitimer, SYS_gettimeofday, SYS_kill, SYS_nanosleep, SYS_rt_sigaction, SYS_rt_sigpending,
    SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_setitimer, SYS_sigaltstack, SYS_tgkill, SYS_time,
    SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime,
    SYS_times, SYS_tkill,
};

// Docker's capabilities, by number: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
static const int capabilities[] = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31};

#endif
