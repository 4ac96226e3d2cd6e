// SPDX-License-Identifier: Apache-2.0
//
// Queues of page faults: made, filled by the mock device, read, answered, polled, closed.

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "sequence.h"

enum { QUEUES = 4 };

static struct fault_queue *some_queue(struct context *c) {
  int open = 0;
  for (int i = 0; i < QUEUES; i++) open += c->queue[i].fd >= 0;
  if (open == 0) return NULL;
  uint64_t which = below((uint64_t)open);
  for (int i = 0; i < QUEUES; i++)
    if (c->queue[i].fd >= 0 && which-- == 0) return &c->queue[i];
  return NULL;
}

void queue_alloc(struct context *c) {
  struct fault_queue *free_one = NULL;
  for (int i = 0; i < QUEUES; i++)
    if (c->queue[i].fd < 0) free_one = &c->queue[i];
  if (free_one == NULL) {
    close_queue(c);
    return;
  }
  struct iommu_fault_alloc a = {.flags = once_in(40)};
  say("FAULT_QUEUE_ALLOC flags=%u", a.flags);
  if (call(c, IOMMU_FAULT_QUEUE_ALLOC, &a, sizeof a) == 0) {
    *free_one = (struct fault_queue){.fd = (int)a.out_fault_fd, .id = a.out_fault_id};
    say(" queue=%u #%d", a.out_fault_id, (int)(free_one - c->queue));
    add_id(&c->queue_id, a.out_fault_id);
    if (a.out_fault_id > c->last_id) c->last_id = a.out_fault_id;
  }
  say("\n");
}

void trigger_fault(struct context *c) {
  struct iommu_test_cmd a = {0};
  a.trigger_iopf.dev_id = some_id(c, c->faulting.count ? &c->faulting : &c->device);
  a.trigger_iopf.pasid = once_in(3) ? (uint32_t)below(4) : 0;
  a.trigger_iopf.grpid = (uint32_t)below(8);
  a.trigger_iopf.perm = 1 + (uint32_t)below(7);
  a.trigger_iopf.addr = below(64) * PAGE;
  say("TRIGGER_IOPF device=%u pasid=%u group=%u permission=%u address=%#llx",
      a.trigger_iopf.dev_id, a.trigger_iopf.pasid, a.trigger_iopf.grpid, a.trigger_iopf.perm,
      (unsigned long long)a.trigger_iopf.addr);
  c->triggered |= back_door(c, &a, IOMMU_TEST_OP_TRIGGER_IOPF) == 0;
  say("\n");
}

void read_faults(struct context *c) {
  c->triggered = false;
  struct fault_queue *queue = some_queue(c);
  if (queue == NULL) return queue_alloc(c);
  struct iommu_hwpt_pgfault *record = scratch(1024);
  size_t count = sizeof *record * (once_in(12) ? 0 : 1 + below(4)) + (once_in(20) ? 8 : 0);
  ssize_t length = read(queue->fd, once_in(40) ? NULL : record, count);
  say("READ queue=#%d count=%zu -> %s", (int)(queue - c->queue), count,
      error_name(length < 0 ? errno : 0));
  for (ssize_t i = 0; i < length / (ssize_t)sizeof *record; i++) {
    struct iommu_hwpt_pgfault *r = &record[i];
    say(" {flags=%#x device=%u pasid=%u group=%u permission=%u address=%#llx length=%u "
        "cookie=%u}",
        r->flags, r->dev_id, r->pasid, r->grpid, r->perm, (unsigned long long)r->addr,
        r->length, r->cookie);
    if (queue->cookies < 16) queue->cookie[queue->cookies++] = r->cookie;
  }
  say(" length=%zd\n", length);
}

void write_responses(struct context *c) {
  struct fault_queue *queue = some_queue(c);
  if (queue == NULL) return queue_alloc(c);
  struct iommu_hwpt_page_response *response = scratch(1024);
  int number = once_in(12) ? 0 : 1 + (int)below(3);
  size_t count = sizeof *response * (size_t)number + (once_in(20) ? 4 : 0);
  say("WRITE queue=#%d count=%zu", (int)(queue - c->queue), count);
  for (int i = 0; i < number; i++) {
    bool known = queue->cookies && !once_in(8);
    int which = known ? (int)below((uint64_t)queue->cookies) : 0;
    // Linux gives out no cookie 0, until somebody answers it while others are out.
    response[i].cookie = known ? queue->cookie[which] : 1 + (uint32_t)below(5);
    response[i].code = once_in(20) ? 2 : (uint32_t)below(2);
    if (known && !once_in(8)) queue->cookie[which] = queue->cookie[--queue->cookies];
    say(" %u:%u", response[i].cookie, response[i].code);
  }
  ssize_t length = write(queue->fd, once_in(40) ? NULL : response, count);
  say(" -> %s length=%zd\n", error_name(length < 0 ? errno : 0), length);
}

void poll_queue(struct context *c) {
  struct fault_queue *queue = some_queue(c);
  if (queue == NULL) return queue_alloc(c);
  struct pollfd p = {queue->fd, POLLIN | POLLOUT | POLLRDNORM, 0};
  int result = poll(&p, 1, 0);
  say("POLL queue=#%d -> %s %d %#x\n", (int)(queue - c->queue),
      error_name(result < 0 ? errno : 0), result, p.revents);
}

void close_queue(struct context *c) {
  struct fault_queue *queue = some_queue(c);
  if (queue == NULL) return queue_alloc(c);
  say("CLOSE queue=#%d -> %s\n", (int)(queue - c->queue),
      error_name(close(queue->fd) ? errno : 0));
  queue->fd = -1;
}
