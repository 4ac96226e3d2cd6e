// SPDX-License-Identifier: Apache-2.0
//
// What a port keeps of a user's table of contexts: the entry of its own PASID, decoded. As in
// hardware it stays until it is invalidated, whatever becomes of the table.

import HardwareTables
import PageTables

/// The entry of a port's PASID in a user's table. Trivial to copy.
enum CachedConfiguration: Sendable {
  /// Nothing was read yet, or all was forgotten.
  case none
  /// The first stage is bypassed.
  case bypass
  case smmu(SMMUContext)
  case amd(TableRoot<AMDv2>)
  case riscv(TableRoot<PageTables.RISCVFirstStage>)
}

/// A context descriptor of SMMUv3, as a port walks by it.
struct SMMUContext: Sendable {
  /// One of the two tables.
  enum Half: Sendable {
    /// EPD0 or EPD1.
    case disabled
    case of4KiB(TableRoot<ArmStage1<Granule4KiB>>)
    case of16KiB(TableRoot<ArmStage1<Granule16KiB>>)
    case of64KiB(TableRoot<ArmStage1<Granule64KiB>>)
  }

  let low: Half
  let high: Half
  /// TBI0 and TBI1.
  let lowIgnoresTopByte: Bool
  let highIgnoresTopByte: Bool

  /// - Parameter descriptor: Known to be legal.
  init(_ descriptor: SMMUContextDescriptor, _ smmu: SMMUCapabilities) {
    low = Self.half(.low, of: descriptor, smmu)
    high = Self.half(.high, of: descriptor, smmu)
    lowIgnoresTopByte = descriptor.ignoresTopByte(.low)
    highIgnoresTopByte = descriptor.ignoresTopByte(.high)
  }

  private static func half(
    _ half: SMMUContextDescriptor.Half, of descriptor: SMMUContextDescriptor,
    _ smmu: SMMUCapabilities
  ) -> Half {
    guard !descriptor.disablesWalks(half) else { return .disabled }
    switch descriptor.granule(half) {
    case .size4KiB?: return root(half, of: descriptor, smmu).map { .of4KiB($0) } ?? .disabled
    case .size16KiB?: return root(half, of: descriptor, smmu).map { .of16KiB($0) } ?? .disabled
    case .size64KiB?: return root(half, of: descriptor, smmu).map { .of64KiB($0) } ?? .disabled
    case nil: return .disabled
    }
  }

  /// Of the size that TxSZ says; bits of the address below the table's alignment count as zero
  /// (DDI 0487, D8.2.5).
  private static func root<Granule: ArmGranule>(
    _ half: SMMUContextDescriptor.Half, of descriptor: SMMUContextDescriptor,
    _ smmu: SMMUCapabilities
  ) -> TableRoot<ArmStage1<Granule>>? {
    typealias Format = ArmStage1<Granule>
    let bits = 64 - Int(descriptor.size(half))
    let levels = Format.levels(addressBits: bits)
    var switches = ArmStage1Switches()
    switches.updatesAccessFlag = descriptor.updatesAccessFlag
    switches.updatesDirtyState = descriptor.updatesDirty
    switches.ignoresAccessFlag = descriptor.ignoresAccessFlag
    switches.outputBits = UInt8(min(descriptor.outputWidth, smmu.outputAddressWidth))
    switches.neverExecutesWritable = descriptor.writableIsNotExecutable
    switches.ignoresTablePermissions = descriptor.disablesTableAttributes(half)
    switches.preventsPrivilegedAccess = descriptor.keepsPrivilegedFromUserPages
    let size: UInt64 = 1 << UInt64(max(bits - Format.shift(level: levels) + 3, 6))
    return TableRoot(
      address: descriptor.table(half) & ~(size - 1), levels: levels,
      addressBits: bits, extending: half == .low ? .zero : .ones, configuration: switches)
  }
}
