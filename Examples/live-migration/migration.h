// SPDX-License-Identifier: Apache-2.0
//
// A guest's device moves from one host to another, as a VMM does it with VFIO's migration
// (version 2). Both hosts are in this one process: each has a device, an address space, and memory
// that the guest's driver and the device share.

#ifndef MIGRATION_H
#define MIGRATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3 };
enum { PAGE = 4096 };

// Where a device finds the guest's memory, on either host.
#define GUEST UINT64_C(0x10000000)

struct host {
  char bdf[32];
  char node[128];
  int device;         // fd of the node
  int iommu;          // fd of /dev/iommu
  uint32_t ioas;      // the device's address space
  uint8_t *memory;    // of the guest; the device has it at GUEST
  uint64_t size;      // in bytes, whole pages
  uint64_t *written;  // a bit for each page that the guest's driver wrote and that is not copied yet
};

// A move that goes on.
struct move {
  struct host *from, *to;
  bool has_quiet;     // whether there is a state in which the device begins nothing, and still listens
  int data;           // what VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE gave: the state is read from it
  uint8_t *stream;    // what was read of it
  size_t length;
};

// Finds the first two devices that `is_one` takes; opens each, and gives each an address space and
// `size` bytes of memory there. `what` they are is for the message where there are none.
// Returns false, and has said so, where there are not two of them.
bool hosts_open(struct host *from, struct host *to, bool (*is_one)(const char *bdf), const char *what,
                int iommu, uint64_t size);
void host_close(struct host *host);
// The driver has written to memory. (A VMM hears of it by write protection, or from KVM.)
void host_wrote(struct host *host, const volatile void *address, uint64_t length);

// The steps of a move. While the guest runs:
void move_begin(struct move *move, struct host *from, struct host *to);
void move_round(struct move *move);
// The guest and its devices are stopped one after the other: what the others still send to this device
// from here on, a ring of a doorbell, is kept.
void move_quiet(struct move *move);
// The guest stands from here on. Afterwards all that it knows is on the other side.
void move_stop(struct move *move);
// It goes on, on the other side.
void move_resume(struct move *move);

// Prints a numbered line.
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Prints what failed, with errno, and ends the program.
void fail(const char *what) __attribute__((noreturn));
// Prints what is wrong, and ends the program.
void wrong(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

int migrate_engine(int iommu);
int migrate_nvme(int iommu);

#endif
