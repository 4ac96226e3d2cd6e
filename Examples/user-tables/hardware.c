// SPDX-License-Identifier: Apache-2.0
//
// IOMMU_GET_HW_INFO, and what its registers say of users' tables. VT-d 4.1, 11.4.2 and 11.4.3; AMD
// 48882, MMIO offsets 0030h and 01A0h; Arm SMMUv3 (IHI 0070), 6.3.1 to 6.3.8.

#include "hardware.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static int ask(int iommu, struct iommu_hw_info *info, struct hardware *hardware) {
  memset(hardware, 0, sizeof *hardware);
  info->size = sizeof *info;
  info->data_len = sizeof hardware->data;
  info->data_uptr = (uintptr_t)&hardware->data;
  if (ioctl(iommu, IOMMU_GET_HW_INFO, info)) return -1;
  hardware->type = info->out_data_type;
  hardware->length = info->data_len;
  hardware->pasid_bits = info->out_max_pasid_log2;
  hardware->capabilities = info->out_capabilities;
  return 0;
}

int hardware_ask(int iommu, uint32_t device, struct hardware *hardware) {
  struct iommu_hw_info info = {.dev_id = device};
  return ask(iommu, &info, hardware);
}

int hardware_ask_for(int iommu, uint32_t device, uint32_t type, struct hardware *hardware) {
  struct iommu_hw_info info = {
      .dev_id = device, .flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE, .in_data_type = type};
  return ask(iommu, &info, hardware);
}

void hardware_print(const struct hardware *hardware) {
  printf("type %u, %u bytes, PASIDs of %u bits, capabilities 0x%llx\n", hardware->type,
         hardware->length, hardware->pasid_bits, (unsigned long long)hardware->capabilities);
  const struct iommu_hw_info_arm_smmuv3 *smmu = &hardware->data.smmu;
  switch (hardware->type) {
    case IOMMU_HW_INFO_TYPE_INTEL_VTD:
      printf("cap 0x%016llx\necap 0x%016llx\n", (unsigned long long)hardware->data.vtd.cap_reg,
             (unsigned long long)hardware->data.vtd.ecap_reg);
      break;
    case IOMMU_HW_INFO_TYPE_ARM_SMMUV3:
      for (int i = 0; i < 6; i++) printf("idr%d 0x%08x\n", i, smmu->idr[i]);
      printf("iidr 0x%08x\naidr 0x%08x\n", smmu->iidr, smmu->aidr);
      break;
    case IOMMU_HW_INFO_TYPE_AMD:
      printf("efr 0x%016llx\nefr2 0x%016llx\n", (unsigned long long)hardware->data.amd.efr,
             (unsigned long long)hardware->data.amd.efr2);
      break;
  }
}

static struct choice choose_vtd(const struct iommu_hw_info_vtd *vtd) {
  struct choice choice = {0};
  // SMTS, NEST and FSTS: a first stage over a second one.
  choice.nests =
      bits(vtd->ecap_reg, 43, 43) && bits(vtd->ecap_reg, 26, 26) && bits(vtd->ecap_reg, 47, 47);
  choice.levels = bits(vtd->cap_reg, 60, 60) ? 5 : 4;  // FS5LP
  choice.bits = 12 + 9 * choice.levels;
  return choice;
}

static struct choice choose_smmu(const struct iommu_hw_info_arm_smmuv3 *smmu, unsigned pasids) {
  struct choice choice = {.needs_viommu = true, .levels = 4, .bits = 48};
  const uint32_t idr0 = smmu->idr[0], idr1 = smmu->idr[1], idr5 = smmu->idr[5];
  // S2P, S1P, tables of AArch64 (TTF) in little-endian (TTENDIAN), GRAN4K.
  const bool little = bits(idr0, 22, 21) == 0 || bits(idr0, 22, 21) == 2;
  choice.nests = bits(idr0, 1, 0) == 3 && bits(idr0, 3, 3) && little && bits(idr5, 4, 4);
  choice.size_code = (unsigned)bits(idr5, 2, 0);
  // A table of context descriptors where devices have substreams: of two levels for more than a
  // page has, if the SMMU can (CD2L).
  const unsigned width = (unsigned)bits(idr1, 10, 6);
  const unsigned most = bits(idr0, 19, 19) ? 10 : 6;
  choice.outer = pasids < width ? pasids : width;
  if (choice.outer > most) choice.outer = most;
  choice.two_levels = choice.outer > 6;
  return choice;
}

static struct choice choose_amd(const struct iommu_hw_info_amd *amd, unsigned pasids) {
  struct choice choice = {.needs_viommu = true};
  // GTSup, GIOSup and, in the second register, GCR3TRPMode.
  choice.nests = bits(amd->efr, 4, 4) && bits(amd->efr, 48, 48) && bits(amd->efr2, 3, 3);
  choice.levels = bits(amd->efr, 13, 12) ? 5 : 4;  // GATS
  choice.bits = 12 + 9 * choice.levels;
  choice.outer = pasids;
  choice.gcr3_levels = pasids > 18 ? 3 : pasids > 9 ? 2 : 1;
  const unsigned most = 1 + (unsigned)bits(amd->efr, 15, 14);  // GLXSup
  if (choice.gcr3_levels > most) choice.gcr3_levels = most;
  return choice;
}

struct choice hardware_choose(const struct hardware *hardware) {
  switch (hardware->type) {
    case IOMMU_HW_INFO_TYPE_INTEL_VTD: return choose_vtd(&hardware->data.vtd);
    case IOMMU_HW_INFO_TYPE_ARM_SMMUV3:
      return choose_smmu(&hardware->data.smmu, hardware->pasid_bits);
    case IOMMU_HW_INFO_TYPE_AMD:
      return choose_amd(&hardware->data.amd, hardware->pasid_bits);
    default: return (struct choice){0};
  }
}

const char *choice_name(const struct hardware *hardware, const struct choice *choice) {
  static char name[160];
  char outer[80] = "";
  const char *format = "";
  if (!choice->nests) return "none: the kernel's tables only";
  switch (hardware->type) {
    case IOMMU_HW_INFO_TYPE_INTEL_VTD: format = "VT-d first stage"; break;
    case IOMMU_HW_INFO_TYPE_ARM_SMMUV3:
      format = "SMMUv3 stage 1, 4 KiB";
      snprintf(outer, sizeof outer, ", by %u context descriptor%s%s", 1u << choice->outer,
               choice->outer ? "s" : "", choice->two_levels ? " in two levels" : "");
      break;
    case IOMMU_HW_INFO_TYPE_AMD:
      format = "AMD v2";
      snprintf(outer, sizeof outer, ", by a GCR3 table of %u level%s", choice->gcr3_levels,
               choice->gcr3_levels > 1 ? "s" : "");
      break;
  }
  snprintf(name, sizeof name, "%s, %u levels, %u bits%s", format, choice->levels, choice->bits,
           outer);
  return name;
}
