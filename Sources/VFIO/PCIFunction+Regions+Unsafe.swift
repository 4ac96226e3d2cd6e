// SPDX-License-Identifier: Apache-2.0
//
// Access to a function's regions as vfio-pci gives it: any length, any alignment, cut into
// aligned pieces. A program that has mapped a BAR meets the device's own MSI-X table there, one that
// calls does not. Facts: Linux 6.12, vfio_pci_rdwr.c and vfio_pci_config.c.

import IOMMU
import SystemPackage

/// A region of a PCI function. Linux: `VFIO_PCI_…_REGION_INDEX`.
public enum PCIRegion: Hashable, Sendable {
  case bar(Int)
  case rom
  case config
  case vga
}

extension PCIFunction {
  /// In bytes; 0 where the function does not have the region.
  public func size(of region: PCIRegion) -> UInt64 {
    switch region {
    case .bar(let index): bar(index)?.size ?? 0
    case .config: UInt64(PCIConfigSpace.size)
    case .rom, .vga: 0
    }
  }

  /// Reads from a region.
  ///
  /// - Parameters:
  ///   - offset: In bytes, in the region.
  ///   - isMapped: Whether the program has the region mapped, and loads.
  /// - Returns: Bytes read: fewer than asked for where a BAR ends.
  /// - Throws: `EINVAL` where the region is not there or starts after its end; `EIO` where
  ///   memory decoding is off; `EFAULT` past the end of configuration space.
  public func read(
    _ region: PCIRegion, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer,
    isMapped: Bool = false
  ) throws(IOMMUError) -> Int {
    guard unsafe !buffer.isEmpty else { return 0 }
    if isDead { return try unsafe readNothing(region, at: offset, into: buffer) }
    switch region {
    case .config:
      let start = try configRange(offset, buffer.count)
      let bytes = config.read(at: start, count: buffer.count)
      unsafe buffer.copyBytes(from: bytes)
      return buffer.count
    case .bar(let index):
      let bar = try self.bar(index, holding: offset)
      let count = min(buffer.count, Int(clamping: bar.size - offset))
      if bar.isMemory {
        // SAFETY: count <= buffer.count.
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
        guard let memory = memory(ofBAR: index), unsafe memory.read(at: offset, into: part)
        else { throw memoryOff }
        return count
      }
      var done = 0
      while done < count {
        let piece = nextPiece(bar, offset + UInt64(done), count - done, isMapped: isMapped)
        var value = UInt64.max
        if isMapped || piece.table == nil {
          try checkMemory()
          value =
            piece.table.map { interrupts.readTable(at: $0, width: piece.width) }
            ?? readRegister(bar, offset + UInt64(done), piece.width)
        }
        // SAFETY: done + width <= count <= buffer.count.
        unsafe withUnsafeBytes(of: value.littleEndian) { bytes in
          unsafe buffer[done..<done + piece.width].copyBytes(from: bytes[..<piece.width])
        }
        done += piece.width
      }
      return count
    case .rom, .vga:
      throw IOMMUError(.invalidArgument, "\(name) has no \(region) region")
    }
  }

  /// Writes to a region. As `read`.
  public func write(
    _ region: PCIRegion, at offset: UInt64, from buffer: UnsafeRawBufferPointer,
    isMapped: Bool = false
  ) throws(IOMMUError) -> Int {
    guard unsafe !buffer.isEmpty else { return 0 }
    if isDead { return try count(region, at: offset, buffer.count) }
    switch region {
    case .config:
      let start = try configRange(offset, buffer.count)
      // SAFETY: the bytes are copied here, once; the client may change them meanwhile.
      let bytes = unsafe [UInt8](buffer)
      var done = 0
      while done < bytes.count {
        let width = min(Self.width(start + done, bytes.count - done), 4)
        carryOut(config.write(bytes[done..<done + width], at: start + done))
        done += width
      }
      return done
    case .bar(let index):
      let bar = try self.bar(index, holding: offset)
      let count = min(buffer.count, Int(clamping: bar.size - offset))
      if bar.isMemory {
        // SAFETY: count <= buffer.count.
        let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[..<count])
        guard let memory = memory(ofBAR: index), unsafe memory.write(at: offset, from: part)
        else { throw memoryOff }
        return count
      }
      var done = 0
      while done < count {
        let piece = nextPiece(bar, offset + UInt64(done), count - done, isMapped: isMapped)
        if isMapped || piece.table == nil {
          try checkMemory()
          var value: UInt64 = 0
          // SAFETY: done + width <= count <= buffer.count.
          unsafe withUnsafeMutableBytes(of: &value) { bytes in
            unsafe bytes.copyBytes(from: buffer[done..<done + piece.width])
          }
          value = UInt64(littleEndian: value)
          if let place = piece.table {
            interrupts.writeTable(at: place, width: piece.width, value: value)
          } else {
            writeRegister(bar, offset + UInt64(done), piece.width, value)
          }
        }
        done += piece.width
      }
      return count
    case .rom, .vga:
      throw IOMMUError(.invalidArgument, "\(name) has no \(region) region to write")
    }
  }

  // MARK: The host's own access

  /// Configuration space as the hardware has it, whoever uses the function: what sysfs shows.
  public var hostConfiguration: [UInt8] {
    if isDead { return [UInt8](repeating: 0xFF, count: PCIConfigSpace.size) }
    return whileAwake { isVirtual ? config.virtualFunctionContents : config.contents }
  }

  /// Writes to it; what cannot be changed stays as it is. Linux: `pci_write_config`.
  /// - Parameter offset: In bytes; all of `bytes` lies inside.
  /// - Throws: `EFAULT` past the end.
  public func writeHostConfiguration(_ bytes: [UInt8], at offset: Int) throws(IOMMUError) {
    try whileAwake { () throws(IOMMUError) in
      _ = try unsafe bytes.withUnsafeBufferPointer { (bytes) throws(IOMMUError) in
        // SAFETY: the array's own bytes, for the length of the call.
        try unsafe write(.config, at: UInt64(offset), from: UnsafeRawBufferPointer(bytes))
      }
    }
  }

  // MARK: Nobody there

  /// Bytes of an access that lie in the region.
  private func count(
    _ region: PCIRegion, at offset: UInt64, _ count: Int
  ) throws(IOMMUError) -> Int {
    switch region {
    case .config:
      _ = try configRange(offset, count)
      return count
    case .bar(let index):
      return min(count, Int(clamping: try bar(index, holding: offset).size - offset))
    case .rom, .vga:
      throw IOMMUError(.invalidArgument, "\(name) has no \(region) region")
    }
  }

  /// All ones, as a bus without an answer reads.
  private func readNothing(
    _ region: PCIRegion, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    let count = try count(region, at: offset, buffer.count)
    // SAFETY: count <= buffer.count.
    unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]).copyBytes(
      from: repeatElement(0xFF, count: count))
    return count
  }

  // MARK: Pieces

  private struct Piece {
    var width: Int
    /// Where in the MSI-X table it is; nil outside. To calls that reads as all ones, and ignores
    /// writes.
    var table: UInt64?
  }

  /// Cuts the next aligned piece off an access, none of it half in the MSI-X table.
  private func nextPiece(
    _ bar: BAR, _ offset: UInt64, _ count: Int, isMapped: Bool
  ) -> Piece {
    var count = count
    var place: UInt64?
    if let msix = model.msix, msix.tableBAR == bar.index {
      let table = msix.tableRange
      if table.contains(offset) {
        place = offset - table.lowerBound
        count = min(count, Int(clamping: table.upperBound - offset))
        if !isMapped { return Piece(width: min(count, 8), table: place) }
      } else if offset < table.lowerBound {
        count = min(count, Int(clamping: table.lowerBound - offset))
      }
    }
    return Piece(width: Self.width(Int(truncatingIfNeeded: offset), count), table: place)
  }

  /// The widest aligned access of at most `count` bytes at `offset`.
  private static func width(_ offset: Int, _ count: Int) -> Int {
    for width in [8, 4, 2] where count >= width && offset % width == 0 { return width }
    return 1
  }

  private func readRegister(_ bar: BAR, _ offset: UInt64, _ width: Int) -> UInt64 {
    if let msix = model.msix, msix.pendingBAR == bar.index, msix.pendingRange.contains(offset) {
      let position = offset - msix.pendingRange.lowerBound
      return interrupts.pendingBits(word: Int(position / 8)) >> (position % 8 * 8)
    }
    return model.readRegister(bar: bar.index, offset: offset, width: width)
  }

  private func writeRegister(_ bar: BAR, _ offset: UInt64, _ width: Int, _ value: UInt64) {
    if let msix = model.msix, msix.pendingBAR == bar.index, msix.pendingRange.contains(offset) {
      return
    }
    model.writeRegister(bar: bar.index, offset: offset, width: width, value: value)
  }

  // MARK: Checks

  private func configRange(_ offset: UInt64, _ count: Int) throws(IOMMUError) -> Int {
    let size = UInt64(PCIConfigSpace.size)
    guard offset < size, UInt64(count) <= size - offset else {
      throw IOMMUError(
        .badAddress,
        "\(count) bytes at \(hex(offset)) are not all in the 4096 of configuration space")
    }
    return Int(offset)
  }

  private func bar(_ index: Int, holding offset: UInt64) throws(IOMMUError) -> BAR {
    guard let bar = bar(index) else {
      throw IOMMUError(.invalidArgument, "\(name) has no BAR \(index)")
    }
    guard offset < bar.size else {
      throw IOMMUError(
        .invalidArgument,
        "offset \(hex(offset)) is past BAR \(index) of \(name), which has \(hex(bar.size)) bytes"
      )
    }
    return bar
  }

  private func checkMemory() throws(IOMMUError) {
    guard isMemoryEnabled else { throw memoryOff }
  }

  private var memoryOff: IOMMUError {
    IOMMUError(
      .ioError,
      "\(name) does not decode memory: set bit 1 of its command register, and power state D0")
  }
}
