// SPDX-License-Identifier: Apache-2.0
//
// A driver whose host context reaches real memory, so that a device that is in it by mistake is
// seen there; and drivers that switch wrongly, which the checks have to find.

import IOMMU
import PageTables
import SoftwareIOMMU

/// A wrong way to switch.
public enum Breakage: String, CaseIterable, Sendable {
  /// In two steps, through the host's context.
  case throughHost
  /// From one page table to the next through blocked.
  case throughBlocked
  /// Only function 0 of a group is switched.
  case firstOnly
  /// Done some time after the call has returned.
  case late
}

/// The software IOMMU, with the host's memory behind its host context.
final class SwitchDriver: IOMMUDriver {
  private let base: SoftwareIOMMU
  private let breakage: Breakage?
  private let hostMemory: any PagingDomain

  private struct Change: Sendable {
    var device: RequesterID
    var pasid: PASID?
    var context: DMAContext
  }
  private struct State: Sendable {
    /// Requesters that go through a page table of a user.
    var paging: Set<UInt64> = []
    /// Calls that were answered and not carried out.
    var pending: [Change] = []
  }
  private let state = Guarded(State())

  /// - Parameter hostMemory: What the host's context translates by.
  init(base: SoftwareIOMMU, hostMemory: any PagingDomain, breakage: Breakage?) {
    self.base = base
    self.hostMemory = hostMemory
    self.breakage = breakage
  }

  var name: String { base.name }
  func capabilities(for device: RequesterID) -> IOMMUCapabilities {
    base.capabilities(for: device)
  }
  func reservedRegions(for device: RequesterID) -> [ReservedRegion] {
    base.reservedRegions(for: device)
  }
  func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    base.hardwareInformation(for: device)
  }
  func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    try base.makePagingDomain(for: device, attributes: attributes, data: data)
  }

  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    let change = Change(device: device, pasid: pasid, context: context)
    let key = UInt64(device.rawValue) << 32 | UInt64(pasid?.rawValue ?? 0)
    let isPaging = if case .paging = context { true } else { false }
    let wasPaging = state.withLock { state in
      isPaging
        ? !state.paging.insert(key).inserted : state.paging.remove(key) != nil
    }
    switch breakage {
    case .throughHost:
      try apply(Change(device: device, pasid: pasid, context: .host))
      yieldThread()
      try apply(change)
    case .throughBlocked where isPaging && wasPaging:
      try apply(Change(device: device, pasid: pasid, context: .blocked))
      yieldThread()
      try apply(change)
    case .firstOnly where device.function != 0:
      break
    case .late:
      let before = state.withLock { state in
        defer { state.pending = [change] }
        return state.pending
      }
      for change in before { try apply(change) }
    case .throughBlocked, .firstOnly, nil:
      try apply(change)
    }
  }

  private func apply(_ change: Change) throws(IOMMUError) {
    let context: DMAContext =
      if case .host = change.context { .paging(hostMemory) } else { change.context }
    try base.setContext(of: change.device, pasid: change.pasid, to: context)
  }
}
