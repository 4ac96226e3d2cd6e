// SPDX-License-Identifier: Apache-2.0
//
// Writes to two namespaces of an NVMe controller until it is killed, or its child is: every word of
// a block is the same stamp, the block's number above and a count below, so that a block of which
// only a part was stored shows. The first namespace has blocks of 512 bytes, the second of 4096; both
// have 1 MiB.
// Usage: nvme-stamps [COUNT]. It says `writing` and goes on for 20 seconds; or it kills COUNT
// children in the middle of their writes, and exits with 0.

#include <signal.h>
#include <sys/wait.h>

#include "nvme.h"

enum { SLOTS = 8, PIECE = 64 << 10, PAGE = 4096, BYTES = 1 << 20 };
enum { LISTS = NVME_QUEUE_BYTES, DATA = 0x10000, MEMORY = DATA + SLOTS * PIECE };

static uint64_t iova, count;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t any(void) {
  static uint64_t state;
  if (!state) state = (uint64_t)getpid() << 32 | 0x9e3779b9u;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

// Some blocks of one of the namespaces, from a place in a page that is another one each time.
static void write_some(struct nvme *nvme, uint8_t *memory, unsigned slot) {
  const unsigned size = any() % 2 ? PAGE : 512;
  const unsigned offset = (unsigned)(any() % PAGE) & ~3u;
  const unsigned blocks = 1 + (unsigned)(any() % ((PIECE - PAGE) / size));
  const uint64_t first = any() % (BYTES / size - blocks + 1);
  uint8_t *data = memory + DATA + slot * PIECE + offset;
  count++;
  for (unsigned block = 0; block < blocks; block++)
    for (unsigned word = 0; word < size / 8; word++) {
      const uint64_t stamp = (first + block + 1) << 32 | (uint32_t)count;
      memcpy(data + block * size + word * 8, &stamp, 8);
    }
  const uint64_t start = iova + DATA + slot * PIECE;
  uint64_t *list = (void *)(memory + LISTS + slot * PAGE);
  for (unsigned page = 1; page < PIECE / PAGE; page++) list[page - 1] = start + page * PAGE;
  const bool is_long = offset + blocks * size > 2 * PAGE;
  const struct nvme_command command = {
      .opcode = 1, .id = (uint16_t)slot, .namespace = size == PAGE ? 2 : 1,
      .prp1 = start + offset, .prp2 = is_long ? iova + LISTS + slot * PAGE : start + PAGE,
      .dwords = {(uint32_t)first, 0, blocks - 1}};
  nvme_put(&nvme->io, &command);
}

static void write_on(bool speaks) {
  struct nvme nvme = {0};
  if (!nvme_find(&nvme, NULL)) fail("no controller");
  const char *failed = nvme_open(&nvme);
  if (failed) fail(failed);
  uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                         (speaks ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || !nvme_map(&nvme, memory, MEMORY, &iova)) fail("memory");
  failed = nvme_start(&nvme, memory, iova);
  if (failed) fail(failed);
  const struct nvme_command made[] = {nvme_make_completions(iova), nvme_make_submissions(iova)};
  for (int i = 0; i < 2; i++)
    if (nvme_run(&nvme, &nvme.admin, &made[i])) fail("queues");
  for (unsigned slot = 0; slot < SLOTS; slot++) write_some(&nvme, memory, slot);
  nvme_submit(&nvme, &nvme.io);
  for (uint64_t done = 0;; done++) {
    struct nvme_completion completion;
    while (!nvme_poll(&nvme.io, &completion)) sched_yield();
    if (completion.status >> 1) fail("a write");
    nvme_release(&nvme, &nvme.io);
    write_some(&nvme, memory, completion.id);
    nvme_submit(&nvme, &nvme.io);
    if (speaks && done == 20) {
      puts("writing");
      fflush(stdout);
    }
  }
}

int main(int arguments, char **values) {
  // Whoever is to end it may be gone.
  alarm(20);
  if (arguments < 2) write_on(true);
  for (long left = strtol(values[1], NULL, 10); left > 0; left--) {
    const pid_t child = fork();
    if (child < 0) fail("fork");
    if (!child) {
      alarm(20);
      write_on(false);
    }
    usleep(50000 + (useconds_t)(any() % 50000));
    kill(child, SIGKILL);
    int status;
    if (waitpid(child, &status, 0) < 0) fail("waitpid");
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) return 1;
    alarm(20);
  }
  puts("killed");
  return 0;
}
