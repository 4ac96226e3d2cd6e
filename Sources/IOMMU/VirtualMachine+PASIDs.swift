// SPDX-License-Identifier: Apache-2.0
//
// What a VM's CPU does with PASIDs: its devices, and the table from virtual to physical PASIDs
// that ENQCMD goes through (MODEL E3, E4; the proposal: KVM_MAP_PASID).

import SystemPackage

/// A global PASID that is nobody else's as long as this lives.
final class HeldPASID: Sendable {
  let physical: PASID
  private let spaces: PASIDSpaces

  /// Nil where no device has it.
  init?(_ physical: PASID, in spaces: PASIDSpaces) {
    guard spaces.hold(physical) else { return nil }
    self.physical = physical
    self.spaces = spaces
  }

  deinit { spaces.letGo(physical) }
}

/// The table of a VM's CPU, and the devices that it matters to.
struct PASIDTranslation: Sendable {
  struct Entry: Sendable {
    let held: HeldPASID
    /// What the user named.
    let target: ObjectID
  }

  /// Once for each file of the device's that was given to the VM.
  var devices: [any BindableDevice] = []
  var isEnabled = false
  var entries: [PASID: Entry] = [:]

  func device(of kind: DeviceKind) -> (any BindableDevice)? {
    devices.first { $0.kind == kind }
  }
}

extension VirtualMachine {
  // MARK: Devices

  /// The devices that were given to the VM.
  public var devices: [any BindableDevice] { translation.withLock { $0.devices } }

  /// Gives a device to the VM. Who has both may do it (MODEL A2).
  ///
  /// Linux: `KVM_DEV_VFIO_FILE_ADD`.
  /// - Throws: `EINVAL` where kinds 7 and 8 would meet in one VM, whose CPU either translates
  ///   PASIDs or does not (MODEL E3): the sentence names both devices.
  public func add(_ device: any BindableDevice) throws(IOMMUError) {
    try translation.withLock { (table) throws(IOMMUError) in
      let other: (any BindableDevice)? =
        switch device.kind {
        case .physicalWithWorkQueue: table.device(of: .mediatedWithWorkQueue)
        case .mediatedWithWorkQueue: table.device(of: .physicalWithWorkQueue)
        default: nil
        }
      if let other {
        throw IOMMUError(
          .invalidArgument,
          "\(name) has \(other.name), \(other.kind), and cannot have \(device.name), "
            + "\(device.kind), too: its CPU translates the PASIDs of all work queues or of none"
        )
      }
      if device.kind == .physicalWithWorkQueue, table.isEnabled {
        throw IOMMUError(
          .invalidArgument,
          "\(name) translates PASIDs, which \(device.name), \(device.kind), does not expect; "
            + "turn translation off first")
      }
      table.devices.append(device)
    }
  }

  /// Takes a device back, once for each `add`. Nothing where it is not there.
  public func remove(_ device: any BindableDevice) {
    translation.withLock { table in
      guard let index = table.devices.firstIndex(where: { $0 === device }) else { return }
      table.devices.remove(at: index)
    }
  }

  // MARK: The CPU's table

  /// Whether the CPU translates PASIDs on their way to work queues.
  public var translatesPASIDs: Bool { translation.withLock { $0.isEnabled } }

  /// Turns the translation on or off. Off, the portals of kind 8 are closed; the table stays.
  ///
  /// The proposal: `KVM_CAP_PASID_TRANSLATION`.
  /// - Throws: `EINVAL` where a device of kind 7 would get translated PASIDs; `EBADF` once the
  ///   VM is closed.
  public func setTranslatesPASIDs(_ value: Bool) throws(IOMMUError) {
    try checkOpen()
    try translation.withLock { (table) throws(IOMMUError) in
      if value, let device = table.device(of: .physicalWithWorkQueue) {
        throw IOMMUError(
          .invalidArgument,
          "\(name) cannot translate PASIDs: \(device.name) is \(device.kind), which takes them "
            + "as they are; take it from the VM first")
      }
      table.isEnabled = value
    }
  }

  /// Lets the CPU translate a virtual PASID to what the devices of a context carry for it.
  ///
  /// The proposal: `KVM_MAP_PASID`. Who has both the VM and the context may do it (MODEL A2).
  /// - Parameters:
  ///   - virtual: One that a kind-8 device is attached by.
  ///   - target: The page table or the address space that it is attached to.
  /// - Throws: `EEXIST` where the PASID is mapped already; `ENOENT` where no kind-8 device of
  ///   the context is attached to the target by it; `EBADF` once the VM is closed.
  public func map(
    _ virtual: PASID, to target: ObjectID, of context: Context
  ) throws(IOMMUError) {
    try checkOpen()
    let entry = PASIDTranslation.Entry(
      held: try context.holdPASID(virtual, on: target), target: target)
    let isNew = translation.withLock { table -> Bool in
      guard table.entries[virtual] == nil else { return false }
      table.entries[virtual] = entry
      return true
    }
    guard isNew else {
      throw IOMMUError(
        .fileExists, "\(name) translates PASID \(virtual.rawValue) already; unmap it first")
    }
  }

  /// Takes a virtual PASID out of the CPU's table. When it returns, none of the VM's CPUs can
  /// submit work by it; what was accepted before goes on until a detach.
  ///
  /// The proposal: `KVM_UNMAP_PASID`.
  /// - Throws: `ENOENT` where it is not mapped.
  public func unmap(_ virtual: PASID) throws(IOMMUError) {
    let entry = translation.withLock { $0.entries.removeValue(forKey: virtual) }
    guard entry != nil else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "\(name) does not translate PASID \(virtual.rawValue); there is nothing to unmap")
    }
  }

  /// The virtual PASIDs that the CPU translates, in ascending order.
  public var translatedPASIDs: [PASID] { translation.withLock { $0.entries.keys.sorted() } }

  /// What the CPU writes for a virtual PASID.
  /// - Throws: `EPERM` while translation is off, `EFAULT` where the table has no entry.
  func translate(
    _ virtual: PASID, for device: any BindableDevice
  ) throws(IOMMUError) -> PASID {
    try translation.withLock { (table) throws(IOMMUError) in
      guard table.isEnabled else {
        throw IOMMUError(
          .notPermitted,
          "the work portal of \(device.name) is closed: \(name) does not translate PASIDs; turn "
            + "that on first (KVM_ENABLE_CAP)")
      }
      guard let entry = table.entries[virtual] else {
        throw IOMMUError(
          .badAddress,
          "\(name) has no translation for PASID \(virtual.rawValue); map it first "
            + "(KVM_MAP_PASID)")
      }
      return entry.held.physical
    }
  }

  /// The VM is gone: its CPU submits nothing, and what it held is free.
  func endTranslation() {
    // Let go of after the lock.
    _ = translation.withLock { table in
      defer { table = PASIDTranslation() }
      return table.entries
    }
  }
}

extension Context {
  /// Finds the PASID that this context's kind-8 devices share for a virtual one.
  fileprivate func holdPASID(
    _ virtual: PASID, on target: ObjectID
  ) throws(IOMMUError) -> HeldPASID {
    for object in boundDevices where object.endpoint.kind.allocation == .global {
      guard let table = object.group.table(of: object, pasid: virtual),
        table.id == target || table.space.id == target,
        let physical = object.endpoint.pasids.physical(of: virtual),
        let held = HeldPASID(physical, in: system.pasids),
        object.endpoint.pasids.physical(of: virtual) == physical
      else { continue }
      return held
    }
    throw IOMMUError(
      .noSuchFileOrDirectory,
      "no device of kind 8 is attached to object \(target) with PASID \(virtual.rawValue); "
        + "attach one first")
  }
}
