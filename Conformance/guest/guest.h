// SPDX-License-Identifier: Apache-2.0
//
// The first process of the guest of Conformance/qemu-*: what its steps have in common.

#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

/// Tells the host one line. The first word says what it is: `ok NAME DETAIL`, `not-ok NAME
/// DETAIL`, `note DETAIL`.
__attribute__((format(printf, 1, 2))) void tell(const char *format, ...);
/// `ok` or `not-ok`, by the truth of it; returns that.
__attribute__((format(printf, 3, 4))) int judge(
    int good, const char *name, const char *format, ...);

/// A setting of the step, `NAME=VALUE`; `otherwise` where it is not given.
const char *setting(const char *name, const char *otherwise);
long number(const char *name, long otherwise);

/// A path, put together; good until four more were.
__attribute__((format(printf, 1, 2))) const char *path(const char *format, ...);
/// Seconds since the kernel started.
double now(void);
/// Writes a text to a file of /sys or /proc; 0, or the errno.
int put(const char *where, const char *text);
/// Reads a short file into `text`, without the newline; its length, or -1.
int get(const char *where, char *text, size_t room);
/// The last part of where a link leads; "" where there is none.
const char *link_end(const char *link);
/// Runs a program, what it prints goes to the console; its exit status, or 128 + signal.
int run(const char *const arguments[]);
/// Waits until a path is there; false after `seconds`.
int wait_for(const char *what, double seconds);
/// The first PCI function with these numbers, as its address in `name`; false where none is.
int find_function(const char *vendor, const char *device, char name[64]);

void step_iommu(void);
void step_dmatest(void);
void step_nvme(void);
void step_format(void);
void step_write(void);
void step_check(void);
void step_hostile(void);
void step_hostile_nvme(void);

#endif
