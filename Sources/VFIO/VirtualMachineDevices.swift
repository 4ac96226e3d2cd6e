// SPDX-License-Identifier: Apache-2.0
//
// Devices in the hands of a VM: by a file of the device, or by its group's for all that are opened
// through that (MODEL E4, A2). Facts: Linux 6.12, virt/kvm/vfio.c, `vfio_file_set_kvm`.

import IOMMU
import SystemPackage

extension DeviceSession {
  /// Gives the device to a VM: the VM's CPU is who writes to its portal from then on.
  ///
  /// Linux: `KVM_DEV_VFIO_FILE_ADD`. MODEL E4.
  /// - Throws: `EBUSY` where another VM has it; as `VirtualMachine.add`.
  public func give(to machine: VirtualMachine) throws(IOMMUError) {
    try give(to: machine, by: self.machine)
  }

  /// As `give`, by way of the group.
  func join(_ machine: VirtualMachine) throws(IOMMUError) {
    try give(to: machine, by: groupMachine)
  }

  private func give(
    to machine: VirtualMachine, by way: borrowing Guarded<VirtualMachine?>
  ) throws(IOMMUError) {
    let other = way.withLock { current -> VirtualMachine? in
      guard let current else {
        current = machine
        return nil
      }
      return current
    }
    if let other {
      throw IOMMUError(
        .resourceBusy, "\(device.function.name) was given to \(other.name) already")
    }
    do throws(IOMMUError) {
      if let endpoint { try machine.add(endpoint) }
    } catch {
      way.withLock { $0 = nil }
      throw error
    }
  }

  /// Takes the device back from its VM. Nothing where it has none.
  public func takeBack() { takeBack(by: machine) }

  /// As `takeBack`, of what `join` gave.
  func leaveMachine() { takeBack(by: groupMachine) }

  private func takeBack(by way: borrowing Guarded<VirtualMachine?>) {
    let machine = way.withLock { machine in
      defer { machine = nil }
      return machine
    }
    if let machine, let endpoint { machine.remove(endpoint) }
  }

  /// The VM that the file was given to, or its group; nil where it was given to none.
  public var virtualMachine: VirtualMachine? {
    machine.withLock { $0 } ?? groupMachine.withLock { $0 }
  }

  private var endpoint: (any BindableDevice)? { device.function.device }
}

extension VFIOGroup {
  /// Gives the group to a VM: its devices that are open through it are the VM's, and those that
  /// will be, for as long as they are open.
  ///
  /// Linux: `KVM_DEV_VFIO_GROUP_ADD`, which is `KVM_DEV_VFIO_FILE_ADD` of a group's file.
  /// - Throws: `EBUSY` where another VM has it; as `VirtualMachine.add` of a device that is open:
  ///   then none is given.
  public func give(to machine: VirtualMachine) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      if let other = state.machine {
        throw IOMMUError(
          .resourceBusy, "group \(group.id) was given to \(other.name) already")
      }
      var given: [DeviceSession] = []
      do throws(IOMMUError) {
        for session in state.sessions.compactMap(\.session) {
          try session.join(machine)
          given.append(session)
        }
      } catch {
        for session in given { session.leaveMachine() }
        throw error
      }
      state.machine = machine
    }
  }

  /// Takes the group and its devices back from a VM. Nothing where it was not given to that one.
  public func takeBack(from machine: VirtualMachine) {
    state.withLock { state in
      for session in state.sessions.compactMap(\.session)
      where session.groupMachine.withLock({ $0 }) === machine {
        session.leaveMachine()
      }
      if state.machine === machine { state.machine = nil }
    }
  }
}
