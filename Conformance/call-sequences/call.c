// SPDX-License-Identifier: Apache-2.0
//
// Makes a call and prints its line. Some calls are bent on the way: a short or a long size, a
// tail that is not zero, a structure that cannot be read or written.

#define _GNU_SOURCE

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "sequence.h"

enum { ROOM = 2 * PAGE };

void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
}

const char *error_name(int error) {
  if (error == 0) return "OK";
  const char *name = strerrorname_np(error);
  return name ? name : "?";
}

static uint8_t *room(void) {
  static uint8_t *at;
  if (at == NULL) {
    at = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
      perror("mmap");
      exit(125);
    }
  }
  return at;
}

enum bend { STRAIGHT, SHORT, LONG, TAIL, UNWRITABLE, NOWHERE };

static enum bend some_bend(uint32_t command) {
  if (!once_in(40)) return STRAIGHT;
  enum bend bend = (enum bend)(1 + below(5));
  // Where the answer cannot be written, Linux leaves the map behind; we take it back.
  bool maps = command == IOMMU_IOAS_MAP || command == IOMMU_IOAS_COPY;
  return bend == UNWRITABLE && maps ? NOWHERE : bend;
}

static int make(struct context *c, uint32_t command, void *structure, size_t size,
                uint32_t given, enum bend bend) {
  uint8_t *at = room();
  memset(at, 0, 512);
  memcpy(at, structure, size);
  void *argument = at;
  switch (bend) {
  case STRAIGHT: break;
  case SHORT: given = (uint32_t)below(size); break;
  case LONG: given = (uint32_t)(size + 1 + below(100)); break;
  case TAIL:
    given = (uint32_t)(size + 1 + below(100));
    at[size + below(given - size)] = 1;
    break;
  case UNWRITABLE: break;
  case NOWHERE: argument = once_in(2) ? NULL : (void *)(uintptr_t)(MEMORY + MEMORY_SIZE); break;
  }
  static const char *const words[] = {"", " short", " long", " tail", " unwritable", " nowhere"};
  say("%s", words[bend]);
  if (bend == SHORT || bend == LONG || bend == TAIL) say(" %u", given);
  memcpy(at, &given, sizeof given);

  if (bend == UNWRITABLE) mprotect(at, ROOM, PROT_READ);
  errno = 0;
  int result = ioctl(c->fd, command, argument);
  int error = result < 0 ? errno : 0;
  if (bend == UNWRITABLE) mprotect(at, ROOM, PROT_READ | PROT_WRITE);

  memcpy(structure, at, size);
  say(" -> %s", error_name(error));
  return result < 0 ? -error : result;
}

int call(struct context *c, uint32_t command, void *structure, size_t size) {
  return make(c, command, structure, size, (uint32_t)size, some_bend(command));
}

int call_straight(struct context *c, uint32_t command, void *structure, size_t size) {
  return make(c, command, structure, size, (uint32_t)size, STRAIGHT);
}

int call_type1(struct context *c, uint32_t command, void *structure, size_t size,
               uint32_t argsz) {
  static const enum bend bends[] = {UNWRITABLE, NOWHERE};
  return make(c, command, structure, size, argsz, once_in(60) ? ONE_OF(bends) : STRAIGHT);
}

int back_door(struct context *c, struct iommu_test_cmd *command, uint32_t operation) {
  command->op = operation;
  return call(c, IOMMU_TEST_CMD, command, sizeof *command);
}
