// SPDX-License-Identifier: Apache-2.0
//
// The VMM's part of a live migration, with VFIO's own calls:
//
//   RUNNING ─▶ PRE_COPY ─▶ PRE_COPY_P2P ─▶ STOP_COPY    the old device
//                                              │ stream
//                                              ▼
//                             RUNNING ◀──── RESUMING    the new one
//
// Two things move. The device's state is a stream of bytes that only the device understands: it is
// read from one descriptor and written to another. The guest's memory is copied while the guest runs,
// page by page; what is written meanwhile is copied again, and the device has to say which pages its
// DMA wrote: that is DMA logging.

#define _GNU_SOURCE
#include "migration.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vfio_device.h"

// Every feature is one ioctl: a header that says which one and what to do with it, then its own
// structure.
static int feature(int device, uint32_t what, void *data, size_t size) {
  const size_t length = sizeof(struct vfio_device_feature) + size;
  union {
    struct vfio_device_feature header;
    uint8_t bytes[128];
  } call = {.header = {.argsz = (uint32_t)length, .flags = what}};
  if (length > sizeof call) return errno = EINVAL, -1;
  if (size) memcpy(call.header.data, data, size);
  const int result = ioctl(device, VFIO_DEVICE_FEATURE, &call);
  if (size) memcpy(data, call.header.data, size);
  return result;
}

// MARK: the hosts

// Opens the device, gives it an address space and `size` bytes of memory there.
static void host_open(struct host *host, int iommu, uint64_t size) {
  uint32_t id;
  host->iommu = iommu;
  host->size = size;
  if ((host->device = open(host->node, O_RDWR | O_CLOEXEC)) < 0) fail(host->node);
  if (vfio_bind(host->device, iommu, &id)) fail("VFIO_DEVICE_BIND_IOMMUFD");
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc)) fail("IOMMU_IOAS_ALLOC");
  host->ioas = alloc.out_ioas_id;
  if (vfio_attach(host->device, host->ioas)) fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");

  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  host->written = calloc(size / PAGE / 64 + 1, sizeof(uint64_t));
  if (memory == MAP_FAILED || !host->written) fail("memory of the guest");
  host->memory = memory;
  // The guest's addresses are the same on both hosts; where the memory is does not matter to it.
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = host->ioas, .user_va = (uintptr_t)memory, .length = size, .iova = GUEST};
  if (ioctl(iommu, IOMMU_IOAS_MAP, &map)) fail("IOMMU_IOAS_MAP");
}

bool hosts_open(struct host *from, struct host *to, bool (*is_one)(const char *bdf), const char *what,
                int iommu, uint64_t size) {
  if (!find_device(is_one, NULL, NULL, from->bdf, from->node) ||
      !find_device(is_one, NULL, from->bdf, to->bdf, to->node)) {
    fprintf(stderr, "live-migration: it takes %s; try: iommu run --machine "
                    "Examples/live-migration/machine.yaml -- live-migration\n", what);
    return false;
  }
  host_open(from, iommu, size);
  host_open(to, iommu, size);
  return true;
}

void host_close(struct host *host) {
  // A mapping of its registers keeps the device open; its DMA ends here.
  if (vfio_detach(host->device)) fail("VFIO_DEVICE_DETACH_IOMMUFD_PT");
  close(host->device);
  struct iommu_destroy destroy = {.size = sizeof destroy, .id = host->ioas};
  if (ioctl(host->iommu, IOMMU_DESTROY, &destroy)) fail("IOMMU_DESTROY");
  munmap(host->memory, host->size);
  free(host->written);
}

static void mark(uint64_t *bitmap, uint64_t page) { bitmap[page / 64] |= UINT64_C(1) << page % 64; }

void host_wrote(struct host *host, const volatile void *address, uint64_t length) {
  const uint64_t start = (uint64_t)((const volatile uint8_t *)address - host->memory);
  for (uint64_t page = start / PAGE; page <= (start + length - 1) / PAGE; page++)
    mark(host->written, page);
}

// MARK: the guest's memory

static void start_log(struct host *host) {
  struct vfio_device_feature_dma_logging_range range = {.iova = GUEST, .length = host->size};
  struct vfio_device_feature_dma_logging_control start = {
      .page_size = PAGE, .num_ranges = 1, .ranges = (uintptr_t)&range};
  if (feature(host->device, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &start,
              sizeof start))
    fail("VFIO_DEVICE_FEATURE_DMA_LOGGING_START");
}

// Copies the pages that the device or the driver wrote since the last time. The device's pages are
// asked for first: one that it writes while we copy is in the next report.
static unsigned copy_written(struct move *move, unsigned *by_device) {
  struct host *from = move->from;
  const uint64_t pages = from->size / PAGE;
  uint64_t *bitmap = calloc(pages / 64 + 1, sizeof(uint64_t));
  if (!bitmap) fail("memory for a bitmap");
  struct vfio_device_feature_dma_logging_report report = {
      .iova = GUEST, .length = from->size, .page_size = PAGE, .bitmap = (uintptr_t)bitmap};
  if (feature(from->device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
              &report, sizeof report))
    fail("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT");
  unsigned copied = 0;
  *by_device = 0;
  for (uint64_t page = 0; page < pages; page++) {
    const uint64_t bit = UINT64_C(1) << page % 64;
    *by_device += (bitmap[page / 64] & bit) != 0;
    if (!((bitmap[page / 64] | from->written[page / 64]) & bit)) continue;
    from->written[page / 64] &= ~bit;
    memcpy(move->to->memory + page * PAGE, from->memory + page * PAGE, PAGE);
    copied++;
  }
  free(bitmap);
  return copied;
}

// MARK: the device's state

// Goes to a state. Where that begins a session, its descriptor is returned, else -1.
static int go(struct host *host, uint32_t state, const char *name) {
  struct vfio_device_feature_mig_state change = {.device_state = state, .data_fd = -1};
  if (feature(host->device, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &change,
              sizeof change)) {
    const int error = errno;
    // A device that failed to go back says so: then only a reset helps.
    struct vfio_device_feature_mig_state now = {0};
    feature(host->device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &now,
            sizeof now);
    errno = error;
    wrong("%s does not go to %s: %s; it is in state %u", host->bdf, name, strerror(error),
          now.device_state);
  }
  return change.data_fd;
}

// Reads what there is now. While the device runs, ENOMSG says that nothing is new; once it stands,
// 0 is the end of the state.
static size_t read_state(struct move *move) {
  const size_t before = move->length;
  for (;;) {
    uint8_t *room = realloc(move->stream, move->length + 65536);
    if (!room) fail("memory for the state");
    move->stream = room;
    const ssize_t count = read(move->data, move->stream + move->length, 65536);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno != ENOMSG) fail("reading the state");
    if (count <= 0) return move->length - before;
    move->length += (size_t)count;
  }
}

// MARK: the move

void move_begin(struct move *move, struct host *from, struct host *to) {
  *move = (struct move){.from = from, .to = to};
  struct vfio_device_feature_migration offer = {0};
  if (feature(from->device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION, &offer,
              sizeof offer))
    fail("VFIO_DEVICE_FEATURE_MIGRATION");
  const uint64_t wanted = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY;
  if ((offer.flags & wanted) != wanted) errno = EOPNOTSUPP, fail("PRE_COPY");
  move->has_quiet = (offer.flags & VFIO_MIGRATION_P2P) != 0;

  // The log first: what is written after it began is copied again.
  start_log(from);
  memcpy(to->memory, from->memory, from->size);
  memset(from->written, 0, (from->size / PAGE / 64 + 1) * sizeof(uint64_t));
  tell("logged the device's DMA, and copied all %llu pages of memory",
       (unsigned long long)(from->size / PAGE));

  move->data = go(from, VFIO_DEVICE_STATE_PRE_COPY, "PRE_COPY");
  tell("PRE_COPY: its state is there to be read, and the device works on");
}

void move_round(struct move *move) {
  struct vfio_precopy_info left = {.argsz = sizeof left};
  if (ioctl(move->data, VFIO_MIG_GET_PRECOPY_INFO, &left)) fail("VFIO_MIG_GET_PRECOPY_INFO");
  const size_t bytes = read_state(move);
  unsigned by_device;
  const unsigned pages = copy_written(move, &by_device);
  tell("a round: initial %llu, dirty %llu bytes of state, %zu read;\n"
       "    %u pages copied again, %u of them written by DMA",
       (unsigned long long)left.initial_bytes, (unsigned long long)left.dirty_bytes, bytes, pages,
       by_device);
}

void move_quiet(struct move *move) {
  if (!move->has_quiet) return;
  go(move->from, VFIO_DEVICE_STATE_PRE_COPY_P2P, "PRE_COPY_P2P");
  tell("PRE_COPY_P2P: it begins nothing towards other devices any more, and takes what comes");
}

void move_stop(struct move *move) {
  struct host *from = move->from;
  go(from, VFIO_DEVICE_STATE_STOP_COPY, "STOP_COPY");
  struct vfio_device_feature_mig_data_size size = {0};
  if (feature(from->device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &size,
              sizeof size))
    fail("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE");
  const size_t bytes = read_state(move);
  close(move->data);
  // No DMA comes after this: the last report is complete.
  unsigned by_device;
  const unsigned pages = copy_written(move, &by_device);
  if (feature(from->device, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0))
    fail("VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP");
  tell("STOP_COPY: the device stands; the last %zu bytes of state (%llu were announced), %u pages,\n"
       "    %u of them written by DMA",
       bytes, (unsigned long long)size.stop_copy_length, pages, by_device);
}

void move_resume(struct move *move) {
  struct host *to = move->to;
  const int data = go(to, VFIO_DEVICE_STATE_RESUMING, "RESUMING");
  for (size_t done = 0; done < move->length;) {
    const ssize_t count = write(data, move->stream + done, move->length - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("writing the state");
    done += (size_t)count;
  }
  close(data);
  // Whether the state was one of this device is said here.
  go(to, VFIO_DEVICE_STATE_RUNNING, "RUNNING");
  tell("RESUMING, RUNNING: %zu bytes written to %s, and it goes on", move->length, to->bdf);
  free(move->stream);
  // The old one is done. (To give the move up instead, it would go from STOP_COPY to RUNNING.)
  go(move->from, VFIO_DEVICE_STATE_STOP, "STOP");
  if (ioctl(move->from->device, VFIO_DEVICE_RESET)) fail("VFIO_DEVICE_RESET");
}
