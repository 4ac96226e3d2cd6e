// SPDX-License-Identifier: Apache-2.0
//
// One record of a fault in whatever family's encoding, as a queue of events holds it and as a
// person is told of it (MODEL H2).

/// Whose tables, registers, commands and records an IOMMU has.
public enum HardwareFamily: String, Hashable, Sendable, CaseIterable {
  /// Intel VT-d.
  case intel
  /// AMD-Vi.
  case amd
  /// Arm SMMUv3.
  case smmuV3
  /// The RISC-V IOMMU.
  case riscv
}

/// What an IOMMU recorded of a request that it ended.
public enum HardwareEvent: Hashable, Sendable {
  /// VT-d's fault recording register.
  case intel(IntelFaultRecord)
  /// An entry of AMD's event log.
  case amd(AMDEvent)
  /// A record of SMMUv3's event queue.
  case smmuV3(SMMUEvent)
  /// A record of RISC-V's fault queue.
  case riscv(RISCVFaultRecord)

  /// What a family records of a request; nil where it records nothing.
  /// - Parameters:
  ///   - isScalable: Of VT-d: whether its root table is in scalable mode.
  ///   - domain: Of AMD: the device table entry's DomainID.
  public init?(
    _ fault: RequestFault, of request: DeviceRequest, by family: HardwareFamily,
    isScalable: Bool = true, domain: UInt16 = 0
  ) {
    let event: HardwareEvent? =
      switch family {
      case .intel:
        IntelFaultRecord(fault, of: request, isScalable: isScalable).map { .intel($0) }
      case .amd: AMDEvent(fault, of: request, domain: domain).map { .amd($0) }
      case .smmuV3: SMMUEvent(fault, of: request).map { .smmuV3($0) }
      case .riscv: RISCVFaultRecord(fault, of: request).map { .riscv($0) }
      }
    guard let event else { return nil }
    self = event
  }

  public var family: HardwareFamily {
    switch self {
    case .intel: .intel
    case .amd: .amd
    case .smmuV3: .smmuV3
    case .riscv: .riscv
    }
  }

  /// As in memory, or as the registers read: 16 bytes of VT-d and AMD, the rest 0; 32 bytes of
  /// SMMUv3 and RISC-V.
  public var words: Words4 {
    switch self {
    case .intel(let record): Words4(lowHalf: record.words, highHalf: Words2())
    case .amd(let event): Words4(lowHalf: event.words, highHalf: Words2())
    case .smmuV3(let event): event.words
    case .riscv(let record): record.words
    }
  }

  /// Little-endian, as many as the record has.
  public var bytes: [UInt8] {
    switch self {
    case .intel, .amd: words.lowHalf.littleEndianBytes
    case .smmuV3, .riscv: words.littleEndianBytes
    }
  }

  /// The family's number for what happened: reason code, event code, event number or cause.
  public var code: UInt16 {
    switch self {
    case .intel(let record): UInt16(record.reason)
    case .amd(let event): UInt16(event.code.rawValue)
    case .smmuV3(let event): UInt16(event.code.rawValue)
    case .riscv(let record): record.cause
    }
  }

  /// The specification's name for it: `SFS.2`, `IO_PAGE_FAULT`, `F_TRANSLATION`, "read page
  /// fault".
  public var name: String {
    switch self {
    case .intel(let record):
      IntelFaultReason(rawValue: record.reason)?.name ?? "unknown reason"
    case .amd(let event): event.code.name
    case .smmuV3(let event): event.code.name
    case .riscv(let record): RISCVCause(rawValue: record.cause)?.name ?? "unknown cause"
    }
  }
}

extension HardwareEvent: CustomStringConvertible {
  /// `VT-d fault 71h, SFS.2`.
  public var description: String {
    let hexadecimal = String(code, radix: 16, uppercase: true)
    let padded = code < 16 ? "0\(hexadecimal)" : hexadecimal
    return switch self {
    case .intel: "VT-d fault \(padded)h, \(name)"
    case .amd: "AMD event \(padded)h, \(name)"
    case .smmuV3: "SMMUv3 event 0x\(padded), \(name)"
    case .riscv: "RISC-V fault \(code), \(name)"
    }
  }
}

extension AMDEvent.Code {
  /// As 48882 writes it.
  public var name: String {
    switch self {
    case .illegalDeviceTableEntry: "ILLEGAL_DEV_TABLE_ENTRY"
    case .pageFault: "IO_PAGE_FAULT"
    case .deviceTableHardwareError: "DEV_TAB_HARDWARE_ERROR"
    case .pageTableHardwareError: "PAGE_TAB_HARDWARE_ERROR"
    case .illegalCommand: "ILLEGAL_COMMAND_ERROR"
    case .commandHardwareError: "COMMAND_HARDWARE_ERROR"
    case .iotlbInvalidationTimeout: "IOTLB_INV_TIMEOUT"
    case .invalidDeviceRequest: "INVALID_DEVICE_REQUEST"
    }
  }
}

extension SMMUEvent.Code {
  /// As IHI 0070 writes it.
  public var name: String {
    switch self {
    case .unsupportedTransaction: "F_UUT"
    case .badStreamID: "C_BAD_STREAMID"
    case .streamTableFetch: "F_STE_FETCH"
    case .badStreamTableEntry: "C_BAD_STE"
    case .streamDisabled: "F_STREAM_DISABLED"
    case .translationForbidden: "F_TRANSL_FORBIDDEN"
    case .badSubstreamID: "C_BAD_SUBSTREAMID"
    case .contextFetch: "F_CD_FETCH"
    case .badContextDescriptor: "C_BAD_CD"
    case .walkAbort: "F_WALK_EABT"
    case .translation: "F_TRANSLATION"
    case .addressSize: "F_ADDR_SIZE"
    case .access: "F_ACCESS"
    case .permission: "F_PERMISSION"
    case .tlbConflict: "F_TLB_CONFLICT"
    case .configurationConflict: "F_CFG_CONFLICT"
    }
  }
}

extension RISCVCause {
  /// As table "Fault record CAUSE field encodings" has it (3.2).
  public var name: String {
    switch self {
    case .instructionAccessFault: "instruction access fault"
    case .readMisaligned: "read address misaligned"
    case .readAccessFault: "read access fault"
    case .writeMisaligned: "write/AMO address misaligned"
    case .writeAccessFault: "write/AMO access fault"
    case .instructionPageFault: "instruction page fault"
    case .readPageFault: "read page fault"
    case .writePageFault: "write/AMO page fault"
    case .instructionGuestPageFault: "instruction guest page fault"
    case .readGuestPageFault: "read guest-page fault"
    case .writeGuestPageFault: "write/AMO guest-page fault"
    case .allInboundTransactionsDisallowed: "all inbound transactions disallowed"
    case .directoryLoadAccessFault: "DDT entry load access fault"
    case .directoryEntryNotValid: "DDT entry not valid"
    case .directoryEntryMisconfigured: "DDT entry misconfigured"
    case .transactionTypeDisallowed: "transaction type disallowed"
    case .messageEntryLoadAccessFault: "MSI PTE load access fault"
    case .messageEntryNotValid: "MSI PTE not valid"
    case .messageEntryMisconfigured: "MSI PTE misconfigured"
    case .residentInterruptFileAccessFault: "MRIF access fault"
    case .processLoadAccessFault: "PDT entry load access fault"
    case .processEntryNotValid: "PDT entry not valid"
    case .processEntryMisconfigured: "PDT entry misconfigured"
    case .directoryDataCorruption: "DDT data corruption"
    case .processDataCorruption: "PDT data corruption"
    case .messageTableDataCorruption: "MSI PT data corruption"
    case .residentInterruptFileDataCorruption: "MSI MRIF data corruption"
    case .internalDataPathError: "internal data path error"
    case .messageWriteAccessFault: "IOMMU MSI write access fault"
    case .pageTableDataCorruption: "page-table data corruption"
    }
  }
}
