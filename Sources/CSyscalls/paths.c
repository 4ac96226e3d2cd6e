// SPDX-License-Identifier: Apache-2.0
//
// Calls that take paths: what lies at one, any of them with arguments as they are, their numbers.

#define _GNU_SOURCE
#include "CSyscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

// Linux 5.8.
#define MASK_MOUNT 0x1000u

int csys_place(int directory, const char *path, int flags, struct csys_place *out) {
  // As the kernel has it: the C library's lacks the mount in older versions.
  struct {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, user, group;
    uint16_t mode, spare;
    uint64_t inode, size, blocks, attributes_mask;
    uint64_t times[8];
    uint32_t device_major, device_minor, major, minor;
    uint64_t mount, rest[13];
  } status;
  _Static_assert(sizeof status == 256, "struct statx");
  if (syscall(
          SYS_statx, directory, path, flags | AT_STATX_DONT_SYNC,
          STATX_TYPE | STATX_MODE | STATX_INO | MASK_MOUNT, &status) < 0)
    return -errno;
  *out = (struct csys_place){
      .device = makedev(status.major, status.minor),
      .inode = status.inode,
      .mount = status.mask & MASK_MOUNT ? status.mount : 0,
      .mode = status.mode,
  };
  return 0;
}

long csys_call(int32_t number, const uint64_t *arguments) {
  long result = syscall(
      number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
  return result < 0 ? -errno : result;
}

size_t csys_statfs_size(void) { return sizeof(struct statfs); }

#define NUMBER(name) const int32_t CSYS_NR_##name = SYS_##name
#define NUMBER_SINCE(name, value) const int32_t CSYS_NR_##name = value
NUMBER(readlinkat);
NUMBER(getxattr);
NUMBER(lgetxattr);
NUMBER(listxattr);
NUMBER(llistxattr);
NUMBER(setxattr);
NUMBER(lsetxattr);
NUMBER(removexattr);
NUMBER(lremovexattr);
NUMBER(statfs);
NUMBER(chdir);
NUMBER(bind);
NUMBER(connect);
NUMBER(getcwd);
NUMBER(inotify_add_watch);
NUMBER(fanotify_mark);
NUMBER(name_to_handle_at);
NUMBER(truncate);
NUMBER(fchmodat);
NUMBER_SINCE(fchmodat2, 452);
NUMBER(fchownat);
NUMBER(fchmod);
NUMBER(fchown);
NUMBER(fsetxattr);
NUMBER(fremovexattr);
NUMBER(mkdirat);
NUMBER(unlinkat);
NUMBER(renameat);
NUMBER(renameat2);
NUMBER(linkat);
NUMBER(symlinkat);
NUMBER(mknodat);
NUMBER(utimensat);
NUMBER(chroot);
NUMBER(mount);
NUMBER(umount2);
NUMBER(pivot_root);
NUMBER(unshare);
NUMBER(setns);
NUMBER(clone);
NUMBER_SINCE(clone3, 435);
NUMBER_SINCE(open_tree, 428);
NUMBER_SINCE(move_mount, 429);
NUMBER_SINCE(mount_setattr, 442);
NUMBER_SINCE(setxattrat, 463);
NUMBER_SINCE(getxattrat, 464);
NUMBER_SINCE(listxattrat, 465);
NUMBER_SINCE(removexattrat, 466);
NUMBER_SINCE(file_getattr, 468);
NUMBER_SINCE(file_setattr, 469);
#ifdef SYS_stat
NUMBER(stat);
NUMBER(lstat);
NUMBER(readlink);
NUMBER(chmod);
NUMBER(chown);
NUMBER(lchown);
NUMBER(mkdir);
NUMBER(rmdir);
NUMBER(unlink);
NUMBER(rename);
NUMBER(link);
NUMBER(symlink);
NUMBER(mknod);
NUMBER(utime);
NUMBER(utimes);
NUMBER(futimesat);
#else
const int32_t CSYS_NR_stat = -1, CSYS_NR_lstat = -1, CSYS_NR_readlink = -1, CSYS_NR_chmod = -1,
              CSYS_NR_chown = -1, CSYS_NR_lchown = -1, CSYS_NR_mkdir = -1, CSYS_NR_rmdir = -1,
              CSYS_NR_unlink = -1, CSYS_NR_rename = -1, CSYS_NR_link = -1, CSYS_NR_symlink = -1,
              CSYS_NR_mknod = -1, CSYS_NR_utime = -1, CSYS_NR_utimes = -1, CSYS_NR_futimesat = -1;
#endif
