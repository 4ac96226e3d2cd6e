// SPDX-License-Identifier: Apache-2.0
//
// Bits of the three formats. x86-64 paging for VT-d's first stage (VT-d 4.1, 9.7) and AMD's guest
// tables (48882, 2.2.6); VMSAv8-64 stage 1 (Arm DDI 0487, D8.3), with the stream table entry and
// the context descriptor of SMMUv3 (IHI 0070, 5.2 and 5.4).

#include "tables.h"

#include <string.h>

static uint64_t *words(struct guest *guest, uint64_t address) {
  return (uint64_t *)(guest->bytes + (address - guest->base));
}

uint64_t guest_take(struct guest *guest, uint64_t size) {
  const uint64_t offset = (guest->next + size - 1) / size * size;
  guest->next = offset + size;
  memset(guest->bytes + offset, 0, size);
  return guest->base + offset;
}

// MARK: Page tables

static bool is_arm(const struct tables *tables) {
  return tables->hardware->type == IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
}

static uint64_t table_entry(const struct tables *tables, uint64_t address) {
  // Arm: valid, a table. x86: P, R/W, U/S.
  return address | (is_arm(tables) ? 0x3 : 0x7);
}

static uint64_t page_entry(const struct tables *tables, uint64_t address) {
  if (!address) return 0;
  // Valid, a page; AP[1] (6): unprivileged too; SH (8): inner; AF (10); nG (11); PXN, UXN (53, 54).
  if (is_arm(tables)) return address | 0x3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11 | 3ull << 53;
  return address | 0x7;
}

static uint64_t entry_address(uint64_t entry) { return entry & 0x0000fffffffff000; }

void tables_set(struct tables *tables, uint64_t virtual, uint64_t physical) {
  uint64_t table = tables->root;
  for (unsigned level = tables->choice.levels; level > 1; level--) {
    uint64_t *entry = words(tables->guest, table) + (virtual >> (12 + 9 * (level - 1)) & 511);
    if (!*entry) *entry = table_entry(tables, guest_take(tables->guest, 4096));
    table = entry_address(*entry);
  }
  words(tables->guest, table)[virtual >> 12 & 511] = page_entry(tables, physical);
}

// MARK: VT-d

static void make_vtd(struct tables *tables) {
  tables->data.vtd = (struct iommu_hwpt_vtd_s1){
      .pgtbl_addr = tables->root, .addr_width = tables->choice.bits};
  tables->data_type = IOMMU_HWPT_DATA_VTD_S1;
  tables->data_length = sizeof tables->data.vtd;
}

// MARK: SMMUv3

// The context descriptor of requests without a substream: number 0.
static void write_context(struct tables *tables, uint64_t *context) {
  // T0SZ, TG0 4 KiB; IR0, OR0 write-back, SH0 inner; EPD1: no upper half; V; IPS; AA64; R, A, ASET;
  // ASID.
  context[0] = (64 - tables->choice.bits) | 1 << 8 | 1 << 10 | 3 << 12 | 1ull << 30 | 1ull << 31 |
               (uint64_t)tables->choice.size_code << 32 | 1ull << 41 | 7ull << 45 |
               (uint64_t)GUEST_ID << 48;
  context[1] = tables->root;
  context[3] = 0xff;  // MAIR0: attribute 0 is write-back
}

static void make_smmu(struct tables *tables) {
  struct guest *guest = tables->guest;
  const unsigned count = tables->choice.outer;
  uint64_t table;
  if (tables->choice.two_levels) {
    // Leaves of 64 descriptors, the first one made: V, and where it is.
    table = guest_take(guest, 8ull << (count - 6) < 64 ? 64 : 8ull << (count - 6));
    const uint64_t leaf = guest_take(guest, 4096);
    words(guest, table)[0] = leaf | 1;
    write_context(tables, words(guest, leaf));
  } else {
    table = guest_take(guest, 64ull << count);
    write_context(tables, words(guest, table));
  }
  // V, Config: stage 1; S1Fmt, S1ContextPtr, S1CDMax; S1DSS: substream 0 for requests without;
  // S1CIR, S1COR, S1CSH.
  tables->data.smmu.ste[0] = 1 | 5 << 1 | (uint64_t)tables->choice.two_levels << 4 | table |
                             (uint64_t)count << 59;
  tables->data.smmu.ste[1] = (count ? 2 : 0) | 1 << 2 | 1 << 4 | 3 << 6;
  tables->data_type = IOMMU_HWPT_DATA_ARM_SMMUV3;
  tables->data_length = sizeof tables->data.smmu;
}

// MARK: AMD

static void make_amd(struct tables *tables) {
  struct guest *guest = tables->guest;
  const uint64_t top = guest_take(guest, 4096);
  uint64_t table = top;
  for (unsigned level = tables->choice.gcr3_levels; level > 1; level--) {
    const uint64_t below = guest_take(guest, 4096);
    words(guest, table)[0] = below | 1;
    table = below;
  }
  words(guest, table)[0] = tables->root | 1;  // PASID 0, for requests without one too: GIoV
  // V, TV, GIoV, GV, GLX, and the GCR3 table in three pieces; the domain; GuestPagingMode.
  uint64_t *dte = tables->data.amd.dte;
  dte[0] = 3 | 3ull << 54 | (uint64_t)(tables->choice.gcr3_levels - 1) << 56 |
           bits(top, 14, 12) << 58;
  dte[1] = GUEST_ID | bits(top, 30, 15) << 16 | bits(top, 51, 31) << 43;
  dte[2] = (uint64_t)(tables->choice.levels - 4) << 54;
  tables->data_type = IOMMU_HWPT_DATA_AMD_GUEST;
  tables->data_length = sizeof tables->data.amd;
}

void tables_make(struct tables *tables, const struct hardware *hardware,
                 struct choice choice, struct guest *guest) {
  *tables = (struct tables){.hardware = hardware, .choice = choice, .guest = guest};
  tables->root = guest_take(guest, 4096);
  switch (hardware->type) {
    case IOMMU_HW_INFO_TYPE_INTEL_VTD: make_vtd(tables); break;
    case IOMMU_HW_INFO_TYPE_ARM_SMMUV3: make_smmu(tables); break;
    case IOMMU_HW_INFO_TYPE_AMD: make_amd(tables); break;
  }
}
