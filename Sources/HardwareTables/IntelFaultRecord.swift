// SPDX-License-Identifier: Apache-2.0
//
// What a VT-d unit tells software of a fault: Intel Virtualization Technology for Directed I/O,
// revision 4.1, section 11.4.7.6 (fault recording registers).

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
  /// T2, of reads: an atomic operation.
  public var isAtomic = false
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
    high |= .place(isRead && isAtomic, 28)
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
    isAtomic = high.bit(62) && high.bit(28)
    addressType = AddressType(rawValue: UInt8(high.bits(61, 60))) ?? .untranslated
    pasid = high.bit(31) ? UInt32(high.bits(59, 40)) : nil
    wantsExecute = high.bit(30)
    isSupervisor = high.bit(29)
  }
}
