// SPDX-License-Identifier: Apache-2.0
//
// What a VT-d unit tells software: fault recording registers and page-request descriptors.
// Intel Virtualization Technology for Directed I/O, revision 4.1, sections 11.4.7.6 (fault
// recording registers) and 7.4.1.1 (page request descriptor).

/// A fault recording register of 128 bits, with its F field set.
public struct IntelFaultRecord: Hashable, Sendable {
  /// AT.
  public enum AddressType: UInt8, Hashable, Sendable, CaseIterable {
    case untranslated = 0
    case translationRequest = 1
    case translated = 2
  }

  /// 8 bits. Not every value is an `IntelFaultReason`: those of page walks and interrupts are
  /// not.
  public var reason: UInt8
  public var source: UInt16
  /// The page that was asked for, in bytes: its lower 12 bits are not recorded.
  public var address: UInt64
  /// T1: a read, or an atomic operation; else a write.
  public var isRead: Bool
  public var addressType: AddressType
  /// PV, where PP is set; 20 bits.
  public var pasid: UInt32?
  /// EXE and PRIV.
  public var wantsExecute: Bool
  public var isSupervisor: Bool

  public init(
    reason: UInt8, source: UInt16, address: UInt64, isRead: Bool,
    addressType: AddressType = .untranslated, pasid: UInt32? = nil,
    wantsExecute: Bool = false, isSupervisor: Bool = false
  ) {
    self.reason = reason
    self.source = source
    self.address = address
    self.isRead = isRead
    self.addressType = addressType
    self.pasid = pasid
    self.wantsExecute = wantsExecute
    self.isSupervisor = isSupervisor
  }

  /// As the registers read.
  public var words: Words2 {
    var high: UInt64 = .place(source, 15, 0) | .place(reason, 39, 32)
    high |= .place(addressType.rawValue, 61, 60) | .place(isRead, 62) | .place(true, 63)
    if let pasid {
      high |= .place(true, 31) | .place(pasid, 59, 40)
      high |= .place(wantsExecute, 30) | .place(isSupervisor, 29)
    }
    return Words2(address & .mask(63, 12), high)
  }

  /// Nil where F is clear: there is no fault in the register.
  public init?(decoding words: Words2) {
    let high = words[1]
    guard high.bit(63) else { return nil }
    reason = UInt8(high.bits(39, 32))
    source = UInt16(high.bits(15, 0))
    address = words[0] & .mask(63, 12)
    isRead = high.bit(62)
    addressType = AddressType(rawValue: UInt8(high.bits(61, 60))) ?? .untranslated
    pasid = high.bit(31) ? UInt32(high.bits(59, 40)) : nil
    wantsExecute = high.bit(30)
    isSupervisor = high.bit(29)
  }
}

/// A page request descriptor: 32 bytes, of which the last 16 are reserved.
public struct IntelPageRequest: Hashable, Sendable {
  public var requester: UInt16
  /// 20 bits; nil where the request had none.
  public var pasid: UInt32?
  public var wantsExecute: Bool
  public var isSupervisor: Bool
  public var wantsRead: Bool
  public var wantsWrite: Bool
  /// LPIG: the last of its group.
  public var isLast: Bool
  /// Page Request Group Index, 9 bits.
  public var group: UInt16
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64

  public init(
    requester: UInt16, pasid: UInt32? = nil, wantsExecute: Bool = false,
    isSupervisor: Bool = false, wantsRead: Bool, wantsWrite: Bool, isLast: Bool,
    group: UInt16, address: UInt64
  ) {
    self.requester = requester
    self.pasid = pasid
    self.wantsExecute = wantsExecute
    self.isSupervisor = isSupervisor
    self.wantsRead = wantsRead
    self.wantsWrite = wantsWrite
    self.isLast = isLast
    self.group = group
    self.address = address
  }

  /// As in memory. Type 01h.
  public var words: Words4 {
    var low: UInt64 = 1 | .place(requester, 31, 16)
    if let pasid {
      low |= .place(true, 8) | .place(pasid, 51, 32)
      low |= .place(wantsExecute, 52) | .place(isSupervisor, 53)
    }
    let high: UInt64 =
      .place(wantsRead, 0) | .place(wantsWrite, 1) | .place(isLast, 2) | .place(group, 11, 3)
      | address & .mask(63, 12)
    return Words4(low, high, 0, 0)
  }

  /// Nil for another type.
  public init?(decoding words: Words4) {
    let low = words[0]
    let high = words[1]
    guard low.bits(7, 0) == 1 else { return nil }
    requester = UInt16(low.bits(31, 16))
    pasid = low.bit(8) ? UInt32(low.bits(51, 32)) : nil
    wantsExecute = low.bit(52)
    isSupervisor = low.bit(53)
    wantsRead = high.bit(0)
    wantsWrite = high.bit(1)
    isLast = high.bit(2)
    group = UInt16(high.bits(11, 3))
    address = high & .mask(63, 12)
  }
}
