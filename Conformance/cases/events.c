// SPDX-License-Identifier: Apache-2.0
//
// Event queues of virtual IOMMUs: records, sequence numbers, and what is said of events that
// were lost because nobody read (MODEL H2).

#include "calls.h"

enum {
  TYPE = IOMMU_VEVENTQ_TYPE_SELFTEST,
  HEADER = sizeof(struct iommufd_vevent_header),
  EVENT = HEADER + sizeof(struct iommu_viommu_event_selftest),
};

/// A device that is attached through a virtual IOMMU under a name, with an event queue.
struct event_rig {
  struct virtual_rig base;
  uint32_t vdevice, id;
  int fd, queue;
};

static struct event_rig make_event_rig(uint32_t depth) {
  struct event_rig rig = {.base = make_virtual_rig()};
  rig.fd = rig.base.fd;
  rig.vdevice =
      (uint32_t)GET(alloc_vdevice(rig.fd, rig.base.viommu, rig.base.mock.device, VIRTUAL_ID));
  rig.id = (uint32_t)GET(alloc_veventq(rig.fd, rig.base.viommu, TYPE, depth, &rig.queue));
  NEED(0, replace(rig.fd, rig.base.mock.stdev, rig.base.nested));
  return rig;
}

static void cause(struct event_rig *rig, int count) {
  while (count--) NEED(0, trigger_event(rig->fd, rig->base.mock.device));
}

/// A record in what was read.
struct record {
  struct iommufd_vevent_header header;
  struct iommu_viommu_event_selftest event;
};

/// Whether the record at a place is an event with this sequence number and name.
static void expect_event(const uint8_t *bytes, uint32_t sequence, uint32_t name) {
  struct record record;
  memcpy(&record, bytes, sizeof record);
  EXPECT(0, record.header.flags);
  EXPECT(sequence, record.header.sequence);
  EXPECT(name, record.event.virt_id);
}

/// Whether the record at a place says that events up to this sequence number were lost.
static void expect_lost(const uint8_t *bytes, uint32_t sequence) {
  struct iommufd_vevent_header header;
  memcpy(&header, bytes, sizeof header);
  EXPECT(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, header.flags);
  EXPECT(sequence, header.sequence);
}

CASE(events, arguments, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  int queue;
  // The type and the depth are asked before the virtual IOMMU.
  EXPECT(-EOPNOTSUPP, alloc_veventq(rig.fd, 0, IOMMU_VEVENTQ_TYPE_DEFAULT, 1, &queue));
  EXPECT(-EINVAL, alloc_veventq(rig.fd, 0, TYPE, 0, &queue));
  EXPECT(-EINVAL, alloc_veventq(rig.fd, rig.viommu, TYPE, 0, &queue));
  uint32_t others[] = {0, rig.ioas, rig.parent, rig.nested, rig.mock.device};
  for (int i = 0; i < 5; i++) EXPECT(-ENOENT, alloc_veventq(rig.fd, others[i], TYPE, 1, &queue));
  GET(alloc_veventq(rig.fd, rig.viommu, TYPE, 1u << 19, &queue));
  EXPECT(-EEXIST, alloc_veventq(rig.fd, rig.viommu, TYPE, 1, &queue));
}

CASE(events, queue_descriptor, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  int queue;
  uint8_t bytes[EVENT] = {0};
  uint32_t id = (uint32_t)GET(alloc_veventq(rig.fd, rig.viommu, TYPE, 1, &queue));
  CHECK(fcntl(queue, F_GETFD) & FD_CLOEXEC);
  CHECK((fcntl(queue, F_GETFL) & O_ACCMODE) == O_RDWR);
  EXPECT(0, read_queue(queue, bytes, sizeof bytes));
  EXPECT(-EINVAL, write_queue(queue, bytes, sizeof bytes));  // Nothing is answered here.
  EXPECT(0, poll_bits(queue));
  EXPECT(-ESPIPE, lseek(queue, 0, SEEK_SET) < 0 ? -errno : 0);
  EXPECT(-ESPIPE, pread(queue, bytes, EVENT, 0) < 0 ? -errno : 0);
  EXPECT(-EBUSY, destroy(rig.fd, id));
  EXPECT(-EBUSY, destroy(rig.fd, rig.viommu));
  close(queue);
  EXPECT(0, destroy(rig.fd, id));
  // The place is free for another.
  GET(alloc_veventq(rig.fd, rig.viommu, TYPE, 1, &queue));
}

CASE(events, whose_they_are, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint32_t device = rig.mock.device;
  int queue;
  EXPECT(-ENOENT, trigger_event(rig.fd, 0));
  EXPECT(-ENOENT, trigger_event(rig.fd, rig.mock.stdev));
  EXPECT(-ENOENT, trigger_event(rig.fd, device));  // Attached to no virtual IOMMU.
  GET(alloc_vdevice(rig.fd, rig.viommu, device, VIRTUAL_ID));
  EXPECT(-ENOENT, trigger_event(rig.fd, device));
  NEED(0, replace(rig.fd, rig.mock.stdev, rig.nested));
  EXPECT(-EOPNOTSUPP, trigger_event(rig.fd, device));  // Nobody listens.
  GET(alloc_veventq(rig.fd, rig.viommu, TYPE, 4, &queue));
  EXPECT(0, trigger_event(rig.fd, device));
  NEED(0, replace(rig.fd, rig.mock.stdev, rig.ioas));
  EXPECT(-ENOENT, trigger_event(rig.fd, device));
  uint8_t bytes[2 * EVENT];
  EXPECT(EVENT, read_queue(queue, bytes, sizeof bytes));
  expect_event(bytes, 0, VIRTUAL_ID);
}

CASE(events, names, LINUX_7_1) {
  // Each record has the name of its device, cut to 32 bits; a queue serves all devices of its
  // virtual IOMMU and no others.
  struct event_rig rig = make_event_rig(8);
  struct mock other, third;
  uint8_t bytes[8 * EVENT];
  int queue;
  NEED(0, add_mock(rig.fd, rig.base.ioas, 0, &other));
  NEED(0, add_mock(rig.fd, rig.base.ioas, 0, &third));
  GET(alloc_vdevice(rig.fd, rig.base.viommu, other.device, 0x1234567890ull));
  NEED(0, replace(rig.fd, other.stdev, rig.base.nested));
  uint32_t second = (uint32_t)GET(alloc_viommu(rig.fd, third.device, rig.base.parent));
  uint32_t table = (uint32_t)GET(nest(rig.fd, third.device, second, 0, 0));
  GET(alloc_vdevice(rig.fd, second, third.device, 3));
  NEED(0, replace(rig.fd, third.stdev, table));
  GET(alloc_veventq(rig.fd, second, TYPE, 8, &queue));
  NEED(0, trigger_event(rig.fd, other.device));
  NEED(0, trigger_event(rig.fd, third.device));
  cause(&rig, 1);
  NEED(2 * EVENT, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 0, 0x34567890);
  expect_event(bytes + EVENT, 1, VIRTUAL_ID);
  NEED(EVENT, read_queue(queue, bytes, sizeof bytes));
  expect_event(bytes, 0, 3);
}

CASE(events, whole_records, LINUX_7_1) {
  struct event_rig rig = make_event_rig(8);
  uint8_t bytes[8 * EVENT];
  cause(&rig, 5);
  EXPECT(POLLIN | POLLRDNORM, poll_bits(rig.queue));
  // As many as fit, never a part of one.
  EXPECT(EVENT, read_queue(rig.queue, bytes, EVENT));
  EXPECT(EVENT, read_queue(rig.queue, bytes + EVENT, EVENT + HEADER));
  EXPECT(2 * EVENT, read_queue(rig.queue, bytes + 2 * EVENT, 3 * EVENT - 1));
  EXPECT(-EINVAL, read_queue(rig.queue, bytes, EVENT - 1));  // No room for the first.
  EXPECT(EVENT, read_queue(rig.queue, bytes + 4 * EVENT, sizeof bytes - 4 * EVENT));
  EXPECT(0, poll_bits(rig.queue));
  for (uint32_t i = 0; i < 5; i++) expect_event(bytes + i * EVENT, i, VIRTUAL_ID);
}

CASE(events, lost_when_full, LINUX_7_1) {
  struct event_rig rig = make_event_rig(2);
  uint8_t bytes[8 * EVENT];
  cause(&rig, 2);
  NEED(2 * EVENT, read_queue(rig.queue, bytes, sizeof bytes));  // Full, and nothing lost.
  cause(&rig, 5);
  NEED(2 * EVENT + HEADER, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 2, VIRTUAL_ID);
  expect_event(bytes + EVENT, 3, VIRTUAL_ID);
  expect_lost(bytes + 2 * EVENT, 6);  // One record for all, with the last one's number.
  EXPECT(0, read_queue(rig.queue, bytes, sizeof bytes));
  cause(&rig, 1);
  NEED(EVENT, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 7, VIRTUAL_ID);
}

CASE(events, lost_record_is_read_alone, LINUX_7_1) {
  struct event_rig rig = make_event_rig(1);
  uint8_t bytes[8 * EVENT];
  cause(&rig, 2);
  NEED(EVENT, read_queue(rig.queue, bytes, EVENT));
  EXPECT(POLLIN | POLLRDNORM, poll_bits(rig.queue));
  NEED(HEADER, read_queue(rig.queue, bytes, HEADER));
  expect_lost(bytes, 1);
  EXPECT(0, poll_bits(rig.queue));
  // Lost again and again: each time there is one record.
  for (uint32_t i = 0; i < 3; i++) {
    cause(&rig, 3);
    NEED(EVENT + HEADER, read_queue(rig.queue, bytes, sizeof bytes));
    expect_event(bytes, 2 + 3 * i, VIRTUAL_ID);
    expect_lost(bytes + EVENT, 4 + 3 * i);
  }
}

CASE(events, lost_record_gives_way, LINUX_7_1) {
  // While the record of the loss is the last in the queue a new event takes its place: the gap in
  // the numbers tells of the loss then.
  struct event_rig rig = make_event_rig(2);
  uint8_t bytes[8 * EVENT];
  cause(&rig, 3);
  NEED(EVENT, read_queue(rig.queue, bytes, EVENT));
  expect_event(bytes, 0, VIRTUAL_ID);
  cause(&rig, 1);
  NEED(2 * EVENT, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 1, VIRTUAL_ID);
  expect_event(bytes + EVENT, 3, VIRTUAL_ID);
  EXPECT(0, read_queue(rig.queue, bytes, sizeof bytes));
}

CASE(events, unreadable_buffer, LINUX_7_1) {
  struct event_rig rig = make_event_rig(4);
  uint8_t *memory = pages(2, 0);
  NEED(0, munmap(memory + PAGE, PAGE));
  cause(&rig, 2);
  EXPECT(-EFAULT, read_queue(rig.queue, nowhere, EVENT));
  uint8_t *end = memory + PAGE - EVENT - 4;
  EXPECT(EVENT, read_queue(rig.queue, end, 2 * EVENT));
  expect_event(end, 0, VIRTUAL_ID);
  EXPECT(EVENT, read_queue(rig.queue, memory, EVENT));
  expect_event(memory, 1, VIRTUAL_ID);
}

CASE(events, depth_counts_what_is_unread, LINUX_7_1) {
  struct event_rig rig = make_event_rig(3);
  uint8_t bytes[8 * EVENT];
  for (uint32_t i = 0; i < 20; i++) {
    cause(&rig, 1);
    if (i < 2) continue;
    NEED(EVENT, read_queue(rig.queue, bytes, EVENT));
    expect_event(bytes, i - 2, VIRTUAL_ID);
  }
}

CASE(events, close_and_destroy, LINUX_7_1) {
  struct event_rig rig = make_event_rig(2);
  cause(&rig, 3);
  close(rig.queue);
  cause(&rig, 1);  // There is a queue still, though nobody can read it.
  NEED(0, destroy(rig.fd, rig.id));
  EXPECT(-EOPNOTSUPP, trigger_event(rig.fd, rig.base.mock.device));
  // A new queue starts empty and counts from zero.
  rig.id = (uint32_t)GET(alloc_veventq(rig.fd, rig.base.viommu, TYPE, 2, &rig.queue));
  cause(&rig, 1);
  uint8_t bytes[2 * EVENT];
  NEED(EVENT, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 0, VIRTUAL_ID);
}

CASE(events, queue_outlives_the_context, LINUX_7_1) {
  struct event_rig rig = make_event_rig(2);
  uint8_t bytes[2 * EVENT];
  cause(&rig, 1);
  close(rig.fd);
  NEED(EVENT, read_queue(rig.queue, bytes, sizeof bytes));
  expect_event(bytes, 0, VIRTUAL_ID);
}

CASE(events, wake_a_waiter, LINUX_7_1) {
  struct event_rig rig = make_event_rig(2);
  struct pollfd wait = {.fd = rig.queue, .events = POLLIN | POLLOUT};
  pid_t child = fork();
  if (child == 0) {
    usleep(50000);
    _exit(trigger_event(rig.fd, rig.base.mock.device) != 0);
  }
  EXPECT(1, poll(&wait, 1, 10000));
  EXPECT(POLLIN, wait.revents);
  waitpid(child, NULL, 0);
}
