// SPDX-License-Identifier: Apache-2.0
//
// The calls of /dev/iommu and of its back door, one short function each. Each returns what it
// made (an id or a file descriptor) or 0, or the negative errno.

#ifndef CALLS_H
#define CALLS_H

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "cases.h"
#include "iommufd_selftest_abi.h"

enum { PAGE = 4096, VIRTUAL_ID = 0x99 };
static const uint32_t both = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

static inline long call(int fd, unsigned long request, void *argument) {
  int result = ioctl(fd, request, argument);
  return result < 0 ? -errno : result;
}

static inline int open_iommu(void) {
  int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  return (int)GET(fd < 0 ? -errno : fd);
}

static inline long destroy(int fd, uint32_t id) {
  struct iommu_destroy cmd = {.size = sizeof cmd, .id = id};
  return call(fd, IOMMU_DESTROY, &cmd);
}

// --- Address spaces ----------------------------------------------------------------------------

static inline long alloc_ioas(int fd) {
  struct iommu_ioas_alloc cmd = {.size = sizeof cmd};
  long result = call(fd, IOMMU_IOAS_ALLOC, &cmd);
  return result ? result : cmd.out_ioas_id;
}

/// Maps at `*iova` with MAP_FIXED_IOVA among the flags, else chooses one and stores it there.
static inline long map(int fd, uint32_t ioas, void *memory, uint64_t length, uint32_t flags,
                       uint64_t *iova) {
  struct iommu_ioas_map cmd = {.size = sizeof cmd, .flags = flags, .ioas_id = ioas,
                               .user_va = (uintptr_t)memory, .length = length, .iova = *iova};
  long result = call(fd, IOMMU_IOAS_MAP, &cmd);
  *iova = cmd.iova;
  return result;
}

static inline long map_file(int fd, uint32_t ioas, int file, uint64_t start, uint64_t length,
                            uint32_t flags, uint64_t *iova) {
  struct iommu_ioas_map_file cmd = {.size = sizeof cmd, .flags = flags, .ioas_id = ioas, .fd = file,
                                    .start = start, .length = length, .iova = *iova};
  long result = call(fd, IOMMU_IOAS_MAP_FILE, &cmd);
  *iova = cmd.iova;
  return result;
}

static inline long unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t length) {
  struct iommu_ioas_unmap cmd = {.size = sizeof cmd, .ioas_id = ioas, .iova = iova,
                                 .length = length};
  return call(fd, IOMMU_IOAS_UNMAP, &cmd);
}

static inline long copy(int fd, uint32_t to, uint64_t to_iova, uint32_t from, uint64_t from_iova,
                        uint64_t length) {
  struct iommu_ioas_copy cmd = {.size = sizeof cmd, .flags = both | IOMMU_IOAS_MAP_FIXED_IOVA,
                                .dst_ioas_id = to, .src_ioas_id = from, .length = length,
                                .dst_iova = to_iova, .src_iova = from_iova};
  return call(fd, IOMMU_IOAS_COPY, &cmd);
}

static inline long change_process(int fd) {
  struct iommu_ioas_change_process cmd = {.size = sizeof cmd};
  return call(fd, IOMMU_IOAS_CHANGE_PROCESS, &cmd);
}

/// An address where nothing is mapped.
static void *const volatile nowhere = (void *)8;

/// Shared anonymous pages, filled with a byte.
static inline uint8_t *pages(unsigned count, int fill) {
  uint8_t *memory = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    GET(-errno);
    return NULL;
  }
  memset(memory, fill, (size_t)count * PAGE);
  return memory;
}

// --- Page tables ---------------------------------------------------------------------------------

static inline long alloc_hwpt_full(int fd, uint32_t device, uint32_t parent, uint32_t flags,
                                   uint32_t type, const void *data, uint32_t length,
                                   uint32_t fault) {
  struct iommu_hwpt_alloc cmd = {.size = sizeof cmd, .flags = flags, .dev_id = device,
                                 .pt_id = parent, .data_type = type, .data_len = length,
                                 .data_uptr = (uintptr_t)data, .fault_id = fault};
  long result = call(fd, IOMMU_HWPT_ALLOC, &cmd);
  return result ? result : cmd.out_hwpt_id;
}

/// A kernel-managed page table of an address space.
static inline long alloc_hwpt(int fd, uint32_t device, uint32_t ioas, uint32_t flags) {
  return alloc_hwpt_full(fd, device, ioas, flags, IOMMU_HWPT_DATA_NONE, NULL, 0, 0);
}

/// A user-managed page table on a parent or a virtual IOMMU; faults go to `fault` where the flags
/// say so. The data is as long as Linux 6.12 knows it.
static inline long nest(int fd, uint32_t device, uint32_t parent, uint32_t flags, uint32_t fault) {
  struct iommu_hwpt_selftest data = {.iotlb = IOMMU_TEST_IOTLB_DEFAULT};
  return alloc_hwpt_full(fd, device, parent, flags, IOMMU_HWPT_DATA_SELFTEST, &data,
                         sizeof data.iotlb, fault);
}

/// Invalidates; `*count` comes back as the entries handled.
static inline long invalidate(int fd, uint32_t id, uint32_t type, const void *entries,
                              uint32_t length, uint32_t *count) {
  struct iommu_hwpt_invalidate cmd = {.size = sizeof cmd, .hwpt_id = id, .data_type = type,
                                      .data_uptr = (uintptr_t)entries, .entry_len = length,
                                      .entry_num = *count};
  long result = call(fd, IOMMU_HWPT_INVALIDATE, &cmd);
  *count = cmd.entry_num;
  return result;
}

// --- Event queues -----------------------------------------------------------------------------------

static inline long alloc_fault_queue(int fd, int *queue) {
  struct iommu_fault_alloc cmd = {.size = sizeof cmd};
  long result = call(fd, IOMMU_FAULT_QUEUE_ALLOC, &cmd);
  *queue = -1;
  if (result) return result;
  *queue = (int)cmd.out_fault_fd;
  return cmd.out_fault_id;
}

static inline long alloc_veventq(int fd, uint32_t viommu, uint32_t type, uint32_t depth,
                                 int *queue) {
  struct iommu_veventq_alloc cmd = {.size = sizeof cmd, .viommu_id = viommu, .type = type,
                                    .veventq_depth = depth};
  long result = call(fd, IOMMU_VEVENTQ_ALLOC, &cmd);
  *queue = -1;
  if (result) return result;
  *queue = (int)cmd.out_veventq_fd;
  return cmd.out_veventq_id;
}

static inline long read_queue(int queue, void *buffer, size_t size) {
  long result = read(queue, buffer, size);
  return result < 0 ? -errno : result;
}

static inline long write_queue(int queue, const void *buffer, size_t size) {
  long result = write(queue, buffer, size);
  return result < 0 ? -errno : result;
}

/// Of page faults: a record's length, what an answer says, and a usual permission.
enum {
  RECORD = sizeof(struct iommu_hwpt_pgfault),
  SUCCESS = IOMMUFD_PAGE_RESP_SUCCESS,
  READ_WRITE = IOMMU_PGFAULT_PERM_READ | IOMMU_PGFAULT_PERM_WRITE,
};

/// Reads one fault that must be there.
static inline struct iommu_hwpt_pgfault take(int queue) {
  struct iommu_hwpt_pgfault fault;
  NEED(RECORD, read_queue(queue, &fault, sizeof fault));
  return fault;
}

static inline long respond(int queue, uint32_t cookie, uint32_t code) {
  struct iommu_hwpt_page_response response = {.cookie = cookie, .code = code};
  return write_queue(queue, &response, sizeof response);
}

/// What poll says at once, of reading and writing and their errors.
static inline int poll_bits(int queue) {
  struct pollfd wait = {.fd = queue, .events = POLLIN | POLLRDNORM | POLLOUT | POLLPRI};
  return poll(&wait, 1, 0) < 0 ? -errno : wait.revents;
}

// --- Virtual IOMMUs ---------------------------------------------------------------------------------

static inline long alloc_viommu_full(int fd, uint32_t device, uint32_t hwpt, uint32_t type,
                                     void *data, uint32_t length) {
  struct iommu_viommu_alloc cmd = {.size = sizeof cmd, .type = type, .dev_id = device,
                                   .hwpt_id = hwpt, .data_uptr = (uintptr_t)data,
                                   .data_len = length};
  long result = call(fd, IOMMU_VIOMMU_ALLOC, &cmd);
  return result ? result : cmd.out_viommu_id;
}

static inline long alloc_viommu(int fd, uint32_t device, uint32_t hwpt) {
  return alloc_viommu_full(fd, device, hwpt, IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0);
}

static inline long alloc_vdevice(int fd, uint32_t viommu, uint32_t device, uint64_t name) {
  struct iommu_vdevice_alloc cmd = {.size = sizeof cmd, .viommu_id = viommu, .dev_id = device,
                                    .virt_id = name};
  long result = call(fd, IOMMU_VDEVICE_ALLOC, &cmd);
  return result ? result : cmd.out_vdevice_id;
}

static inline long alloc_hw_queue(int fd, uint32_t viommu, uint32_t type, uint32_t index,
                                  uint64_t iova, uint64_t length) {
  struct iommu_hw_queue_alloc cmd = {.size = sizeof cmd, .viommu_id = viommu, .type = type,
                                     .index = index, .nesting_parent_iova = iova,
                                     .length = length};
  long result = call(fd, IOMMU_HW_QUEUE_ALLOC, &cmd);
  return result ? result : cmd.out_hw_queue_id;
}

// --- The back door ----------------------------------------------------------------------------------

static inline long back_door(int fd, struct iommu_test_cmd *cmd) {
  cmd->size = sizeof *cmd;
  return call(fd, IOMMU_TEST_CMD, cmd);
}

/// A mock device: its own id, its page table's and the bound device's.
struct mock {
  uint32_t stdev, hwpt, device;
};

static inline long add_mock(int fd, uint32_t table, uint32_t flags, struct mock *mock) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, .id = table,
                               .mock_domain_flags = {.dev_flags = flags}};
  long result = back_door(fd, &cmd);
  *mock = (struct mock){cmd.mock_domain_flags.out_stdev_id, cmd.mock_domain_flags.out_hwpt_id,
                        cmd.mock_domain_flags.out_idev_id};
  return result;
}

static inline long replace(int fd, uint32_t stdev, uint32_t table) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, .id = stdev,
                               .mock_domain_replace = {.pt_id = table}};
  return back_door(fd, &cmd);
}

static inline long page_request(int fd, uint32_t device, uint32_t pasid, uint32_t group,
                                uint32_t permission, uint64_t address) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_TRIGGER_IOPF,
                               .trigger_iopf = {.dev_id = device, .pasid = pasid, .grpid = group,
                                                .perm = permission, .addr = address}};
  return back_door(fd, &cmd);
}

static inline long trigger_event(int fd, uint32_t device) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_TRIGGER_VEVENT,
                               .trigger_vevent = {.dev_id = device}};
  return back_door(fd, &cmd);
}

/// One of the four operations on a PASID of a mock device.
static inline long pasid(int fd, uint32_t op, uint32_t stdev, uint32_t number, uint32_t table) {
  struct iommu_test_cmd cmd = {.op = op, .id = stdev,
                               .pasid_attach = {.pasid = number, .pt_id = table}};
  return back_door(fd, &cmd);
}

static inline long check_iotlb(int fd, uint32_t hwpt, uint32_t slot, uint32_t value) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_MD_CHECK_IOTLB, .id = hwpt,
                               .check_iotlb = {.id = slot, .iotlb = value}};
  return back_door(fd, &cmd);
}

static inline long check_cache(int fd, uint32_t device, uint32_t slot, uint32_t value) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_DEV_CHECK_CACHE, .id = device,
                               .check_dev_cache = {.id = slot, .cache = value}};
  return back_door(fd, &cmd);
}

/// Whether a page table maps `memory` at `iova`.
static inline long check_map(int fd, uint32_t hwpt, uint64_t iova, void *memory, uint64_t length) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_MD_CHECK_MAP, .id = hwpt,
                               .check_map = {.iova = iova, .length = length,
                                             .uptr = (uintptr_t)memory}};
  return back_door(fd, &cmd);
}

static inline long create_access(int fd, uint32_t ioas, uint32_t flags) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_CREATE_ACCESS, .id = ioas,
                               .create_access = {.flags = flags}};
  long result = back_door(fd, &cmd);
  return result ? result : (int)cmd.create_access.out_access_fd;
}

/// Reads or writes through an accessor.
static inline long access_rw(int fd, int accessor, uint64_t iova, void *buffer, uint64_t length,
                             uint32_t flags) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_ACCESS_RW, .id = (uint32_t)accessor,
                               .access_rw = {.iova = iova, .length = length,
                                             .uptr = (uintptr_t)buffer, .flags = flags}};
  return back_door(fd, &cmd);
}

/// Pins through an accessor; the id of the pinned range.
static inline long access_pin(int fd, int accessor, uint64_t iova, void *memory, uint64_t length,
                              uint32_t flags) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_ACCESS_PAGES, .id = (uint32_t)accessor,
                               .access_pages = {.flags = flags, .iova = iova, .length = length,
                                                .uptr = (uintptr_t)memory}};
  long result = back_door(fd, &cmd);
  return result ? result : cmd.access_pages.out_access_pages_id;
}

static inline long get_dmabuf(int fd, uint32_t length) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_DMABUF_GET,
                               .dmabuf_get = {.length = length, .open_flags = O_CLOEXEC}};
  return back_door(fd, &cmd);
}

static inline long revoke_dmabuf(int fd, int buffer, bool revoked) {
  struct iommu_test_cmd cmd = {.op = IOMMU_TEST_OP_DMABUF_REVOKE,
                               .dmabuf_revoke = {.dmabuf_fd = buffer, .revoked = revoked}};
  return back_door(fd, &cmd);
}

// --- What most cases start from ---------------------------------------------------------------------

/// A context with an address space and a mock device on it.
struct rig {
  int fd;
  uint32_t ioas;
  struct mock mock;
};

static inline struct rig make_rig(uint32_t device_flags) {
  struct rig rig = {.fd = open_iommu()};
  rig.ioas = (uint32_t)GET(alloc_ioas(rig.fd));
  NEED(0, add_mock(rig.fd, rig.ioas, device_flags, &rig.mock));
  return rig;
}

/// The same with a nesting parent, a virtual IOMMU and a user-managed page table on it.
struct virtual_rig {
  int fd;
  uint32_t ioas;
  struct mock mock;
  uint32_t parent, viommu, nested;
};

static inline struct virtual_rig make_virtual_rig(void) {
  struct rig rig = make_rig(0);
  struct virtual_rig made = {.fd = rig.fd, .ioas = rig.ioas, .mock = rig.mock};
  made.parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  made.viommu = (uint32_t)GET(alloc_viommu(rig.fd, rig.mock.device, made.parent));
  made.nested = (uint32_t)GET(nest(rig.fd, rig.mock.device, made.viommu, 0, 0));
  return made;
}

#endif
