// SPDX-License-Identifier: Apache-2.0
//
// The registers that GET_HW_INFO shows: include/uapi/linux/iommufd.h, struct iommu_hw_info_vtd,
// _arm_smmuv3 and _amd. What the registers say: HardwareInformation+Intel.swift and its
// neighbours, one for each architecture.

import HardwareTables
import IOMMU
import PageTables

extension SoftwareIOMMU.Configuration {
  /// Whether requests may go through a first stage: the engine's, a user's, or that of a PASID.
  var hasFirstStage: Bool { stage == .first || nests || pasidBits > 0 }

  /// Whether requests may go through a second stage: the engine's, which others may nest on.
  var hasSecondStage: Bool { stage == .second || nests }

  /// Whether devices may keep translations themselves. Page requests ask for that.
  var hasDeviceTLBs: Bool { pageRequests }

  /// Linux's drivers of the first three tell of their registers (`iommu_ops.hw_info`). That of
  /// RISC-V tells nothing: type 0, no data.
  var hardwareInformation: HardwareInformation {
    switch architecture {
    case .intel:
      return HardwareInformation(type: 1, data: intelInformation.words.littleEndianBytes)
    case .smmuV3:
      return HardwareInformation(
        type: 2, data: Array(smmuInformation.words.littleEndianBytes.prefix(40)))
    case .amd:
      return HardwareInformation(type: 4, data: amdInformation.words.littleEndianBytes)
    case .riscv:
      return HardwareInformation(type: 0, data: [])
    }
  }
}

extension FixedWidthInteger {
  /// A field of a register, its lowest bit at `place`.
  static func field(_ value: some BinaryInteger, at place: Int) -> Self {
    Self(truncatingIfNeeded: value) << Self(place)
  }

  /// A bit of a register.
  static func bit(_ place: Int, _ isSet: Bool = true) -> Self { isSet ? 1 << Self(place) : 0 }
}
