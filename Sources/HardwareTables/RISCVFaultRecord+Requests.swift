// SPDX-License-Identifier: Apache-2.0
//
// What a RISC-V IOMMU records of a transaction that it ended: RISC-V IOMMU Architecture 1.0,
// section 3.2.

import PageTables

extension RISCVFaultRecord {
  /// The record of a transaction that a lookup ended.
  /// - Parameter disablesTranslationFaults: DTF of the device context, where one was found.
  /// - Returns: Nil where DTF hides it, and for translation requests that are answered with
  ///   success and no rights (3.6).
  public init?(
    _ fault: RISCVFault, of request: DeviceRequest, disablesTranslationFaults: Bool = false
  ) {
    guard !disablesTranslationFaults || fault.cause.isReportedDespiteDTF else { return nil }
    guard !(request.kind == .translation && fault.cause.isAnswered) else { return nil }
    self.init(
      cause: fault.cause, transaction: RISCVTransactionType(request),
      deviceID: request.source, processID: request.pasid,
      isSupervisor: request.access.isPrivileged, iotval: request.address,
      iotval2: fault.iotval2)
  }

  /// The record of a transaction that was ended.
  ///
  /// There is no device context for an unknown requester, and none that is valid for a blocked
  /// one (as Linux blocks); nor a process context for a blocked process. Interrupts are writes
  /// to the machine's interrupt files, which take aligned writes of 4 bytes only.
  public init?(
    _ fault: RequestFault, of request: DeviceRequest, disablesTranslationFaults: Bool = false
  ) {
    let found: RISCVFault
    switch fault {
    case .unknownRequester: found = RISCVFault(.directoryEntryNotValid)
    case .blocked:
      found = RISCVFault(
        request.pasid == nil ? .directoryEntryNotValid : .processEntryNotValid)
    case .walk(let fault, let tables): found = RISCVFault(fault, tables, of: request)
    case .lookup(let fault):
      guard case .riscv(let fault) = fault else { return nil }
      found = fault
    // EN_ATS is clear.
    case .translatedForbidden: found = RISCVFault(.transactionTypeDisallowed)
    case .pageRequestForbidden:
      // EN_PRI is clear. Of a message iotval has the code: of a page request 4 (2.7, 3.2).
      self.init(
        RISCVFault(.transactionTypeDisallowed), of: request,
        disablesTranslationFaults: disablesTranslationFaults)
      iotval = 4
      return
    case .interruptWindow: found = RISCVFault(.accessFault(of: request))
    case .interrupt: found = RISCVFault(.messageEntryNotValid)
    }
    self.init(found, of: request, disablesTranslationFaults: disablesTranslationFaults)
  }
}

extension RISCVFault {
  /// The cause of the original access's type; for the second stage with what it was asked for.
  public init(_ fault: WalkFault, _ tables: WalkedTables, of request: DeviceRequest) {
    switch fault.reason {
    case .tableUnreachable: self.init(.accessFault(of: request))
    case .tableCorrupted: self.init(.pageTableDataCorruption)
    case .addressWidth, .notPresent, .reservedBits, .misaligned, .addressSize, .accessFlag,
      .dirtyFlag, .permission:
      guard tables.isSecond(fault) else {
        self.init(
          request.isInstruction
            ? .instructionPageFault : request.isStore ? .writePageFault : .readPageFault)
        return
      }
      // Bit 0 is set for accesses to first-stage entries, bit 1 for those that were to set A or D:
      // all others are reads (3.2, note).
      var second = tables.intermediate(fault, of: request) & ~3
      if fault.isTableFetch { second |= fault.isMarking ? 3 : 1 }
      self.init(.guestPageFault(of: RISCVTransactionType(request)), iotval2: second)
    }
  }
}

extension RISCVCause {
  /// By the access that the device made, whatever the IOMMU accesses for it.
  @usableFromInline
  static func guestPageFault(of transaction: RISCVTransactionType) -> RISCVCause {
    switch transaction {
    case .untranslatedExecute, .translatedExecute: .instructionGuestPageFault
    case .untranslatedWrite, .translatedWrite: .writeGuestPageFault
    default: .readGuestPageFault
    }
  }

  static func accessFault(of request: DeviceRequest) -> RISCVCause {
    request.isInstruction
      ? .instructionAccessFault : request.isStore ? .writeAccessFault : .readAccessFault
  }

  /// Whether an ATS translation request is answered with success and no rights, of which nothing
  /// is recorded (3.6).
  var isAnswered: Bool {
    switch self {
    case .instructionPageFault, .readPageFault, .writePageFault, .instructionGuestPageFault,
      .readGuestPageFault, .writeGuestPageFault, .messageEntryNotValid, .processEntryNotValid:
      true
    default: false
    }
  }
}

extension DeviceRequest {
  // Translation requests are reads, whatever they ask for. Addresses are translated for PCIe
  // only, where reading for execution is of requests with a PASID.
  fileprivate var isStore: Bool { writes && kind != .translation }
  fileprivate var isInstruction: Bool {
    guard executes, !writes else { return false }
    return kind == .untranslated || kind == .translated && pasid != nil
  }
}

extension RISCVTransactionType {
  /// TTYP of a transaction with an address.
  public init(_ request: DeviceRequest) {
    switch request.kind {
    case .translation: self = .translationRequest
    case .page: self = .message
    case .untranslated:
      self =
        request.isInstruction
        ? .untranslatedExecute : request.isStore ? .untranslatedWrite : .untranslatedRead
    case .translated:
      self =
        request.isInstruction
        ? .translatedExecute : request.isStore ? .translatedWrite : .translatedRead
    }
  }
}
