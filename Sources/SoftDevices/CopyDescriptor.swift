// SPDX-License-Identifier: Apache-2.0
//
// A descriptor of the copy engine: 64 bytes in the client's memory, read by DMA, once.

import PageTables

/// One descriptor, as it was when it was fetched.
struct CopyDescriptor: Sendable {
  /// In bytes.
  static let size: UInt64 = 64

  enum Operation: UInt8, Sendable {
    case copy = 0
    case fill = 1
  }

  /// Bits of the control word. No-snoop (bits 1 and 2), page breaks, bundles and the hints for
  /// caches (6 to 10) change nothing here: DMA by software is always coherent.
  struct Control: OptionSet, Sendable {
    let rawValue: UInt32
    static let interrupt = Control(rawValue: 1 << 0)
    static let writeStatus = Control(rawValue: 1 << 3)
    /// Descriptors are carried out one after the other, so each is a fence already.
    static let fence = Control(rawValue: 1 << 4)
    static let null = Control(rawValue: 1 << 5)
    /// The data is where the PASID in the descriptor says, of a channel that takes PASIDs; the
    /// descriptor itself and the status are not. Ours: no I/OAT has it.
    static let pasid = Control(rawValue: 1 << 11)
    /// Bits 12 to 23 mean nothing and must be clear.
    static let reserved = Control(rawValue: 0x00FF_F000)
  }

  /// Bytes to copy or fill.
  var length: UInt32
  var control: Control
  var operationCode: UInt8
  /// Where to copy from; the pattern of a fill.
  var source: UInt64
  var destination: UInt64
  var next: UInt64
  /// Bytes 32 to 34, 20 bits; the driver's own where `.pasid` is clear.
  var pasid: UInt32

  init(words: InlineArray<8, UInt64>) {
    let high = UInt32(truncatingIfNeeded: words[0] >> 32)
    length = UInt32(truncatingIfNeeded: words[0])
    control = Control(rawValue: high & 0x00FF_FFFF)
    operationCode = UInt8(truncatingIfNeeded: high >> 24)
    source = words[1]
    destination = words[2]
    next = words[3]
    pasid = UInt32(truncatingIfNeeded: words[4]) & 0xF_FFFF
  }

  /// What is wrong with it, as a bit of CHANERR; nil where it can be carried out.
  func error(
    transferLimit: UInt64, canFill: Bool, takesPASIDs: Bool
  ) -> ChannelErrors? {
    guard control.isDisjoint(with: takesPASIDs ? .reserved : [.reserved, .pasid]),
      let operation = Operation(rawValue: operationCode),
      operation == .copy || canFill
    else { return .control }
    if UInt64(length) > transferLimit { return .length }
    // The null operation has no use for its length; every other moves at least a byte.
    if length == 0, !control.contains(.null) { return .length }
    return nil
  }
}

/// Bits of CHANERR and CHANERRMASK.
struct ChannelErrors: OptionSet, Hashable, Sendable {
  let rawValue: UInt32
  static let source = ChannelErrors(rawValue: 0x1)
  static let destination = ChannelErrors(rawValue: 0x2)
  static let nextAddress = ChannelErrors(rawValue: 0x4)
  static let nextAlignment = ChannelErrors(rawValue: 0x8)
  static let chainAddress = ChannelErrors(rawValue: 0x10)
  static let command = ChannelErrors(rawValue: 0x20)
  static let readData = ChannelErrors(rawValue: 0x100)
  static let writeData = ChannelErrors(rawValue: 0x200)
  static let control = ChannelErrors(rawValue: 0x400)
  static let length = ChannelErrors(rawValue: 0x800)
  static let completionAddress = ChannelErrors(rawValue: 0x1000)
  static let descriptorCount = ChannelErrors(rawValue: 0x40000)

  /// After these there is nothing to go on with, masked or not.
  static let chain: ChannelErrors = [.nextAddress, .nextAlignment, .chainAddress]
}
