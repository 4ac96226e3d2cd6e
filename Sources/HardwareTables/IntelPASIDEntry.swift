// SPDX-License-Identifier: Apache-2.0
//
// VT-d's PASID directory and PASID table entries: Intel Virtualization Technology for Directed
// I/O, revision 4.1, sections 9.5 and 9.6, and 6.2.3.1 for what may be combined.

/// A present entry of the PASID directory (9.5): 8 bytes, for 64 PASIDs.
public struct IntelPASIDDirectoryEntry: Hashable, Sendable {
  /// SMPTBLPTR, in bytes.
  public var table: UInt64

  /// FPD, whether or not the entry is present.
  @inlinable
  public static func disablesFaults(_ word: UInt64) -> Bool { word.bit(1) }

  @inlinable
  public init(decoding word: UInt64, _ unit: IntelCapabilities) throws(IntelFaultReason) {
    if !word.bit(0) { throw .spd2 }
    if word & (.mask(11, 2) | unit.reservedAddressBits) != 0 { throw .spd3 }
    table = word & .mask(63, 12)
  }
}

/// A present entry of the PASID table (9.6): 64 bytes.
public struct IntelPASIDEntry: Hashable, Sendable {
  /// PGTT.
  public enum Translation: UInt8, Hashable, Sendable, CaseIterable {
    case firstStage = 1
    case secondStage = 2
    case nested = 3
    case passThrough = 4

    @inlinable public var hasFirstStage: Bool { self == .firstStage || self == .nested }
    @inlinable public var hasSecondStage: Bool { self == .secondStage || self == .nested }
  }

  public var translation: Translation
  public var domain: UInt16
  /// SSPTPTR, in bytes; of second-stage and nested translation.
  public var secondStageTable: UInt64
  /// AW: levels of the second stage, 3 to 5.
  public var secondStageLevels: Int
  /// SSADE: accessed and dirty bits are kept in the second stage.
  public var keepsSecondStageAccessedDirty: Bool
  /// SSEE: the second stage can withhold execution.
  public var secondStageHasExecute: Bool
  /// FSPTPTR, in bytes; guest-physical where nested.
  public var firstStageTable: UInt64
  /// FSPM: levels of the first stage, 4 or 5.
  public var firstStageLevels: Int
  /// SRE: supervisor requests are served.
  public var allowsSupervisor: Bool
  /// ERE: execute requests are served.
  public var allowsExecute: Bool
  /// WPE: supervisor writes obey read-only entries.
  public var protectsFromSupervisorWrites: Bool
  /// NXE: the XD bit of first-stage entries counts.
  public var hasNoExecute: Bool
  /// SMEP: supervisors do not execute users' pages.
  public var preventsSupervisorExecute: Bool
  /// EAFE: the extended accessed flag is kept in the first stage.
  public var keepsExtendedAccessed: Bool
  /// PWSNP and PGSNP: page walks, and accesses, snoop.
  public var pageWalksSnoop: Bool
  public var pagesSnoop: Bool

  /// FPD, whether or not the entry is present.
  @inlinable
  public static func disablesFaults(_ words: Words8) -> Bool { words[0].bit(1) }

  /// Present first, then reserved fields, then what the unit has not: the order of 7.1.3.
  /// - Throws: SPT.2, SPT.3 or SPT.4.
  public init(decoding words: Words8, _ unit: IntelCapabilities) throws(IntelFaultReason) {
    let first = words[0]
    let second = words[1]
    let third = words[2]
    if !first.bit(0) { throw .spt2 }
    if words.hasAny(of: Self.reservedBits(unit)) { throw .spt3 }

    guard let translation = Translation(rawValue: UInt8(first.bits(8, 6))),
      Self.supports(translation, unit)
    else { throw .spt4 }
    let levels = Int(first.bits(4, 2)) + 2
    switch translation {
    case .secondStage, .nested:
      if !unit.hasSecondStage(levels: levels) { throw .spt4 }
    case .passThrough:
      // AW has to be the widest that the unit has (9.6, AW).
      if levels != unit.mostLevels { throw .spt4 }
    case .firstStage: break
    }
    let mode = third.bits(3, 2)
    if translation.hasFirstStage, mode > 1 || mode == 1 && !unit.hasFiveLevelFirstStage {
      throw .spt4
    }

    self.translation = translation
    domain = UInt16(second.bits(15, 0))
    secondStageTable = first & .mask(63, 12)
    secondStageLevels = levels
    secondStageHasExecute = first.bit(5)
    keepsSecondStageAccessedDirty = first.bit(9)
    firstStageTable = third & .mask(63, 12)
    firstStageLevels = 4 + Int(mode & 1)
    pageWalksSnoop = second.bit(23)
    pagesSnoop = second.bit(24)
    allowsSupervisor = third.bit(0)
    allowsExecute = third.bit(1)
    protectsFromSupervisorWrites = third.bit(4)
    hasNoExecute = third.bit(5)
    preventsSupervisorExecute = third.bit(6)
    keepsExtendedAccessed = third.bit(7)
  }

  /// - Throws: SPT.5 and SPT.6 for what the entry does not let a request ask.
  @inlinable
  public func check(wantsExecute: Bool, isSupervisor: Bool) throws(IntelFaultReason) {
    if wantsExecute, !allowsExecute { throw .spt5 }
    if isSupervisor, !allowsSupervisor { throw .spt6 }
  }

  static func supports(_ translation: Translation, _ unit: IntelCapabilities) -> Bool {
    switch translation {
    case .firstStage: unit.has(.firstStage)
    case .secondStage: unit.has(.secondStage)
    case .nested: unit.has(.nesting) && unit.has(.firstStage) && unit.has(.secondStage)
    case .passThrough: unit.has(.passThrough)
    }
  }

  /// Fields that are reserved in every unit, and those that go with what this one has not.
  static func reservedBits(_ unit: IntelCapabilities) -> Words8 {
    var reserved = Words8(
      .mask(11, 10) | unit.reservedAddressBits, .mask(22, 16),
      .mask(11, 8) | unit.reservedAddressBits, .max, .max, .max, .max, .max)
    if !unit.has(.secondStageAccessedDirty) { reserved[0] |= .mask(9, 9) }
    if !unit.has(.pageWalkSnoop) { reserved[1] |= .mask(23, 23) }
    if !unit.has(.snoopControl) { reserved[1] |= .mask(24, 24) }
    // CD, EMTE, EMT, PWT, PCD, PAT.
    if !unit.has(.memoryTypes) { reserved[1] |= .mask(63, 25) }
    if !unit.has(.supervisorRequests) { reserved[2] |= .mask(0, 0) }
    if !unit.has(.executeRequests) {
      // SSEE; ERE, NXE, SMEP.
      reserved[0] |= .mask(5, 5)
      reserved[2] |= .mask(1, 1) | .mask(6, 5)
    }
    if !unit.has(.extendedAccessed) { reserved[2] |= .mask(7, 7) }
    return reserved
  }
}
