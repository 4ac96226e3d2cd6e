// SPDX-License-Identifier: Apache-2.0
//
// Taking a device from vfio-pci: not while somebody has it open. Linux: the registration that each
// open device file holds (`vfio_device_try_get_registration`).

import IOMMU
import SystemPackage

/// Who holds a device, and whether it has gone.
struct Registration: Sendable {
  var openFiles = 0
  var isRetired = false
}

extension VFIODevice {
  /// vfio-pci gives the device up: nobody can open it any more.
  ///
  /// Linux: `vfio_unregister_group_dev`, which asks the user to let go and waits.
  /// - Throws: `EBUSY` while a file of it is open, bound or not.
  public func retire() throws(IOMMUError) {
    try unregister()
    try registration.withLock { (registration) throws(IOMMUError) in
      guard registration.openFiles == 0 else {
        register()
        throw IOMMUError(
          .resourceBusy,
          "\(function.name) is open in \(registration.openFiles) file(s) of a program; "
            + "close them before it is taken from vfio-pci")
      }
      registration.isRetired = true
    }
  }

  /// Undoes `retire`.
  public func comeBack() {
    register()
    registration.withLock { $0.isRetired = false }
  }

  /// - Throws: `ENODEV` where vfio-pci has given it up.
  public func checkRegistration() throws(IOMMUError) {
    guard !registration.withLock({ $0.isRetired }) else {
      throw IOMMUError(.noSuchDevice, "\(function.name) is not bound to vfio-pci any more")
    }
  }
}

// MARK: - Going while a user has it

extension VFIODevice {
  /// The device is about to leave the machine: nobody opens or binds it from now on, and who has it
  /// keeps it.
  ///
  /// Linux: the beginning of `vfio_unregister_group_dev`.
  public func beginLeaving() {
    state.withLock { $0.isGone = true }
    registration.withLock { $0.isRetired = true }
  }

  /// Whether nobody has a file or a mapping of it.
  public var isReleased: Bool {
    let isOpen = state.withLock { $0.openCount > 0 }
    return !isOpen && registration.withLock { $0.openFiles == 0 }
  }

  /// Asks whoever has it to let it go, by the request interrupt. Linux: `vfio_pci_core_request`.
  public func requestRelease() { function.interrupts.requestRelease() }
}
