// SPDX-License-Identifier: Apache-2.0
//
// Random calls on /dev/iommu, legal and nearly so, from a seed: one line a call with its errno
// and outputs. Run in two lanes, the same seed must print the same lines.
//
//   call-sequences [--calls N] [--seed N] [--from EPISODE] [--without GROUP,…]
//
// The calls come in episodes of 250, each on new contexts and with its own random numbers, so
// that a difference in one does not reach the next.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sequence.h"

enum { CALLS_OF_AN_EPISODE = 250 };

static void open_context(struct context *c) {
  memset(c, 0, sizeof *c);
  c->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (c->fd < 0) {
    perror("/dev/iommu");
    exit(125);
  }
  for (size_t i = 0; i < sizeof c->accessor / sizeof *c->accessor; i++) c->accessor[i].fd = -1;
  for (size_t i = 0; i < sizeof c->queue / sizeof *c->queue; i++) c->queue[i].fd = -1;
}

static void close_context(struct context *c) {
  for (size_t i = 0; i < sizeof c->accessor / sizeof *c->accessor; i++)
    if (c->accessor[i].fd >= 0) close(c->accessor[i].fd);
  for (size_t i = 0; i < sizeof c->queue / sizeof *c->queue; i++)
    if (c->queue[i].fd >= 0) close(c->queue[i].fd);
  close(c->fd);
}

// The context goes at once, or with the accessors and queues that are open and still work.
void reopen(struct context *c) {
  bool all = once_in(2);
  say("%s and open -> OK\n", all ? "close all" : "close context");
  if (all) {
    close_context(c);
    open_context(c);
    return;
  }
  struct context left = *c;
  close(c->fd);
  open_context(c);
  memcpy(c->accessor, left.accessor, sizeof c->accessor);
  memcpy(c->queue, left.queue, sizeof c->queue);
}

/// A call, how often it comes, and the group by which it can be left out.
static const struct {
  step *make;
  int weight;
  const char *group;
} steps[] = {
    {ioas_alloc, 6, "spaces"},         {ioas_ranges, 3, "spaces"},
    {ioas_allow, 2, "spaces"},         {ioas_map, 22, "spaces"},
    {ioas_copy, 8, "spaces"},          {ioas_unmap, 9, "spaces"},
    {destroy, 4, "spaces"},            {option, 2, "spaces"},
    {add_reserved, 1, "spaces"},       {memory_limit, 1, "spaces"},
    {unknown_command, 1, "spaces"},    {mock_domain, 5, "devices"},
    {remap, 2, "memory"},              {reopen, 1, "spaces"},
    {mock_domain_flags, 4, "devices"}, {mock_replace, 6, "devices"},
    {hw_info, 2, "devices"},           {check_map, 8, "devices"},
    {check_references, 5, "devices"},  {hwpt_alloc, 7, "tables"},
    {hwpt_alloc_nested, 6, "nested"},  {hwpt_invalidate, 4, "nested"},
    {check_iotlb, 3, "nested"},        {set_dirty, 4, "dirty"},
    {get_dirty, 6, "dirty"},           {make_dirty, 6, "dirty"},
    {create_access, 4, "accessors"},   {access_pages, 8, "accessors"},
    {access_rw, 8, "accessors"},       {unpin_pages, 4, "accessors"},
    {access_replace, 2, "accessors"},  {close_access, 1, "accessors"},
    {queue_alloc, 2, "faults"},        {trigger_fault, 8, "faults"},
    {read_faults, 4, "faults"},        {write_responses, 3, "faults"},
    {poll_queue, 2, "faults"},         {close_queue, 1, "faults"},
    {vfio_ioas, 3, "type1"},           {api_version, 1, "type1"},
    {check_extension, 2, "type1"},     {set_iommu, 1, "type1"},
    {get_info, 3, "type1"},            {type1_map, 6, "type1"},
    {type1_unmap, 5, "type1"},
};
enum { STEPS = sizeof steps / sizeof *steps };

static const char *without = "";

static bool left_out(const char *group) {
  size_t length = strlen(group);
  for (const char *at = without; (at = strstr(at, group)) != NULL; at += length)
    if ((at == without || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return true;
  return false;
}

/// The group that this episode makes more calls of.
static const char *focus = "";

static int weight(int i) {
  if (left_out(steps[i].group)) return 0;
  return steps[i].weight * (strcmp(steps[i].group, focus) == 0 ? 6 : 1);
}

/// The next call: mostly one that makes what is missing, where something is.
static step *some_step(const struct context *c) {
  if (c->ioas.count == 0 && !once_in(6)) return ioas_alloc;
  if (c->mock.count == 0 && !left_out("devices") && !once_in(4)) return mock_domain;
  if (c->parent.count == 0 && !left_out("tables") && once_in(8)) return hwpt_alloc;
  if (c->accessor[5].fd < 0 && !left_out("accessors") && once_in(30)) return create_access;
  if (c->triggered && once_in(3)) return read_faults;
  if (c->areas < 2 && !once_in(4)) return ioas_map;
  int total = 0;
  for (int i = 0; i < STEPS; i++) total += weight(i);
  int at = (int)below((uint64_t)total);
  for (int i = 0; i < STEPS; i++) {
    at -= weight(i);
    if (at < 0) return steps[i].make;
  }
  return ioas_alloc;
}

/// After everything is closed no page may be pinned.
static void check_nothing_pinned(void) {
  struct context c;
  open_context(&c);
  struct iommu_test_cmd a = {0};
  a.op = IOMMU_TEST_OP_MD_CHECK_REFS;
  a.check_refs.uptr = MEMORY;
  a.check_refs.length = 0x240000;
  say("all closed");
  call_straight(&c, IOMMU_TEST_CMD, &a, sizeof a);
  say("\n");
  close_context(&c);
}

static void run_episode(uint64_t seed, uint64_t episode, uint64_t calls) {
  static struct context contexts[MOST_CONTEXTS];
  seed_random(seed * 1000003 + episode);
  fill_memory();
  focus = once_in(2) ? "" : steps[below(STEPS)].group;
  int number = 1 + (int)below(MOST_CONTEXTS);
  say("episode %llu: %d contexts\n", (unsigned long long)episode, number);
  for (int i = 0; i < number; i++) open_context(&contexts[i]);
  for (uint64_t n = 0; n < calls; n++) {
    int which = (int)below((uint64_t)number);
    say("%llu.%llu c%d ", (unsigned long long)episode, (unsigned long long)n, which);
    some_step(&contexts[which])(&contexts[which]);
  }
  for (int i = 0; i < number; i++) close_context(&contexts[i]);
  check_nothing_pinned();
}

static uint64_t number(const char *option, const char *text) {
  char *end;
  uint64_t value = text ? strtoull(text, &end, 0) : 0;
  if (text == NULL || *text == 0 || *end != 0) {
    fprintf(stderr, "call-sequences: %s needs a number\n", option);
    exit(2);
  }
  return value;
}

int main(int count, char **arguments) {
  uint64_t calls = 10000, seed = 1, from = 0;
  for (int i = 1; i < count; i += 2) {
    const char *option = arguments[i], *value = arguments[i + 1];
    if (strcmp(option, "--calls") == 0)
      calls = number(option, value);
    else if (strcmp(option, "--seed") == 0)
      seed = number(option, value);
    else if (strcmp(option, "--from") == 0)
      from = number(option, value);
    else if (strcmp(option, "--without") == 0 && value)
      without = value;
    else {
      fprintf(stderr, "call-sequences: unknown option '%s'\n", option);
      return 2;
    }
  }
  static char buffer[1 << 16];
  setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
  make_memory();
  for (uint64_t done = 0, episode = from; done < calls; episode++) {
    uint64_t some = calls - done < CALLS_OF_AN_EPISODE ? calls - done : CALLS_OF_AN_EPISODE;
    run_episode(seed, episode, some);
    done += some;
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
