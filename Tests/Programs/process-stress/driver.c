// SPDX-License-Identifier: Apache-2.0
//
// The process that has the copy engines: one thread of each has it copy stamps out of what the
// others map, and its own words in; another attaches, moves and detaches it meanwhile.

#include <pthread.h>
#include <sys/mman.h>

#include "stress.h"

struct drive {
  struct engine *engine;
  int number;
  // Whether nobody else moves the engine: the default machine has two in one group.
  int is_alone;
  uint64_t random;
  // Descriptors, completion word and data, mapped in every space at the same IOVA.
  uint8_t *memory;
  uint64_t iova;
};

// One start copies so many times, so that an unmap comes in the middle now and then.
enum { CHAIN = 32, CHAINS = 8 };
enum { DESCRIPTORS = 0, COMPLETION = 2048, OWN = 2112, DATA = 2560 };

static void begin_change(int number) { atomic_fetch_add(&shared->phase[number], 1 << 8); }

static void end_change(int number, int space) {
  const uint64_t phase = atomic_load(&shared->phase[number]);
  atomic_store(&shared->phase[number], ((phase >> 8) + 1) << 8 | (uint64_t)(space + 1));
}

static void *attach_thread(void *argument) {
  struct drive *drive = argument;
  int space = -1;
  while (!stopping()) {
    const int wanted = (int)below(&drive->random, SPACES);
    const int is_table = below(&drive->random, 2) == 0;
    begin_change(drive->number);
    if (below(&drive->random, 4) == 0) {
      if (engine_detach(drive->engine)) broken("D1: detaching: errno %d", errno);
      if (space >= 0) count(DETACH);
      space = -1;
    } else if (engine_attach(drive->engine,
                             is_table ? shared->tables[wanted] : shared->spaces[wanted])) {
      // A neighbour of the group may be on another table.
      if (errno != EINVAL || drive->is_alone)
        broken("D1: attaching engine %d to space %d: errno %d", drive->number, wanted, errno);
      count(REFUSED);
    } else {
      count(space < 0 ? ATTACH : REPLACE);
      space = wanted;
    }
    end_change(drive->number, space);
    usleep((useconds_t)below(&drive->random, 30000));
  }
  engine_detach(drive->engine);
  return NULL;
}

// Has the engine copy again and again, the target moving on; false where it stopped with an error.
static int transfer(struct drive *drive, uint64_t from, uint64_t to, uint32_t size, uint32_t step) {
  volatile uint64_t *completion = (volatile uint64_t *)(drive->memory + COMPLETION);
  const uint64_t chain = drive->iova + DESCRIPTORS;
  for (uint32_t i = 0; i < CHAIN; i++)
    ((struct descriptor *)(drive->memory + DESCRIPTORS))[i] =
        (struct descriptor){.size = size,
                            .control = i + 1 == CHAIN ? CONTROL_COMPLETION : 0,
                            .source = from,
                            .destination = to + i * step,
                            .next = chain + (i + 1) % CHAIN * sizeof(struct descriptor)};
  *completion = 0;
  engine_start(drive->engine, chain, drive->iova + COMPLETION, CHAIN);
  for (uint64_t end = milliseconds() + 30000;;) {
    const uint64_t status = engine_read(drive->engine, CHANSTS, 8) & 7;
    if (status == CHANSTS_HALTED) break;
    if (status == CHANSTS_DONE) return 1;
    if (milliseconds() > end) {
      broken("engine %d does not end: status %llu", drive->number, (unsigned long long)status);
      return 0;
    }
  }
  count(ENGINE_FAULT);
  if (!engine_reset(drive->engine)) broken("engine %d cannot be reset", drive->number);
  return 0;
}

static void check_stamp(struct drive *drive, int index, int mapper, int place, uint64_t phase,
                        const uint64_t *ended) {
  const uint64_t word = *(volatile uint64_t *)(drive->memory + DATA + index * 16);
  const uint64_t space = *(volatile uint64_t *)(drive->memory + DATA + index * 16 + 8);
  const uint64_t generation = word & 0xffffffffff;
  if (word >> 56 != STAMP_TAG || (word >> 40 & 0xffff) != (uint64_t)(mapper * PLACES + place) ||
      space >= SPACES) {
    broken("G2: engine %d saw %#llx, %#llx in place %d of process %d", drive->number,
           (unsigned long long)word, (unsigned long long)space, place, mapper);
    return;
  }
  const uint64_t begun = atomic_load(&shared->slots[space][mapper][place].begun);
  if (generation <= ended[space] || generation > begun)
    broken("G2: engine %d saw mapping %llu of place %d of process %d when %llu was unmapped "
           "already, and %llu is the latest",
           drive->number, (unsigned long long)generation, place, mapper,
           (unsigned long long)ended[space], (unsigned long long)begun);
  if (drive->is_alone && !(phase >> 8 & 1) && atomic_load(&shared->phase[drive->number]) == phase &&
      (phase & 0xff) != space + 1)
    broken("D1: engine %d saw space %llu while attached to %d", drive->number,
           (unsigned long long)space, (int)(phase & 0xff) - 1);
}

static void *engine_thread(void *argument) {
  struct drive *drive = argument;
  uint64_t random = drive->random ^ 0x5555, words = 0;
  while (!stopping()) {
    const int mapper = (int)below(&random, (uint64_t)shared->mappers);
    const int place = (int)below(&random, PLACES);
    const uint64_t iova = place_iova(mapper, place) +
                          below(&random, (uint64_t)place_pages(place)) * PAGE;
    // Again at once: the engine's IOMMU remembers where the page was.
    for (int again = 0; again < CHAINS && !stopping(); again++) {
      if (below(&random, 3) == 0) {
        *(volatile uint64_t *)(drive->memory + OWN) = ENGINE_TAG << 56 | ++words;
        const uint64_t to = iova + (uint64_t)(STAMPS + drive->number) * 8;
        if (!transfer(drive, drive->iova + OWN, to, 8, 0)) break;
        count(ENGINE_WRITE);
        continue;
      }
      uint64_t ended[SPACES];
      const uint64_t phase = atomic_load(&shared->phase[drive->number]);
      for (int space = 0; space < SPACES; space++)
        ended[space] = atomic_load(&shared->slots[space][mapper][place].ended);
      if (!transfer(drive, iova, drive->iova + DATA, 16, 16)) break;
      count(ENGINE_READ);
      for (int i = 0; i < CHAIN; i++) check_stamp(drive, i, mapper, place, phase, ended);
    }
  }
  return NULL;
}

uint32_t make_table(uint32_t device, uint32_t space) {
  struct iommu_hwpt_alloc alloc = {.size = sizeof alloc, .dev_id = device, .pt_id = space};
  if (ioctl(iommu, IOMMU_HWPT_ALLOC, &alloc)) broken("L: HWPT_ALLOC: errno %d", errno);
  return alloc.out_hwpt_id;
}

void driver_process(struct engine *engines, int engine_count, int seconds) {
  static struct drive drives[MOST_ENGINES];
  pthread_t threads[2 * MOST_ENGINES];
  for (int i = 0; i < engine_count; i++) {
    drives[i] = (struct drive){.engine = &engines[i],
                               .number = i,
                               .is_alone = i == 0,
                               .random = shared->seed * 31 + (uint64_t)i,
                               .iova = DRIVER_IOVA + (uint64_t)i * PAGE};
    drives[i].memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (drives[i].memory == MAP_FAILED) broken("mmap: errno %d", errno);
    for (int space = 0; space < SPACES; space++)
      if (map_memory(shared->spaces[space], drives[i].memory, PAGE, drives[i].iova))
        broken("B1: the driver's memory cannot be mapped: errno %d", errno);
  }
  for (int i = 0; i < engine_count; i++) {
    if (!engine_reset(&engines[i])) broken("engine %d cannot be reset", i);
    if (pthread_create(&threads[2 * i], NULL, attach_thread, &drives[i]) ||
        pthread_create(&threads[2 * i + 1], NULL, engine_thread, &drives[i]))
      broken("no thread can be started");
  }
  const uint64_t end = milliseconds() + (uint64_t)seconds * 1000;
  while (!stopping()) {
    if (milliseconds() >= end) atomic_store(&shared->stop, 1);
    const uint32_t table = make_table(engines[0].id, shared->spaces[0]);
    if (destroy(table)) broken("A1: destroying table %u: errno %d", table, errno);
    count(TABLE);
    usleep(2000);
  }
  for (int i = 0; i < 2 * engine_count; i++) pthread_join(threads[i], NULL);
  for (int space = 0; space < SPACES; space++)
    if (destroy(shared->tables[space])) broken("A1: a table cannot be destroyed: errno %d", errno);
  _exit(atomic_load(&shared->failed));
}
