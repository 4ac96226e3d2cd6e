// SPDX-License-Identifier: Apache-2.0
//
// The stream that carries a device's state: records, each with a head that says whose it is, how
// long it is and what its sum is. To a program the stream is opaque.

import IOMMU

/// A piece of the stream.
struct MigrationRecord: Sendable {
  enum Kind: UInt16, Sendable {
    /// The state as it was while the device ran: a later one takes its place.
    case preliminary = 1
    /// Bytes of a memory BAR.
    case memory = 2
    /// The state. Nothing follows.
    case final = 3
  }

  /// Whose state it is; the other side has to be the same.
  struct Origin: Hashable, Sendable {
    var vendor: UInt16
    var device: UInt16
    /// Of the model's layout.
    var version: UInt32
  }

  struct Head: Sendable {
    var kind: Kind
    var length: Int
    var sum: UInt64
  }

  /// "VFIOMIG" and the version of the stream.
  private static let magic: UInt64 = 0x4749_4D4F_4946_5601
  /// In bytes.
  static let headSize = 32
  /// Bytes of a memory BAR in one record.
  static let memoryPiece = 64 << 10

  static func encode(_ kind: Kind, _ payload: [UInt8], of origin: Origin) -> [UInt8] {
    var record = DeviceStateWriter()
    record.append(magic)
    record.append(origin.vendor)
    record.append(origin.device)
    record.append(origin.version)
    record.append(kind.rawValue)
    record.append(UInt16(0))
    record.append(UInt32(payload.count))
    record.append(sum(payload))
    record.append(payload)
    return record.bytes
  }

  /// Reads a head.
  /// - Parameters:
  ///   - bytes: `headSize` of them.
  ///   - limit: The longest payload of a state.
  /// - Throws: `EINVAL`, with what is wrong.
  static func head(
    of bytes: [UInt8], origin: Origin, limit: Int
  ) throws(IOMMUError) -> Head {
    var reader = DeviceStateReader(bytes)
    guard try reader.read(UInt64.self) == magic else {
      throw DeviceStateReader.invalid(
        "it does not begin as one, or its stream is of another age")
    }
    let found = Origin(
      vendor: try reader.read(), device: try reader.read(), version: try reader.read())
    guard found == origin else {
      throw DeviceStateReader.invalid(
        "it is of \(hex(found.vendor)):\(hex(found.device)), layout \(found.version), and this is "
          + "\(hex(origin.vendor)):\(hex(origin.device)), layout \(origin.version)")
    }
    let number = try reader.read(UInt16.self)
    let reserved = try reader.read(UInt16.self)
    let length = Int(try reader.read(UInt32.self))
    let sum = try reader.read(UInt64.self)
    guard let kind = Kind(rawValue: number), reserved == 0 else {
      throw DeviceStateReader.invalid("it has a record of kind \(number)")
    }
    guard length <= (kind == .memory ? 16 + memoryPiece : limit) else {
      throw DeviceStateReader.invalid("a record has \(length) bytes")
    }
    return Head(kind: kind, length: length, sum: sum)
  }

  /// FNV-1a, 64 bits: against what goes wrong on the way, not against who forges.
  static func sum(_ bytes: [UInt8]) -> UInt64 {
    bytes.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
  }
}
