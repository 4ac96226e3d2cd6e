// SPDX-License-Identifier: Apache-2.0
//
// A VM's descriptor, from KVM_CREATE_VM: memory slots, devices, and the CPU's table of PASIDs
// (MODEL B4, E4). Facts: Linux 6.12, virt/kvm/kvm_main.c; the calls on PASIDs are the proposal's.

import CLinuxABI
import IOMMU
import SystemPackage

/// A VM's file.
final class VirtualMachineFile: OpenFile {
  private let holder: MachineHolder
  let number: DeviceNumber

  init(holder: MachineHolder, number: DeviceNumber) {
    self.holder = holder
    self.number = number
    holder.open()
  }

  var machine: VirtualMachine { holder.machine }
  var name: String { "kvm-vm \(machine.name)" }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    try holder.checkOwner(caller)
    switch command {
    case KVM_CHECK_EXTENSION: return KVMExtensions.check(argument)
    case KVM_SET_USER_MEMORY_REGION: try setMemoryRegion(argument, caller)
    case KVM_ENABLE_CAP: try enable(argument, caller)
    case KVM_CREATE_DEVICE: try createDevice(argument, caller)
    case KVM_MAP_PASID:
      let call = try pasidCall(argument, caller)
      guard let file = try caller.openFile(descriptor: call.iommu_fd) as? any ContextFile else {
        throw IOMMUError(
          .invalidArgument, "descriptor \(call.iommu_fd) is not an open /dev/iommu")
      }
      try machine.map(
        PASID(rawValue: call.vpasid), to: ObjectID(call.ioasid), of: file.context)
    case KVM_UNMAP_PASID:
      try machine.unmap(PASID(rawValue: try pasidCall(argument, caller).vpasid))
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice,
        "\(machine.name) has no command \(hex(command)): it is a VM for DMA, and runs no guest")
    }
    return 0
  }

  /// No program's addresses go further on any host, exclusive (`access_ok`): half of 57 bits.
  private static let userEnd: UInt64 = 1 << 56

  private func setMemoryRegion(
    _ argument: UInt64, _ caller: any Caller
  ) throws(IOMMUError) {
    let region = try caller.load(
      kvm_userspace_memory_region(), from: argument,
      size: MemoryLayout<kvm_userspace_memory_region>.size)
    let (end, wraps) = region.userspace_addr.addingReportingOverflow(region.memory_size)
    guard !wraps, end <= Self.userEnd else {
      throw IOMMUError(
        .invalidArgument,
        "memory slot \(region.slot): \(hex(region.memory_size)) bytes at "
          + "\(hex(region.userspace_addr)) are not a program's addresses")
    }
    let slot = MemorySlot(
      number: region.slot, guestAddress: region.guest_phys_addr, byteCount: region.memory_size,
      userAddress: region.userspace_addr, flags: MemorySlot.Flags(rawValue: region.flags))
    try machine.setMemorySlot(slot, of: holder.memory, account: account(of: caller))
  }

  /// What devices pin of a slot is charged to who publishes it (MODEL B6).
  private func account(of caller: any Caller) throws(IOMMUError) -> MemoryAccount {
    let (owner, right) = try caller.memoryOwner()
    return owner.account(right == .unlimited ? .none : .user)
  }

  private func enable(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let capability = try caller.load(
      kvm_enable_cap(), from: argument, size: MemoryLayout<kvm_enable_cap>.size)
    guard capability.cap == KVM_CAP_PASID_TRANSLATION else {
      throw IOMMUError(
        .invalidArgument,
        "\(machine.name) has no capability \(capability.cap) to turn on; it has "
          + "KVM_CAP_PASID_TRANSLATION (\(KVM_CAP_PASID_TRANSLATION))")
    }
    let value = capability.args.0
    guard capability.flags == 0, value <= 1 else {
      throw IOMMUError(
        .invalidArgument,
        "KVM_CAP_PASID_TRANSLATION takes no flags (\(hex(capability.flags))), and 0 or 1 in "
          + "args[0], not \(value)")
    }
    try machine.setTranslatesPASIDs(value == 1)
  }

  private func createDevice(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    var device = try caller.load(
      kvm_create_device(), from: argument, size: MemoryLayout<kvm_create_device>.size)
    guard device.type == KVM_DEV_TYPE_VFIO else {
      throw IOMMUError(
        .noSuchDevice,
        "\(machine.name) can have a device of type VFIO (\(KVM_DEV_TYPE_VFIO)), not "
          + "\(device.type)")
    }
    if device.flags & KVM_CREATE_DEVICE_TEST != 0 { return }
    let isFirst = holder.hasVFIODevice.withLock { has in
      defer { has = true }
      return !has
    }
    guard isFirst else {
      throw IOMMUError(.resourceBusy, "\(machine.name) has its device of type VFIO already")
    }
    let file = VirtualMachineVFIOFile(holder: holder, number: number)
    do throws(IOMMUError) {
      device.fd = UInt32(bitPattern: try caller.install(file, closeOnExec: true))
    } catch {
      file.close()
      throw error
    }
    // Where this fails, the file is taken back and closed.
    try caller.store(device, to: argument)
  }

  private func pasidCall(
    _ argument: UInt64, _ caller: any Caller
  ) throws(IOMMUError) -> kvm_pasid {
    let size = MemoryLayout<kvm_pasid>.size
    let call = try caller.load(kvm_pasid(), from: argument, size: size)
    try checkHead(argsz: call.argsz, atLeast: size, flags: call.flags)
    return call
  }

  func close() { holder.close() }
}

/// A file by which a VM is given devices.
private protocol MachineMember: OpenFile {
  func give(to machine: VirtualMachine) throws(IOMMUError)
  func takeBack(from machine: VirtualMachine)
}

extension VFIODeviceFile: MachineMember {
  func give(to machine: VirtualMachine) throws(IOMMUError) { try session.give(to: machine) }
  func takeBack(from machine: VirtualMachine) { session.takeBack() }
}

extension VFIOGroupFile: MachineMember {
  func give(to machine: VirtualMachine) throws(IOMMUError) { try group.give(to: machine) }
  func takeBack(from machine: VirtualMachine) { group.takeBack(from: machine) }
}

/// A VM's device of type VFIO: who has its descriptor and a device's or a group's may connect the
/// two (MODEL A2). Linux: virt/kvm/vfio.c.
final class VirtualMachineVFIOFile: OpenFile {
  private let holder: MachineHolder
  let number: DeviceNumber
  private let given = Guarded<[any MachineMember]>([])

  init(holder: MachineHolder, number: DeviceNumber) {
    self.holder = holder
    self.number = number
    holder.open()
  }

  var name: String { "kvm-vfio \(holder.machine.name)" }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    try holder.checkOwner(caller)
    guard [KVM_SET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR].contains(command)
    else {
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command))")
    }
    let attribute = try caller.load(
      kvm_device_attr(), from: argument, size: MemoryLayout<kvm_device_attr>.size)
    let isKnown =
      attribute.group == KVM_DEV_VFIO_FILE
      && [UInt64(KVM_DEV_VFIO_FILE_ADD), UInt64(KVM_DEV_VFIO_FILE_DEL)].contains(attribute.attr)
    switch command {
    case KVM_GET_DEVICE_ATTR:
      throw IOMMUError(.notPermitted, "\(name) has attributes to set, and none to get")
    case _ where !isKnown:
      throw IOMMUError(
        .noSuchAddressOrDevice,
        "\(name) has no attribute \(attribute.attr) in group \(attribute.group); it has "
          + "KVM_DEV_VFIO_FILE_ADD and _DEL")
    case KVM_HAS_DEVICE_ATTR: return 0
    default: break
    }
    let descriptor = try caller.load(Int32.self, from: attribute.addr, zero: 0)
    let file = try caller.openFile(descriptor: descriptor)
    if attribute.attr == UInt64(KVM_DEV_VFIO_FILE_ADD) {
      try add(file, descriptor)
    } else {
      try remove(file, descriptor)
    }
    return 0
  }

  private func add(_ file: (any OpenFile)?, _ descriptor: Int32) throws(IOMMUError) {
    guard let file = file as? any MachineMember else {
      throw IOMMUError(
        .invalidArgument,
        "descriptor \(descriptor) is no VFIO device's and no group's; a VM is given devices by "
          + "those"
      )
    }
    let isNew = given.withLock { given in
      guard !given.contains(where: { $0 === file }) else { return false }
      given.append(file)
      return true
    }
    guard isNew else {
      throw IOMMUError(
        .fileExists, "\(file.name) was given to \(holder.machine.name) already")
    }
    do throws(IOMMUError) {
      try file.give(to: holder.machine)
    } catch {
      forget(file)
      throw error
    }
  }

  private func remove(_ file: (any OpenFile)?, _ descriptor: Int32) throws(IOMMUError) {
    guard let file = file as? any MachineMember, forget(file) else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "descriptor \(descriptor) is no device and no group that was given to \(holder.machine.name)"
      )
    }
    file.takeBack(from: holder.machine)
  }

  @discardableResult
  private func forget(_ file: any MachineMember) -> Bool {
    given.withLock { given in
      guard let index = given.firstIndex(where: { $0 === file }) else { return false }
      given.remove(at: index)
      return true
    }
  }

  func close() {
    let files = given.withLock { given in
      defer { given = [] }
      return given
    }
    for file in files { file.takeBack(from: holder.machine) }
    holder.hasVFIODevice.withLock { $0 = false }
    holder.close()
  }
}
