// SPDX-License-Identifier: Apache-2.0
//
// The bytes of memory BARs on their way into a stream of state and out of it.

import IOMMU
import SystemPackage

extension PCIFunction {
  /// The payload of a record: which BAR, where in it, and a piece of it.
  /// - Throws: `EIO` where the memory does not answer.
  func loadMemory(_ bar: BAR, at offset: UInt64) throws(IOMMUError) -> [UInt8] {
    let length = min(UInt64(MigrationRecord.memoryPiece), bar.size - offset)
    var bytes = [UInt8](repeating: 0, count: Int(length))
    let hasRead = whileGiven(bar) { memory in
      // SAFETY: the buffer is the array's storage for the length of the closure.
      unsafe bytes.withUnsafeMutableBytes { unsafe memory.read(at: offset, into: $0) }
    }
    guard hasRead else { throw noMemory(bar) }
    var payload = DeviceStateWriter()
    payload.append(UInt64(bar.index))
    payload.append(offset)
    payload.append(bytes)
    return payload.bytes
  }

  /// Takes a payload that `loadMemory` made, or anything else.
  /// - Throws: `EINVAL` where the function has no such memory; `EIO` where it does not answer.
  func storeMemory(_ payload: [UInt8]) throws(IOMMUError) {
    var reader = DeviceStateReader(payload)
    let number = try reader.read(UInt64.self)
    let offset = try reader.read(UInt64.self)
    let bytes = Array(try reader.read(count: reader.count))
    guard number < 6, let bar = bar(Int(number)), bar.isMemory, offset <= bar.size,
      UInt64(bytes.count) <= bar.size - offset
    else {
      throw DeviceStateReader.invalid(
        "it has \(bytes.count) bytes for offset \(hex(offset)) of BAR \(number)")
    }
    let hasWritten = whileGiven(bar) { memory in
      // SAFETY: the buffer is the array's storage for the length of the closure.
      unsafe bytes.withUnsafeBytes { unsafe memory.write(at: offset, from: $0) }
    }
    guard hasWritten else { throw noMemory(bar) }
  }

  private func noMemory(_ bar: BAR) -> IOMMUError {
    IOMMUError(.ioError, "the memory behind BAR \(bar.index) of \(name) does not answer")
  }
}
