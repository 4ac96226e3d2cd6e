// SPDX-License-Identifier: Apache-2.0
//
// What a guest calls its devices, and how what is cached for them is forgotten.

import IOMMU
import PageTables

/// The devices of one virtual IOMMU by the guest's names for them. Thread-safe.
final class GuestDevices: Sendable {
  private let devices = RankedMutex<[UInt64: RequesterID]>(.virtualStreams, [:])

  func add(_ device: RequesterID, virtualID: UInt64) {
    devices.withLock { $0[virtualID] = device }
  }

  func remove(virtualID: UInt64) { devices.withLock { $0[virtualID] = nil } }

  subscript(virtualID: UInt64) -> RequesterID? { devices.withLock { $0[virtualID] } }

  /// What the guest calls a device.
  func virtualID(of device: RequesterID) -> UInt64? {
    devices.withLock { $0.first { $0.value == device }?.key }
  }
}

extension DomainTable {
  /// Makes the ports of tables on top of this one forget, and says so in the event log. When it
  /// returns, they use nothing of it any more (MODEL G2).
  /// - Returns: Whether all devices with ATS confirmed in time.
  @discardableResult
  func forget(
    _ forgotten: NestedForgetting, noting events: EventLog,
    where isChosen: (SoftwareIOMMU.Source) -> Bool
  ) -> Bool {
    let isConfirmed = invalidateNested(forgotten, where: isChosen)
    let range =
      switch forgotten {
      case .translations(let range), .iotlb(let range): range
      case .configuration: IOVARange.all
      }
    events.append(
      .invalidate(
        iommu: kind.iommu, iova: IOVA(range.first), length: range.last &- range.first &+ 1))
    return isConfirmed
  }
}
