// SPDX-License-Identifier: Apache-2.0
//
// A PCI function without a driver, for the steps that program garbage into it. Without an IOMMU of
// the guest's own a device reaches all of its memory: what must not be reached is garbage with bit
// 45 set.

#ifndef HOSTILE_H
#define HOSTILE_H

#include <stddef.h>
#include <stdint.h>

enum { page_size = 4096, pages = 16 };
static const uint64_t nowhere = UINT64_C(1) << 45;

typedef struct {
  char name[64];
  const char *driver;
  /// BAR 0, and where the MSI-X table is.
  volatile uint8_t *bar, *table;
  size_t size;
  /// Descriptor of configuration space; where MSI-X is in it.
  int config, capability, vectors;
  /// Memory of ours, and where the device sees each of its pages.
  uint8_t *memory;
  uint64_t physical[pages];
  /// Whether the device can be reset, whatever went on.
  int (*reset)(void);
} hostile_function;

/// The one that is in hand.
extern hostile_function it;

/// A random number.
uint64_t any(void);
void write8(size_t offset, uint8_t value);
void write16(size_t offset, uint16_t value);
void write32(size_t offset, uint32_t value);
/// As two words, the low one first.
void write64(size_t offset, uint64_t value);
uint32_t read32(size_t offset);

/// Takes the function that the step's settings name (vendor, device, driver) from its driver.
int take_function(const char *vendor, const char *device, const char *driver);
/// Gives it back, and judges whether the driver takes it.
void give_back(void);

/// Random accesses to BAR 0, but for the table and `from`..<`to`; most of them below `most`.
void provoke_by_registers(size_t from, size_t to, size_t most);
/// Rewrites the MSI-X table while `work` makes interrupts come.
void provoke_by_vectors(void (*work)(void));
/// Random accesses to configuration space.
void provoke_by_configuration(void);
/// Resets the function again and again while `work` goes on.
void provoke_by_resets(void (*work)(void));

#endif
