// SPDX-License-Identifier: Apache-2.0
//
// The process directory and its contexts, and what a transaction is translated by in the end:
// RISC-V IOMMU Architecture 1.0, sections 2.2, 2.3 (steps 8 to 16) and 2.3.2.

import PageTables

/// A process context (`PC`): 16 bytes.
public struct RISCVProcessContext: Hashable, Sendable {
  /// Translation attributes.
  public var ta: UInt64
  /// First-stage context.
  public var fsc: UInt64

  @inlinable
  public init(_ words: Words2) {
    ta = words[0]
    fsc = words[1]
  }

  /// V. Where it is clear the rest belongs to software.
  @inlinable public var isValid: Bool { ta.bit(0) }
  /// ENS: supervisor transactions are allowed.
  @inlinable public var allowsSupervisor: Bool { ta.bit(1) }
  /// SUM: supervisor transactions may reach user pages.
  @inlinable public var supervisorReachesUserPages: Bool { ta.bit(2) }
  @inlinable public var processSoftContextID: UInt32 { UInt32(ta.bits(31, 12)) }
  /// As in `iosatp.MODE`.
  @inlinable public var firstStageMode: UInt8 { UInt8(fsc.bits(63, 60)) }
  /// In bytes; guest-physical where there is a second stage.
  @inlinable public var firstStageRoot: UInt64 { fsc.bits(43, 0) &<< 12 }

  /// The first rule of 2.2.4 that the context breaks, by its number there; nil where it is
  /// well configured. A context that breaks one faults with cause 267.
  /// - Parameter is32Bit: `DC.tc.SXL`.
  public func misconfiguration(_ iommu: RISCVCapabilities, is32Bit: Bool) -> Int? {
    if ta & (.mask(11, 3) | .mask(63, 32)) != 0 || fsc & .mask(59, 44) != 0 { return 1 }
    return switch RISCVFirstStage.check(mode: firstStageMode, is32Bit: is32Bit, iommu) {
    case .supported: nil
    case .invalid: 2
    case .unsupported: is32Bit ? 4 : 3
    }
  }
}

/// What a transaction is translated by, once its contexts are found.
public struct RISCVTranslation: Hashable, Sendable {
  /// `iosatp.MODE`; 0 is Bare: the IOVA is a guest-physical address.
  public var firstStageMode: UInt8
  /// In bytes; guest-physical where there is a second stage.
  public var firstStageRoot: UInt64
  public var processSoftContextID: UInt32
  public var supervisorReachesUserPages: Bool
  /// Whether supervisor privilege was asked for and is there.
  public var isSupervisor: Bool
  /// Nothing is translated at all: a translated transaction of a device that gets
  /// host-physical addresses (2.3, step 8).
  public var isComplete: Bool

  @inlinable
  public init(
    firstStageMode: UInt8 = 0, firstStageRoot: UInt64 = 0, processSoftContextID: UInt32 = 0,
    supervisorReachesUserPages: Bool = false, isSupervisor: Bool = false,
    isComplete: Bool = false
  ) {
    self.firstStageMode = firstStageMode
    self.firstStageRoot = firstStageRoot
    self.processSoftContextID = processSoftContextID
    self.supervisorReachesUserPages = supervisorReachesUserPages
    self.isSupervisor = isSupervisor
    self.isComplete = isComplete
  }
}

extension RISCVDeviceContext {
  /// What translates a transaction that `RISCVDeviceDirectory.context` let through (2.3, steps
  /// 8 to 16).
  /// - Parameters:
  ///   - process: `process_id`, where the transaction has one.
  ///   - isSupervisor: Whether it asks for supervisor privilege; counts with a process ID.
  ///   - memory: What the process directory's pointers point into: the guest's memory, through
  ///     this context's second stage where it has one; the host's memory else.
  /// - Throws: Cause 260 for a supervisor where ENS is clear; 265, 266, 267 and 269 where the
  ///   directory has no good context; 20, 21 or 23, by the transaction, where the second stage has
  ///   no mapping for it.
  @inlinable
  public func translation<Memory: TableMemory>(
    process: UInt32?, isSupervisor: Bool, transaction: RISCVTransactionType,
    iommu: RISCVCapabilities, in memory: borrowing Memory
  ) throws(RISCVFault) -> RISCVTranslation {
    var result = RISCVTranslation(isSupervisor: process != nil && isSupervisor)
    if transaction.isTranslated {
      result.isComplete = !translatesToGuest
      return result
    }
    if !hasProcessDirectory {
      result.firstStageMode = firstStageMode
      result.firstStageRoot = firstStageRoot
      result.processSoftContextID = processSoftContextID
      return result
    }
    guard let number = process ?? (hasDefaultProcess ? 0 : nil), firstStageMode != 0 else {
      return result
    }
    let context = try locate(
      process: number, transaction: transaction, iommu: iommu, in: memory)
    if result.isSupervisor, !context.allowsSupervisor {
      throw RISCVFault(.transactionTypeDisallowed)
    }
    result.firstStageMode = context.firstStageMode
    result.firstStageRoot = context.firstStageRoot
    result.processSoftContextID = context.processSoftContextID
    result.supervisorReachesUserPages = context.supervisorReachesUserPages
    return result
  }

  /// Walks the process directory (2.3.2): `pdtp.MODE` is PD8, PD17 or PD20, and covers the
  /// process.
  @inlinable
  public func locate<Memory: TableMemory>(
    process: UInt32, transaction: RISCVTransactionType, iommu: RISCVCapabilities,
    in memory: borrowing Memory
  ) throws(RISCVFault) -> RISCVProcessContext {
    var table = firstStageRoot
    var level = Int(firstStageMode) - 1
    while level > 0 {
      let index = UInt64(process &>> UInt32(8 + 9 * (level - 1)) & 511)
      let entry = try load(table &+ index &* 8, transaction, in: memory)
      if !entry.bit(0) { throw RISCVFault(.processEntryNotValid) }
      if entry & (.mask(9, 1) | .mask(63, 54)) != 0 {
        throw RISCVFault(.processEntryMisconfigured)
      }
      table = entry.bits(53, 10) &<< 12
      level -= 1
    }
    let address = table &+ UInt64(process & 255) &* 16
    let context = RISCVProcessContext(
      Words2(
        try load(address, transaction, in: memory),
        try load(address &+ 8, transaction, in: memory)))
    if !context.isValid { throw RISCVFault(.processEntryNotValid) }
    if context.misconfiguration(iommu, is32Bit: is32Bit) != nil {
      throw RISCVFault(.processEntryMisconfigured)
    }
    return context
  }

  @inlinable @inline(__always)
  func load<Memory: TableMemory>(
    _ address: UInt64, _ transaction: RISCVTransactionType, in memory: borrowing Memory
  ) throws(RISCVFault) -> UInt64 {
    do throws(TableMemoryFault) {
      let stored = try memory.load(address)
      return isBigEndian ? stored.byteSwapped : stored
    } catch {
      switch error {
      case .unreachable: throw RISCVFault(.processLoadAccessFault)
      case .corrupted: throw RISCVFault(.processDataCorruption)
      case .secondStage(let inner):
        // Accesses of the second stage's own entries are those to the directory's (2.3.2).
        switch inner.reason {
        case .tableUnreachable: throw RISCVFault(.processLoadAccessFault)
        case .tableCorrupted: throw RISCVFault(.pageTableDataCorruption)
        default: break
        }
        // An implicit read of whatever the transaction is: bit 0 set and bit 1 clear (3.2).
        throw RISCVFault(.guestPageFault(of: transaction), iotval2: address & ~3 | 1)
      }
    }
  }
}
