// SPDX-License-Identifier: Apache-2.0
//
// A port that asks for pages that are missing, and goes on when they are there (MODEL H1).
// Outermost of a function's ports: while it waits, nobody's turn, list or transaction is held.

import IOMMU
import PageTables
import SoftwareIOMMU

/// The way to memory of one thread of a model that can wait.
final class RecoveringPort: BusPort {
  private let port: any BusPort
  private let waits: DeviceWait

  /// - Parameter port: Its errors say what may be asked for.
  init(port: any BusPort, waits: DeviceWait) {
    self.port = port
    self.waits = waits
  }

  /// Makes an access from where it has come, until it is done or its error stands.
  /// - Parameters:
  ///   - start: Of the side that was read, and of the one that was written.
  ///   - body: Makes the access but for the first so many bytes.
  private func access(
    from start: (read: IOVA, write: IOVA), _ body: (Int) throws(BusError) -> Void
  ) throws(BusError) {
    var done = 0
    while true {
      do throws(BusError) {
        return try body(done)
      } catch {
        guard error.missing != nil, port.ask(for: error, waits: waits) else {
          var error = error
          error.missing = nil
          throw error
        }
        let start = error.access.contains(.write) ? start.write : start.read
        done = Int(truncatingIfNeeded: error.address.rawValue &- start.rawValue)
      }
    }
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    try access(from: (address, address)) { (done) throws(BusError) in
      // SAFETY: the rest of the caller's buffer, for the length of the call.
      try unsafe port.read(
        address.advanced(done), into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
    }
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    try access(from: (address, address)) { (done) throws(BusError) in
      // SAFETY: as in `read`.
      try unsafe port.write(
        address.advanced(done), from: UnsafeRawBufferPointer(rebasing: buffer[done...]))
    }
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    try access(from: (address, address)) { (done) throws(BusError) in
      guard done > 0 else { return try port.store(value, at: address) }
      // Across two pages, of which the second was missing.
      let rest = value.littleEndian
      // SAFETY: the bytes outlive the call.
      try unsafe withUnsafeBytes(of: rest) { (bytes) throws(BusError) in
        try unsafe port.write(
          address.advanced(done), from: UnsafeRawBufferPointer(rebasing: bytes[done...]))
      }
    }
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try access(from: (source, destination)) { (done) throws(BusError) in
      try port.copy(
        from: source.advanced(done), to: destination.advanced(done), length: length - done)
    }
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    try access(from: (address, address)) { (done) throws(BusError) in
      // Go on within the pattern.
      let shift = UInt64(done % 8 * 8)
      let rotated = shift == 0 ? pattern : pattern >> shift | pattern << (64 - shift)
      try port.fill(address.advanced(done), pattern: rotated, length: length - done)
    }
  }
}

extension IOVA {
  fileprivate func advanced(_ bytes: Int) -> IOVA { IOVA(rawValue &+ UInt64(bytes)) }
}
