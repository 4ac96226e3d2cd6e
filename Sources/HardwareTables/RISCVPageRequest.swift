// SPDX-License-Identifier: Apache-2.0
//
// Records of the page-request queue: RISC-V IOMMU Architecture 1.0, section 3.3; their payload
// is the body of PCIe's message (PCI Express Base, 10.4.1).

/// A record of the page-request queue: 16 bytes.
public struct RISCVPageRequest: Hashable, Sendable {
  /// 24 bits: the requester ID.
  public var deviceID: UInt32
  /// 20 bits; nil where the message had no PASID.
  public var processID: UInt32?
  /// "Privilege Mode Requested"; 0 without a process ID.
  public var isSupervisor: Bool
  /// "Execute Requested"; 0 without a process ID.
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
    deviceID: UInt32, processID: UInt32? = nil, isSupervisor: Bool = false,
    wantsExecute: Bool = false, wantsRead: Bool, wantsWrite: Bool, isLast: Bool,
    group: UInt16, address: UInt64
  ) {
    self.deviceID = deviceID
    self.processID = processID
    self.isSupervisor = isSupervisor
    self.wantsExecute = wantsExecute
    self.wantsRead = wantsRead
    self.wantsWrite = wantsWrite
    self.isLast = isLast
    self.group = group
    self.address = address
  }

  /// "Stop Marker": neither reads nor writes, and is the last (3.3).
  public var isStopMarker: Bool { isLast && !wantsRead && !wantsWrite }

  /// As in memory, little-endian.
  public var words: Words2 {
    var first: UInt64 = .place(deviceID, 63, 40)
    if let processID {
      first |= .place(processID, 31, 12) | .place(true, 32)
      first |= .place(isSupervisor, 33) | .place(wantsExecute, 34)
    }
    let payload: UInt64 =
      .place(wantsRead, 0) | .place(wantsWrite, 1) | .place(isLast, 2) | .place(group, 11, 3)
      | address & .mask(63, 12)
    return Words2(first, payload)
  }

  public init(decoding words: Words2) {
    let first = words[0]
    let payload = words[1]
    deviceID = UInt32(first.bits(63, 40))
    processID = first.bit(32) ? UInt32(first.bits(31, 12)) : nil
    isSupervisor = first.bit(33)
    wantsExecute = first.bit(34)
    wantsRead = payload.bit(0)
    wantsWrite = payload.bit(1)
    isLast = payload.bit(2)
    group = UInt16(payload.bits(11, 3))
    address = payload & .mask(63, 12)
  }
}
