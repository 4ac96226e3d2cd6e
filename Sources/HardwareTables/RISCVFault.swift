// SPDX-License-Identifier: Apache-2.0
//
// Why a RISC-V IOMMU refuses a transaction, and the records that tell software so:
// RISC-V IOMMU Architecture 1.0, section 3.2 (fault queue, causes, transaction types).

/// `CAUSE` of a fault record (3.2, table "Fault record CAUSE field encodings").
public enum RISCVCause: UInt16, Hashable, Sendable, CaseIterable {
  case instructionAccessFault = 1
  case readMisaligned = 4
  case readAccessFault = 5
  case writeMisaligned = 6
  case writeAccessFault = 7
  case instructionPageFault = 12
  case readPageFault = 13
  case writePageFault = 15
  case instructionGuestPageFault = 20
  case readGuestPageFault = 21
  case writeGuestPageFault = 23
  case allInboundTransactionsDisallowed = 256
  case directoryLoadAccessFault = 257
  case directoryEntryNotValid = 258
  case directoryEntryMisconfigured = 259
  case transactionTypeDisallowed = 260
  case messageEntryLoadAccessFault = 261
  case messageEntryNotValid = 262
  case messageEntryMisconfigured = 263
  case residentInterruptFileAccessFault = 264
  case processLoadAccessFault = 265
  case processEntryNotValid = 266
  case processEntryMisconfigured = 267
  case directoryDataCorruption = 268
  case processDataCorruption = 269
  case messageTableDataCorruption = 270
  case residentInterruptFileDataCorruption = 271
  case internalDataPathError = 272
  case messageWriteAccessFault = 273
  case pageTableDataCorruption = 274

  /// Whether it is reported although the device context has DTF set (same table).
  public var isReportedDespiteDTF: Bool {
    switch self {
    case .allInboundTransactionsDisallowed, .directoryLoadAccessFault,
      .directoryEntryNotValid, .directoryEntryMisconfigured, .directoryDataCorruption,
      .internalDataPathError, .messageWriteAccessFault:
      true
    default: false
    }
  }
}

/// A transaction that a lookup ended.
public struct RISCVFault: Error, Hashable, Sendable {
  public var cause: RISCVCause
  /// For guest-page faults: the guest-physical address with bits 1 and 0 as 3.2 has them.
  public var iotval2: UInt64

  @inlinable
  public init(_ cause: RISCVCause, iotval2: UInt64 = 0) {
    self.cause = cause
    self.iotval2 = iotval2
  }
}

/// `TTYP` (3.2): the kind of an inbound transaction.
public enum RISCVTransactionType: UInt8, Hashable, Sendable, CaseIterable {
  case none = 0
  case untranslatedExecute = 1
  case untranslatedRead = 2
  case untranslatedWrite = 3
  case translatedExecute = 5
  case translatedRead = 6
  case translatedWrite = 7
  case translationRequest = 8
  case message = 9

  /// Whether the device says that the address was translated before.
  @inlinable
  public var isTranslated: Bool { rawValue >= 5 && rawValue <= 7 }

  /// Whether EN_ATS has to allow it (2.3, step 7).
  @inlinable
  public var needsATS: Bool { isTranslated || self == .translationRequest }
}

/// A record of the fault queue: 32 bytes.
public struct RISCVFaultRecord: Hashable, Sendable {
  /// 12 bits. Not every value is a `RISCVCause`.
  public var cause: UInt16
  /// 6 bits. Not every value is a `RISCVTransactionType`.
  public var transaction: UInt8
  /// 24 bits.
  public var deviceID: UInt32
  /// 20 bits; nil where the transaction had none (PV clear).
  public var processID: UInt32?
  /// Only with a process ID.
  public var isSupervisor: Bool
  /// The IOVA; for messages, the message code.
  public var iotval: UInt64
  public var iotval2: UInt64

  public init(
    cause: RISCVCause, transaction: RISCVTransactionType, deviceID: UInt32,
    processID: UInt32? = nil, isSupervisor: Bool = false, iotval: UInt64, iotval2: UInt64 = 0
  ) {
    self.cause = cause.rawValue
    self.transaction = transaction.rawValue
    self.deviceID = deviceID
    self.processID = processID
    self.isSupervisor = isSupervisor
    self.iotval = iotval
    self.iotval2 = iotval2
  }

  /// As in memory, little-endian. Without a transaction DID, PV, PID and PRIV are 0; without
  /// a process ID the latter two are.
  public var words: Words4 {
    let hasSource = transaction != 0
    var first: UInt64 = .place(cause, 11, 0) | .place(transaction, 39, 34)
    if hasSource {
      first |= .place(deviceID, 63, 40)
      if let processID {
        first |= .place(processID, 31, 12) | .place(true, 32) | .place(isSupervisor, 33)
      }
    }
    return Words4(first, 0, iotval, iotval2)
  }

  public init(decoding words: Words4) {
    let first = words[0]
    cause = UInt16(first.bits(11, 0))
    transaction = UInt8(first.bits(39, 34))
    deviceID = UInt32(first.bits(63, 40))
    processID = first.bit(32) ? UInt32(first.bits(31, 12)) : nil
    isSupervisor = first.bit(33)
    iotval = words[2]
    iotval2 = words[3]
  }
}
