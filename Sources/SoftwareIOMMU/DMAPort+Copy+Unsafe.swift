// SPDX-License-Identifier: Apache-2.0
//
// The long accesses of a device: reads, writes, copies and fills, piece by piece.

import IOMMU
import PageTables

extension DMAPort {
  /// Reads memory into a buffer of the device.
  ///
  /// - Throws: The fault at the first byte that cannot be read; those before it are in place.
  public func read(
    _ iova: IOVA, into buffer: UnsafeMutableRawBufferPointer
  ) throws(DMAFault) {
    guard let base = buffer.baseAddress, buffer.count > 0 else { return }
    try checkEnd(iova.rawValue, buffer.count, .read)
    enter()
    defer { leave() }
    try get(iova.rawValue, to: UInt64(UInt(bitPattern: base)), count: UInt64(buffer.count))
  }

  /// Writes a buffer of the device to memory, or raises an interrupt: an aligned write of 4
  /// bytes to 0xFEE00000 ... 0xFEEFFFFF.
  ///
  /// - Throws: The fault at the first byte that cannot be written.
  public func write(_ iova: IOVA, from buffer: UnsafeRawBufferPointer) throws(DMAFault) {
    guard let base = buffer.baseAddress, buffer.count > 0 else { return }
    if isInterrupt(iova.rawValue, buffer.count) {
      return try raise(iova.rawValue, data: unsafe buffer.loadUnaligned(as: UInt32.self))
    }
    try checkEnd(iova.rawValue, buffer.count, .write)
    enter()
    defer { leave() }
    try put(iova.rawValue, from: UInt64(UInt(bitPattern: base)), count: UInt64(buffer.count))
  }

  /// Copies memory to memory in ascending order, both sides translated.
  ///
  /// - Parameter length: In bytes; nothing happens where it is not positive.
  /// - Throws: The first fault of either side; what lies before it was copied.
  public func copy(
    from source: IOVA, to destination: IOVA, length: Int
  ) throws(DMAFault) {
    guard length > 0 else { return }
    try checkEnd(source.rawValue, length, .read)
    try checkEnd(destination.rawValue, length, .write)
    var from = source.rawValue
    var to = destination.rawValue
    var rest = UInt64(length)
    enter()
    defer { leave() }
    while rest > 0 {
      checkpoint()
      do throws(Miss) {
        let piece = try copyPiece(from: from, to: to, limit: min(rest, Self.remotePiece))
        from &+= piece
        to &+= piece
        rest &-= piece
      } catch {
        // What misses is where the piece begins, on either side.
        try recover(error, length: rest)
      }
    }
  }

  /// Writes a pattern of 8 bytes (little-endian) again and again from `iova` on; the last time
  /// perhaps in part.
  ///
  /// - Parameter length: In bytes; nothing happens where it is not positive.
  public func fill(_ iova: IOVA, pattern: UInt64, length: Int) throws(DMAFault) {
    guard length > 0 else { return }
    try checkEnd(iova.rawValue, length, .write)
    let piece = min(length, Int(Self.localPiece))
    for offset in stride(from: 0, to: piece, by: 8) {
      // SAFETY: the bounce buffer is longer than `localPiece`, a multiple of 8.
      unsafe bounce.storeBytes(of: pattern.littleEndian, toByteOffset: offset, as: UInt64.self)
    }
    enter()
    defer { leave() }
    var done = 0
    while done < length {
      let count = min(length - done, piece)
      try put(
        iova.rawValue &+ UInt64(done), from: bounceAddress, count: UInt64(count))
      done += count
    }
  }

  // MARK: Pieces, inside a transaction

  var bounceAddress: UInt64 {
    UInt64(UInt(bitPattern: unsafe bounce.baseAddress))
  }

  /// Copies as much as is contiguous on both sides. Returns how much that was.
  private func copyPiece(
    from: UInt64, to: UInt64, limit: UInt64
  ) throws(Miss) -> UInt64 {
    let source: Hit
    do throws(DMAFault.Reason) {
      source = try findRun(from, IOTLB.readFlag, limit: limit)
    } catch {
      throw Miss(error, from, .read)
    }
    let target: Hit
    do throws(DMAFault.Reason) {
      target = try findRun(to, IOTLB.writeFlag, limit: min(limit, source.left))
    } catch {
      throw Miss(error, to, .write)
    }
    var piece = min(limit, min(source.left, target.left))
    if source.isLocal, target.isLocal {
      piece = min(piece, Self.localPiece)
      LocalAccess.copy(
        to: target.address(to), from: source.address(from), count: Int(piece))
      return piece
    }
    // What is read of the source goes straight to a local target, else by way of the bounce
    // buffer; and what of it then cannot be written is read again.
    if !source.isLocal {
      do throws(DMAFault.Reason) {
        piece = try readRemote(
          source.address(from), to: target.isLocal ? target.address(to) : bounceAddress,
          count: piece, isOwn: !target.isLocal)
      } catch {
        throw Miss(error, from, .read)
      }
    }
    if !target.isLocal {
      do throws(DMAFault.Reason) {
        piece = try writeRemote(
          target.address(to), from: source.isLocal ? source.address(from) : bounceAddress,
          count: piece, isOwn: !source.isLocal)
      } catch {
        throw Miss(error, to, .write)
      }
    }
    return piece
  }

  /// Reads `count` bytes to a buffer of the device, which does not move.
  private func get(_ iova: UInt64, to buffer: UInt64, count: UInt64) throws(DMAFault) {
    var done: UInt64 = 0
    while done < count {
      checkpoint()
      let at = iova &+ done
      let limit = min(count &- done, Self.remotePiece)
      do throws(DMAFault.Reason) {
        let hit = try findRun(at, IOTLB.readFlag, limit: limit)
        var piece = min(hit.left, limit)
        if hit.isLocal {
          piece = min(piece, Self.localPiece)
          LocalAccess.copy(to: buffer &+ done, from: hit.address(at), count: Int(piece))
        } else {
          piece = try readRemote(
            hit.address(at), to: buffer &+ done, count: piece, isOwn: true)
        }
        done &+= piece
      } catch {
        try recover(Miss(error, at, .read), length: count &- done)
      }
    }
  }

  /// Writes `count` bytes from a buffer of the device.
  func put(_ iova: UInt64, from buffer: UInt64, count: UInt64) throws(DMAFault) {
    var done: UInt64 = 0
    while done < count {
      checkpoint()
      let at = iova &+ done
      let limit = min(count &- done, Self.remotePiece)
      do throws(DMAFault.Reason) {
        let hit = try findRun(at, IOTLB.writeFlag, limit: limit)
        var piece = min(hit.left, limit)
        if hit.isLocal {
          piece = min(piece, Self.localPiece)
          LocalAccess.copy(to: hit.address(at), from: buffer &+ done, count: Int(piece))
        } else {
          piece = try writeRemote(
            hit.address(at), from: buffer &+ done, count: piece, isOwn: true)
        }
        done &+= piece
      } catch {
        try recover(Miss(error, at, .write), length: count &- done)
      }
    }
  }
}
