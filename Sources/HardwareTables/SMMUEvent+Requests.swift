// SPDX-License-Identifier: Apache-2.0
//
// What an SMMUv3 records of a transaction that it ended: Arm System Memory Management Unit
// Architecture version 3 (IHI 0070), sections 7.3.2 to 7.3.16, and what of it a guest is told
// (Linux: `struct iommu_vevent_arm_smmuv3`).

import PageTables

extension SMMUEvent {
  /// The event of a transaction that a lookup ended.
  public init(_ fault: SMMUFault, of request: DeviceRequest) {
    self.init(
      fault, stream: request.source, substream: request.pasid, address: request.address,
      flags: Flags(request))
  }

  /// The event of a transaction that was ended.
  ///
  /// A blocked stream's entry says abort (STE.Config 0b000), of which nothing is recorded. A
  /// blocked substream's descriptor is not valid. This architecture has no interrupt window: who
  /// misuses ours is told that nothing is mapped there.
  ///
  /// Of ATS translation requests there is F_BAD_ATS_TREQ alone, where the stream has none
  /// (STE.EATS), and of translated transactions F_TRANSL_FORBIDDEN, as SMMU_CR2.REC_CFG_ATS is 0
  /// (3.9.1.2, 3.9.1.3); Linux leaves it so.
  /// - Returns: Nil where the architecture records nothing: for blocked streams, and for those.
  public init?(_ fault: RequestFault, of request: DeviceRequest) {
    if fault == .translatedForbidden {
      // Of a translated transaction neither substream nor privilege is told (IDR3.PASIDTT is 0).
      self.init(
        .translationForbidden, stream: request.source, flags: request.writes ? [] : .read,
        address: request.address)
      return
    }
    guard request.kind == .untranslated else { return nil }
    switch fault {
    case .unknownRequester:
      self.init(.badStreamID, stream: request.source, substream: request.pasid)
    case .blocked:
      guard request.pasid != nil else { return nil }
      self.init(.badContextDescriptor, of: request)
    case .walk(let fault, let tables): self.init(fault, tables, of: request)
    case .lookup(let fault):
      guard case .smmuV3(let fault) = fault else { return nil }
      self.init(fault, of: request)
    case .translatedForbidden, .pageRequestForbidden: return nil
    case .interruptWindow(let tables), .interrupt(_, let tables):
      self.init(WalkFault(.notPresent, level: 1), tables, of: request)
    }
  }

  private init(_ fault: WalkFault, _ tables: WalkedTables, of request: DeviceRequest) {
    let code: Code =
      switch fault.reason {
      // Out of TxSZ's range too: 7.3.13.
      case .addressWidth, .notPresent, .reservedBits, .misaligned: .translation
      case .addressSize: .addressSize
      case .accessFlag: .access
      case .permission, .dirtyFlag: .permission
      case .tableUnreachable, .tableCorrupted: .walkAbort
      }
    let isSecond = tables.isSecond(fault)
    var flags = Flags(request)
    if isSecond { flags.insert(.stage2) }
    // TTRnW: whether it was a read of the stage 1 table's entry that stage 2 did not allow.
    if fault.isTableFetch, !fault.isMarking { flags.insert(.tableRead) }
    // F_WALK_EABT says TT of stage 1, where the others say IN.
    let isTable = isSecond ? fault.isTableFetch : code == .walkAbort
    self.init(
      code, stream: request.source, substream: request.pasid, flags: flags,
      purpose: isTable ? .table : .input, address: request.address,
      secondAddress: code == .walkAbort
        ? fault.entry : tables.intermediate(fault, of: request))
  }

  /// The record that a guest with a virtual SMMU is told: 32 bytes, little-endian, with the
  /// stream as the guest calls it. `IOMMU_VEVENTQ_TYPE_ARM_SMMUV3`.
  ///
  /// - Parameter stream: The virtual StreamID.
  /// - Returns: Nil for what is not the guest's to know: faults of stage 2, which is the host's,
  ///   and events of the host's own structures. Linux: `arm_smmu_handle_event`.
  public func record(virtualStream stream: UInt32) -> [UInt8]? {
    switch code {
    case .badStreamTableEntry, .streamDisabled, .badSubstreamID, .badContextDescriptor,
      .translation, .addressSize, .access, .permission:
      break
    default: return nil
    }
    guard !(code.hasStage && flags.contains(.stage2)) else { return nil }
    var event = self
    event.stream = stream
    return event.words.littleEndianBytes
  }
}

extension SMMUEvent.Flags {
  /// RnW of the transaction: an atomic that writes is a write. InD is of reads only.
  init(_ request: DeviceRequest) {
    self = request.writes ? [] : .read
    if request.executes { insert(.instruction) }
    if request.access.isPrivileged { insert(.privileged) }
  }
}
