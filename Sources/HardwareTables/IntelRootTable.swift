// SPDX-License-Identifier: Apache-2.0
//
// From a requester to the entry that translates for it: Intel Virtualization Technology for
// Directed I/O, revision 4.1, sections 3.4 (legacy and scalable mode) and 7.1.3.

import PageTables

/// The root table, as RTADDR_REG names it (11.4.6).
public struct IntelRootTable: Hashable, Sendable {
  /// TTM.
  public enum Mode: UInt8, Hashable, Sendable {
    case legacy = 0
    case scalable = 1
    case reserved = 2
    case abort = 3
  }

  public var mode: Mode
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64
  public var unit: IntelCapabilities

  @inlinable
  public init(mode: Mode, address: UInt64, unit: IntelCapabilities) {
    self.mode = mode
    self.address = address
    self.unit = unit
  }

  /// Reads RTADDR_REG: TTM in bits 11 and 10, the table in bits 63 to 12.
  public init(register: UInt64, unit: IntelCapabilities) {
    self.init(
      mode: Mode(rawValue: UInt8(register.bits(11, 10))) ?? .reserved,
      address: register & .mask(63, 12), unit: unit)
  }

  /// What a request is translated by.
  public enum Entry: Hashable, Sendable {
    case legacy(IntelContextEntry)
    /// With the PASID that was used: the request's, or RID_PASID.
    case scalable(IntelScalableContextEntry, pasid: UInt32, IntelPASIDEntry)
  }

  /// - Parameters:
  ///   - requester: Bus in bits 15 to 8, device and function below.
  ///   - pasid: Of the request, where it has one; 20 bits.
  ///   - memory: Host-physical memory.
  /// - Throws: The first condition of 7.1.3 that holds.
  @inlinable
  public func entry<Memory: TableMemory>(
    requester: UInt16, pasid: UInt32?, request: IntelRequest, wantsExecute: Bool = false,
    isSupervisor: Bool = false, in memory: borrowing Memory
  ) throws(IntelFault) -> Entry {
    switch mode {
    case .abort: throw IntelFault(.rta4)
    case .reserved: throw IntelFault(.rta1)
    case .legacy:
      if pasid != nil { throw IntelFault(.rta2) }
      if request == .page { throw IntelFault(.rta3) }
      return .legacy(try legacyEntry(requester, request, in: memory))
    case .scalable:
      if !unit.has(.scalableMode) { throw IntelFault(.rta1) }
      var isDisabled = false
      do throws(IntelFaultReason) {
        let context = try scalableContext(requester, &isDisabled, in: memory)
        let number = try context.pasid(of: request, pasid)
        let entry = try pasidEntry(number, context, &isDisabled, in: memory)
        try entry.check(
          wantsExecute: wantsExecute,
          isSupervisor: pasid == nil ? context.ridIsPrivileged : isSupervisor)
        return .scalable(context, pasid: number, entry)
      } catch {
        throw IntelFault(error, isReported: !(error.isQualified && isDisabled))
      }
    }
  }

  @inlinable
  func legacyEntry<Memory: TableMemory>(
    _ requester: UInt16, _ request: IntelRequest, in memory: borrowing Memory
  ) throws(IntelFault) -> IntelContextEntry {
    var isDisabled = false
    do throws(IntelFaultReason) {
      let place = address &+ UInt64(requester &>> 8) &* 16
      let words = try Self.words2(place, .lrt1, in: memory)
      let root = try IntelRootEntry(
        decoding: words[0], high: words[1], isScalable: false, unit)
      let entry = try Self.words2(
        root.contextTable &+ UInt64(requester & 255) &* 16, .lct1, in: memory)
      isDisabled = IntelContextEntry.disablesFaults(entry)
      let context = try IntelContextEntry(decoding: entry, unit)
      try context.check(request)
      return context
    } catch {
      throw IntelFault(error, isReported: !(error.isQualified && isDisabled))
    }
  }

  /// The lower and the upper context table have 128 entries of 32 bytes each.
  @inlinable
  func scalableContext<Memory: TableMemory>(
    _ requester: UInt16, _ isDisabled: inout Bool, in memory: borrowing Memory
  ) throws(IntelFaultReason) -> IntelScalableContextEntry {
    let half = UInt64(requester &>> 7 & 1)
    let word = try Self.word(
      address &+ UInt64(requester &>> 8) &* 16 &+ half &* 8, .srt1, in: memory)
    let root = try IntelRootEntry(decoding: word, isScalable: true, unit)
    let place = root.contextTable &+ UInt64(requester & 127) &* 32
    let words: Words4
    do throws(TableMemoryFault) {
      words = try memory.loadWords4(place)
    } catch {
      throw .sct1
    }
    isDisabled = IntelScalableContextEntry.disablesFaults(words)
    return try IntelScalableContextEntry(decoding: words, unit)
  }

  /// The entry of a PASID that the context's directory covers.
  @inlinable
  func pasidEntry<Memory: TableMemory>(
    _ pasid: UInt32, _ context: IntelScalableContextEntry, _ isDisabled: inout Bool,
    in memory: borrowing Memory
  ) throws(IntelFaultReason) -> IntelPASIDEntry {
    let word = try Self.word(
      context.directory &+ UInt64(pasid &>> 6) &* 8, .spd1, in: memory)
    isDisabled = isDisabled || IntelPASIDDirectoryEntry.disablesFaults(word)
    let table = try IntelPASIDDirectoryEntry(decoding: word, unit).table
    let words: Words8
    do throws(TableMemoryFault) {
      words = try memory.loadWords8(table &+ UInt64(pasid & 63) &* 64)
    } catch {
      throw .spt1
    }
    isDisabled = isDisabled || IntelPASIDEntry.disablesFaults(words)
    return try IntelPASIDEntry(decoding: words, unit)
  }

  @inlinable @inline(__always)
  static func word<Memory: TableMemory>(
    _ address: UInt64, _ reason: IntelFaultReason, in memory: borrowing Memory
  ) throws(IntelFaultReason) -> UInt64 {
    do throws(TableMemoryFault) {
      return try memory.load(address)
    } catch {
      throw reason
    }
  }

  @inlinable @inline(__always)
  static func words2<Memory: TableMemory>(
    _ address: UInt64, _ reason: IntelFaultReason, in memory: borrowing Memory
  ) throws(IntelFaultReason) -> Words2 {
    do throws(TableMemoryFault) {
      return try memory.loadWords2(address)
    } catch {
      throw reason
    }
  }
}
