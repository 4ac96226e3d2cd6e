// SPDX-License-Identifier: Apache-2.0
//
// Structures that a user hands to an IOMMU driver through the engine, which knows only their
// type and length (Linux: `iommu_user_data`, `iommu_user_data_array`).

import PageTables
import SystemPackage

/// Where a user's structure lies. The binary face reads the client's memory; in process it is
/// an array.
public protocol UserMemory: Sendable {
  /// Copies bytes in. `offset` counts from the start of the structure, in bytes.
  /// - Throws: `EFAULT`.
  func read(at offset: UInt64, count: Int) throws(IOMMUError) -> [UInt8]
  /// Copies bytes out.
  /// - Throws: `EFAULT`.
  func write(_ bytes: [UInt8], at offset: UInt64) throws(IOMMUError)
  /// Whether bytes are all zero, however many there are.
  /// - Throws: `EFAULT`.
  func isZero(at offset: UInt64, count: UInt64) throws(IOMMUError) -> Bool
}

/// One structure whose layout only a driver knows. It is read when the driver asks.
public struct UserData: Sendable {
  /// Which structure it is: `IOMMU_HWPT_DATA_…`, `IOMMU_VIOMMU_TYPE_…`.
  public let type: UInt32
  /// Types of this library's own, for what Linux has no data for. A program that comes by ioctl
  /// has none of them: `EOPNOTSUPP`.
  public static let ownTypes: ClosedRange<UInt32> = 0x8000_0000...0x8000_00FF

  /// The type that a program's ioctl names: one that nobody has where it is of our own.
  public static func type(ofClient type: UInt32) -> UInt32 {
    ownTypes.contains(type) ? .max : type
  }

  /// As the user says, in bytes. Never zero.
  public let length: UInt32
  private let memory: any UserMemory

  public init(type: UInt32, length: UInt32, memory: any UserMemory) {
    self.type = type
    self.length = length
    self.memory = memory
  }

  /// A structure of 64-bit words.
  package init(type: UInt32, words: [UInt64]) {
    let bytes = words.littleEndianBytes
    self.init(type: type, length: UInt32(bytes.count), memory: UserBytes(bytes))
  }

  /// The structure as bytes, little-endian, `known` bytes long: a shorter one is filled up
  /// with zeros.
  ///
  /// Linux: `iommu_copy_struct_from_user`.
  /// - Parameters:
  ///   - type: The type that it must have.
  ///   - minimum: Its shortest length, in bytes.
  ///   - known: Its longest.
  /// - Throws: `EINVAL` for another type or a length outside of the two, `EFAULT`.
  public func bytes(
    type: UInt32, minimum: Int, known: Int
  ) throws(IOMMUError) -> [UInt8] {
    try check(type: type, minimum: minimum, known: known)
    var bytes = try memory.read(at: 0, count: Int(length))
    bytes.append(contentsOf: repeatElement(0, count: known - bytes.count))
    return bytes
  }

  /// Writes a result back over the structure, as far as the user has room.
  ///
  /// Linux: `iommu_copy_struct_to_user`.
  /// - Throws: As `bytes(type:minimum:known:)`.
  public func respond(
    _ bytes: [UInt8], type: UInt32, minimum: Int
  ) throws(IOMMUError) {
    try check(type: type, minimum: minimum, known: bytes.count)
    try memory.write(Array(bytes[..<Int(length)]), at: 0)
  }

  private func check(type: UInt32, minimum: Int, known: Int) throws(IOMMUError) {
    guard type == self.type else {
      throw IOMMUError(
        .invalidArgument, "the data is of type \(hex(self.type)); the driver takes \(hex(type))"
      )
    }
    guard length >= UInt32(minimum), length <= UInt32(known) else {
      throw IOMMUError(
        .invalidArgument,
        "data of type \(hex(type)) is \(minimum == known ? "" : "\(minimum) to ")\(known) bytes "
          + "long, not \(length)")
    }
  }
}

/// Structures of one kind in a row.
public struct UserDataArray: Sendable {
  /// `IOMMU_HWPT_INVALIDATE_DATA_…`.
  public let type: UInt32
  /// Bytes from one entry to the next.
  public let entryLength: UInt32
  public let count: UInt32
  private let memory: any UserMemory

  public init(type: UInt32, entryLength: UInt32, count: UInt32, memory: any UserMemory) {
    self.type = type
    self.entryLength = entryLength
    self.count = count
    self.memory = memory
  }

  /// Structures of 64-bit words, all of one length.
  package init(type: UInt32, entries: [[UInt64]]) {
    self.init(
      type: type, entryLength: UInt32((entries.first?.count ?? 0) * 8),
      count: UInt32(entries.count), memory: UserBytes(entries.joined().littleEndianBytes))
  }

  /// One entry as bytes, little-endian, `known` bytes long: a shorter one is filled up with
  /// zeros.
  ///
  /// Linux: `iommu_copy_struct_from_user_array`.
  /// - Parameters:
  ///   - index: Below `count`.
  ///   - type: The type that it must have.
  ///   - minimum: Its shortest length, in bytes.
  ///   - known: Its longest.
  /// - Throws: `EINVAL` for another type or a length outside of the two, `EFAULT`.
  public func bytes(
    _ index: UInt32, type: UInt32, minimum: Int, known: Int
  ) throws(IOMMUError) -> [UInt8] {
    try check(type)
    guard entryLength >= UInt32(minimum), entryLength <= UInt32(known) else {
      throw IOMMUError(
        .invalidArgument,
        "an entry of type \(hex(type)) is \(minimum) to \(known) bytes long, "
          + "not \(entryLength)")
    }
    let offset = UInt64(index) * UInt64(entryLength)
    var bytes = try memory.read(at: offset, count: Int(entryLength))
    bytes.append(contentsOf: repeatElement(0, count: known - bytes.count))
    return bytes
  }

  /// One entry as bytes of whatever length: a shorter one is filled up with zeros, a longer one
  /// may only have zeros after what is known.
  ///
  /// Linux: `iommu_copy_struct_from_full_user_array`, an entry of it.
  /// - Parameters: As `bytes(_:type:minimum:known:)`.
  /// - Throws: `EINVAL` for another type, `E2BIG`, `EFAULT`.
  public func bytes(
    _ index: UInt32, type: UInt32, upTo known: Int
  ) throws(IOMMUError) -> [UInt8] {
    try check(type)
    let offset = UInt64(index) * UInt64(entryLength)
    let length = Int(entryLength)
    if length > known {
      let rest = UInt64(length - known)
      guard try memory.isZero(at: offset + UInt64(known), count: rest) else {
        throw IOMMUError(
          .argListTooLong,
          "entry \(index) is \(length) bytes long; only \(known) are known, and the rest is "
            + "not zero")
      }
    }
    var bytes = try memory.read(at: offset, count: min(length, known))
    bytes.append(contentsOf: repeatElement(0, count: known - bytes.count))
    return bytes
  }

  private func check(_ type: UInt32) throws(IOMMUError) {
    guard type == self.type else {
      throw IOMMUError(
        .invalidArgument,
        "the array is of type \(hex(self.type)); the driver takes \(hex(type))")
    }
  }
}

/// A user structure of a program that embeds the engine. Thread-safe.
public final class UserBytes: UserMemory {
  private let storage: Guarded<[UInt8]>

  public init(_ bytes: [UInt8]) { storage = Guarded(bytes) }

  /// With what a driver wrote back.
  public var bytes: [UInt8] { storage.withLock { $0 } }

  public func read(at offset: UInt64, count: Int) throws(IOMMUError) -> [UInt8] {
    try storage.withLock { (bytes) throws(IOMMUError) in
      Array(bytes[try Self.range(offset, count, in: bytes)])
    }
  }

  public func write(_ new: [UInt8], at offset: UInt64) throws(IOMMUError) {
    try storage.withLock { (bytes) throws(IOMMUError) in
      bytes.replaceSubrange(try Self.range(offset, new.count, in: bytes), with: new)
    }
  }

  public func isZero(at offset: UInt64, count: UInt64) throws(IOMMUError) -> Bool {
    try read(at: offset, count: Int(clamping: count)).allSatisfy { $0 == 0 }
  }

  private static func range(
    _ offset: UInt64, _ count: Int, in bytes: [UInt8]
  ) throws(IOMMUError) -> Range<Int> {
    guard count >= 0, offset <= UInt64(bytes.count), count <= bytes.count - Int(offset) else {
      throw IOMMUError(
        .badAddress, "\(count) bytes at \(offset) of a structure of \(bytes.count) bytes")
    }
    return Int(offset)..<Int(offset) + count
  }
}
