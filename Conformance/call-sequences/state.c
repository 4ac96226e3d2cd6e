// SPDX-License-Identifier: Apache-2.0
//
// Random numbers, and what the generator believes to exist: ids by kind, areas.

#include <string.h>

#include "sequence.h"

static uint64_t state;

// splitmix64.
uint64_t random_bits(void) {
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Mixed first: neighbouring seeds would give the same numbers, one step apart.
void seed_random(uint64_t seed) {
  state = seed;
  state = random_bits();
}

void add_id(struct ids *ids, uint32_t id) {
  for (int i = 0; i < ids->count; i++)
    if (ids->id[i] == id) return;
  if (ids->count < MOST_OBJECTS) ids->id[ids->count++] = id;
}

static void remove_id(struct ids *ids, uint32_t id) {
  for (int i = 0; i < ids->count; i++)
    if (ids->id[i] == id) {
      memmove(&ids->id[i], &ids->id[i + 1], sizeof(uint32_t) * (size_t)(ids->count - i - 1));
      ids->count--;
      return;
    }
}

void drop_id(struct context *c, uint32_t id) {
  struct ids *kinds[] = {&c->ioas,   &c->table, &c->nested, &c->parent,
                         &c->dirty, &c->faulting, &c->mock,    &c->device, &c->queue_id};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) remove_id(kinds[i], id);
  drop_areas(c, id, 0, UINT64_MAX);
}

uint32_t good_id(struct context *c, const struct ids *ids) {
  if (ids->count) return ids->id[below((uint64_t)ids->count)];
  return (uint32_t)below(c->last_id + 2);
}

uint32_t some_id(struct context *c, const struct ids *ids) {
  if (!once_in(12)) return good_id(c, ids);
  static const uint32_t odd[] = {0, 0, 0x7fffffff, 0x80000000, 0xffffffff};
  if (once_in(4)) return ONE_OF(odd);
  return (uint32_t)below(c->last_id + 3);
}

void add_area(struct context *c, uint32_t ioas, uint64_t iova, uint64_t length,
              uint64_t address) {
  if (c->areas == MOST_AREAS) {
    memmove(c->area, c->area + 1, sizeof *c->area * (MOST_AREAS - 1));
    c->areas--;
  }
  c->area[c->areas++] = (struct area){ioas, iova, length, address};
}

void drop_areas(struct context *c, uint32_t ioas, uint64_t iova, uint64_t length) {
  int kept = 0;
  for (int i = 0; i < c->areas; i++) {
    struct area *a = &c->area[i];
    uint64_t last = iova + length - 1 < iova ? UINT64_MAX : iova + length - 1;
    bool gone = a->ioas == ioas && a->iova >= iova && a->iova + a->length - 1 <= last;
    if (!gone) c->area[kept++] = *a;
  }
  c->areas = kept;
}

const struct area *some_area(struct context *c, uint32_t ioas) {
  int mine = 0;
  for (int i = 0; i < c->areas; i++) mine += c->area[i].ioas == ioas;
  if (mine == 0) return c->areas ? &c->area[below((uint64_t)c->areas)] : NULL;
  uint64_t which = below((uint64_t)mine);
  for (int i = 0; i < c->areas; i++)
    if (c->area[i].ioas == ioas && which-- == 0) return &c->area[i];
  return NULL;
}
