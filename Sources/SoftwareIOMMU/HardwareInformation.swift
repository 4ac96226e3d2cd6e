// SPDX-License-Identifier: Apache-2.0
//
// The registers that GET_HW_INFO shows: include/uapi/linux/iommufd.h, struct iommu_hw_info_vtd,
// _arm_smmuv3 and _amd. What the registers say: HardwareInformation+Intel.swift and its
// neighbours, one for each architecture.

import HardwareTables
import IOMMU

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
      let words = intelInformation.words
      return HardwareInformation(type: 1, data: bytes((0..<3).map { words[$0] }))
    case .smmuV3:
      let words = smmuInformation.words
      return HardwareInformation(type: 2, data: bytes((0..<5).map { words[$0] }))
    case .amd:
      let words = amdInformation.words
      return HardwareInformation(type: 4, data: bytes((0..<2).map { words[$0] }))
    case .riscv:
      return HardwareInformation(type: 0, data: [])
    }
  }

  private func bytes(_ words: [UInt64]) -> [UInt8] {
    words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
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
