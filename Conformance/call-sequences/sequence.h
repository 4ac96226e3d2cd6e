// SPDX-License-Identifier: Apache-2.0
//
// What the parts of the generator share: random numbers, the contexts with the objects that the
// generator believes to exist, the memory that is mapped, and how a call is made and printed.

#ifndef SEQUENCE_H
#define SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "iommufd_abi.h"
#include "iommufd_selftest_abi.h"

// Random numbers. Nothing else decides, so that a seed gives the same calls in every lane for
// as long as the answers are the same.
uint64_t random_bits(void);
void seed_random(uint64_t seed);

/// A number below `limit`.
static inline uint64_t below(uint64_t limit) { return random_bits() % limit; }

/// True once in `n` times.
static inline bool once_in(uint64_t n) { return below(n) == 0; }

#define ONE_OF(array) ((array)[below(sizeof(array) / sizeof *(array))])

// Objects.
enum { MOST_OBJECTS = 24, MOST_AREAS = 64, MOST_CONTEXTS = 3 };

struct ids {
  uint32_t id[MOST_OBJECTS];
  int count;
};

/// A map that was made: where it lies, which memory it shows.
struct area {
  uint32_t ioas;
  uint64_t iova, length, address;
};

struct accessor {
  int fd; // -1 where there is none
  uint32_t ioas;
  bool pins;
  uint32_t item[8];
  int items;
};

struct fault_queue {
  int fd; // -1 where there is none
  uint32_t id;
  uint32_t cookie[16];
  int cookies;
};

struct context {
  int fd;
  struct ids ioas, table, nested, parent, dirty, mock, device, queue_id;
  struct ids faulting; // devices on nested tables
  bool triggered;      // a fault was, and no queue has been read since
  struct area area[MOST_AREAS];
  int areas;
  struct accessor accessor[6];
  struct fault_queue queue[4];
  uint32_t last_id; // the highest id seen
};

void add_id(struct ids *ids, uint32_t id);
void drop_id(struct context *context, uint32_t id);

/// Mostly an id of this list; sometimes one of another kind, a stale one, zero or nonsense.
uint32_t some_id(struct context *context, const struct ids *ids);

/// An id of this list, or of any kind where it is empty.
uint32_t good_id(struct context *context, const struct ids *ids);

void add_area(struct context *context, uint32_t ioas, uint64_t iova, uint64_t length,
              uint64_t address);
void drop_areas(struct context *context, uint32_t ioas, uint64_t iova, uint64_t length);

/// An area of this address space, of any where it has none; null where there is none at all.
const struct area *some_area(struct context *context, uint32_t ioas);

// Memory: at one address in every lane, with the same contents.
enum { PAGE = 4096, HALF = 2048 };
#define MEMORY 0x200000000000ull
#define MEMORY_SIZE 0x300000ull
void make_memory(void);
void fill_memory(void);

/// Whether this episode puts other memory where some was, see `remap`.
extern bool memory_moves;
uint64_t some_address(void);
uint64_t some_length(void);
uint64_t some_iova(struct context *context, uint32_t ioas);

/// A buffer for data beside the structure; zeroed. Some buffers cannot be written or read.
void *scratch(size_t size);
uint64_t scratch_address(void);
uint64_t hash(const void *bytes, size_t size);

// Printing: a call is a line, `NAME arguments -> ERRNO outputs`.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/// Makes the call on the context, sometimes with a wrong size, address or tail; prints the errno
/// and copies the structure back. Returns the result, or minus the errno.
int call(struct context *context, uint32_t command, void *structure, size_t size);

/// The same, never bent.
int call_straight(struct context *context, uint32_t command, void *structure, size_t size);

/// For the type1 calls, whose first field the caller chooses.
int call_type1(struct context *context, uint32_t command, void *structure, size_t size,
               uint32_t argsz);

/// The name of an errno.
const char *error_name(int error);

/// IOMMU_TEST_CMD with this operation.
int back_door(struct context *context, struct iommu_test_cmd *command, uint32_t operation);

// The calls, each of which prints one line (see the groups in main.c).
typedef void step(struct context *context);
step ioas_alloc, ioas_ranges, ioas_allow, ioas_map, ioas_copy, ioas_unmap, destroy, option,
    vfio_ioas, add_reserved, unknown_command, memory_limit, remap, reopen;
step mock_domain, mock_domain_flags, mock_replace, hw_info, check_map, check_references;
step hwpt_alloc, hwpt_alloc_nested, hwpt_invalidate, check_iotlb;
step set_dirty, get_dirty, make_dirty;
step create_access, access_pages, access_rw, unpin_pages, access_replace, close_access;
step queue_alloc, trigger_fault, read_faults, write_responses, poll_queue, close_queue;
step check_extension, set_iommu, get_info, type1_map, type1_unmap, api_version;

#endif
