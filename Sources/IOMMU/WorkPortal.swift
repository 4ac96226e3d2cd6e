// SPDX-License-Identifier: Apache-2.0
//
// How a CPU submits work with a PASID: a 64-byte command that is written to a device's portal in
// one deferrable write, and accepted or put off (MODEL E4; PCI Express: DMWr; x86: ENQCMD).

import SystemPackage

/// 64 bytes for a shared work queue. The CPU's part of it is the PASID, bits 0 to 19 of the first
/// word, and bit 31 there, which says that it was submitted by the host's supervisor.
public struct WorkCommand: Sendable {
  /// Little-endian, as they are written.
  public var words: InlineArray<8, UInt64>

  /// In bytes; a portal takes neither less nor more.
  public static let byteCount = 64
  private static let pasidMask: UInt64 = 0xF_FFFF
  private static let supervisor: UInt64 = 1 << 31

  public init(words: InlineArray<8, UInt64>) { self.words = words }

  /// Of whose submission: virtual as a user writes it, physical as a device gets it.
  public var pasid: PASID {
    get { PASID(rawValue: UInt32(words[0] & Self.pasidMask)) }
    set { words[0] = words[0] & ~Self.pasidMask | UInt64(newValue.rawValue) & Self.pasidMask }
  }

  /// As the CPU passes it on: with a PASID that was translated, and not as the supervisor's.
  fileprivate func submitted(with pasid: PASID) -> WorkCommand {
    var command = self
    command.words[0] &= ~Self.supervisor
    command.pasid = pasid
    return command
  }
}

/// What becomes of a deferrable write.
public enum DeferrableWrite: Hashable, Sendable {
  case accepted
  /// The queue is full: try again. Linux's programs see `EAGAIN`.
  case retry
}

/// A device's page that commands are written to. Thread-safe.
public protocol WorkPortal: AnyObject, Sendable {
  /// Whose it is: a device or slice of kind 7 or 8 (MODEL E2).
  var device: any BindableDevice { get }

  /// Takes a command, whose PASID is physical by now, or puts it off. Never blocks.
  func receive(_ command: WorkCommand) -> DeferrableWrite
}

extension WorkPortal {
  /// Submits a command, as a CPU does that runs `machine`, or none.
  ///
  /// For kind 7 the PASID goes as it is to the device; for kind 8 the VM's table translates it,
  /// and until translation is on the portal is closed. Either way the device's own list has the
  /// last word (MODEL A3, E4).
  /// - Parameter command: With a virtual PASID.
  /// - Throws: `EPERM` where the portal is closed, or the PASID is not attached to the device;
  ///   `EFAULT` where the VM's table has no such PASID; `EINVAL` for a device without portals.
  ///   The command has not reached the device then.
  public func enqueue(
    _ command: WorkCommand, from machine: VirtualMachine?
  ) throws(IOMMUError) -> DeferrableWrite {
    let device = device
    let virtual = command.pasid
    switch device.kind {
    case .physicalWithWorkQueue: break
    case .mediatedWithWorkQueue:
      guard let machine else {
        throw IOMMUError(
          .notPermitted,
          "the work portal of \(device.name) is closed: no VM translates its PASIDs; give its "
            + "file to one (KVM_DEV_VFIO_FILE_ADD) that KVM_CREATE_VM made on this machine's "
            + "/dev/kvm (virtual-machines: true)")
      }
      let translated = try machine.translate(virtual, for: device)
      guard device.pasids.virtual(of: translated) == virtual else {
        throw notAttached(virtual)
      }
      return receive(command.submitted(with: translated))
    default:
      throw IOMMUError(
        .invalidArgument, "\(device.name) is \(device.kind), without work queues")
    }
    guard let physical = device.pasids.physical(of: virtual) else { throw notAttached(virtual) }
    return receive(command.submitted(with: physical))
  }

  private func notAttached(_ virtual: PASID) -> IOMMUError {
    IOMMUError(
      .notPermitted,
      "PASID \(virtual.rawValue) is not attached to \(device.name); attach it first "
        + "(VFIO_DEVICE_ATTACH_IOMMUFD_PT)")
  }
}

extension VirtualMachine {
  /// Submits a command from inside the VM: its CPU executes ENQCMD. As `WorkPortal.enqueue`.
  /// - Throws: `EPERM` also where the portal's device was not given to this VM.
  public func enqueue(
    _ command: WorkCommand, to portal: some WorkPortal
  ) throws(IOMMUError) -> DeferrableWrite {
    guard devices.contains(where: { $0 === portal.device }) else {
      throw IOMMUError(.notPermitted, "\(portal.device.name) was not given to \(name)")
    }
    return try portal.enqueue(command, from: self)
  }
}
