// SPDX-License-Identifier: Apache-2.0
//
// The distinct addresses of an IOMMU, so that one kind is never taken for another,
// and the permissions that a translation carries.

/// An address that a device puts on the bus: what an IOMMU translates from. In bytes.
public struct IOVA: RawRepresentable, Hashable, Comparable, Sendable {
  public var rawValue: UInt64

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static func < (left: IOVA, right: IOVA) -> Bool {
    left.rawValue < right.rawValue
  }
}

/// What an IOMMU translates to: an address of the machine's synthetic physical space, in
/// bytes, at most 52 bits wide (what most formats' entries hold).
public struct PhysicalAddress: RawRepresentable, Hashable, Comparable, Sendable {
  public var rawValue: UInt64

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static func < (left: PhysicalAddress, right: PhysicalAddress) -> Bool {
    left.rawValue < right.rawValue
  }
}

extension IOVA: CustomStringConvertible {
  public var description: String { "0x" + String(rawValue, radix: 16) }
}

extension PhysicalAddress: CustomStringConvertible {
  public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// What a device may do through a translation.
public struct Permissions: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8

  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  @inlinable public static var read: Permissions { Permissions(rawValue: 1) }
  @inlinable public static var write: Permissions { Permissions(rawValue: 2) }
  /// Instruction fetch. Only first-stage formats can withhold it.
  @inlinable public static var execute: Permissions { Permissions(rawValue: 4) }

  @inlinable public static var readWrite: Permissions { [.read, .write] }
}

extension Permissions: CustomStringConvertible {
  /// As in `/proc/PID/maps`: `rw-`.
  public var description: String {
    (contains(.read) ? "r" : "-") + (contains(.write) ? "w" : "-")
      + (contains(.execute) ? "x" : "-")
  }
}

/// A set of page sizes as Linux writes it: bit n stands for pages of 2ⁿ bytes.
public struct PageSizes: OptionSet, Hashable, Sendable {
  public var rawValue: UInt64

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The smallest page, in bytes; 0 where the set is empty.
  @inlinable public var smallest: UInt64 { rawValue & (0 &- rawValue) }

  @inlinable public static var size4KiB: PageSizes { PageSizes(rawValue: 1 << 12) }
  @inlinable public static var size2MiB: PageSizes { PageSizes(rawValue: 1 << 21) }
  @inlinable public static var size1GiB: PageSizes { PageSizes(rawValue: 1 << 30) }
}
