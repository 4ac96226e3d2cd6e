// SPDX-License-Identifier: Apache-2.0
//
// Finding a device's context in the device directory, and the transactions that it does not
// allow: RISC-V IOMMU Architecture 1.0, sections 2.1, 2.3 (steps 1 to 9) and 2.3.1.

import PageTables

/// The device directory (`ddtp`): a radix tree of up to three levels.
public struct RISCVDeviceDirectory: Hashable, Sendable {
  public var mode: RISCVDirectoryMode
  /// Of the root page, in bytes; host-physical.
  public var root: UInt64
  public var iommu: RISCVCapabilities

  @inlinable
  public init(mode: RISCVDirectoryMode, root: UInt64, iommu: RISCVCapabilities) {
    self.mode = mode
    self.root = root
    self.iommu = iommu
  }

  /// Reads `ddtp` (5.5): mode in bits 3 to 0, PPN in bits 53 to 10. Nil for a mode that is
  /// reserved.
  public init?(register: UInt64, iommu: RISCVCapabilities) {
    guard let mode = RISCVDirectoryMode(rawValue: UInt8(register.bits(3, 0))) else {
      return nil
    }
    self.init(mode: mode, root: register.bits(53, 10) &<< 12, iommu: iommu)
  }

  /// The context that governs a transaction; nil where the mode is Bare and the transaction
  /// goes through untranslated.
  /// - Parameters:
  ///   - device: `device_id`, 24 bits.
  ///   - process: The transaction's `process_id`, where it has one.
  ///   - memory: Host-physical memory.
  /// - Throws: Causes 256 and 260 for what the mode or the context disallows; 257, 258, 259
  ///   and 268 where the directory has no good context. Whether the context's DTF hides cause 260
  ///   is told by `locate` and `RISCVDeviceContext.check`, of which this is made.
  @inlinable
  public func context<Memory: TableMemory>(
    device: UInt32, process: UInt32?, transaction: RISCVTransactionType,
    in memory: borrowing Memory
  ) throws(RISCVFault) -> RISCVDeviceContext? {
    switch mode {
    case .off: throw RISCVFault(.allInboundTransactionsDisallowed)
    case .bare:
      if transaction.needsATS { throw RISCVFault(.transactionTypeDisallowed) }
      return nil
    default: break
    }
    let context = try locate(device: device, in: memory)
    try context.check(process: process, transaction: transaction)
    return context
  }

  /// Walks the directory (step 5 of 2.3, and 2.3.1). The mode is one with levels.
  /// - Throws: Causes 257 to 260 and 268.
  @inlinable
  public func locate<Memory: TableMemory>(
    device: UInt32, in memory: borrowing Memory
  ) throws(RISCVFault) -> RISCVDeviceContext {
    if device &>> UInt32(mode.deviceIDWidth(iommu)) != 0 {
      throw RISCVFault(.transactionTypeDisallowed)
    }
    let isExtended = iommu.has(.flatMessageTable)
    let leafBits: UInt32 = isExtended ? 6 : 7
    var table = root
    var level = mode.levels - 1
    while level > 0 {
      let index = UInt64(device &>> (leafBits + 9 * UInt32(level - 1)) & 511)
      let entry = iommu.word(try Self.load(table &+ index &* 8, in: memory))
      if !entry.bit(0) { throw RISCVFault(.directoryEntryNotValid) }
      if entry & (.mask(9, 1) | .mask(63, 54)) != 0 {
        throw RISCVFault(.directoryEntryMisconfigured)
      }
      table = entry.bits(53, 10) &<< 12
      level -= 1
    }
    let index = UInt64(device & (1 &<< leafBits &- 1))
    let address = table &+ index &* iommu.deviceContextSize
    var words = Words8()
    for number in 0..<(isExtended ? 8 : 4) {
      words[number] = iommu.word(try Self.load(address &+ UInt64(number) &* 8, in: memory))
    }
    let context = isExtended ? RISCVDeviceContext(words) : RISCVDeviceContext(words.lowHalf)
    if !context.isValid { throw RISCVFault(.directoryEntryNotValid) }
    if context.misconfiguration(iommu) != nil {
      throw RISCVFault(.directoryEntryMisconfigured)
    }
    return context
  }

  @inlinable @inline(__always)
  static func load<Memory: TableMemory>(
    _ address: UInt64, in memory: borrowing Memory
  ) throws(RISCVFault) -> UInt64 {
    do throws(TableMemoryFault) {
      return try memory.load(address)
    } catch {
      throw RISCVFault(
        error == .corrupted ? .directoryDataCorruption : .directoryLoadAccessFault)
    }
  }
}

extension RISCVDeviceContext {
  /// Refuses what the context disallows (2.3, step 7).
  /// - Throws: Cause 260.
  @inlinable
  public func check(
    process: UInt32?, transaction: RISCVTransactionType
  ) throws(RISCVFault) {
    if transaction.needsATS, !enablesATS { throw RISCVFault(.transactionTypeDisallowed) }
    if let process, !hasProcessDirectory || !covers(process: process) {
      throw RISCVFault(.transactionTypeDisallowed)
    }
  }

  /// Whether the process directory tells this `process_id` apart (2.3, step 7): `PD8`, `PD17`
  /// and `PD20` have 8, 17 and 20 bits. A directory that is Bare is not asked.
  @inlinable
  public func covers(process: UInt32) -> Bool {
    switch firstStageMode {
    case 1: process &>> 8 == 0
    case 2: process &>> 17 == 0
    default: process &>> 20 == 0
    }
  }
}
