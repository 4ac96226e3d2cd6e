// SPDX-License-Identifier: Apache-2.0
//
// CMD_TLBI_* of an SMMUv3's Non-secure command queue: Arm System Memory Management Unit
// Architecture version 3 (IHI 0070), sections 4.4 and 4.4.1.

/// What one CMD_TLBI_* drops.
public struct SMMUInvalidation: Hashable, Sendable {
  /// Which entries, by the tags that they have.
  public enum Scope: Hashable, Sendable {
    /// NH_ALL: EL1, of a VMID.
    case guest(vmid: UInt16)
    /// NH_ASID and NH_VA.
    case guestSpace(vmid: UInt16, asid: UInt16)
    /// NH_VAA: any ASID.
    case guestAddress(vmid: UInt16)
    /// EL2_ALL.
    case hypervisor
    /// EL2_ASID and EL2_VA.
    case hypervisorSpace(asid: UInt16)
    /// EL2_VAA.
    case hypervisorAddress
    /// S12_VMALL: both stages of a VMID.
    case bothStages(vmid: UInt16)
    /// S2_IPA.
    case stage2(vmid: UInt16)
    /// NSNH_ALL: all of EL1 and stage 2.
    case all
  }

  public struct Range: Hashable, Sendable {
    /// In bytes, a multiple of 4 KiB; an intermediate physical one of `stage2`.
    public var address: UInt64
    /// TG; nil for one entry at `address`, whatever its size.
    public var granule: SMMUGranule?
    /// (NUM + 1) * 2^SCALE granules; 1 without a granule.
    public var count: UInt64
    /// TTL: the level that the leaves are at; nil where it is not said.
    public var level: UInt8?
    /// Leaf: entries of leaves only.
    public var leaf: Bool

    public init(
      address: UInt64, granule: SMMUGranule? = nil, count: UInt64 = 1, level: UInt8? = nil,
      leaf: Bool = false
    ) {
      self.address = address
      self.granule = granule
      self.count = count
      self.level = level
      self.leaf = leaf
    }
  }

  public var scope: Scope
  /// Nil for all addresses.
  public var range: Range?

  public init(_ scope: Scope, range: Range? = nil) {
    self.scope = scope
    self.range = range
  }

  init(decoding words: Words2, _ smmu: SMMUCapabilities) throws(SMMUCommandError) {
    // Without stage 2 there are no VMIDs, and the field need not be looked at (4.4.2).
    let vmid = smmu.hasStage2 ? UInt16(words[0].bits(47, 32)) : 0
    let asid = UInt16(words[0].bits(63, 48))
    let code = words[0].bits(7, 0)
    let isStage2 = code == 0x28 || code == 0x2A
    if isStage2 ? !smmu.hasStage2 : code < 0x28 && !smmu.hasStage1 { throw .unsupported }
    if code >= 0x20, code < 0x28, !smmu.hasHypervisorStreams { throw .unsupported }

    let vmidField: UInt64 = .mask(47, 32)
    let asidField: UInt64 = .mask(63, 48)
    let fields: UInt64
    var hasAddress = false
    switch code {
    case 0x10: (fields, scope) = (vmidField, .guest(vmid: vmid))
    case 0x11: (fields, scope) = (vmidField | asidField, .guestSpace(vmid: vmid, asid: asid))
    case 0x12:
      (fields, scope) = (vmidField | asidField, .guestSpace(vmid: vmid, asid: asid))
      hasAddress = true
    case 0x13:
      (fields, scope) = (vmidField, .guestAddress(vmid: vmid))
      hasAddress = true
    case 0x20: (fields, scope) = (0, .hypervisor)
    case 0x21: (fields, scope) = (asidField, .hypervisorSpace(asid: asid))
    case 0x22:
      (fields, scope) = (asidField, .hypervisorSpace(asid: asid))
      hasAddress = true
    case 0x23:
      (fields, scope) = (0, .hypervisorAddress)
      hasAddress = true
    case 0x28: (fields, scope) = (vmidField, .bothStages(vmid: vmid))
    case 0x2A:
      (fields, scope) = (vmidField, .stage2(vmid: vmid))
      hasAddress = true
    case 0x30: (fields, scope) = (0, .all)
    default: throw .opcode
    }
    guard hasAddress else {
      try SMMUCommand.check(words, fields, 0)
      range = nil
      return
    }
    guard smmu.hasRangeInvalidation else {
      try SMMUCommand.check(words, fields, 1 | .mask(63, 12))
      range = Range(address: words[1] & .mask(63, 12), leaf: words[1].bit(0))
      return
    }
    // SCALE has a sixth bit with DS, and TTL128 goes with 128-bit descriptors. Without TG there
    // is neither range nor hint.
    let hasRange = words[1].bits(11, 10) != 0
    let rangeFields: UInt64 = .mask(16, 12) | .mask(smmu.hasLargeAddresses ? 25 : 24, 20)
    try SMMUCommand.check(
      words, fields | (hasRange ? rangeFields : 0),
      1 | .mask(63, 12) | (hasRange ? .mask(11, 8) : 0))
    range = try Self.range(words, smmu)
  }

  private static func range(
    _ words: Words2, _ smmu: SMMUCapabilities
  ) throws(SMMUCommandError) -> Range {
    var range = Range(address: words[1] & .mask(63, 12), leaf: words[1].bit(0))
    switch words[1].bits(11, 10) {
    case 0: return range
    case 1: range.granule = .size4KiB
    case 2: range.granule = .size16KiB
    default: range.granule = .size64KiB
    }
    // What is above 39 counts as 39: 2^39 granules are all addresses.
    range.count = (words[0].bits(16, 12) + 1) &<< Swift.min(words[0].bits(25, 20), 39)
    var level = words[1].bits(9, 8)
    if level == 1, range.granule == .size16KiB, !smmu.hasLargeAddresses { level = 0 }
    range.level = level == 0 ? nil : UInt8(level)
    // A granule alone says nothing; it is reserved, and CERROR_ILL.
    if range.count == 1, level == 0 { throw .operand }
    return range
  }
}
