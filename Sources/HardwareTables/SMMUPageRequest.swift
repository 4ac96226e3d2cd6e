// SPDX-License-Identifier: Apache-2.0
//
// Records of an SMMUv3's PRI queue: Arm System Memory Management Unit Architecture version 3
// (IHI 0070), section 8.1.

/// A record of the PRI queue: 16 bytes.
public struct SMMUPageRequest: Hashable, Sendable {
  public var stream: UInt32
  /// 20 bits; nil where the request had no PASID (SSV clear).
  public var substream: UInt32?
  /// Only with a substream.
  public var isPrivileged: Bool
  /// Only with a substream.
  public var wantsExecute: Bool
  public var wantsRead: Bool
  public var wantsWrite: Bool
  /// The last of its group.
  public var isLast: Bool
  /// Page Request Group Index, 9 bits.
  public var group: UInt16
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64

  public init(
    stream: UInt32, substream: UInt32? = nil, isPrivileged: Bool = false,
    wantsExecute: Bool = false, wantsRead: Bool, wantsWrite: Bool, isLast: Bool,
    group: UInt16, address: UInt64
  ) {
    self.stream = stream
    self.substream = substream
    self.isPrivileged = isPrivileged
    self.wantsExecute = wantsExecute
    self.wantsRead = wantsRead
    self.wantsWrite = wantsWrite
    self.isLast = isLast
    self.group = group
    self.address = address
  }

  /// A Stop Marker: no answer is due (8.2).
  public var isStopMarker: Bool {
    substream != nil && isLast && !wantsRead && !wantsWrite
  }

  /// As in memory, little-endian.
  public var words: Words2 {
    var first: UInt64 = .place(stream, 31, 0)
    first |= .place(wantsRead, 60) | .place(wantsWrite, 61) | .place(isLast, 62)
    if let substream {
      first |= .place(substream, 51, 32) | .place(true, 63)
      first |= .place(isPrivileged, 58) | .place(wantsExecute, 59)
    }
    return Words2(first, .place(group, 8, 0) | address & .mask(63, 12))
  }

  public init(decoding words: Words2) {
    let first = words[0]
    stream = UInt32(first.bits(31, 0))
    substream = first.bit(63) ? UInt32(first.bits(51, 32)) : nil
    isPrivileged = first.bit(58)
    wantsExecute = first.bit(59)
    wantsRead = first.bit(60)
    wantsWrite = first.bit(61)
    isLast = first.bit(62)
    group = UInt16(words[1].bits(8, 0))
    address = words[1] & .mask(63, 12)
  }
}
