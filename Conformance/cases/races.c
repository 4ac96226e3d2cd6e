// SPDX-License-Identifier: Apache-2.0
//
// Calls of many threads at once, where exactly one outcome is right whoever comes first.

#include <pthread.h>

#include "calls.h"

enum { THREADS = 8, ROUNDS = 40 };

struct crew {
  pthread_barrier_t start;
  long (*work)(const struct crew *, int number);
  int fd, queue;
  uint32_t ids[THREADS], target;
  long results[THREADS];
};

struct hand {
  struct crew *crew;
  int number;
};

static void *run_hand(void *argument) {
  struct hand *hand = argument;
  pthread_barrier_wait(&hand->crew->start);
  hand->crew->results[hand->number] = hand->crew->work(hand->crew, hand->number);
  return NULL;
}

/// Does the work on all threads at once.
static void at_once(struct crew *crew) {
  pthread_t threads[THREADS];
  struct hand hands[THREADS];
  pthread_barrier_init(&crew->start, NULL, THREADS);
  for (int i = 0; i < THREADS; i++) {
    hands[i] = (struct hand){crew, i};
    NEED(0, pthread_create(&threads[i], NULL, run_hand, &hands[i]));
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&crew->start);
}

/// How many threads got this result.
static int count(const struct crew *crew, long result) {
  int found = 0;
  for (int i = 0; i < THREADS; i++) found += crew->results[i] == result;
  return found;
}

static long destroy_target(const struct crew *crew, int number) {
  (void)number;
  return destroy(crew->fd, crew->target);
}

CASE(races, destroy_one_object, LINUX_6_12) {
  struct crew crew = {.fd = open_iommu(), .work = destroy_target};
  for (int round = 0; round < ROUNDS; round++) {
    crew.target = (uint32_t)GET(alloc_ioas(crew.fd));
    at_once(&crew);
    EXPECT(1, count(&crew, 0));
    EXPECT(THREADS - 1, count(&crew, -ENOENT));
  }
}

static long take_name(const struct crew *crew, int number) {
  long result = alloc_vdevice(crew->fd, crew->target, crew->ids[number], VIRTUAL_ID);
  return result > 0 ? 1 : result;
}

CASE(races, one_name_for_one_device, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct crew crew = {.fd = rig.fd, .work = take_name, .target = rig.viommu};
  struct mock mocks[THREADS];
  for (int i = 0; i < THREADS; i++) {
    NEED(0, add_mock(rig.fd, rig.ioas, 0, &mocks[i]));
    crew.ids[i] = mocks[i].device;
  }
  at_once(&crew);
  EXPECT(1, count(&crew, 1));
  EXPECT(THREADS - 1, count(&crew, -EEXIST));
}

static long take_device(const struct crew *crew, int number) {
  long result = alloc_vdevice(crew->fd, crew->target, crew->ids[0], (uint64_t)number);
  return result > 0 ? 1 : result;
}

CASE(races, one_device_for_one_name, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct crew crew = {.fd = rig.fd, .work = take_device, .target = rig.viommu,
                      .ids = {rig.mock.device}};
  at_once(&crew);
  EXPECT(1, count(&crew, 1));
  EXPECT(THREADS - 1, count(&crew, -EEXIST));
}

static long make_queue(const struct crew *crew, int number) {
  int queue;
  (void)number;
  long result = alloc_veventq(crew->fd, crew->target, IOMMU_VEVENTQ_TYPE_SELFTEST, 1, &queue);
  return result > 0 ? 1 : result;
}

CASE(races, one_queue_of_a_type, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct crew crew = {.fd = rig.fd, .work = make_queue, .target = rig.viommu};
  at_once(&crew);
  EXPECT(1, count(&crew, 1));
  EXPECT(THREADS - 1, count(&crew, -EEXIST));
}

static long attach_pasid(const struct crew *crew, int number) {
  return pasid(crew->fd, IOMMU_TEST_OP_PASID_ATTACH, crew->target, 3, crew->ids[number]);
}

CASE(races, one_table_for_a_pasid, LINUX_7_1) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_PASID);
  struct crew crew = {.fd = rig.fd, .work = attach_pasid, .target = rig.mock.stdev};
  for (int i = 0; i < THREADS; i++)
    crew.ids[i] =
        (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_PASID));
  NEED(0, replace(rig.fd, rig.mock.stdev, crew.ids[0]));
  for (int round = 0; round < ROUNDS; round++) {
    at_once(&crew);
    EXPECT(1, count(&crew, 0));
    EXPECT(THREADS - 1, count(&crew, -EBUSY));
    for (int i = 0; i < THREADS; i++)
      EXPECT(crew.results[i] == 0 ? 0 : -EINVAL,
             pasid(rig.fd, IOMMU_TEST_OP_PASID_CHECK_HWPT, crew.target, 3, crew.ids[i]));
    NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_DETACH, crew.target, 3, 0));
  }
}

/// Reads faults and answers them until there are no more; how many there were.
static long serve(const struct crew *crew, int number) {
  struct iommu_hwpt_pgfault fault;
  long served = 0, got;
  (void)number;
  while ((got = read_queue(crew->queue, &fault, sizeof fault)) == RECORD) {
    if (respond(crew->queue, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS) != 8) return -EPROTO;
    served++;
  }
  return got < 0 ? got : served;
}

CASE(races, each_fault_is_read_once, LINUX_6_12) {
  enum { FAULTS = 200 };
  struct rig rig = make_rig(0);
  struct crew crew = {.fd = rig.fd, .work = serve};
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &crew.queue));
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t table =
      (uint32_t)GET(nest(rig.fd, rig.mock.device, parent, IOMMU_HWPT_FAULT_ID_VALID, id));
  long served = 0;
  NEED(0, replace(rig.fd, rig.mock.stdev, table));
  for (uint32_t i = 0; i < FAULTS; i++)
    NEED(0, page_request(rig.fd, rig.mock.device, 0, i, IOMMU_PGFAULT_PERM_READ, 0));
  at_once(&crew);
  for (int i = 0; i < THREADS; i++) {
    CHECK(crew.results[i] >= 0);
    served += crew.results[i];
  }
  EXPECT(FAULTS, served);
}

/// Half of the threads fault, half move the device to and fro; nothing is left at the end.
static long fault_or_move(const struct crew *crew, int number) {
  struct iommu_hwpt_pgfault fault;
  long result = 0;
  for (int round = 0; round < ROUNDS && result == 0; round++) {
    if (number % 2) {
      result = replace(crew->fd, crew->target, crew->ids[round % 2]);
    } else {
      result = page_request(crew->fd, crew->ids[2], 0, (uint32_t)round, 1, 0);
      if (read_queue(crew->queue, &fault, sizeof fault) == RECORD)
        respond(crew->queue, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS);
    }
  }
  return result;
}

CASE(races, faults_and_replaces, LINUX_6_12) {
  struct rig rig = make_rig(0);
  struct iommu_hwpt_pgfault fault;
  struct crew crew = {.fd = rig.fd, .work = fault_or_move, .target = rig.mock.stdev};
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &crew.queue));
  crew.ids[0] =
      (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  crew.ids[1] =
      (uint32_t)GET(nest(rig.fd, rig.mock.device, crew.ids[0], IOMMU_HWPT_FAULT_ID_VALID, id));
  crew.ids[2] = rig.mock.device;
  at_once(&crew);
  EXPECT(THREADS, count(&crew, 0));
  NEED(0, replace(rig.fd, rig.mock.stdev, crew.ids[0]));
  EXPECT(0, read_queue(crew.queue, &fault, sizeof fault));
  NEED(0, destroy(rig.fd, crew.ids[1]));
  close(crew.queue);
  EXPECT(0, destroy(rig.fd, id));
}
