// SPDX-License-Identifier: Apache-2.0
//
// /dev/kvm of a machine whose VMs are ours: as much of KVM as DMA needs (MODEL B4, E4). No guest
// runs in them; what runs is the VMM, with its memory slots, devices and PASIDs.

import CLinuxABI
import IOMMU
import SystemPackage

/// The node `/dev/kvm`.
public final class VirtualMachineNode: DeviceNode {
  public let path = "/dev/kvm"
  public let number = DeviceNumber(major: 10, minor: 232)
  private let made = Guarded(0)

  public init() {}

  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    VirtualMachineSystemFile(node: self)
  }

  /// For sentences: `VM 3`.
  fileprivate func nextName() -> String {
    made.withLock { made in
      made += 1
      return "VM \(made)"
    }
  }
}

/// An open `/dev/kvm`.
final class VirtualMachineSystemFile: OpenFile {
  let name = "kvm"
  private let node: VirtualMachineNode

  init(node: VirtualMachineNode) { self.node = node }

  var number: DeviceNumber { node.number }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case KVM_GET_API_VERSION:
      try requireNothing(argument, "KVM_GET_API_VERSION")
      return Int(KVM_API_VERSION)
    case KVM_CHECK_EXTENSION: return KVMExtensions.check(argument)
    case KVM_CREATE_VM:
      guard argument == 0 else {
        throw IOMMUError(
          .invalidArgument, "VMs here are of type 0, not \(hex(argument)); none runs a guest")
      }
      let machine = MachineHolder(
        machine: VirtualMachine(name: node.nextName()), memory: try caller.memory())
      let file = VirtualMachineFile(holder: machine, number: number)
      return Int(try caller.install(file, closeOnExec: true))
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice,
        "/dev/kvm has no command \(hex(command)) here: it makes VMs for DMA, which run no guest"
      )
    }
  }

  private func requireNothing(_ argument: UInt64, _ call: String) throws(IOMMUError) {
    guard argument == 0 else {
      throw IOMMUError(.invalidArgument, "\(call) takes 0, not \(hex(argument))")
    }
  }

  func close() {}
}

/// What `KVM_CHECK_EXTENSION` says.
enum KVMExtensions {
  static func check(_ argument: UInt64) -> Int {
    switch argument {
    case UInt64(KVM_CAP_USER_MEMORY), UInt64(KVM_CAP_DESTROY_MEMORY_REGION_WORKS),
      UInt64(KVM_CAP_JOIN_MEMORY_REGIONS_WORKS), UInt64(KVM_CAP_READONLY_MEM),
      UInt64(KVM_CAP_DEVICE_CTRL), UInt64(KVM_CAP_ENABLE_CAP_VM),
      UInt64(KVM_CAP_CHECK_EXTENSION_VM), UInt64(KVM_CAP_PASID_TRANSLATION):
      1
    case UInt64(KVM_CAP_NR_MEMSLOTS): Int(VirtualMachine.slotLimit)
    default: 0
    }
  }
}

/// A VM and the files that keep it: its own, and those of its devices. Thread-safe.
final class MachineHolder: Sendable {
  let machine: VirtualMachine
  /// Of the process that made it: its slots' addresses are addresses there.
  let memory: any MemorySource
  private let files = Guarded(0)
  /// A VM has one device of type VFIO.
  let hasVFIODevice = Guarded(false)

  init(machine: VirtualMachine, memory: any MemorySource) {
    self.machine = machine
    self.memory = memory
  }

  func open() { files.withLock { $0 += 1 } }

  func close() {
    let isLast = files.withLock { files in
      files -= 1
      return files == 0
    }
    if isLast { machine.close() }
  }

  /// Linux: a VM's files are used by the process that made it.
  /// - Throws: `EIO`.
  func checkOwner(_ caller: any Caller) throws(IOMMUError) {
    guard try caller.memory() === memory else {
      throw IOMMUError(
        .ioError,
        "\(machine.name) was made by another process, whose memory its slots name; only that "
          + "one may use it")
    }
  }
}
