// SPDX-License-Identifier: Apache-2.0
//
// Commands of a RISC-V IOMMU's command queue, decoded: RISC-V IOMMU Architecture 1.0, section
// 3.1. What is reserved, or not there, is illegal: `cqcsr.cmd_ill`.

/// A command that was fetched and cannot be run: `cqcsr.cmd_ill` is set and the queue stops.
public enum RISCVCommandError: Error, Hashable, Sendable {
  /// An opcode or a function that is reserved.
  case reservedEncoding
  /// A bit that is reserved is set.
  case reservedBits
  /// An operand that the command does not allow.
  case operand
  /// Defined, but not in this IOMMU.
  case unsupported
}

/// A command of 16 bytes.
public enum RISCVCommand: Hashable, Sendable {
  /// IOTINVAL.VMA: first-stage entries. Without a guest those of the host's address spaces;
  /// without a process, of all of them; without an address, all.
  case invalidateFirstStage(guest: UInt16?, process: UInt32?, address: UInt64?)
  /// IOTINVAL.GVMA: second-stage entries. Without a guest all, whatever the address.
  case invalidateSecondStage(guest: UInt16?, address: UInt64?)
  /// IOFENCE.C.
  case fence(Fence)
  /// IODIR.INVAL_DDT: a device's context and its process contexts; without a device, all.
  case invalidateDevice(UInt32?)
  /// IODIR.INVAL_PDT: one process's context.
  case invalidateProcess(device: UInt32, process: UInt32)
  /// ATS.INVAL: an invalidation request to a device.
  case invalidateDeviceTLB(Destination, payload: UInt64)
  /// ATS.PRGR: a page-request group response to a device.
  case pageGroupResponse(Destination, payload: UInt64)

  public struct Fence: Hashable, Sendable {
    /// AV: where to write `data` when all commands before are done; a multiple of 4.
    public var address: UInt64?
    public var data: UInt32
    /// WSI: raise the wired interrupt.
    public var signals: Bool
    /// PR and PW: earlier reads and writes of devices are to be globally ordered.
    public var ordersReads: Bool
    public var ordersWrites: Bool

    public init(
      address: UInt64?, data: UInt32, signals: Bool, ordersReads: Bool, ordersWrites: Bool
    ) {
      self.address = address
      self.data = data
      self.signals = signals
      self.ordersReads = ordersReads
      self.ordersWrites = ordersWrites
    }
  }

  public struct Destination: Hashable, Sendable {
    public var requester: UInt16
    /// DSEG, where DSV is set.
    public var segment: UInt8?
    /// PID, where PV is set; 20 bits.
    public var process: UInt32?

    public init(requester: UInt16, segment: UInt8? = nil, process: UInt32? = nil) {
      self.requester = requester
      self.segment = segment
      self.process = process
    }
  }

  /// - Parameters:
  ///   - words: As fetched, little-endian.
  ///   - directory: Its mode bounds device IDs.
  public init(
    decoding words: Words2, directory: RISCVDeviceDirectory
  ) throws(RISCVCommandError) {
    switch (words[0].bits(6, 0), words[0].bits(9, 7)) {
    case (1, let function) where function < 2:
      self = try Self.translationCache(words, isSecondStage: function == 1)
    case (2, 0): self = try Self.fence(words, directory.iommu)
    case (3, let function) where function < 2:
      self = try Self.directoryCache(words, isProcess: function == 1, directory)
    case (4, let function) where function < 2:
      self = try Self.message(words, isResponse: function == 1, directory.iommu)
    default: throw .reservedEncoding
    }
  }

  private static func translationCache(
    _ words: Words2, isSecondStage: Bool
  ) throws(RISCVCommandError) -> RISCVCommand {
    let reserved = Words2(
      .mask(11, 11) | .mask(43, 34) | .mask(63, 60), .mask(9, 0) | .mask(63, 62))
    if words.hasAny(of: reserved) { throw .reservedBits }
    let first = words[0]
    let guest = first.bit(33) ? UInt16(first.bits(59, 44)) : nil
    let address = first.bit(10) ? words[1].bits(61, 10) &<< 12 : nil
    if isSecondStage {
      if first.bit(32) { throw .operand }
      return .invalidateSecondStage(guest: guest, address: address)
    }
    return .invalidateFirstStage(
      guest: guest, process: first.bit(32) ? UInt32(first.bits(31, 12)) : nil,
      address: address)
  }

  private static func fence(
    _ words: Words2, _ iommu: RISCVCapabilities
  ) throws(RISCVCommandError) -> RISCVCommand {
    let first = words[0]
    var reserved = Words2(.mask(31, 14), .mask(63, 62))
    if !iommu.hasWiredInterrupts { reserved[0] |= .mask(11, 11) }
    if words.hasAny(of: reserved) { throw .reservedBits }
    return .fence(
      Fence(
        address: first.bit(10) ? words[1].bits(61, 0) &<< 2 : nil,
        data: UInt32(first.bits(63, 32)), signals: first.bit(11), ordersReads: first.bit(12),
        ordersWrites: first.bit(13)))
  }

  private static func directoryCache(
    _ words: Words2, isProcess: Bool, _ directory: RISCVDeviceDirectory
  ) throws(RISCVCommandError) -> RISCVCommand {
    let first = words[0]
    let reserved = Words2(.mask(11, 10) | .mask(32, 32) | .mask(39, 34), .max)
    if words.hasAny(of: reserved) { throw .reservedBits }
    let process = UInt32(first.bits(31, 12))
    let device = UInt32(first.bits(63, 40))
    let hasDevice = first.bit(33)
    if !isProcess, process != 0 { throw .reservedBits }
    if isProcess, !hasDevice { throw .operand }
    if hasDevice, device >> UInt32(directory.mode.deviceIDWidth(directory.iommu)) != 0 {
      throw .operand
    }
    guard isProcess else { return .invalidateDevice(hasDevice ? device : nil) }
    let iommu = directory.iommu
    let width: UInt32 = iommu.has(.pd20) ? 20 : iommu.has(.pd17) ? 17 : 8
    if process >> width != 0 { throw .operand }
    return .invalidateProcess(device: device, process: process)
  }

  private static func message(
    _ words: Words2, isResponse: Bool, _ iommu: RISCVCapabilities
  ) throws(RISCVCommandError) -> RISCVCommand {
    let first = words[0]
    if first & (.mask(11, 10) | .mask(39, 34)) != 0 { throw .reservedBits }
    if !iommu.has(.ats) { throw .unsupported }
    let destination = Destination(
      requester: UInt16(first.bits(55, 40)),
      segment: first.bit(33) ? UInt8(first.bits(63, 56)) : nil,
      process: first.bit(32) ? UInt32(first.bits(31, 12)) : nil)
    return isResponse
      ? .pageGroupResponse(destination, payload: words[1])
      : .invalidateDeviceTLB(destination, payload: words[1])
  }
}
