// SPDX-License-Identifier: Apache-2.0
//
// A mock device as an object of the context that made it (Linux: `struct selftest_obj`):
// bound and attached when it is made, gone when the user destroys it.

import IOMMU
import Synchronization
import SystemPackage

/// Made by `IOMMU_TEST_OP_MOCK_DOMAIN`. Thread-safe.
public final class MockDevice: ForeignObject {
  public let kind = "a mock device"
  private let driver: MockIOMMU
  private let device: PhysicalDevice
  /// Nil once destroyed.
  private let binding: RankedMutex<Binding?>

  private init(driver: MockIOMMU, device: PhysicalDevice, binding: consuming Binding) {
    self.driver = driver
    self.device = device
    self.binding = RankedMutex(.mockDevice, binding)
  }

  /// What the maker of a mock device learns.
  public struct Made: Sendable {
    /// The mock device itself, the one to destroy.
    public let object: ObjectID
    /// The page table that it is attached to.
    public let table: ObjectID
    /// The bound device.
    public let device: ObjectID
  }

  /// Makes a device, binds it to a context and attaches it.
  ///
  /// - Parameter target: An address space or a page table.
  /// - Throws: What binding and attaching throw; then nothing was made.
  public static func make(
    _ flags: MockIOMMU.DeviceFlags, driver: MockIOMMU, in context: Context,
    attachedTo target: ObjectID
  ) throws(IOMMUError) -> Made {
    // As in the kernel the object has its id before the device has one, and before the table.
    let object = try context.reserveID()
    do throws(IOMMUError) {
      let device = try driver.makeDevice(flags)
      do throws(IOMMUError) {
        let binding = try context.registerInternally(device)
        let table = try binding.group.attach(to: target)
        let bound = binding.id
        let mock = MockDevice(driver: driver, device: device, binding: binding)
        context.publish(mock, as: object)
        return Made(object: object, table: table, device: bound)
      } catch {
        driver.removeDevice(device)
        throw error
      }
    } catch {
      context.giveBack(object)
      throw error
    }
  }

  /// Moves the device to another table in one step. Linux: `iommufd_device_replace`.
  /// - Returns: The page table.
  public func replace(with target: ObjectID) throws(IOMMUError) -> ObjectID {
    try withBinding { (binding) throws(IOMMUError) in try binding.group.attach(to: target) }
  }

  /// Attaches a PASID. As `SecurityContext.attach(_:to:)`.
  public func attach(_ pasid: PASID, to target: ObjectID) throws(IOMMUError) -> ObjectID {
    try withBinding { (binding) throws(IOMMUError) in
      try binding.group.attach(pasid, to: target)
    }
  }

  /// Moves a PASID to another table. As `SecurityContext.replace(_:with:)`.
  public func replace(_ pasid: PASID, with target: ObjectID) throws(IOMMUError) -> ObjectID {
    try withBinding { (binding) throws(IOMMUError) in
      try binding.group.replace(pasid, with: target)
    }
  }

  /// Detaches a PASID. Nothing where it is not attached.
  public func detach(_ pasid: PASID) { binding.withLock { $0?.group.detach(pasid) } }

  /// The table that a PASID goes through; nil where it is blocked.
  /// - Throws: `ENOENT` where the device was destroyed meanwhile.
  public func table(of pasid: PASID) throws(IOMMUError) -> ObjectID? {
    try withBinding { (binding) throws(IOMMUError) in
      try binding.context.attachedHWPT(of: binding.id, pasid: pasid)
    }
  }

  private func withBinding<Result: Sendable>(
    _ body: (borrowing Binding) throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    try binding.withLock { (binding) throws(IOMMUError) in
      switch binding {
      case .some(let binding): return try body(binding)
      case .none:
        throw IOMMUError(.noSuchFileOrDirectory, "\(device.name) was destroyed meanwhile")
      }
    }
  }

  private func unbind() {
    // Taken out under the lock, ended after it.
    let binding = binding.withLock { $0.take() }
    _ = consume binding
  }

  public func destroy() {
    unbind()
    driver.removeDevice(device)
  }
}
