// SPDX-License-Identifier: Apache-2.0
//
// Commands of an AMD IOMMU's command buffer, decoded: AMD I/O Virtualization Technology
// (48882), section 2.4. What is reserved is logged as ILLEGAL_COMMAND_ERROR.

/// A command that was fetched and cannot be run: ILLEGAL_COMMAND_ERROR is logged and the
/// buffer stops (2.5.6).
public enum AMDCommandError: Error, Hashable, Sendable {
  /// An opcode that is reserved, or that this IOMMU has not.
  case opcode
  /// A reserved bit is set.
  case reservedBits
}

/// A command of 16 bytes; the opcode is in bits 63 to 60.
public enum AMDCommand: Hashable, Sendable {
  /// 01h COMPLETION_WAIT.
  case completionWait(CompletionWait)
  /// 02h INVALIDATE_DEVTAB_ENTRY.
  case invalidateDeviceTableEntry(device: UInt16)
  /// 03h INVALIDATE_IOMMU_PAGES. `directories` (PDE) is for entries above the leaf too.
  case invalidatePages(domain: UInt16, Pages, directories: Bool)
  /// 04h INVALIDATE_IOTLB_PAGES: to the device.
  case invalidateIOTLB(device: UInt16, queue: UInt16, mostPending: UInt8, Pages)
  /// 05h INVALIDATE_INTERRUPT_TABLE.
  case invalidateInterruptTable(device: UInt16)
  /// 06h PREFETCH_IOMMU_PAGES. `invalidates` (INV) drops what is cached first.
  case prefetch(device: UInt16, count: UInt8, Pages, invalidates: Bool)
  /// 07h COMPLETE_PPR_REQUEST. The tag and the code are as PCIe has them: 0 success, 1 invalid
  /// request, 15 failure.
  case completePageRequest(device: UInt16, pasid: UInt32?, tag: UInt16, code: UInt8)
  /// 08h INVALIDATE_IOMMU_ALL.
  case invalidateAll

  public struct CompletionWait: Hashable, Sendable {
    /// s: where to write `data`, 8 bytes, when all before is done; a multiple of 8.
    public var storeAddress: UInt64?
    public var data: UInt64
    /// i: raise the completion-wait interrupt.
    public var interrupts: Bool
    /// f: what is after it waits for it.
    public var flushes: Bool

    public init(storeAddress: UInt64?, data: UInt64, interrupts: Bool, flushes: Bool) {
      self.storeAddress = storeAddress
      self.data = data
      self.interrupts = interrupts
      self.flushes = flushes
    }
  }

  public struct Pages: Hashable, Sendable {
    /// In bytes, a multiple of the size.
    public var address: UInt64
    /// Log 2 of the size in bytes: 12 to 63, or 64 for all addresses.
    public var sizeShift: UInt8
    /// GN: addresses of this PASID's guest table; nil for those that the host translates.
    public var pasid: UInt32?

    public init(address: UInt64, sizeShift: UInt8, pasid: UInt32?) {
      self.address = address
      self.sizeShift = sizeShift
      self.pasid = pasid
    }

    /// With S clear one page of 4 KiB; with S set the lowest clear bit from bit 12 on says how
    /// many (2.4.3, table of page sizes). From bit 51 on it is all of them.
    static func decode(_ word: UInt64, pasid: UInt32) -> Pages {
      var address = word & .mask(63, 12)
      var shift = 12
      if word.bit(0) {
        let ones = (~(word | .mask(11, 0))).trailingZeroBitCount
        shift = ones >= 51 ? 64 : ones + 1
        address = shift == 64 ? 0 : address & (UInt64.max &<< UInt64(shift))
      }
      return Pages(
        address: address, sizeShift: UInt8(shift), pasid: word.bit(2) ? pasid : nil)
    }
  }

  public init(decoding words: Words2, _ iommu: AMDCapabilities) throws(AMDCommandError) {
    let low = words[0]
    let high = words[1]
    let device = UInt16(low.bits(15, 0))
    // GN goes with guest translation.
    let guest: UInt64 = iommu.has(.guestTranslation) ? 0 : .mask(2, 2)
    switch low.bits(63, 60) {
    case 1:
      try Self.check(words, .mask(59, 52), 0)
      self = .completionWait(
        CompletionWait(
          storeAddress: low.bit(0) ? low & .mask(51, 3) : nil, data: high,
          interrupts: low.bit(1), flushes: low.bit(2)))
    case 2:
      try Self.check(words, .mask(59, 16), .max)
      self = .invalidateDeviceTableEntry(device: device)
    case 3:
      try Self.check(words, .mask(31, 20) | .mask(59, 48), .mask(11, 3) | guest)
      self = .invalidatePages(
        domain: UInt16(low.bits(47, 32)), .decode(high, pasid: UInt32(low.bits(19, 0))),
        directories: high.bit(1))
    case 4:
      // PASID[15:8] is in bits 23 to 16, PASID[7:0] and PASID[19:16] in bits 59 to 48.
      try Self.check(words, 0, .mask(1, 1) | .mask(3, 3) | .mask(11, 6) | guest)
      let pasid = low.bits(59, 56) &<< 16 | low.bits(23, 16) &<< 8 | low.bits(55, 48)
      self = .invalidateIOTLB(
        device: device, queue: UInt16(low.bits(47, 32)), mostPending: UInt8(low.bits(31, 24)),
        .decode(high, pasid: UInt32(pasid)))
    case 5:
      try Self.check(words, .mask(59, 16), .max)
      self = .invalidateInterruptTable(device: device)
    case 6 where iommu.has(.prefetch):
      try Self.check(
        words, .mask(23, 16) | .mask(59, 52),
        .mask(1, 1) | .mask(3, 3) | .mask(11, 5) | guest)
      self = .prefetch(
        device: device, count: UInt8(low.bits(31, 24)),
        .decode(high, pasid: UInt32(low.bits(51, 32))), invalidates: high.bit(4))
    case 7 where iommu.has(.pageRequests):
      try Self.check(
        words, .mask(31, 16) | .mask(59, 52),
        .mask(1, 0) | .mask(31, 3) | .mask(63, 48) | guest)
      self = .completePageRequest(
        device: device, pasid: high.bit(2) ? UInt32(low.bits(51, 32)) : nil,
        tag: UInt16(high.bits(41, 32)), code: UInt8(high.bits(47, 44)))
    case 8 where iommu.has(.invalidateAll):
      try Self.check(words, .mask(59, 0), .max)
      self = .invalidateAll
    default: throw .opcode
    }
  }

  private static func check(
    _ words: Words2, _ low: UInt64, _ high: UInt64
  ) throws(AMDCommandError) {
    if words[0] & low | words[1] & high != 0 { throw .reservedBits }
  }
}
