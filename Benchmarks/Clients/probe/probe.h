// SPDX-License-Identifier: Apache-2.0
//
// What every measurement of the probe uses.

#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>

uint64_t nanoseconds(void);
// Prints a line: the name, a tab, the median.
void print_median(const char *name, uint64_t *samples, size_t count);
// Says what failed, with errno, and ends the program.
void fail(const char *what);

// Reads from an NVMe controller whose completions are polled for: one at a time, and 32.
void measure_nvme(size_t count, int is_shared);

// A stat of a file that no machine has; a call's time under `name`.
void measure_path(size_t count, const char *name);
// What a build opens and looks for, in a directory that it fills; a call's time under `name`.
void measure_files(size_t rounds, const char *home, const char *name);

#endif
