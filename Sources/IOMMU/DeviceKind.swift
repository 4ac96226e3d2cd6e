// SPDX-License-Identifier: Apache-2.0
//
// The eight kinds of device, as far as PASIDs go, and what each tells its user (MODEL E2, E3).

/// What PASIDs a device's DMA carries, and who chooses them. Numbered as the proposal does.
public enum DeviceKind: UInt8, CaseIterable, Hashable, Sendable {
  /// A physical device, told apart by its requester id alone.
  case physicalWithoutPASIDs = 1
  /// A mediated device in software: none of its DMA is routed by an IOMMU.
  case softwareMediated = 2
  /// A slice of a device with its default PASID and no other.
  case mediatedWithoutPASIDs = 3
  /// A physical device whose whole PASID table is the user's.
  case physicalDelegated = 4
  /// A physical device with our PASID table: a virtual PASID is the physical one.
  case physical = 5
  /// A slice that shares its parent's table: for each virtual PASID a physical one is allocated
  /// in the parent's space.
  case mediated = 6
  /// As `physical`, and the CPU submits work with a PASID (DMWr, ENQCMD).
  case physicalWithWorkQueue = 7
  /// As `mediated`, and the CPU submits work with a PASID, which is translated on the way. A VM
  /// has one translation for all its devices, so physical PASIDs are allocated globally.
  case mediatedWithWorkQueue = 8

  /// A whole device that is registered without another word.
  init(pasidBits: UInt8) { self = pasidBits > 0 ? .physical : .physicalWithoutPASIDs }

  /// A slice of a device, or software.
  public var isMediated: Bool {
    switch self {
    case .softwareMediated, .mediatedWithoutPASIDs, .mediated, .mediatedWithWorkQueue: true
    case .physicalWithoutPASIDs, .physicalDelegated, .physical, .physicalWithWorkQueue: false
    }
  }

  /// Whether its user may have address spaces beside the default one: the vPASID capability.
  public var hasVirtualPASIDs: Bool {
    switch self {
    case .physicalWithoutPASIDs, .softwareMediated, .mediatedWithoutPASIDs: false
    case .physicalDelegated, .physical, .mediated, .physicalWithWorkQueue,
      .mediatedWithWorkQueue:
      true
    }
  }

  /// What its user is told beside that.
  public var flags: Flags {
    switch self {
    case .physicalWithoutPASIDs, .softwareMediated, .mediatedWithoutPASIDs, .physical,
      .mediated:
      []
    case .physicalDelegated: .delegated
    case .physicalWithWorkQueue: .cpu
    case .mediatedWithWorkQueue: [.cpu, .cpuTranslated]
    }
  }

  /// Where the physical PASID for a virtual one comes from; nil where none is attached.
  var allocation: Allocation? {
    switch self {
    case .physicalWithoutPASIDs, .softwareMediated, .mediatedWithoutPASIDs, .physicalDelegated:
      nil
    case .physical, .physicalWithWorkQueue: .identity
    case .mediated: .perRequester
    case .mediatedWithWorkQueue: .global
    }
  }

  /// How virtual PASIDs become physical ones (MODEL E1).
  enum Allocation: Sendable {
    case identity, perRequester, global
  }

  /// The flags of the vPASID capability (MODEL E3). The proposal: `VFIO_DEVICE_INFO_CAP_PASID`.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The PASID table is the user's: one space stands for all PASIDs. `PASID_DELEGATED`.
    public static let delegated = Flags(rawValue: 1)
    /// The CPU may carry a virtual PASID to the device's work queues. `PASID_CPU`.
    public static let cpu = Flags(rawValue: 2)
    /// It has to be translated on the way. `PASID_CPU_VIRT`.
    public static let cpuTranslated = Flags(rawValue: 4)
  }
}

extension DeviceKind: CustomStringConvertible {
  /// With its article, for sentences.
  public var description: String {
    switch self {
    case .physicalWithoutPASIDs: "a device without PASIDs (kind 1)"
    case .softwareMediated: "a mediated device in software (kind 2)"
    case .mediatedWithoutPASIDs: "a slice with its default PASID only (kind 3)"
    case .physicalDelegated: "a device whose PASID table is the user's (kind 4)"
    case .physical: "a device with PASIDs (kind 5)"
    case .mediated: "a slice with PASIDs (kind 6)"
    case .physicalWithWorkQueue: "a device with shared work queues (kind 7)"
    case .mediatedWithWorkQueue: "a slice with shared work queues (kind 8)"
    }
  }
}
