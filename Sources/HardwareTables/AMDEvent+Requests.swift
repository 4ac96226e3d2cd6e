// SPDX-License-Identifier: Apache-2.0
//
// What an AMD IOMMU logs of a request that it ended: AMD I/O Virtualization Technology (48882),
// sections 2.1.3.2 and 2.5.2 to 2.5.9. PR, RZ and PE are as VirtualBox's model sets them.

import PageTables

extension AMDEvent {
  /// `type` of INVALID_DEVICE_REQUEST (2.5.9), of requests other than for translations.
  public enum InvalidRequest: UInt8, Hashable, Sendable, CaseIterable {
    /// A read in the interrupt address range.
    case interruptRead = 0
    /// A translated request of a device that may have no IOTLB.
    case pretranslated = 1
    /// A write of the interrupt address range that is no interrupt.
    case reservedInterrupt = 6
  }

  /// The event of a request that a lookup ended.
  public init(_ fault: AMDFault, of request: DeviceRequest, domain: UInt16) {
    self.init(
      fault, device: UInt16(truncatingIfNeeded: request.source), domain: domain,
      pasid: request.pasid, iova: request.address, flags: Flags(request))
  }

  /// The event of a request that was ended.
  ///
  /// An unknown requester is one beyond the device table. A blocked one has an entry without
  /// translation (V set, TV clear); a blocked PASID, no entry in the guest CR3 table.
  /// - Parameter domain: DomainID of the device table entry.
  /// - Returns: Nil for translation requests that find no access: they are answered so.
  public init?(_ fault: RequestFault, of request: DeviceRequest, domain: UInt16) {
    let flags = Flags(request)
    let device = UInt16(truncatingIfNeeded: request.source)
    switch fault {
    case .unknownRequester:
      self.init(.illegalDeviceTableEntry(reservedBits: false), of: request, domain: domain)
    case .blocked:
      guard request.kind != .translation else { return nil }
      self.init(
        .pageFault(
          AMDFault.PageFault(
            isGuest: request.pasid != nil, isPresent: false, hasReservedBits: false)),
        of: request, domain: domain)
    case .walk(let fault, let tables):
      let isGuest = !tables.isSecond(fault)
      let tag = isGuest ? request.pasid ?? 0 : UInt32(domain)
      switch fault.reason {
      case .tableUnreachable, .tableCorrupted:
        self.init(
          .pageTableHardwareError, device: device, tag: tag,
          flags: isGuest ? flags.union(.guest) : flags,
          type: (fault.reason == .tableCorrupted
            ? AMDHardwareErrorType.dataError : .masterAbort).rawValue,
          address: fault.entry)
      default:
        // Whatever it is, a translation request is answered "no access" (2.1.3.2).
        guard request.kind != .translation else { return nil }
        self.init(
          .pageFault, device: device, tag: tag,
          flags: flags.union(Flags(fault, isGuest: isGuest)), address: request.address)
      }
    case .lookup(let fault):
      guard case .amd(let fault) = fault else { return nil }
      if case .pageFault = fault, request.kind == .translation { return nil }
      self.init(fault, of: request, domain: domain)
    // I is clear in the device table entry.
    case .translatedForbidden:
      self.init(
        .invalidDeviceRequest, device: device, tag: request.pasid ?? 0,
        flags: request.pasid == nil ? flags : flags.union(.guest),
        type: InvalidRequest.pretranslated.rawValue, address: request.address)
    // INVALID_PPR_REQUEST (2.5.10), of which there is no record here.
    case .pageRequestForbidden: return nil
    case .interruptWindow:
      let type: InvalidRequest = request.writes ? .reservedInterrupt : .interruptRead
      self.init(
        .invalidDeviceRequest, device: device, tag: request.pasid ?? 0,
        flags: request.pasid == nil ? flags : flags.union(.guest), type: type.rawValue,
        address: request.address)
    case .interrupt:
      // Each device has a table of its own: what is not its own is not there.
      self.init(
        .pageFault, device: device, tag: UInt32(domain), flags: [.interrupt, .write],
        address: request.address)
    }
  }
}

extension AMDEvent.Flags {
  /// What kind of request it was. NX and US are of requests with a PASID.
  init(_ request: DeviceRequest) {
    self = request.writes ? .write : []
    if request.kind == .translation { insert(.translation) }
    guard request.pasid != nil else { return }
    if request.executes { insert(.execute) }
    if !request.access.isPrivileged { insert(.user) }
  }

  /// What was found: PR, PE and RZ. RZ tells reserved bits, in guest tables, from levels and
  /// sizes that are not encoded right, which are all that host tables can have wrong.
  init(_ fault: WalkFault, isGuest: Bool) {
    self = isGuest ? .guest : []
    switch fault.reason {
    case .permission, .dirtyFlag, .accessFlag: formUnion([.present, .permission])
    case .reservedBits, .misaligned, .addressSize:
      formUnion(isGuest ? [.present, .reservedBits] : .present)
    case .notPresent, .addressWidth, .tableUnreachable, .tableCorrupted: break
    }
  }
}
