// SPDX-License-Identifier: Apache-2.0
//
// Entries of an AMD IOMMU's peripheral page request log: AMD I/O Virtualization Technology
// (48882), section 2.6.1, PAGE_SERVICE_REQUEST.

/// A PAGE_SERVICE_REQUEST of 16 bytes.
public struct AMDPageRequest: Hashable, Sendable {
  /// What is asked for, by the number of its bit in the entry.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// EX: execution.
    public static let execute = Flags(rawValue: 1 << 49)
    /// RD: reading.
    public static let read = Flags(rawValue: 1 << 50)
    /// WR: writing.
    public static let write = Flags(rawValue: 1 << 53)
    /// US: user privilege.
    public static let user = Flags(rawValue: 1 << 54)
    /// A reserved bit of the request was set.
    public static let reservedBits = Flags(rawValue: 1 << 55)

    static let all: Flags = [.execute, .read, .write, .user, .reservedBits]
  }

  public var device: UInt16
  /// 20 bits; nil where the request had none (GN clear).
  public var pasid: UInt32?
  /// PPRTag, 10 bits: the group's index, and bit 9 for the last of a group.
  public var tag: UInt16
  public var flags: Flags
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64

  public init(
    device: UInt16, pasid: UInt32? = nil, tag: UInt16, flags: Flags, address: UInt64
  ) {
    self.device = device
    self.pasid = pasid
    self.tag = tag
    self.flags = flags
    self.address = address
  }

  /// As in memory. Code 01h.
  public var words: Words2 {
    var low: UInt64 = .place(device, 15, 0) | .place(tag, 41, 32) | .place(1, 63, 60)
    low |= flags.intersection(.all).rawValue
    if let pasid {
      low |= .place(pasid, 31, 16) | .place(pasid >> 16, 45, 42) | .place(true, 56)
    }
    return Words2(low, address & .mask(63, 12))
  }

  /// Nil for another code.
  public init?(decoding words: Words2) {
    let low = words[0]
    guard low.bits(63, 60) == 1 else { return nil }
    device = UInt16(low.bits(15, 0))
    pasid = low.bit(56) ? UInt32(low.bits(45, 42) &<< 16 | low.bits(31, 16)) : nil
    tag = UInt16(low.bits(41, 32))
    flags = Flags(rawValue: low).intersection(.all)
    address = words[1] & .mask(63, 12)
  }
}
