// SPDX-License-Identifier: Apache-2.0
//
// What IOMMU_GET_HW_INFO says of the IOMMU of a device, and which page table of our own follows
// from it: as a VMM decides what its guest gets to see.

#ifndef HARDWARE_H
#define HARDWARE_H

#include <stdbool.h>
#include <stdint.h>

#include "iommufd_abi.h"

/// The answer of IOMMU_GET_HW_INFO.
struct hardware {
  uint32_t type;
  uint32_t length;  // of the data, as the kernel has it
  uint8_t pasid_bits;
  uint64_t capabilities;
  union {
    struct iommu_hw_info_vtd vtd;
    struct iommu_hw_info_arm_smmuv3 smmu;
    struct iommu_hw_info_amd amd;
    uint8_t bytes[64];
  } data;
};

/// The table that we make: the format is that of the hardware's type.
struct choice {
  bool nests;          // whether users' tables go on top of the kernel's
  bool needs_viommu;   // whether a virtual IOMMU makes them
  unsigned levels;     // of the page table
  unsigned bits;       // that it translates
  unsigned outer;      // log2 of the contexts in the table that leads to it; 0 for one
  bool two_levels;     // of that table (SMMUv3)
  unsigned gcr3_levels;  // of that table (AMD)
  unsigned size_code;  // IDR5.OAS (SMMUv3)
};

/// Asks. Returns 0, or -1 with errno.
int hardware_ask(int iommu, uint32_t device, struct hardware *hardware);

/// Asks for data of one type. Returns 0, or -1 with errno: EOPNOTSUPP where it is another's.
int hardware_ask_for(int iommu, uint32_t device, uint32_t type, struct hardware *hardware);

/// Prints what the kernel answered, one line for each register.
void hardware_print(const struct hardware *hardware);

struct choice hardware_choose(const struct hardware *hardware);

/// `VT-d first stage, 4 levels, 48 bits`, in a buffer of its own.
const char *choice_name(const struct hardware *hardware, const struct choice *choice);

/// The field in bits `high` to `low`, both inclusive.
static inline uint64_t bits(uint64_t value, unsigned high, unsigned low) {
  return value >> low & (UINT64_MAX >> (63 - high + low));
}

#endif
