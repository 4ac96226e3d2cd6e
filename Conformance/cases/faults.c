// SPDX-License-Identifier: Apache-2.0
//
// Queues of I/O page faults: what a read gives, what a write takes, and that no fault outlives
// what it came through (MODEL H1, H3).

#include <sys/epoll.h>

#include "calls.h"

/// A device on a user-managed page table whose faults go to a queue.
struct fault_rig {
  int fd, queue;
  uint32_t ioas, stdev, device, parent, table, id;
};

static struct fault_rig make_fault_rig(uint32_t device_flags) {
  struct rig rig = make_rig(device_flags);
  struct fault_rig made = {.fd = rig.fd, .ioas = rig.ioas, .stdev = rig.mock.stdev,
                           .device = rig.mock.device};
  made.id = (uint32_t)GET(alloc_fault_queue(rig.fd, &made.queue));
  made.parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, made.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  made.table =
      (uint32_t)GET(nest(rig.fd, made.device, made.parent, IOMMU_HWPT_FAULT_ID_VALID, made.id));
  NEED(0, replace(rig.fd, rig.mock.stdev, made.table));
  return made;
}

CASE(faults, queue_descriptor, LINUX_6_12) {
  int fd = open_iommu(), queue;
  uint32_t id = (uint32_t)GET(alloc_fault_queue(fd, &queue));
  uint8_t bytes[2 * RECORD];
  CHECK(fcntl(queue, F_GETFD) & FD_CLOEXEC);
  CHECK((fcntl(queue, F_GETFL) & O_ACCMODE) == O_RDWR);
  // An empty queue never makes a reader wait.
  EXPECT(0, read_queue(queue, bytes, sizeof bytes));
  EXPECT(0, read_queue(queue, bytes, 0));
  EXPECT(0, write_queue(queue, bytes, 0));
  EXPECT(POLLOUT, poll_bits(queue));
  // It is no file with places in it.
  EXPECT(-ESPIPE, lseek(queue, 0, SEEK_SET) < 0 ? -errno : 0);
  EXPECT(-ESPIPE, pread(queue, bytes, RECORD, 0) < 0 ? -errno : 0);
  EXPECT(-ESPIPE, pwrite(queue, bytes, 8, 0) < 0 ? -errno : 0);
  // And it is not another context.
  EXPECT(-ENOTTY, destroy(queue, id));
  EXPECT(-EBUSY, destroy(fd, id));
  close(queue);
  EXPECT(0, destroy(fd, id));
}

CASE(faults, ragged_counts, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  uint8_t bytes[2 * RECORD];
  for (int there = 0; there < 2; there++) {
    EXPECT(-ESPIPE, read_queue(rig.queue, bytes, 1));
    EXPECT(-ESPIPE, read_queue(rig.queue, bytes, RECORD - 1));
    EXPECT(-ESPIPE, read_queue(rig.queue, bytes, RECORD + 1));
    EXPECT(-ESPIPE, write_queue(rig.queue, bytes, 4));
    EXPECT(-ESPIPE, write_queue(rig.queue, bytes, 9));
    if (!there) NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  }
  // The fault is there still, and there is no room in nothing.
  EXPECT(-EINVAL, read_queue(rig.queue, bytes, 0));
  EXPECT(RECORD, read_queue(rig.queue, bytes, sizeof bytes));
  EXPECT(0, read_queue(rig.queue, bytes, sizeof bytes));
}

CASE(faults, record, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  NEED(0, page_request(rig.fd, rig.device, 7, 0x123, IOMMU_PGFAULT_PERM_EXEC, 0xfffffffff000ull));
  struct iommu_hwpt_pgfault fault = take(rig.queue);
  EXPECT(IOMMU_PGFAULT_FLAGS_LAST_PAGE | IOMMU_PGFAULT_FLAGS_PASID_VALID, fault.flags);
  EXPECT(rig.device, fault.dev_id);
  EXPECT(7, fault.pasid);
  EXPECT(0x123, fault.grpid);
  EXPECT(IOMMU_PGFAULT_PERM_EXEC, fault.perm);
  EXPECT(0, fault.__reserved);
  EXPECT(0xfffffffff000ll, (long long)fault.addr);
  EXPECT(0, fault.length);
  CHECK(fault.cookie != 0);
  EXPECT(8, respond(rig.queue, fault.cookie, SUCCESS));
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  fault = take(rig.queue);
  EXPECT(IOMMU_PGFAULT_FLAGS_LAST_PAGE, fault.flags);
  EXPECT(0, fault.pasid);
}

CASE(faults, order_and_cookies, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  struct iommu_hwpt_pgfault faults[4];
  for (uint32_t i = 0; i < 4; i++)
    NEED(0, page_request(rig.fd, rig.device, 0, i, READ_WRITE, i * PAGE));
  EXPECT(POLLIN | POLLRDNORM | POLLOUT, poll_bits(rig.queue));
  NEED(2 * RECORD, read_queue(rig.queue, faults, 2 * RECORD));
  EXPECT(POLLIN | POLLRDNORM | POLLOUT, poll_bits(rig.queue));
  NEED(2 * RECORD, read_queue(rig.queue, faults + 2, 2 * RECORD));
  EXPECT(POLLOUT, poll_bits(rig.queue));
  for (uint32_t i = 0; i < 4; i++) {
    EXPECT(i, faults[i].grpid);
    EXPECT(i * PAGE, (long long)faults[i].addr);
    EXPECT(i + 1, faults[i].cookie);
  }
  // Answers come in any order; a cookie is free again once it is answered.
  EXPECT(8, respond(rig.queue, 3, SUCCESS));
  EXPECT(8, respond(rig.queue, 1, IOMMUFD_PAGE_RESP_INVALID));
  NEED(0, page_request(rig.fd, rig.device, 0, 9, READ_WRITE, 0));
  EXPECT(1, take(rig.queue).cookie);
  EXPECT(-EINVAL, respond(rig.queue, 3, SUCCESS));
}

CASE(faults, bad_answers, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  EXPECT(-EINVAL, respond(rig.queue, 0, SUCCESS));
  EXPECT(-EINVAL, respond(rig.queue, 1, SUCCESS));
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  EXPECT(-EINVAL, respond(rig.queue, 1, SUCCESS));  // Nobody has read it: it has no cookie yet.
  uint32_t cookie = take(rig.queue).cookie;
  EXPECT(-EINVAL, respond(rig.queue, cookie, 2));
  EXPECT(-EINVAL, respond(rig.queue, cookie + 1, SUCCESS));
  EXPECT(-EFAULT, write_queue(rig.queue, nowhere, 8));
  EXPECT(8, respond(rig.queue, cookie, SUCCESS));
  EXPECT(-EINVAL, respond(rig.queue, cookie, SUCCESS));
}

CASE(faults, answers_in_a_row, LINUX_6_12) {
  // A write takes the answers up to the first bad one and says how far it came.
  struct fault_rig rig = make_fault_rig(0);
  for (uint32_t i = 0; i < 3; i++) NEED(0, page_request(rig.fd, rig.device, 0, i, READ_WRITE, 0));
  for (uint32_t i = 0; i < 3; i++) EXPECT(i + 1, take(rig.queue).cookie);
  struct iommu_hwpt_page_response answers[4] = {{2, SUCCESS}, {1, SUCCESS}, {1, SUCCESS}, {3, 0}};
  EXPECT(16, write_queue(rig.queue, answers, sizeof answers));
  EXPECT(-EINVAL, write_queue(rig.queue, answers + 2, 16));
  EXPECT(8, write_queue(rig.queue, answers + 3, 8));
}

CASE(faults, unreadable_buffer, LINUX_6_12) {
  // What could not be handed over is handed over next time.
  struct fault_rig rig = make_fault_rig(0);
  uint8_t *memory = pages(2, 0);
  NEED(0, munmap(memory + PAGE, PAGE));
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, rig.device, 0, 2, READ_WRITE, 0));
  EXPECT(-EFAULT, read_queue(rig.queue, nowhere, RECORD));
  EXPECT(POLLIN | POLLRDNORM | POLLOUT, poll_bits(rig.queue));
  // One record fits before the hole.
  EXPECT(RECORD, read_queue(rig.queue, memory + PAGE - RECORD - 8, 2 * RECORD));
  EXPECT(1, ((struct iommu_hwpt_pgfault *)(memory + PAGE - RECORD - 8))->grpid);
  EXPECT(2, take(rig.queue).grpid);
}

CASE(faults, whose_they_are, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  struct mock other;
  uint8_t bytes[RECORD];
  int second;
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &second));
  uint32_t table =
      (uint32_t)GET(nest(rig.fd, rig.device, rig.parent, IOMMU_HWPT_FAULT_ID_VALID, id));
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &other));
  EXPECT(-ENOENT, page_request(rig.fd, 0, 0, 0, 0, 0));
  EXPECT(-ENOENT, page_request(rig.fd, rig.stdev, 0, 0, 0, 0));
  // Of a device without a queue nobody hears; the device has its answer at once.
  EXPECT(0, page_request(rig.fd, other.device, 0, 0, READ_WRITE, 0));
  EXPECT(0, read_queue(rig.queue, bytes, RECORD));
  // Two tables, two queues; one queue may serve both devices.
  NEED(0, replace(rig.fd, other.stdev, table));
  NEED(0, page_request(rig.fd, other.device, 0, 0, READ_WRITE, 0));
  EXPECT(0, read_queue(rig.queue, bytes, RECORD));
  EXPECT(other.device, take(second).dev_id);
  NEED(0, replace(rig.fd, other.stdev, rig.table));
  NEED(0, page_request(rig.fd, other.device, 0, 0, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, rig.device, 0, 0, READ_WRITE, 0));
  EXPECT(other.device, take(rig.queue).dev_id);
  EXPECT(rig.device, take(rig.queue).dev_id);
}

CASE(faults, end_with_replace, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  uint8_t bytes[RECORD];
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  uint32_t cookie = take(rig.queue).cookie;
  NEED(0, page_request(rig.fd, rig.device, 0, 2, READ_WRITE, 0));
  NEED(0, replace(rig.fd, rig.stdev, rig.parent));
  // Both have been answered: the one that was read and the one that was not.
  EXPECT(-EINVAL, respond(rig.queue, cookie, SUCCESS));
  EXPECT(POLLOUT, poll_bits(rig.queue));
  EXPECT(0, read_queue(rig.queue, bytes, RECORD));
  // And back again, with an empty queue.
  NEED(0, replace(rig.fd, rig.stdev, rig.table));
  EXPECT(0, read_queue(rig.queue, bytes, RECORD));
  NEED(0, page_request(rig.fd, rig.device, 0, 3, READ_WRITE, 0));
  EXPECT(3, take(rig.queue).grpid);
}

CASE(faults, end_with_the_device, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  struct mock other;
  NEED(0, add_mock(rig.fd, rig.table, 0, &other));
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, other.device, 0, 2, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, rig.device, 0, 3, READ_WRITE, 0));
  uint32_t cookie = take(rig.queue).cookie;
  NEED(0, destroy(rig.fd, rig.stdev));
  EXPECT(-EINVAL, respond(rig.queue, cookie, SUCCESS));
  // The other device's is untouched.
  struct iommu_hwpt_pgfault fault = take(rig.queue);
  EXPECT(other.device, fault.dev_id);
  EXPECT(8, respond(rig.queue, fault.cookie, SUCCESS));
  EXPECT(0, read_queue(rig.queue, &fault, sizeof fault));
}

CASE(faults, order_of_destruction, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  EXPECT(-EBUSY, destroy(rig.fd, rig.id));
  close(rig.queue);  // Faults go on; nobody can hear of them.
  EXPECT(0, page_request(rig.fd, rig.device, 0, 2, READ_WRITE, 0));
  EXPECT(-EBUSY, destroy(rig.fd, rig.id));
  NEED(0, replace(rig.fd, rig.stdev, rig.ioas));
  EXPECT(-EBUSY, destroy(rig.fd, rig.id));
  NEED(0, destroy(rig.fd, rig.table));
  EXPECT(0, destroy(rig.fd, rig.id));
  EXPECT(0, destroy(rig.fd, rig.parent));
}

CASE(faults, queue_outlives_the_context, LINUX_6_12) {
  // The queue's descriptor keeps the context and all that is in it.
  struct fault_rig rig = make_fault_rig(0);
  NEED(0, page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0));
  close(rig.fd);
  struct iommu_hwpt_pgfault fault = take(rig.queue);
  EXPECT(rig.device, fault.dev_id);
  EXPECT(8, respond(rig.queue, fault.cookie, SUCCESS));
  EXPECT(-EINVAL, respond(rig.queue, fault.cookie, SUCCESS));
}

CASE(faults, kinds_of_ids, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  uint32_t ids[] = {0, UINT32_MAX, rig.ioas, rig.device, rig.table};
  for (int i = 0; i < 5; i++)
    EXPECT(-ENOENT, nest(rig.fd, rig.device, rig.parent, IOMMU_HWPT_FAULT_ID_VALID, ids[i]));
  // Without the flag the field is not looked at.
  GET(nest(rig.fd, rig.device, rig.parent, 0, UINT32_MAX));
}

CASE(faults, wake_a_waiter, LINUX_6_12) {
  struct fault_rig rig = make_fault_rig(0);
  struct pollfd wait = {.fd = rig.queue, .events = POLLIN};
  struct epoll_event event = {.events = EPOLLIN}, ready;
  int set = epoll_create1(0);
  NEED(0, epoll_ctl(set, EPOLL_CTL_ADD, rig.queue, &event));
  EXPECT(0, epoll_wait(set, &ready, 1, 0));
  pid_t child = fork();
  if (child == 0) {
    usleep(50000);
    _exit(page_request(rig.fd, rig.device, 0, 1, READ_WRITE, 0) != 0);
  }
  EXPECT(1, poll(&wait, 1, 10000));
  EXPECT(POLLIN, wait.revents);
  EXPECT(1, epoll_wait(set, &ready, 1, 10000));
  EXPECT(1, take(rig.queue).grpid);
  EXPECT(0, epoll_wait(set, &ready, 1, 0));
  waitpid(child, NULL, 0);
}

CASE(faults, answered_by_another_process, LINUX_6_12) {
  // Who holds the descriptor may read and answer (A2): here a child, through a copy of it.
  struct fault_rig rig = make_fault_rig(0);
  int status, copied = dup(rig.queue);
  NEED(0, page_request(rig.fd, rig.device, 0, 5, READ_WRITE, 0));
  pid_t child = fork();
  if (child == 0) {
    struct iommu_hwpt_pgfault fault = take(copied);
    EXPECT(5, fault.grpid);
    EXPECT(8, respond(copied, fault.cookie, SUCCESS));
    end_case();
  }
  NEED(child, waitpid(child, &status, 0));
  EXPECT(0, status);
  EXPECT(-EINVAL, respond(rig.queue, 1, SUCCESS));
}
