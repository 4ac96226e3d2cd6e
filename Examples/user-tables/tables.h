// SPDX-License-Identifier: Apache-2.0
//
// Page tables of our own, in memory of our own, in the formats of three vendors: what a guest's
// driver would write. Addresses in them are the guest's physical ones.

#ifndef TABLES_H
#define TABLES_H

#include "hardware.h"

/// The guest's memory: where we see it, and where the guest does.
struct guest {
  uint8_t *bytes;
  uint64_t size;  // in bytes
  uint64_t base;  // guest-physical address of the first
  uint64_t next;  // offset of the first byte that is free
};

/// A table, and what the kernel is told of it.
struct tables {
  const struct hardware *hardware;
  struct choice choice;
  struct guest *guest;
  uint64_t root;  // guest-physical
  union {
    struct iommu_hwpt_vtd_s1 vtd;
    struct iommu_hwpt_arm_smmuv3 smmu;
    struct iommu_hwpt_amd_guest amd;
  } data;
  uint32_t data_type;
  uint32_t data_length;
};

/// The address-space and domain ID that our tables carry, as guests give them.
enum { GUEST_ID = 1 };

/// Takes `size` bytes of the guest's memory, aligned to them, zeroed. Returns their guest-physical
/// address.
uint64_t guest_take(struct guest *guest, uint64_t size);

/// Makes an empty table, with the contexts that lead to it.
void tables_make(struct tables *tables, const struct hardware *hardware,
                 struct choice choice, struct guest *guest);

/// Maps, or maps anew, one page of 4 KiB. 0 for `physical` takes the page out.
void tables_set(struct tables *tables, uint64_t virtual, uint64_t physical);

#endif
