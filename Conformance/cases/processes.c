// SPDX-License-Identifier: Apache-2.0
//
// IOAS_CHANGE_PROCESS and maps of files: whose memory is pinned, on whose account, and what
// outlives whom (MODEL B6, A2).

#include <linux/capability.h>
#include <sys/syscall.h>

#include "calls.h"

/// A memory file of so many pages.
static int make_file(unsigned count) {
  int file = memfd_create("case", MFD_CLOEXEC);
  GET(file < 0 ? -errno : file);
  NEED(0, ftruncate(file, (off_t)count * PAGE));
  return file;
}

/// A number of /proc/PID/status, in KiB: VmPin or VmLck.
static long status_of(pid_t process, const char *name) {
  char path[64], line[256];
  long value = -1;
  snprintf(path, sizeof path, "/proc/%d/status", process);
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0) value = atol(line + strlen(name) + 1);
  if (file) fclose(file);
  return value;
}

static long set_mode(int fd, uint64_t by_process) {
  struct iommu_option cmd = {.size = sizeof cmd, .option_id = IOMMU_OPTION_RLIMIT_MODE,
                             .op = IOMMU_OPTION_OP_SET, .val64 = by_process};
  return call(fd, IOMMU_OPTION, &cmd);
}

/// Gives up the right to lock without limit: whoever has it is not accounted.
static bool drop_ipc_lock(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2];
  NEED(0, syscall(SYS_capget, &header, sets));
  const bool had = sets[0].effective >> CAP_IPC_LOCK & 1;
  sets[0].effective &= ~(1u << CAP_IPC_LOCK);
  NEED(0, syscall(SYS_capset, &header, sets));
  return had;
}

CASE(processes, which_maps, LINUX_7_1) {
  struct rig rig = make_rig(0);
  uint32_t second = (uint32_t)GET(alloc_ioas(rig.fd));
  int file = make_file(4);
  uint64_t iova = 0, other = 0;
  EXPECT(0, change_process(rig.fd));  // There is nothing to hand over.
  NEED(0, map_file(rig.fd, rig.ioas, file, 0, 2 * PAGE, both, &iova));
  EXPECT(0, change_process(rig.fd));
  EXPECT(0, change_process(rig.fd));
  // One area of a process's own memory, in any space of the context, stands in the way.
  NEED(0, map(rig.fd, second, pages(1, 0), PAGE, both, &other));
  EXPECT(-EINVAL, change_process(rig.fd));
  NEED(0, unmap(rig.fd, second, other, PAGE));
  EXPECT(0, change_process(rig.fd));
  // Also as a copy.
  NEED(0, map(rig.fd, rig.ioas, pages(1, 0), PAGE, both, &other));
  NEED(0, copy(rig.fd, second, 0x100000, rig.ioas, other, PAGE));
  NEED(0, unmap(rig.fd, rig.ioas, other, PAGE));
  EXPECT(-EINVAL, change_process(rig.fd));
  NEED(0, destroy(rig.fd, second));
  EXPECT(0, change_process(rig.fd));
}

/// Runs a child that must pass; what it says is printed.
#define IN_A_CHILD(body)                                                                           \
  do {                                                                                             \
    int status_;                                                                                   \
    fflush(stdout);                                                                                \
    pid_t child_ = fork();                                                                         \
    if (child_ == 0) {                                                                             \
      body;                                                                                        \
      end_case();                                                                                  \
    }                                                                                              \
    NEED(child_, waitpid(child_, &status_, 0));                                                    \
    EXPECT(0, status_);                                                                            \
  } while (0)

/// Whether the pinned and the locked memory of a process are as told, in pages.
static void expect_pins(pid_t process, long pinned, long locked) {
  EXPECT(pinned * PAGE / 1024, status_of(process, "VmPin"));
  EXPECT(locked * PAGE / 1024, status_of(process, "VmLck"));
}

CASE(processes, account_moves, LINUX_7_1) {
  const bool was_privileged = drop_ipc_lock();
  for (int by_process = 0; by_process < 2; by_process++) {
    int fd = open_iommu(), file = make_file(8);
    struct mock mock;
    uint64_t iova = 0, copied = 0x40000000;
    pid_t parent = getpid();
    // The self-test driver takes everybody for privileged who never was: nothing is charged then.
    if (by_process && !was_privileged) return;
    if (by_process) NEED(0, set_mode(fd, 1));
    uint32_t ioas = (uint32_t)GET(alloc_ioas(fd));
    NEED(0, add_mock(fd, ioas, 0, &mock));
    NEED(0, map_file(fd, ioas, file, 0, 3 * PAGE, both, &iova));
    NEED(0, copy(fd, ioas, copied, ioas, iova, 3 * PAGE));  // Shares the pins.
    expect_pins(parent, 3, by_process ? 3 : 0);
    EXPECT(0, change_process(fd));  // To whom they are already.
    expect_pins(parent, 3, by_process ? 3 : 0);
    IN_A_CHILD({
      expect_pins(getpid(), 0, 0);
      EXPECT(0, change_process(fd));
      expect_pins(parent, 0, 0);
      expect_pins(getpid(), 3, by_process ? 3 : 0);
      NEED(0, map_file(fd, ioas, file, 4 * PAGE, PAGE, both, &iova));
      expect_pins(getpid(), 4, by_process ? 4 : 0);
    });
    // The child is gone; the maps are not, and come home.
    EXPECT(0, change_process(fd));
    expect_pins(parent, 4, by_process ? 4 : 0);
    NEED(0, unmap(fd, ioas, 0, UINT64_MAX));
    expect_pins(parent, 0, 0);
    close(fd);
  }
}

CASE(processes, failed_change_moves_nothing, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int file = make_file(2);
  uint64_t iova = 0, own = 0;
  pid_t parent = getpid();
  NEED(0, map_file(rig.fd, rig.ioas, file, 0, PAGE, both, &iova));
  NEED(0, map(rig.fd, rig.ioas, pages(1, 0), PAGE, both, &own));
  expect_pins(parent, 2, 0);
  IN_A_CHILD({
    EXPECT(-EINVAL, change_process(rig.fd));
    expect_pins(getpid(), 0, 0);
    expect_pins(parent, 2, 0);
  });
}

CASE(processes, file_maps_outlive_their_maker, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int file = make_file(4);
  uint8_t byte = 0;
  uint64_t iova = MOCK_APERTURE_START;
  IN_A_CHILD({
    NEED(0, map_file(rig.fd, rig.ioas, file, PAGE, 2 * PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA,
                     &iova));
  });
  uint8_t *view = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, iova, view + PAGE, 2 * PAGE));
  // A page table that comes later is filled from the file.
  uint32_t late = (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 0));
  EXPECT(0, check_map(rig.fd, late, iova, view + PAGE, 2 * PAGE));
  // And reads and writes through an accessor reach it, with the file closed too.
  int accessor = (int)GET(create_access(rig.fd, rig.ioas, 0));
  view[PAGE + 5] = 0x42;
  close(file);
  EXPECT(0, access_rw(rig.fd, accessor, iova + 5, &byte, 1, 0));
  EXPECT(0x42, byte);
  byte = 0x43;
  EXPECT(0, access_rw(rig.fd, accessor, iova + 3 * PAGE - 4096 - 1, &byte, 1, MOCK_ACCESS_RW_WRITE));
  EXPECT(0x43, view[3 * PAGE - 1]);
  EXPECT(0, change_process(rig.fd));
}

CASE(processes, map_file_arguments, LINUX_7_1) {
  struct rig rig = make_rig(0);
  int file = make_file(4);
  uint64_t iova = 0, at = MOCK_APERTURE_START;
  uint32_t fixed = both | IOMMU_IOAS_MAP_FIXED_IOVA;
  EXPECT(-EBADF, map_file(rig.fd, rig.ioas, -1, 0, PAGE, both, &iova));
  EXPECT(-ENOENT, map_file(rig.fd, rig.mock.device, file, 0, PAGE, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, file, 0, 0, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, file, 0, 4 * PAGE + 1, both, &iova));
  EXPECT(-EINVAL, map_file(rig.fd, rig.ioas, file, 4 * PAGE, PAGE, both, &iova));
  NEED(0, map_file(rig.fd, rig.ioas, file, 0, 4 * PAGE, fixed, &at));
  EXPECT(-EEXIST, map_file(rig.fd, rig.ioas, file, 0, PAGE, fixed, &at));
  // What stands in the file is what a device sees, byte by byte of its place.
  at += 16 * PAGE;
  NEED(0, map_file(rig.fd, rig.ioas, file, MOCK_PAGE_SIZE, PAGE, fixed, &at));
  uint8_t *view = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  EXPECT(0, check_map(rig.fd, rig.mock.hwpt, at, view + MOCK_PAGE_SIZE, PAGE));
}
