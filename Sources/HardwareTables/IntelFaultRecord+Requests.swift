// SPDX-License-Identifier: Apache-2.0
//
// What a VT-d unit records of a request that it ended: Intel Virtualization Technology for
// Directed I/O, revision 4.1, section 7.1.3. The codes agree with Linux's messages
// (`dma_remap_fault_reasons`, `dma_remap_sm_fault_reasons`) and VirtualBox's `VTDADDRFAULT`.

import PageTables

extension IntelFaultRecord {
  /// The record of a reason that was found for a request.
  public init(_ reason: IntelFaultReason, of request: DeviceRequest) {
    let type: AddressType =
      switch request.kind {
      case .untranslated: .untranslated
      case .translated: .translated
      case .translation: .translationRequest
      case .page: .untranslated
      }
    let reads = request.access.permissions.contains(.read)
    self.init(
      reason: reason.rawValue, source: UInt16(truncatingIfNeeded: request.source),
      address: request.address, isRead: reads || !request.writes, addressType: type,
      pasid: request.pasid, wantsExecute: request.executes,
      isSupervisor: request.access.isPrivileged)
    isAtomic = reads && request.writes
  }

  /// The record of a request that a lookup ended; nil where an entry has FPD set.
  public init?(_ fault: IntelFault, of request: DeviceRequest) {
    guard fault.isReported else { return nil }
    self.init(fault.reason, of: request)
  }

  /// The record of a request that was ended.
  ///
  /// A legacy unit finds nothing for an unknown requester, and nothing for a blocked one: Linux
  /// blocks by clearing the context entry, and the PASID entry in scalable mode.
  /// - Parameter isScalable: Whether the root table is in scalable mode.
  /// - Returns: Nil for translation requests that are answered without a fault.
  public init?(_ fault: RequestFault, of request: DeviceRequest, isScalable: Bool) {
    switch fault {
    case .unknownRequester: self.init(isScalable ? .sct2 : .lct2, of: request)
    case .blocked: self.init(isScalable ? .spt2 : .lct2, of: request)
    case .walk(let fault, let tables):
      guard !(request.kind == .translation && fault.isAnswered),
        let reason = IntelFaultReason(fault, tables, request, isScalable: isScalable)
      else { return nil }
      self.init(reason, of: request)
    case .lookup(let fault):
      guard case .intel(let fault) = fault else { return nil }
      self.init(fault, of: request)
    // DTE, or TT, is clear.
    case .translatedForbidden: self.init(isScalable ? .sct5 : .lct5, of: request)
    // The context entry is the host's: PRE is set where somebody answers, and else nobody asks.
    case .pageRequestForbidden: return nil
    case .interruptWindow: self.init(isScalable ? .sgn8 : .lgn4, of: request)
    case .interrupt(let refusal, _):
      // FI has the index in bits 63 to 48; it is not defined where none was found (11.4.7.6).
      var index: UInt16 = 0
      let reason: IntelFaultReason
      switch refusal {
      case .notRemappable: reason = .interruptCompatibility
      case .reservedBits: reason = .interruptReserved
      case .beyondTable(let number):
        reason = .interruptIndex
        index = number
      case .notPresent(let number):
        reason = .interruptNotPresent
        index = number
      case .wrongSource(let number):
        reason = .interruptSource
        index = number
      }
      self.init(
        reason: reason.rawValue, source: UInt16(truncatingIfNeeded: request.source),
        address: UInt64(index) << 48, isRead: false)
    }
  }
}

extension WalkFault {
  /// Whether a translation request is answered "no access" rather than ended with a fault.
  var isAnswered: Bool {
    switch reason {
    case .notPresent, .permission, .accessFlag, .dirtyFlag: true
    case .addressWidth, .reservedBits, .misaligned, .addressSize, .tableUnreachable,
      .tableCorrupted:
      false
    }
  }
}

extension IntelFaultReason {
  /// The condition of 7.1.3 that a walk met; nil where the formats of VT-d have none such.
  init?(
    _ fault: WalkFault, _ tables: WalkedTables, _ request: DeviceRequest, isScalable: Bool
  ) {
    guard isScalable else {
      switch fault.reason {
      case .addressWidth: self = .lgn1
      // An entry without both rights is one that is not there.
      case .notPresent, .permission, .accessFlag, .dirtyFlag:
        self = fault.lacksWrite(request) ? .lgn2 : .lgn3
      case .reservedBits, .misaligned, .addressSize: self = .lss2
      case .tableUnreachable, .tableCorrupted: self = tables.isRoot(fault) ? .lct4 : .lss1
      }
      return
    }
    self =
      tables.isSecond(fault)
      ? Self.second(fault, tables, request) : Self.first(fault, tables, request)
  }

  private static func first(
    _ fault: WalkFault, _ tables: WalkedTables, _ request: DeviceRequest
  ) -> IntelFaultReason {
    switch fault.reason {
    case .addressWidth: return .sgn1
    case .notPresent: return .sfs2
    case .reservedBits, .misaligned, .addressSize: return .sfs3
    case .tableUnreachable, .tableCorrupted:
      if fault.isMarking { return .sfs10 }
      return tables.isRoot(fault) ? .sfs4 : .sfs1
    case .permission, .accessFlag, .dirtyFlag:
      if !request.access.isPrivileged,
        fault.rights.isDisjoint(with: .user), !fault.rights.isEmpty
      {
        return .sgn2
      }
      if request.executes, !fault.allows(.execute, request) { return .sgn3 }
      return fault.lacksWrite(request) ? .sgn6 : .sgn7
    }
  }

  private static func second(
    _ fault: WalkFault, _ tables: WalkedTables, _ request: DeviceRequest
  ) -> IntelFaultReason {
    switch fault.reason {
    case .addressWidth: return fault.isTableFetch ? .sfs5 : .sgn5
    case .notPresent: return .sss2
    case .reservedBits, .misaligned, .addressSize: return .sss3
    case .tableUnreachable, .tableCorrupted:
      return tables.isRoot(fault) ? .sss4 : .sss1
    case .permission, .accessFlag, .dirtyFlag:
      if fault.isTableFetch {
        if fault.isMarking { return .sfs8 }
        return Int(fault.tableLevel) == tables.firstLevels ? .sfs6 : .sfs7
      }
      if request.executes, !fault.allows(.execute, request) { return .sgn3 }
      return fault.lacksWrite(request) ? .sgn6 : .sgn7
    }
  }
}

extension WalkFault {
  /// Whether what was found allows a request of this privilege to do it.
  func allows(_ permission: Permissions, _ request: DeviceRequest) -> Bool {
    rights.permissions(privileged: request.access.isPrivileged).contains(permission)
  }

  /// Whether it is writing that was not allowed; of what does both, the first that was not.
  func lacksWrite(_ request: DeviceRequest) -> Bool {
    request.writes
      && (!request.access.permissions.contains(.read) || allows(.read, request)
        || reason != .permission)
  }
}
