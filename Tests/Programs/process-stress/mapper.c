// SPDX-License-Identifier: Apache-2.0
//
// A process that maps its memory into the shared context and takes it out again, copies
// mappings, makes and destroys spaces and tables, and lets a child of its own die in the middle.

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "stress.h"

struct place {
  int space, mapper, place, is_mapped;
  uint64_t *extents[2];
};

struct thread {
  int mapper, number, threads;
  uint64_t random;
  struct place places[SPACES * PLACES];
};

static void fill(uint64_t *extent, int pages, uint64_t word) {
  for (int page = 0; page < pages; page++)
    for (int i = 0; i < WORDS; i++) extent[page * (PAGE / 8) + i] = word;
}

static void check_poison(const struct place *place, const uint64_t *extent) {
  for (int page = 0; page < place_pages(place->place); page++)
    for (int i = 0; i < WORDS; i++) {
      const uint64_t word = ((const volatile uint64_t *)extent)[page * (PAGE / 8) + i];
      if (word == POISON) continue;
      broken("G2: %#llx was written to unmapped memory: process %d, place %d of space %d, page %d",
             (unsigned long long)word, place->mapper, place->place, place->space, page);
      return;
    }
}

static void map_place(struct place *place) {
  struct slot *slot = &shared->slots[place->space][place->mapper][place->place];
  const uint64_t generation = atomic_load(&slot->begun) + 1;
  const int pages = place_pages(place->place);
  uint64_t *extent = place->extents[generation % 2];
  check_poison(place, extent);
  fill(extent, pages, stamp((uint64_t)(place->mapper * PLACES + place->place), generation));
  // Which space it is, in the second half of the stamps.
  for (int page = 0; page < pages; page++) extent[page * (PAGE / 8) + 1] = (uint64_t)place->space;
  atomic_store(&slot->begun, generation);
  if (map_memory(shared->spaces[place->space], extent, (uint64_t)pages * PAGE,
                 place_iova(place->mapper, place->place)))
    broken("B1: process %d cannot map place %d: errno %d", place->mapper, place->place, errno);
  place->is_mapped = 1;
  count(MAP);
}

static void unmap_place(struct place *place) {
  struct slot *slot = &shared->slots[place->space][place->mapper][place->place];
  const uint64_t generation = atomic_load(&slot->begun);
  const int pages = place_pages(place->place);
  uint64_t length = (uint64_t)pages * PAGE;
  if (unmap_range(shared->spaces[place->space], place_iova(place->mapper, place->place),
                  &length) ||
      length != (uint64_t)pages * PAGE)
    broken("B1: process %d cannot unmap place %d: errno %d, %llu bytes", place->mapper,
           place->place, errno, (unsigned long long)length);
  atomic_store(&slot->ended, generation);
  fill(place->extents[generation % 2], pages, POISON);
  place->is_mapped = 0;
  count(UNMAP);
}

static void copy_mapping(struct thread *thread) {
  const struct place *place = &thread->places[below(&thread->random, SPACES * PLACES)];
  if (!place->is_mapped) return;
  const uint64_t iova =
      OTHER_IOVA + (uint64_t)(thread->mapper * MOST_THREADS + thread->number) * 16 * PAGE;
  uint64_t length = (uint64_t)place_pages(place->place) * PAGE;
  struct iommu_ioas_copy copy = {.size = sizeof copy,
                                 .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
                                 .dst_ioas_id = shared->spaces[1 - place->space],
                                 .src_ioas_id = shared->spaces[place->space],
                                 .length = length,
                                 .dst_iova = iova,
                                 .src_iova = place_iova(place->mapper, place->place)};
  if (ioctl(iommu, IOMMU_IOAS_COPY, &copy))
    broken("B6: process %d cannot copy a mapping: errno %d", thread->mapper, errno);
  if (unmap_range(copy.dst_ioas_id, iova, &length))
    broken("B6: process %d cannot unmap a copy: errno %d", thread->mapper, errno);
  count(COPY);
}

static uint32_t make_space(void) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  if (ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc)) broken("L: IOAS_ALLOC: errno %d", errno);
  return alloc.out_ioas_id;
}

static void churn_space(struct thread *thread) {
  const uint32_t space = make_space();
  if (map_memory(space, thread->places[0].extents[0], PAGE, OTHER_IOVA))
    broken("B1: a map in a space of its own: errno %d", errno);
  if (destroy(space)) broken("A1: destroying space %u: errno %d", space, errno);
  // One that tables need stays.
  if (!destroy(shared->spaces[0]) || errno != EBUSY)
    broken("A1: a space was destroyed under its tables");
  count(SPACE);
}

// A child maps its memory and is killed; what it had mapped is there to be unmapped.
static void let_die(struct thread *thread) {
  const uint32_t space = make_space();
  const pid_t child = fork();
  if (child == 0) {
    void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    map_memory(space, memory, PAGE, OTHER_IOVA);
    raise(SIGKILL);
  }
  if (child > 0) waitpid(child, NULL, 0);
  uint64_t length = PAGE;
  if (child > 0 && (unmap_range(space, OTHER_IOVA, &length) || length != PAGE))
    broken("B1: what a killed process mapped cannot be unmapped: errno %d", errno);
  if (destroy(space)) broken("A1: destroying space %u: errno %d", space, errno);
  count(DEATH);
  (void)thread;
}

static void *run_thread(void *argument) {
  struct thread *thread = argument;
  while (!stopping()) {
    // Places are dealt out: a thread has every `threads`-th.
    const int index = (int)below(&thread->random, SPACES * PLACES);
    struct place *place = &thread->places[index];
    switch (below(&thread->random, 40)) {
      case 0: case 1: copy_mapping(thread); break;
      case 2: case 3: churn_space(thread); break;
      case 4: if (thread->number == 0) let_die(thread); break;
      default:
        if (index % thread->threads != thread->number) break;
        if (place->is_mapped) unmap_place(place); else map_place(place);
    }
  }
  for (int i = 0; i < SPACES * PLACES; i++)
    if (thread->places[i].is_mapped) unmap_place(&thread->places[i]);
  for (int i = 0; i < SPACES * PLACES; i++)
    if (i % thread->threads == thread->number)
      for (int side = 0; side < 2; side++)
        check_poison(&thread->places[i], thread->places[i].extents[side]);
  return NULL;
}

void mapper_process(int number, int threads) {
  static struct thread all[MOST_THREADS];
  pthread_t handles[MOST_THREADS];
  // Half of the processes have memory that only they have mapped.
  const int kind = (number % 2 ? MAP_PRIVATE : MAP_SHARED) | MAP_ANONYMOUS;
  for (int t = 0; t < threads; t++) {
    all[t] = (struct thread){.mapper = number,
                             .number = t,
                             .threads = threads,
                             .random = shared->seed + (uint64_t)(number * MOST_THREADS + t) * 77};
    for (int i = 0; i < SPACES * PLACES; i++) {
      struct place *place = &all[t].places[i];
      *place = (struct place){.space = i / PLACES, .mapper = number, .place = i % PLACES};
      for (int side = 0; side < 2; side++) {
        place->extents[side] =
            mmap(NULL, MOST_PAGES * PAGE, PROT_READ | PROT_WRITE, kind, -1, 0);
        if (place->extents[side] == MAP_FAILED) broken("mmap: errno %d", errno);
        fill(place->extents[side], place_pages(place->place), POISON);
      }
    }
  }
  for (int t = 0; t < threads; t++)
    if (pthread_create(&handles[t], NULL, run_thread, &all[t])) broken("no thread can be started");
  for (int t = 0; t < threads; t++) pthread_join(handles[t], NULL);
  _exit(atomic_load(&shared->failed));
}
