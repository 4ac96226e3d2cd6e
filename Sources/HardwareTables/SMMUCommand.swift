// SPDX-License-Identifier: Apache-2.0
//
// Commands of an SMMUv3's Non-secure command queue, decoded: Arm System Memory Management Unit
// Architecture version 3 (IHI 0070), sections 4.1 to 4.7.

/// A command that was fetched and cannot be run: CERROR_ILL (4.1.4, 4.1.5).
public enum SMMUCommandError: Error, Hashable, Sendable {
  /// An opcode that is reserved, or that is the Secure interface's.
  case opcode
  /// A bit that the command has not is set; 4.1.5 lets an SMMU refuse it.
  case reservedBits
  /// Defined, but not in this SMMU.
  case unsupported
  /// A value that the command does not allow.
  case operand
}

/// A command of 16 bytes.
public enum SMMUCommand: Hashable, Sendable {
  /// CMD_PREFETCH_CONFIG.
  case prefetchConfiguration(SMMUStream)
  /// CMD_PREFETCH_ADDR: (`size` + 1) pages, or what 4.2.2 makes of size and stride.
  case prefetchAddress(SMMUStream, address: UInt64, size: UInt8, stride: UInt8)
  /// CMD_CFGI_STE. `leaf`: the level 1 descriptor has not changed.
  case invalidateStream(UInt32, leaf: Bool)
  /// CMD_CFGI_STE_RANGE: 2^shift streams, the first a multiple of that; 32 is all.
  case invalidateStreams(first: UInt32, shift: UInt8)
  /// CMD_CFGI_CD.
  case invalidateContext(stream: UInt32, substream: UInt32, leaf: Bool)
  /// CMD_CFGI_CD_ALL.
  case invalidateContexts(stream: UInt32)
  /// CMD_TLBI_*.
  case invalidateTLB(SMMUInvalidation)
  /// CMD_ATC_INV: without a size that is 2^(12 + shift) bytes, 52 being all.
  case invalidateATC(SMMUStream, address: UInt64, shift: UInt8, isGlobal: Bool)
  /// CMD_PRI_RESP.
  case pageGroupResponse(SMMUStream, group: UInt16, PageResponse)
  /// CMD_RESUME.
  case resume(stream: UInt32, tag: UInt16, Resume)
  /// CMD_STALL_TERM: aborts all of the stream's stalled transactions.
  case terminateStalled(stream: UInt32)
  /// CMD_SYNC.
  case sync(Completion)

  /// The code of CMD_PRI_RESP.
  public enum PageResponse: UInt8, Hashable, Sendable, CaseIterable {
    /// ResponseFailure: the device's use of PRI ends.
    case failure = 0
    case invalidRequest = 1
    case success = 2
  }

  /// What becomes of a stalled transaction, by Ac and Ab.
  public enum Resume: Hashable, Sendable, CaseIterable {
    case retry
    /// Reads as zero, ignores writes (or is aborted where TERM_MODEL is 1).
    case terminate
    case abort
  }

  /// CS.
  public enum Completion: Hashable, Sendable {
    case none
    /// SIG_IRQ: 4 bytes of data are written to the address, a multiple of 4, where it is not
    /// 0; else a wired interrupt is raised.
    case interrupt(address: UInt64, data: UInt32)
    /// SIG_SEV: an event to waiting processors.
    case event
  }

  public init(decoding words: Words2, _ smmu: SMMUCapabilities) throws(SMMUCommandError) {
    let code = words[0].bits(7, 0)
    switch code {
    case 0x01, 0x02: self = try Self.prefetch(words, smmu)
    case 0x03...0x06: self = try Self.configuration(words, smmu)
    case 0x10...0x13, 0x20...0x23, 0x28, 0x2A, 0x30:
      self = .invalidateTLB(try SMMUInvalidation(decoding: words, smmu))
    case 0x40, 0x41: self = try Self.device(words, smmu)
    case 0x44, 0x45: self = try Self.stalled(words, smmu)
    case 0x46: self = try Self.sync(words)
    // CMD_CFGI_VMS_PIDM and CMD_DPTI_*: of MPAM and of device permission tables.
    case 0x07, 0x70, 0x73: throw .unsupported
    default: throw .opcode
    }
  }

  /// - Parameters: The bits of each word that the command has, but the opcode.
  static func check(
    _ words: Words2, _ low: UInt64, _ high: UInt64
  ) throws(SMMUCommandError) {
    if words[0] & ~(low | 0xFF) | words[1] & ~high != 0 { throw .reservedBits }
  }

  private static func prefetch(
    _ words: Words2, _ smmu: SMMUCapabilities
  ) throws(SMMUCommandError) -> SMMUCommand {
    let stream = SMMUStream(fields: words[0])
    if words[0].bits(7, 0) == 1 {
      try check(words, .mask(31, 11) | .mask(63, 32), 0)
      return .prefetchConfiguration(stream)
    }
    try check(words, .mask(31, 11) | .mask(63, 32), .mask(9, 0) | .mask(63, 12))
    return .prefetchAddress(
      stream, address: words[1] & .mask(63, 12), size: UInt8(words[1].bits(4, 0)),
      stride: UInt8(words[1].bits(9, 5)))
  }

  private static func configuration(
    _ words: Words2, _ smmu: SMMUCapabilities
  ) throws(SMMUCommandError) -> SMMUCommand {
    let stream = UInt32(words[0].bits(63, 32))
    let ids: UInt64 = .mask(63, 32)
    switch words[0].bits(7, 0) {
    case 0x03:
      try check(words, ids, 1)
      return .invalidateStream(stream, leaf: words[1].bit(0))
    case 0x04:
      try check(words, ids, .mask(4, 0))
      let shift = UInt32(words[1].bits(4, 0)) + 1
      return .invalidateStreams(
        first: shift == 32 ? 0 : stream & (UInt32.max << shift), shift: UInt8(shift))
    case 0x05:
      if !smmu.hasStage1 { throw .unsupported }
      try check(words, ids | .mask(31, 12), 1)
      return .invalidateContext(
        stream: stream, substream: UInt32(words[0].bits(31, 12)), leaf: words[1].bit(0))
    default:
      if !smmu.hasStage1 { throw .unsupported }
      try check(words, ids, 0)
      return .invalidateContexts(stream: stream)
    }
  }

  private static func device(
    _ words: Words2, _ smmu: SMMUCapabilities
  ) throws(SMMUCommandError) -> SMMUCommand {
    let stream = SMMUStream(fields: words[0])
    let ids: UInt64 = .mask(31, 11) | .mask(63, 32)
    if words[0].bits(7, 0) == 0x40 {
      if !smmu.hasATS { throw .unsupported }
      try check(words, ids | .mask(9, 9), .mask(5, 0) | .mask(63, 12))
      let shift = UInt8(words[1].bits(5, 0))
      if shift > 52 { throw .operand }
      return .invalidateATC(
        stream, address: words[1] & .mask(63, 12), shift: shift, isGlobal: words[0].bit(9))
    }
    if !smmu.hasPRI { throw .unsupported }
    try check(words, ids, .mask(8, 0) | .mask(13, 12))
    guard let response = PageResponse(rawValue: UInt8(words[1].bits(13, 12))) else {
      throw .operand
    }
    return .pageGroupResponse(stream, group: UInt16(words[1].bits(8, 0)), response)
  }

  private static func stalled(
    _ words: Words2, _ smmu: SMMUCapabilities
  ) throws(SMMUCommandError) -> SMMUCommand {
    let stream = UInt32(words[0].bits(63, 32))
    if smmu.stallModel == 1 { throw .unsupported }
    if words[0].bits(7, 0) == 0x45 {
      try check(words, .mask(63, 32), 0)
      return .terminateStalled(stream: stream)
    }
    try check(words, .mask(63, 32) | .mask(13, 12), .mask(15, 0))
    // Ab is ignored where Ac says to retry.
    let action: Resume =
      words[0].bit(12) ? .retry : words[0].bit(13) ? .abort : .terminate
    return .resume(stream: stream, tag: UInt16(words[1].bits(15, 0)), action)
  }

  private static func sync(_ words: Words2) throws(SMMUCommandError) -> SMMUCommand {
    // MSH and MSIAttr say how the data is written; they are allowed with any CS.
    let fields: UInt64 = .mask(13, 12) | .mask(27, 22) | .mask(63, 32)
    try check(words, fields, .mask(55, 2))
    switch words[0].bits(13, 12) {
    case 0: return .sync(.none)
    case 1:
      return .sync(
        .interrupt(address: words[1] & .mask(55, 2), data: UInt32(words[0].bits(63, 32))))
    case 2: return .sync(.event)
    default: throw .operand
    }
  }
}

/// Whom a command is about.
public struct SMMUStream: Hashable, Sendable {
  public var stream: UInt32
  /// 20 bits; nil without SSV.
  public var substream: UInt32?

  public init(_ stream: UInt32, substream: UInt32? = nil) {
    self.stream = stream
    self.substream = substream
  }

  /// StreamID, SSV and SubstreamID where every command has them.
  init(fields word: UInt64) {
    self.init(
      UInt32(word.bits(63, 32)), substream: word.bit(11) ? UInt32(word.bits(31, 12)) : nil)
  }
}
