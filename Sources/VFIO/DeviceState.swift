// SPDX-License-Identifier: Apache-2.0
//
// The bytes of a device's state, one value after the other, little-endian. What is read may come
// from anybody: too short, too long and impossible values are told, and nothing traps.

import IOMMU

/// Puts a state together.
public struct DeviceStateWriter: Sendable {
  public private(set) var bytes: [UInt8] = []

  public init() {}

  public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(_ value: Value) {
    for index in 0..<MemoryLayout<Value>.size {
      bytes.append(UInt8(truncatingIfNeeded: value >> Value(8 * index)))
    }
  }

  /// One byte.
  public mutating func append(_ flag: Bool) { bytes.append(flag ? 1 : 0) }

  public mutating func append(_ part: [UInt8]) { bytes += part }
}

/// Takes a state apart.
public struct DeviceStateReader: Sendable {
  private var rest: ArraySlice<UInt8>

  public init(_ bytes: some Sequence<UInt8>) { rest = ArraySlice(bytes) }

  /// Bytes that are left.
  public var count: Int { rest.count }

  /// - Throws: `EINVAL` where the bytes do not do.
  public mutating func read<Value: FixedWidthInteger & UnsignedInteger>(
    _ type: Value.Type = Value.self
  ) throws(IOMMUError) -> Value {
    let bytes = try read(count: MemoryLayout<Value>.size)
    return bytes.reversed().reduce(0) { $0 << 8 | Value($1) }
  }

  /// - Throws: `EINVAL` where it is neither 0 nor 1, too.
  public mutating func readFlag() throws(IOMMUError) -> Bool {
    let byte = try read(UInt8.self)
    guard byte <= 1 else { throw Self.invalid("a flag is \(byte)") }
    return byte == 1
  }

  /// - Parameter count: Not negative.
  /// - Throws: `EINVAL` where the bytes do not do.
  public mutating func read(count: Int) throws(IOMMUError) -> ArraySlice<UInt8> {
    guard count >= 0, count <= rest.count else { throw Self.invalid("it ends too early") }
    defer { rest = rest.dropFirst(count) }
    return rest.prefix(count)
  }

  /// - Throws: `EINVAL` where bytes are left.
  public func finish() throws(IOMMUError) {
    guard rest.isEmpty else { throw Self.invalid("\(rest.count) bytes are left over") }
  }

  /// Why a state is refused.
  public static func invalid(_ why: String) -> IOMMUError {
    IOMMUError(.invalidArgument, "this is no state of such a device: \(why)")
  }
}
