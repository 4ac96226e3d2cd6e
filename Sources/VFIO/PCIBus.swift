// SPDX-License-Identifier: Apache-2.0
//
// Functions below one PCI Express port. A reset of the port's link resets all of them, so who may
// ask for it has to have them all: a hot reset. Facts: Linux 6.12, vfio_pci_core.c and the device
// sets of vfio_main.c.

import IOMMU
import SystemPackage

/// A bus that can be reset because there is a port above it. Linux: a `pci_bus` that
/// `pci_probe_reset_bus` accepts, and the `vfio_device_set` of its devices. Thread-safe.
///
/// A function on a root bus is on none: nothing above could reset it.
public final class PCIBus: Sendable {
  /// The address of the port above.
  public let port: RequesterID

  struct State: Sendable {
    var functions: [FunctionReference] = []
    var devices: [DeviceReference] = []
  }

  // The machine has both; they have the bus.
  struct FunctionReference: Sendable { weak let function: PCIFunction? }
  struct DeviceReference: Sendable { weak let device: VFIODevice? }

  /// Held over bind and close of a device on the bus and over a hot reset, as Linux holds its
  /// `dev_set->lock`: whoever may reset them all still has them all while they are reset.
  let state = RankedMutex(.pciBus, State())

  public init(port: RequesterID) { self.port = port }

  func add(_ function: PCIFunction) {
    state.withLock { state in
      state.functions.removeAll { $0.function == nil }
      state.functions.append(FunctionReference(function: function))
    }
  }

  /// Takes a function out that is gone.
  public func remove(_ function: PCIFunction) {
    state.withLock { state in
      state.functions.removeAll { $0.function == nil || $0.function === function }
    }
  }

  /// A virtual function is in a set of its own: none is reset by the way of a bus.
  func add(_ device: VFIODevice) {
    guard !device.function.isVirtual else { return }
    state.withLock { state in
      state.devices.removeAll { $0.device == nil }
      state.devices.append(DeviceReference(device: device))
    }
  }

  /// All functions on the bus, whatever drives them, by address.
  public var functions: [PCIFunction] {
    state.withLock { $0.sortedFunctions }
  }
}

extension PCIBus.State {
  var sortedFunctions: [PCIFunction] {
    functions.compactMap(\.function).sorted { $0.address < $1.address }
  }

  /// What VFIO has of a function; nil where another driver, or none, has it.
  func device(of function: PCIFunction) -> VFIODevice? {
    devices.lazy.compactMap(\.device).first { $0.function === function }
  }
}

extension VFIODevice {
  /// Runs `body` on the device's state, while no other device of the bus is bound, closed or
  /// reset.
  func lockedWithBus<Failure: Error>(
    _ body: (inout State) throws(Failure) -> Void
  ) throws(Failure) {
    guard let bus = function.bus else {
      try state.withLock { (state) throws(Failure) in try body(&state) }
      return
    }
    try bus.state.withLock { (_) throws(Failure) in
      try state.withLock { (state) throws(Failure) in try body(&state) }
    }
  }
}
