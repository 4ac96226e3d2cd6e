// SPDX-License-Identifier: Apache-2.0
//
// The seccomp filter that rules.h describes. Calls of 32-bit programs, for which Docker has the same
// rules by other numbers, are let through: `iommu run` refuses them all.

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <unistd.h>

#include "confined.h"
#include "rules.h"

static struct sock_filter code[2048];
static unsigned short length;

static void add(struct sock_filter instruction) { code[length++] = instruction; }
static void load(size_t offset) {
  add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offset));
}
static void answer(unsigned action) { add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action)); }
static const unsigned refused = SECCOMP_RET_ERRNO | EPERM;

// The next `count` instructions are for one value only.
static void only_if(unsigned value, size_t count) {
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, (unsigned char)count));
}

static void allow_if(unsigned value) {
  only_if(value, 1);
  answer(SECCOMP_RET_ALLOW);
}

// Loads an argument, of which only the lower half may be anything but zero.
enum { LOADED_ARGUMENT = 4 };
static void load_argument(int index) {
  const size_t offset = offsetof(struct seccomp_data, args) + 8 * (size_t)index;
  load(offset + 4);
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0));
  answer(refused);
  load(offset);
}

static void add_conditional_rules(bool may_make_namespaces) {
  const size_t count_families = sizeof families / sizeof *families;
  only_if(SYS_socket, LOADED_ARGUMENT + 2 + 2 * count_families + 1);
  load_argument(0);
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FAMILIES_BELOW, 1, 0));
  answer(SECCOMP_RET_ALLOW);
  for (size_t i = 0; i < count_families; i++) allow_if(families[i]);
  answer(refused);

  const size_t count_personalities = sizeof personalities / sizeof *personalities;
  only_if(SYS_personality, LOADED_ARGUMENT + 2 * count_personalities + 1);
  load_argument(0);
  for (size_t i = 0; i < count_personalities; i++) allow_if(personalities[i]);
  answer(refused);

  if (may_make_namespaces) return;
  only_if(SYS_clone, 5);
  load(offsetof(struct seccomp_data, args));
  add((struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, NAMESPACE_FLAGS));
  allow_if(0);
  answer(refused);
  // Its flags are in memory, where no filter sees them: libraries take clone(2) then.
  only_if(SYS_clone3, 1);
  answer(SECCOMP_RET_ERRNO | ENOSYS);
}

static bool is_allowed(int call, bool is_2010) {
  if (is_2010)
    for (size_t i = 0; i < sizeof not_in_2010 / sizeof *not_in_2010; i++)
      if (call == not_in_2010[i]) return false;
  return true;
}

void install_filter(uint64_t capabilities, bool is_2010) {
  load(offsetof(struct seccomp_data, arch));
  allow_if(AUDIT_ARCH_I386);
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
  answer(refused);
  load(offsetof(struct seccomp_data, nr));
  add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K,
                                   is_2010 ? LAST_CALL_IN_2010 : LAST_CALL_WITH_RULE, 0, 1));
  answer(SECCOMP_RET_ERRNO | ENOSYS);
  for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
    if (is_allowed(allowed[i], is_2010)) allow_if((unsigned)allowed[i]);
  for (size_t i = 0; is_2010 && i < sizeof only_in_2010 / sizeof *only_in_2010; i++)
    allow_if((unsigned)only_in_2010[i]);
  for (size_t i = 0; i < sizeof privileged / sizeof *privileged; i++)
    if (capabilities >> privileged[i].capability & 1) allow_if((unsigned)privileged[i].call);
  add_conditional_rules(capabilities >> CAP_SYS_ADMIN & 1);
  answer(refused);
  const struct sock_fprog program = {.len = length, .filter = code};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) fail("seccomp");
}
