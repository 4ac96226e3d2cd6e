// SPDX-License-Identifier: Apache-2.0
//
// Hot reset: whom it would hit, who may do it, and doing it. Facts: Linux 6.12,
// vfio_pci_core.c and iommufd.c.

import IOMMU
import SystemPackage

/// A function that a hot reset would reset. Linux: `struct vfio_pci_dependent_device`.
public struct ResetNeighbour: Hashable, Sendable {
  public let address: RequesterID
  /// Number of its IOMMU group.
  public let group: UInt32
  /// What it is to the context of who asks.
  public let holding: Holding

  public enum Holding: Hashable, Sendable {
    /// Bound to the context, under this id.
    case bound(ObjectID)
    /// Not bound, but the context owns its group. Linux: `VFIO_PCI_DEVID_OWNED`.
    case owned
    /// Somebody else's, or nobody's. Linux: `VFIO_PCI_DEVID_NOT_OWNED`.
    case foreign
  }
}

extension DeviceSession {
  /// Every function that a hot reset of the device would reset, the device included, by address.
  ///
  /// Linux: `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
  /// - Throws: `EINVAL` before the bind; `ENODEV` where nothing above the device could reset it.
  public func resetNeighbours() throws(IOMMUError) -> [ResetNeighbour] {
    let bus = try resettableBus()
    return bus.state.withLock { state in
      let context = device.boundContext
      return state.sortedFunctions.map { function in
        ResetNeighbour(
          address: function.address, group: function.device?.group.id ?? 0,
          holding: resettable(function, in: state)?.holding(by: context) ?? .foreign)
      }
    }
  }

  /// Who answers for all that a hot reset would hit.
  public enum ResetRight {
    /// The context that the device is bound to.
    case context
    /// Groups that the user has open.
    case groups([VFIOGroup])
  }

  /// Resets every function below the port, each as `VFIO_DEVICE_RESET` resets one.
  ///
  /// Linux: `VFIO_DEVICE_PCI_HOT_RESET`.
  /// - Throws: `EINVAL` before the bind, and where a function is not VFIO's or not the user's:
  ///   the sentence names it; `ENODEV` where nothing above the device could reset it.
  public func hotReset(by right: ResetRight) throws(IOMMUError) {
    let bus = try resettableBus()
    try bus.state.withLock { (state) throws(IOMMUError) in
      let functions = state.sortedFunctions
      let devices = functions.map { (function: $0, device: resettable($0, in: state)) }
      if let stray = devices.first(where: { $0.device == nil }) {
        throw IOMMUError(
          .invalidArgument,
          "\(stray.function.name) would be reset too, and "
            + (stray.function.isVirtual || device.function.isVirtual
              ? "virtual functions rule that out" : "vfio-pci has not got it"))
      }
      let context = device.boundContext
      for device in devices.compactMap(\.device) {
        switch right {
        case .context:
          guard device.holding(by: context) == .foreign else { continue }
          throw IOMMUError(
            .invalidArgument,
            "\(device.function.name) would be reset too, and this context has neither it nor its "
              + "group \(device.group.group.id)")
        case .groups(let groups):
          guard !groups.contains(where: { $0 === device.group }) else { continue }
          throw IOMMUError(
            .invalidArgument,
            "\(device.function.name) would be reset too, and its group \(device.group.group.id) "
              + "is not among the descriptors; pass it")
        }
      }
      for function in functions { function.reset() }
    }
  }

  /// The device of a function that is reset together with this one; nil where none is VFIO's. A
  /// virtual function is with none but itself.
  private func resettable(_ function: PCIFunction, in state: PCIBus.State) -> VFIODevice? {
    if function === device.function { return device }
    return device.function.isVirtual ? nil : state.device(of: function)
  }

  /// The bus that a hot reset of the device resets.
  /// - Throws: `EINVAL` before the bind, `ENODEV` where there is none.
  @discardableResult
  public func resettableBus() throws(IOMMUError) -> PCIBus {
    try checkAccess()
    guard let bus = device.function.bus else {
      throw IOMMUError(
        .noSuchDevice,
        "\(device.function.name) is on a root bus, which cannot be reset; use VFIO_DEVICE_RESET"
      )
    }
    return bus
  }
}

extension VFIODevice {
  /// The context that the device is bound to.
  fileprivate var boundContext: Context? { state.withLock { $0.binding?.context } }

  /// What the device is to a context. Linux: `vfio_iommufd_get_dev_id`.
  fileprivate func holding(by context: Context?) -> ResetNeighbour.Holding {
    guard let context else { return .foreign }
    let id = state.withLock { state -> ObjectID? in
      state.binding?.context === context ? state.binding?.id : nil
    }
    if let id { return .bound(id) }
    return group.group.isOwned(by: context) ? .owned : .foreign
  }
}
