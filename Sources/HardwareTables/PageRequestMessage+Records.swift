// SPDX-License-Identifier: Apache-2.0
//
// The records that page requests are to software: VT-d revision 4.1, section 7.4.1.1; AMD 48882,
// section 2.6.1; Arm IHI 0070, section 8.1; RISC-V IOMMU 1.0, section 3.3.

extension PageRequestMessage {
  // MARK: VT-d

  /// A page request descriptor of the page request queue: type 01h, 32 bytes, of which the last
  /// 16 are reserved.
  public var intelDescriptor: Words4 {
    var low: UInt64 = 1 | .place(source, 31, 16)
    if let pasid {
      low |= .place(true, 8) | .place(pasid, 51, 32)
      low |= .place(wantsExecute, 52) | .place(isPrivileged, 53)
    }
    return Words4(low, body, 0, 0)
  }

  /// Nil for another type.
  public init?(intelDescriptor words: Words4) {
    let low = words[0]
    guard low.bits(7, 0) == 1 else { return nil }
    let hasPASID = low.bit(8)
    self.init(
      source: UInt32(low.bits(31, 16)), pasid: hasPASID ? UInt32(low.bits(51, 32)) : nil,
      isPrivileged: hasPASID && low.bit(53), wantsExecute: hasPASID && low.bit(52),
      body: words[1])
  }

  // MARK: RISC-V

  /// A record of the page-request queue: 16 bytes, little-endian.
  public var riscvRecord: Words2 {
    var first: UInt64 = .place(source, 63, 40)
    if let pasid {
      first |= .place(pasid, 31, 12) | .place(true, 32)
      first |= .place(isPrivileged, 33) | .place(wantsExecute, 34)
    }
    return Words2(first, body)
  }

  public init(riscvRecord words: Words2) {
    let first = words[0]
    let hasPASID = first.bit(32)
    self.init(
      source: UInt32(first.bits(63, 40)), pasid: hasPASID ? UInt32(first.bits(31, 12)) : nil,
      isPrivileged: hasPASID && first.bit(33), wantsExecute: hasPASID && first.bit(34),
      body: words[1])
  }

  /// The body of PCIe's message, which VT-d and RISC-V pass on as it is.
  private var body: UInt64 {
    .place(wantsRead, 0) | .place(wantsWrite, 1) | .place(isLast, 2) | .place(group, 11, 3)
      | address & .mask(63, 12)
  }

  private init(
    source: UInt32, pasid: UInt32?, isPrivileged: Bool, wantsExecute: Bool, body: UInt64
  ) {
    self.init(
      source: source, pasid: pasid, isPrivileged: isPrivileged, wantsExecute: wantsExecute,
      wantsRead: body.bit(0), wantsWrite: body.bit(1), isLast: body.bit(2),
      group: UInt16(body.bits(11, 3)), address: body & .mask(63, 12))
  }

  // MARK: SMMUv3

  /// A record of the PRI queue: 16 bytes, little-endian.
  public var smmuRecord: Words2 {
    var first: UInt64 = .place(source, 31, 0)
    first |= .place(wantsRead, 60) | .place(wantsWrite, 61) | .place(isLast, 62)
    if let pasid {
      first |= .place(pasid, 51, 32) | .place(true, 63)
      first |= .place(isPrivileged, 58) | .place(wantsExecute, 59)
    }
    return Words2(first, .place(group, 8, 0) | address & .mask(63, 12))
  }

  public init(smmuRecord words: Words2) {
    let first = words[0]
    let hasPASID = first.bit(63)
    self.init(
      source: UInt32(first.bits(31, 0)), pasid: hasPASID ? UInt32(first.bits(51, 32)) : nil,
      isPrivileged: hasPASID && first.bit(58), wantsExecute: hasPASID && first.bit(59),
      wantsRead: first.bit(60), wantsWrite: first.bit(61), isLast: first.bit(62),
      group: UInt16(words[1].bits(8, 0)), address: words[1] & .mask(63, 12))
  }

  // MARK: AMD

  /// PAGE_SERVICE_REQUEST, code 01h, of the peripheral page request log: 16 bytes.
  ///
  /// US tells user privilege, so it is clear where privilege was asked for; EX and US are of
  /// requests with a PASID (GN). Bit 9 of PPRTag is the last of a group, as Linux reads it. The
  /// bit for malformed messages is clear: these are well formed.
  public var amdEntry: Words2 {
    var low: UInt64 = .place(source, 15, 0) | .place(1, 63, 60)
    low |= .place(group, 40, 32) | .place(isLast, 41)
    low |= .place(wantsRead, 50) | .place(wantsWrite, 53)
    if let pasid {
      low |= .place(pasid, 31, 16) | .place(pasid >> 16, 45, 42) | .place(true, 56)
      low |= .place(wantsExecute, 49) | .place(!isPrivileged, 54)
    }
    return Words2(low, address & .mask(63, 12))
  }

  /// Nil for another code, and for a message with reserved bits set (RSVD, bit 55).
  public init?(amdEntry words: Words2) {
    let low = words[0]
    guard low.bits(63, 60) == 1, !low.bit(55) else { return nil }
    let hasPASID = low.bit(56)
    self.init(
      source: UInt32(low.bits(15, 0)),
      pasid: hasPASID ? UInt32(low.bits(45, 42) &<< 16 | low.bits(31, 16)) : nil,
      isPrivileged: hasPASID && !low.bit(54), wantsExecute: hasPASID && low.bit(49),
      wantsRead: low.bit(50), wantsWrite: low.bit(53), isLast: low.bit(41),
      group: UInt16(low.bits(40, 32)), address: words[1] & .mask(63, 12))
  }
}
