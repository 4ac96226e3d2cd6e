// SPDX-License-Identifier: Apache-2.0
//
// The walker: what an IOMMU does on an IOTLB miss. No lock, no allocation, no reference
// counting: it runs beside whoever writes the table. One body for every format, memory and
// kind of walk; what a kind does not need is gone once it is specialized.

extension TableRoot {
  /// Translates one address for an access, as the root's switches say: accessed and dirty bits
  /// are set, or missed, as hardware does it.
  ///
  /// - Parameter memory: Where the tables are.
  /// - Returns: A translation without the rights to write while its leaf has yet to be marked
  ///   for it: it may be kept, and has to be walked again for the first write.
  /// - Throws: The first reason on the way down.
  @inlinable
  public func walk(
    _ iova: IOVA, for access: Access, in memory: borrowing some TableMemory
  ) throws(WalkFault) -> Translation {
    if configuration.updatesEntries {
      return try find(iova.rawValue, needs: access.needs, marks: true, in: memory)
    }
    return try find(iova.rawValue, needs: access.needs, marks: false, in: memory)
  }

  /// - Parameters:
  ///   - needs: What has to be allowed; nothing, in a walk that never throws `.permission`.
  ///   - marks: Whether entries are marked as accessed and written.
  @inlinable @inline(__always)
  func find<Memory: TableMemory>(
    _ address: UInt64, needs: Rights, marks: Bool, in memory: borrowing Memory
  ) throws(WalkFault) -> Translation {
    guard let offset = offset(address) else { throw WalkFault(.addressWidth) }
    let writes = !needs.isDisjoint(with: .writes)
    var level = levels
    var table = self.address
    var allowed = UInt64.max
    var lost = 0
    while true {
      let place = table &+ UInt64(truncatingIfNeeded: index(offset, level: level)) &* 8
      var entry = try Self.load(place, level: level, in: memory)
      if !(marks && Format.marksTables),
        Format.pointsToTable(entry, level: level, configuration)
      {
        allowed &= Format.allowance(entry, level: level, configuration)
        table = Format.address(entry, configuration)
        level &-= 1
        continue
      }
      var isLeaf: Bool
      var rights: UInt64
      while true {
        guard Format.isPresent(entry) else { throw WalkFault(.notPresent, level: level) }
        if let reason = Format.defect(entry, level: level, configuration) {
          throw WalkFault(reason, level: level)
        }
        isLeaf = Format.isLeaf(entry, level: level)
        rights = allowed & Format.allowance(entry, level: level, configuration)
        if isLeaf {
          let effective = Format.rights(allowed: rights, configuration)
          if !needs.isEmpty, !effective.isSuperset(of: needs) {
            throw WalkFault(.permission, level: level, rights: effective)
          }
          if let reason = Format.leafDefect(
            entry, level: level, writes: writes, configuration)
          {
            throw WalkFault(reason, level: level)
          }
        }
        guard marks, isLeaf || Format.marksTables else { break }
        let marked = Format.marked(entry, level: level, writes: writes, configuration)
        if marked == entry { break }
        if try Self.exchange(place, entry, for: marked, level: level, in: memory) {
          entry = marked
          break
        }
        // Somebody changed it: what it says now counts. Whoever does nothing else does not
        // keep the walk for ever.
        lost &+= 1
        if lost == Self.patience { throw WalkFault(.tableUnreachable, level: level) }
        entry = try Self.load(place, level: level, in: memory)
      }
      if isLeaf {
        var effective = Format.rights(allowed: rights, configuration)
        if !writes, !isReadyForWrites(entry, level: level, marks: marks) {
          effective.subtract(.writes)
        }
        let inside = Format.leafMask(entry, level: level)
        let address = Format.address(entry, configuration)
        return Translation(
          physical: PhysicalAddress(address & ~inside | offset & inside),
          leafShift: UInt8(truncatingIfNeeded: Format.leafShift(entry, level: level)),
          rights: effective)
      }
      allowed = rights
      table = Format.address(entry, configuration)
      // The engine's own tables skip none.
      if Format.skipsLevels, Memory.self != HostTableMemory.self {
        let child = Format.childLevel(entry, level: level)
        if child != level &- 1, !skips(offset, from: level, to: child) {
          throw WalkFault(.notPresent, level: level)
        }
        level = child
      } else {
        level &-= 1
      }
    }
  }

  /// How many times entries may change under one walk's marks.
  @inlinable static var patience: Int { 10_000 }

  /// Whether a write would find nothing left to mark in a leaf that has been read through.
  @inlinable @inline(__always)
  func isReadyForWrites(_ entry: UInt64, level: Int, marks: Bool) -> Bool {
    Format.leafDefect(entry, level: level, writes: true, configuration) == nil
      && (!marks || Format.marked(entry, level: level, writes: true, configuration) == entry)
  }

  /// Whether the bits of an address are zero that the levels between two would translate.
  @inlinable
  func skips(_ offset: UInt64, from level: Int, to child: Int) -> Bool {
    let below = Format.lowBits(Format.shift(level: level))
    let translated = Format.lowBits(Format.shift(level: child &+ 1))
    return offset & below & ~translated == 0
  }

  @inlinable @inline(__always)
  static func load(
    _ place: UInt64, level: Int, in memory: borrowing some TableMemory
  ) throws(WalkFault) -> UInt64 {
    do throws(TableMemoryFault) {
      return try memory.load(place)
    } catch {
      throw WalkFault(error, at: place, level: level, marking: false)
    }
  }

  @inlinable @inline(__always)
  static func exchange(
    _ place: UInt64, _ entry: UInt64, for marked: UInt64, level: Int,
    in memory: borrowing some TableMemory
  ) throws(WalkFault) -> Bool {
    do throws(TableMemoryFault) {
      return try memory.compareExchange(place, expected: entry, desired: marked)
    } catch {
      throw WalkFault(error, at: place, level: level, marking: true)
    }
  }
}

extension WalkFault {
  /// An entry of the first stage could not be reached.
  @inlinable
  init(_ fault: TableMemoryFault, at place: UInt64, level: Int, marking: Bool) {
    switch fault {
    case .unreachable:
      self.init(.tableUnreachable, level: level)
      entry = place
    case .corrupted:
      self.init(.tableCorrupted, level: level)
      entry = place
    case .secondStage(let inner):
      self = inner
      stage = .second
      tableLevel = UInt8(truncatingIfNeeded: level)
    }
    isMarking = marking
  }
}
