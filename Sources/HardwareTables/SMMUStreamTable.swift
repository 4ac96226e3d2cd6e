// SPDX-License-Identifier: Apache-2.0
//
// From a StreamID to its entry: Arm System Memory Management Unit Architecture version 3
// (IHI 0070), sections 3.3.1 (stream table lookup), 5.1 (level 1 descriptor), 6.3.24 and
// 6.3.25 (SMMU_STRTAB_BASE and SMMU_STRTAB_BASE_CFG).

import PageTables

/// The stream table, linear or of two levels.
public struct SMMUStreamTable: Hashable, Sendable {
  /// In bytes, aligned as the hardware does: to the table's size, and to 64 bytes at least.
  public var address: UInt64
  /// LOG2SIZE: log 2 of the number of StreamIDs.
  public var sizeShift: Int
  /// SPLIT of a two-level table, 6, 8 or 10: bits that the second level resolves; nil for a
  /// linear one.
  public var split: Int?
  public var smmu: SMMUCapabilities

  /// - Parameter address: STRTAB_BASE.ADDR; what is below the alignment is ignored.
  @inlinable
  public init(address: UInt64, sizeShift: Int, split: Int? = nil, smmu: SMMUCapabilities) {
    let size = Swift.min(Swift.max(sizeShift, 0), 32)
    let alignment =
      if let split { Swift.max(6, size - split + 3) } else { size + 6 }
    self.address = address & .mask(55, alignment)
    self.sizeShift = size
    self.split = split
    self.smmu = smmu
  }

  /// Reads the two registers. SPLIT has bits 10 to 6 (what is reserved counts as 6), FMT has
  /// bits 17 and 16, LOG2SIZE bits 5 to 0.
  public init(base: UInt64, configuration: UInt32, smmu: SMMUCapabilities) {
    let word = UInt64(configuration)
    var split: Int?
    if word.bits(17, 16) == 1, smmu.hasTwoLevelStreamTables {
      let field = Int(word.bits(10, 6))
      split = field == 8 || field == 10 ? field : 6
    }
    self.init(address: base, sizeShift: Int(word.bits(5, 0)), split: split, smmu: smmu)
  }

  /// The entry of a stream, known to be legal.
  /// - Parameter memory: Physical memory.
  /// - Throws: C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE.
  @inlinable
  public func entry<Memory: TableMemory>(
    stream: UInt32, in memory: borrowing Memory
  ) throws(SMMUFault) -> SMMUStreamTableEntry {
    let width = Swift.min(sizeShift, smmu.streamIDWidth)
    if UInt64(stream) &>> UInt64(width) != 0 { throw .badStreamID }
    var place = address &+ UInt64(stream) &* 64
    if let split {
      let low = UInt64(stream) & (1 &<< UInt64(split) &- 1)
      let slot = address &+ UInt64(stream) &>> UInt64(split) &* 8
      let descriptor: UInt64
      do throws(TableMemoryFault) {
        descriptor = try memory.load(slot)
      } catch {
        throw .streamTableFetch(address: slot)
      }
      // Span 0 is invalid; 12 to 31 are reserved and count as 0.
      let span = descriptor.bits(4, 0)
      if span == 0 || span > 11 || span > UInt64(split) + 1 || low &>> (span - 1) != 0 {
        throw .badStreamID
      }
      place = descriptor & .mask(55, 5 + Int(span)) &+ low &* 64
    }
    let words: Words8
    do throws(TableMemoryFault) {
      words = try memory.loadWords8(place)
    } catch {
      throw .streamTableFetch(address: place)
    }
    let entry = SMMUStreamTableEntry(words)
    if entry.illegality(smmu) != nil { throw .badStreamTableEntry }
    return entry
  }
}

extension SMMUStreamTableEntry {
  /// What becomes of a transaction of a legal entry.
  public enum Outcome: Hashable, Sendable {
    /// Aborted, with no event.
    case abort
    /// Stage 1 is bypassed; stage 2 translates where the entry has one.
    case bypassStage1
    /// Stage 1 translates by the context descriptor of this index.
    case context(UInt32)
  }

  /// - Parameter substream: Of the transaction, where it has one (SSV); 20 bits.
  /// - Throws: C_BAD_SUBSTREAMID and F_STREAM_DISABLED (S1CDMax, S1DSS).
  @inlinable
  public func outcome(
    substream: UInt32?, _ smmu: SMMUCapabilities
  ) throws(SMMUFault) -> Outcome {
    if !passesTraffic { return .abort }
    guard hasStage1 else {
      if let substream { throw .badSubstreamID(substream) }
      return .bypassStage1
    }
    let shift = smmu.substreamIDWidth == 0 ? 0 : contextCountShift
    if shift == 0 {
      if let substream { throw .badSubstreamID(substream) }
      return .context(0)
    }
    guard let substream else {
      switch defaultSubstream {
      case 1: return .bypassStage1
      case 2: return .context(0)
      default: throw .streamDisabled
      }
    }
    if substream &>> UInt32(shift) != 0 { throw .badSubstreamID(substream) }
    if substream == 0, defaultSubstream == 2 { throw .streamDisabled }
    return .context(substream)
  }

  /// The context descriptor of an index that `outcome` gave, known to be legal.
  /// - Parameter memory: What S1ContextPtr points into: through stage 2 where the entry has
  ///   one; physical memory else.
  /// - Throws: F_CD_FETCH, C_BAD_SUBSTREAMID (a level 1 descriptor that is not valid, or
  ///   points out of range), C_BAD_CD, and F_TRANSLATION of stage 2.
  @inlinable
  public func context<Memory: TableMemory>(
    _ index: UInt32, _ smmu: SMMUCapabilities, in memory: borrowing Memory
  ) throws(SMMUFault) -> SMMUContextDescriptor {
    let hasTable = smmu.substreamIDWidth != 0 && contextCountShift != 0
    let low: UInt32 =
      switch contextTableFormat {
      case 1 where hasTable: 6
      case 2 where hasTable: 10
      default: 0
      }
    var place = contextTable
    if low != 0 {
      let slot = place &+ UInt64(index &>> low) &* 8
      let descriptor: UInt64
      do throws(TableMemoryFault) {
        descriptor = try memory.load(slot)
      } catch {
        throw Self.fetchFault(error, at: slot)
      }
      let table = descriptor & .mask(55, low == 6 ? 12 : 16)
      let width = hasStage2 ? smmu.inputAddressWidth : smmu.outputAddressWidth
      if !descriptor.bit(0) || table &>> UInt64(width) != 0 { throw .badSubstreamID(index) }
      place = table &+ UInt64(index & (1 &<< low &- 1)) &* 64
    } else if hasTable {
      place = place &+ UInt64(index) &* 64
    }
    let words: Words8
    do throws(TableMemoryFault) {
      words = try memory.loadWords8(place)
    } catch {
      throw Self.fetchFault(error, at: place)
    }
    let context = SMMUContextDescriptor(words)
    if context.illegality(self, smmu) != nil { throw .badContextDescriptor }
    return context
  }

  @inlinable
  static func fetchFault(_ fault: TableMemoryFault, at address: UInt64) -> SMMUFault {
    fault.isUntranslated
      ? .contextTranslation(address: address) : .contextFetch(address: address)
  }
}
