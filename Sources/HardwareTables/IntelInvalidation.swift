// SPDX-License-Identifier: Apache-2.0
//
// Descriptors of VT-d's invalidation queue, decoded: Intel Virtualization Technology for
// Directed I/O, revision 4.1, section 6.5.2. What is reserved is an invalidation queue error.

/// Why a descriptor cannot be run: FSTS_REG.IQE is set and the queue stops (6.5.2.10).
public enum IntelDescriptorError: Error, Hashable, Sendable {
  /// A type that is reserved, or that this unit has not.
  case type
  /// A reserved field, or a reserved value of one.
  case reservedField
  /// A type that only queues of 256-bit descriptors have.
  case width
}

/// One descriptor. `domain` is the domain ID that entries are tagged with.
public enum IntelInvalidation: Hashable, Sendable {
  /// Type 1. `functionMask` of 1, 2, 3 takes in the functions that differ from the source in
  /// bit 2, bits 2 and 1, bits 2 to 0.
  case contextCache(Context)
  /// Type 2.
  case iotlb(IOTLB, drainsReads: Bool, drainsWrites: Bool)
  /// Type 3: without a PASID.
  case deviceTLB(DeviceTLB)
  /// Type 4: one index of 2^`mask`, or all.
  case interruptEntryCache(index: UInt16?, mask: UInt8)
  /// Type 5.
  case wait(Wait)
  /// Type 6.
  case pasidIOTLB(PASIDIOTLB)
  /// Type 7.
  case pasidCache(PASIDCache)
  /// Type 8. `isGlobal` is for all PASIDs.
  case pasidDeviceTLB(DeviceTLB, pasid: UInt32, isGlobal: Bool)
  /// Type 9.
  case pageGroupResponse(PageGroupResponse)

  public enum Context: Hashable, Sendable {
    case all
    case domain(UInt16)
    case device(domain: UInt16, source: UInt16, functionMask: UInt8)
  }

  public enum IOTLB: Hashable, Sendable {
    case all
    case domain(UInt16)
    case pages(domain: UInt16, Pages)
  }

  public enum PASIDIOTLB: Hashable, Sendable {
    case pasid(domain: UInt16, pasid: UInt32)
    case pages(domain: UInt16, pasid: UInt32, Pages)
  }

  public enum PASIDCache: Hashable, Sendable {
    case domain(UInt16)
    case pasid(domain: UInt16, pasid: UInt32)
    case all
  }

  /// 2^`mask` pages of 4 KiB from `address` on, which is aligned to them.
  public struct Pages: Hashable, Sendable {
    public var address: UInt64
    public var mask: UInt8
    /// IH: entries above the leaf have not changed.
    public var leavesOnly: Bool

    public init(address: UInt64, mask: UInt8, leavesOnly: Bool) {
      self.address = address
      self.mask = mask
      self.leavesOnly = leavesOnly
    }
  }

  /// What an ATS invalidation request is to say, and to whom.
  public struct DeviceTLB: Hashable, Sendable {
    public var source: UInt16
    /// The physical function's source ID, which counts what is outstanding.
    public var physicalFunction: UInt16
    /// MIP: requests that may be outstanding.
    public var mostPending: UInt8
    /// In bytes, a multiple of the size.
    public var address: UInt64
    /// Log 2 of the size in bytes, 12 to 64.
    public var sizeShift: UInt8

    public init(
      source: UInt16, physicalFunction: UInt16, mostPending: UInt8, address: UInt64,
      sizeShift: UInt8
    ) {
      self.source = source
      self.physicalFunction = physicalFunction
      self.mostPending = mostPending
      self.address = address
      self.sizeShift = sizeShift
    }
  }

  public struct Wait: Hashable, Sendable {
    /// SW: where to write `data`, 4 bytes, when all before is done; a multiple of 4.
    public var statusAddress: UInt64?
    public var data: UInt32
    /// IF: raise the invalidation-completion interrupt.
    public var interrupts: Bool
    /// FN: nothing after it starts before all before it is done.
    public var fences: Bool
    /// PD: drain page requests and responses too.
    public var drainsPageRequests: Bool

    public init(
      statusAddress: UInt64?, data: UInt32, interrupts: Bool, fences: Bool,
      drainsPageRequests: Bool
    ) {
      self.statusAddress = statusAddress
      self.data = data
      self.interrupts = interrupts
      self.fences = fences
      self.drainsPageRequests = drainsPageRequests
    }
  }

  public struct PageGroupResponse: Hashable, Sendable {
    public var requester: UInt16
    public var pasid: UInt32?
    /// Page Request Group Index, 9 bits.
    public var group: UInt16
    /// As PCIe has it: 0 success, 1 invalid request, 15 failure.
    public var code: UInt8

    public init(requester: UInt16, pasid: UInt32?, group: UInt16, code: UInt8) {
      self.requester = requester
      self.pasid = pasid
      self.group = group
      self.code = code
    }
  }
}

extension IntelInvalidation {
  /// - Parameters:
  ///   - words: As fetched; the last two are 0 in a queue of 128-bit descriptors.
  ///   - isWide: Whether the queue has 256-bit descriptors (IQA_REG.DW).
  public init(
    decoding words: Words4, isWide: Bool, _ unit: IntelCapabilities
  ) throws(IntelDescriptorError) {
    if words[2] | words[3] != 0 { throw .reservedField }
    let low = words[0]
    let type = low.bits(11, 9) &<< 4 | low.bits(3, 0)
    if type >= 6, type <= 9, !isWide { throw .width }
    switch type {
    case 1: self = .contextCache(try Self.context(words))
    case 2: self = try Self.iotlb(words, unit)
    case 3 where unit.has(.deviceTLB): self = try Self.deviceTLB(words)
    case 4: self = try Self.interruptEntry(words)
    case 5: self = .wait(try Self.wait(words, unit))
    case 6 where unit.has(.scalableMode): self = .pasidIOTLB(try Self.pasidIOTLB(words))
    case 7 where unit.has(.scalableMode): self = .pasidCache(try Self.pasidCache(words))
    case 8 where unit.has(.scalableMode) && unit.has(.deviceTLB):
      self = try Self.pasidDeviceTLB(words)
    case 9 where unit.has(.pageRequests):
      self = .pageGroupResponse(try Self.pageGroupResponse(words))
    default: throw .type
    }
  }

  private static func check(
    _ words: Words4, reserved low: UInt64, _ high: UInt64
  ) throws(IntelDescriptorError) {
    if words[0] & low | words[1] & high != 0 { throw .reservedField }
  }

  private static func context(_ words: Words4) throws(IntelDescriptorError) -> Context {
    try check(words, reserved: .mask(8, 6) | .mask(15, 12) | .mask(63, 50), .max)
    let low = words[0]
    let domain = UInt16(low.bits(31, 16))
    switch low.bits(5, 4) {
    case 1: return .all
    case 2: return .domain(domain)
    case 3:
      return .device(
        domain: domain, source: UInt16(low.bits(47, 32)),
        functionMask: UInt8(low.bits(49, 48)))
    default: throw .reservedField
    }
  }

  private static func iotlb(
    _ words: Words4, _ unit: IntelCapabilities
  ) throws(IntelDescriptorError) -> IntelInvalidation {
    try check(
      words, reserved: .mask(8, 8) | .mask(15, 12) | .mask(63, 32), .mask(11, 7))
    let low = words[0]
    let domain = UInt16(low.bits(31, 16))
    let scope: IOTLB
    switch low.bits(5, 4) {
    case 1: scope = .all
    case 2: scope = .domain(domain)
    case 3:
      let pages = Self.pages(words[1])
      if pages.mask > unit.mostAddressMask { throw .reservedField }
      scope = .pages(domain: domain, pages)
    default: throw .reservedField
    }
    return .iotlb(scope, drainsReads: low.bit(7), drainsWrites: low.bit(6))
  }

  private static func pages(_ word: UInt64) -> Pages {
    let mask = word.bits(5, 0)
    // Address bits below the alignment are ignored.
    let aligned = mask &+ 12 >= 64 ? 0 : word & (UInt64.max &<< (mask &+ 12))
    return Pages(address: aligned, mask: UInt8(mask), leavesOnly: word.bit(6))
  }

  private static func deviceTLB(_ words: Words4) throws(IntelDescriptorError)
    -> IntelInvalidation
  {
    try check(words, reserved: .mask(8, 4) | .mask(31, 21) | .mask(51, 48), .mask(11, 1))
    let low = words[0]
    let (address, shift) = range(words[1], hasSize: words[1].bit(0))
    return .deviceTLB(
      DeviceTLB(
        source: UInt16(low.bits(47, 32)), physicalFunction: physicalFunction(low),
        mostPending: UInt8(low.bits(20, 16)), address: address, sizeShift: shift))
  }

  private static func pasidDeviceTLB(_ words: Words4) throws(IntelDescriptorError)
    -> IntelInvalidation
  {
    try check(words, reserved: 0, .mask(10, 1))
    let low = words[0]
    let (address, shift) = range(words[1], hasSize: words[1].bit(11))
    return .pasidDeviceTLB(
      DeviceTLB(
        source: UInt16(low.bits(31, 16)), physicalFunction: physicalFunction(low),
        mostPending: UInt8(low.bits(8, 4)), address: address, sizeShift: shift),
      pasid: UInt32(low.bits(51, 32)), isGlobal: words[1].bit(0))
  }

  private static func physicalFunction(_ low: UInt64) -> UInt16 {
    UInt16(low.bits(63, 52) &<< 4 | low.bits(15, 12))
  }

  /// As in ATS (PCI Express Base, 10.2.3.2): with S set, the lowest clear bit from bit 12 on
  /// says how large the range is.
  private static func range(_ word: UInt64, hasSize: Bool) -> (UInt64, UInt8) {
    if !hasSize { return (word & .mask(63, 12), 12) }
    let ones = (~(word | .mask(11, 0))).trailingZeroBitCount
    let shift = Swift.min(ones + 1, 64)
    return (shift == 64 ? 0 : word & (UInt64.max &<< UInt64(shift)), UInt8(shift))
  }

  private static func interruptEntry(_ words: Words4) throws(IntelDescriptorError)
    -> IntelInvalidation
  {
    try check(words, reserved: .mask(8, 5) | .mask(26, 12) | .mask(63, 48), .max)
    let low = words[0]
    if !low.bit(4) { return .interruptEntryCache(index: nil, mask: 0) }
    return .interruptEntryCache(
      index: UInt16(low.bits(47, 32)), mask: UInt8(low.bits(31, 27)))
  }

  private static func wait(
    _ words: Words4, _ unit: IntelCapabilities
  ) throws(IntelDescriptorError) -> Wait {
    var reserved: UInt64 = .mask(8, 8) | .mask(31, 12)
    if !unit.has(.pageRequests) { reserved |= .mask(7, 7) }
    try check(words, reserved: reserved, .mask(1, 0))
    let low = words[0]
    return Wait(
      statusAddress: low.bit(5) ? words[1] & .mask(63, 2) : nil, data: UInt32(low.bits(63, 32)),
      interrupts: low.bit(4), fences: low.bit(6), drainsPageRequests: low.bit(7))
  }

  private static func pasidIOTLB(_ words: Words4) throws(IntelDescriptorError) -> PASIDIOTLB {
    try check(
      words, reserved: .mask(8, 6) | .mask(15, 12) | .mask(63, 52), .mask(11, 7))
    let low = words[0]
    let domain = UInt16(low.bits(31, 16))
    let pasid = UInt32(low.bits(51, 32))
    switch low.bits(5, 4) {
    case 2: return .pasid(domain: domain, pasid: pasid)
    case 3: return .pages(domain: domain, pasid: pasid, pages(words[1]))
    default: throw .reservedField
    }
  }

  private static func pasidCache(_ words: Words4) throws(IntelDescriptorError) -> PASIDCache {
    try check(words, reserved: .mask(8, 6) | .mask(15, 12) | .mask(63, 52), .max)
    let low = words[0]
    let domain = UInt16(low.bits(31, 16))
    switch low.bits(5, 4) {
    case 0: return .domain(domain)
    case 1: return .pasid(domain: domain, pasid: UInt32(low.bits(51, 32)))
    case 3: return .all
    default: throw .reservedField
    }
  }

  private static func pageGroupResponse(_ words: Words4) throws(IntelDescriptorError)
    -> PageGroupResponse
  {
    // Bit 2 of the second word was "last page in group" in earlier revisions, which software
    // still sets.
    try check(words, reserved: .mask(8, 5) | .mask(63, 52), .mask(1, 0) | .mask(63, 12))
    let low = words[0]
    return PageGroupResponse(
      requester: UInt16(low.bits(31, 16)), pasid: low.bit(4) ? UInt32(low.bits(51, 32)) : nil,
      group: UInt16(words[1].bits(11, 3)), code: UInt8(low.bits(15, 12)))
  }
}
