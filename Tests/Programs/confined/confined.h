// SPDX-License-Identifier: Apache-2.0
//
// What the files of `confined` have of each other.

#ifndef CONFINED_H
#define CONFINED_H

#include <stdbool.h>
#include <stdint.h>

// Ends with the status that `docker run` has for a container that did not start.
_Noreturn void fail(const char *what);

// A user namespace in which no other can be made, and a mount namespace.
void enter_namespaces(bool mounts);
// Whether a user namespace can be made.
bool may_make_namespaces(void);
// /dev, /sys and /proc as a container has them.
void make_mounts(void);
// The rules, for who has these capabilities in the bounding set: today's, or Docker 20.10's.
void install_filter(uint64_t capabilities, bool is_2010);
// The capabilities of the program: bounding, permitted, effective; none is inherited.
void keep_capabilities(uint64_t capabilities);

#endif
