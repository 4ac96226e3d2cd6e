// SPDX-License-Identifier: Apache-2.0
//
// Page tables that are somebody else's already: a process's own (MODEL B3) and a VM's memory (B4),
// given when the ioasid is made. The mails list them, and leave their spelling open.

import CLinuxABI
import IOMMU
import SystemPackage

extension IOASIDCall {
  /// The caller's own address space, as the IOMMU of a bound device walks it.
  /// - Throws: `EINVAL` for fields that do not go with it; `ENOENT` for the cookie; `EOPNOTSUPP`
  ///   where that IOMMU has no PASIDs.
  func allocProcessTable(_ cmd: ioasid_alloc) throws(IOMMUError) -> Int {
    guard cmd.flags == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "flags \(hex(cmd.flags)) do not go with a process's page table: it has no parent, and its "
          + "IOMMU alone says whether it snoops")
    }
    try requireZero(cmd.addr_width, "addr_width of a process's page table")
    try requireZero(cmd.parent, "parent, without its flag,")
    let device = try context.device(cookie: cmd.table)
    let id = try context.allocateSharedHWPT(for: device, process: caller.addressSpace())
    return Int(id.rawValue)
  }

  /// A space that follows a VM's memory slots. Who has the VM's descriptor may do it (MODEL A2).
  /// - Throws: `EINVAL` for fields that do not go with it, and for a descriptor that is no VM's of
  ///   ours; `EBADF`; what `Context.follow` throws.
  func allocVMMemory(_ cmd: ioasid_alloc) throws(IOMMUError) -> Int {
    guard cmd.flags & ~IOASID_ALLOC_ENFORCE_SNOOP == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "flags \(hex(cmd.flags)) do not go with a VM's memory: it has no parent; nest on it")
    }
    try requireZero(cmd.parent, "parent, without its flag,")
    guard let descriptor = Int32(exactly: cmd.table) else {
      throw IOMMUError(.badFileDescriptor, "\(hex(cmd.table)) is no descriptor of a VM")
    }
    guard let file = try caller.openFile(descriptor: descriptor) as? VirtualMachineFile else {
      throw IOMMUError(
        .invalidArgument,
        "descriptor \(descriptor) is no VM that KVM_CREATE_VM made on this machine's /dev/kvm "
          + "(virtual-machines: true); the memory of others is not followed")
    }
    let id = try context.allocateIOAS(Self.attributes(cmd))
    do throws(IOMMUError) {
      try context.follow(file.machine, in: id)
    } catch {
      // Nobody was told of it.
      try? context.destroy(id)
      throw error
    }
    return Int(id.rawValue)
  }

  /// Refuses what only the process itself can do.
  /// - Parameter errno: What the call says of a space that is not the caller's to change.
  func refuseProcessTable(_ ioasid: ObjectID, _ errno: Errno) throws(IOMMUError) {
    guard let process = context.process(of: ioasid) else { return }
    throw IOMMUError(
      errno,
      "ioasid \(ioasid) is the page table of \(process.name): what that maps, unmaps and "
        + "protects itself holds for devices at once")
  }
}
