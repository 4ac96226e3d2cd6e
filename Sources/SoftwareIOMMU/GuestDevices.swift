// SPDX-License-Identifier: Apache-2.0
//
// What a guest calls its devices.

import IOMMU

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

/// A virtual IOMMU whose devices go by the guest's names for them.
protocol NamingVirtualIOMMU: VirtualIOMMU {
  var devices: GuestDevices { get }
}

extension NamingVirtualIOMMU {
  public func addDevice(_ device: RequesterID, virtualID: UInt64) throws(IOMMUError) {
    devices.add(device, virtualID: virtualID)
  }

  public func removeDevice(_ device: RequesterID, virtualID: UInt64) {
    devices.remove(virtualID: virtualID)
  }
}
