// SPDX-License-Identifier: Apache-2.0
//
// The steps `nvme`, `format`, `write` and `check`: Linux's NVMe driver, ext4 on it, files whose
// contents say themselves whether they are whole, and what of them is there after the machine was
// killed.

#define _GNU_SOURCE

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { block_size = 4096, words = block_size / 8, slots = 64 };

typedef struct {
  _Alignas(block_size) uint64_t word[words];
} block;

static const char *disk(void) { return setting("device", "/dev/nvme0n1"); }

/// Settings: device, driver.
void step_nvme(void) {
  judge(wait_for(disk(), 20), "namespace", "%s is there", disk());
  const char *driver = setting("driver", "nvme");
  const char *bound = link_end("/sys/class/nvme/nvme0/device/driver");
  judge(strcmp(bound, driver) == 0, "driver", "of nvme0 is %s", *bound ? bound : "none");
  char model[64] = "", queues[16] = "";
  get("/sys/class/nvme/nvme0/model", model, sizeof model);
  get("/sys/class/nvme/nvme0/queue_count", queues, sizeof queues);
  tell("note nvme0 is a '%s' with %s queues", model, queues);
}

/// Settings: device.
void step_format(void) {
  const char *const make[] = {"/bin/mke2fs", "-q", "-F", "-t", "ext4", disk(), NULL};
  int status = run(make);
  judge(status == 0, "mkfs", "of ext4 on %s ended with %d", disk(), status);
}

static int mount_disk(void) {
  mkdir("/disk", 0755);
  int status = mount(disk(), "/disk", "ext4", 0, "") == 0 ? 0 : errno;
  return judge(status == 0, "mount", "of %s: %s", disk(), strerror(status));
}

/// What block `index` of file `file` holds in its `version`, which is its first word.
static void fill(block *into, uint64_t file, uint64_t index, uint64_t version) {
  uint64_t state = file << 40 ^ index << 20 ^ version ^ 0x9E3779B97F4A7C15;
  into->word[0] = version;
  for (int i = 1; i < words; i++) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    into->word[i] = state;
  }
}

static const char *file_path(long number) { return path("/disk/file%05ld", number); }

static int sync_path(const char *what) {
  int file = open(what, O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno;
  int status = fsync(file) == 0 ? 0 : errno;
  close(file);
  return status;
}

static int write_file(long number, long blocks) {
  static block data;
  int file = open(file_path(number), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), status = 0;
  if (file < 0) return errno;
  for (long i = 0; i < blocks && status == 0; i++) {
    fill(&data, (uint64_t)number, (uint64_t)i, 1);
    if (write(file, &data, sizeof data) != sizeof data) status = errno ? errno : EIO;
  }
  if (status == 0 && fsync(file) != 0) status = errno;
  close(file);
  return status ? status : sync_path("/disk");
}

/// Blocks that are written again and again in their place, past the page cache.
static int open_slots(void) {
  static block data;
  int file = open("/disk/slots", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0644);
  for (uint64_t i = 0; file >= 0 && i < slots; i++) {
    fill(&data, UINT32_MAX, i, 1);
    if (pwrite(file, &data, sizeof data, (off_t)(i * block_size)) != sizeof data) {
      close(file);
      return -1;
    }
  }
  if (file >= 0) fsync(file);
  return file;
}

/// Settings: device, files (0: until the machine is killed), blocks (of each file, 4 KiB each),
/// first (its number). `synced N` is told when file N can be lost no more.
void step_write(void) {
  if (!mount_disk()) return;
  long files = number("files", 16), blocks = number("blocks", 64), first = number("first", 0);
  static block data;
  int file = open_slots();
  if (!judge(file >= 0 && sync_path("/disk") == 0, "slots", "can be written past the cache"))
    return;
  int status = 0;
  uint64_t version = 2;
  for (long i = first; (files == 0 || i < first + files) && status == 0; i++) {
    for (uint64_t slot = 0; slot < slots && status == 0; slot += 4, version++) {
      fill(&data, UINT32_MAX, (slot + version) % slots, version);
      if (pwrite(file, &data, sizeof data, (off_t)((slot + version) % slots * block_size)) !=
          sizeof data)
        status = errno ? errno : EIO;
    }
    if (status == 0) status = write_file(i, blocks);
    if (status == 0) tell("synced %ld", i);
  }
  close(file);
  judge(status == 0, "write", "%ld files of %ld KiB: %s", files, blocks * 4, strerror(status));
  judge(umount("/disk") == 0, "unmount", "after writing");
}

/// How many blocks of a file are right, how many are zeros, and how many are neither.
typedef struct {
  long right, zero, wrong;
} tally;

static int count_blocks(const char *what, uint64_t name, tally *count) {
  static block found, wanted, zero;
  int file = open(what, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length;
  for (uint64_t i = 0; (length = read(file, &found, sizeof found)) > 0; i++) {
    // A file may end within a block only where it never was synced.
    fill(&wanted, name, i, found.word[0]);
    if (memcmp(&found, &wanted, (size_t)length) == 0)
      count->right++;
    else if (memcmp(&found, &zero, (size_t)length) == 0)
      count->zero++;
    else
      count->wrong++;
  }
  close(file);
  return length == 0;
}

/// Settings: device, synced (the last file that was told of), blocks.
void step_check(void) {
  long synced = number("synced", -1), blocks = number("blocks", 64);
  // The first mount replays the journal; then nothing may be left to mend.
  if (!mount_disk()) return;
  judge(umount("/disk") == 0, "unmount", "after the journal's replay");
  const char *const fsck[] = {"/bin/e2fsck", "-f", "-n", disk(), NULL};
  int status = run(fsck);
  judge(status == 0, "fsck", "ended with %d", status);
  if (!mount_disk()) return;

  long lost = 0;
  for (long i = 0; i <= synced; i++) {
    tally count = {0, 0, 0};
    if (!count_blocks(file_path(i), (uint64_t)i, &count) || count.right != blocks || count.wrong != 0) {
      lost++;
      tell("note %s: %ld of %ld blocks are right, %ld zero, %ld wrong", file_path(i), count.right, blocks,
           count.zero, count.wrong);
    }
  }
  judge(lost == 0, "synced-files", "%ld of %ld are lost", lost, synced + 1);
  // What came after may be missing, and may not be there in parts.
  tally later = {0, 0, 0}, slot = {0, 0, 0};
  long more = 0;
  for (long i = synced + 1; i < synced + 1000; i++) {
    more += count_blocks(file_path(i), (uint64_t)i, &later);
  }
  judge(later.wrong == 0, "later-files", "%ld, with %ld whole blocks, %ld zero, %ld torn", more,
        later.right, later.zero, later.wrong);
  count_blocks("/disk/slots", UINT32_MAX, &slot);
  judge(slot.right == slots && slot.wrong == 0, "slots", "%ld of %d blocks are whole, %ld torn",
        slot.right, slots, slot.wrong);
  judge(umount("/disk") == 0, "unmount", "at the end");
}
