// SPDX-License-Identifier: Apache-2.0
//
// The proposal's calls on a device: bind with a cookie, attach and detach by ioasid and virtual
// PASID (MODEL A2, C1, K1). They name the context at each call: both descriptors or nothing.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  func bindIOMMUFD(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_bind_iommu_fd>.size
    let cmd = try caller.load(vfio_device_bind_iommu_fd(), from: argument, size: size)
    try checkHead(argsz: cmd.argsz, atLeast: size, flags: cmd.flags)
    guard cmd.reserved == 0 else {
      throw IOMMUError(.invalidArgument, "reserved is \(hex(cmd.reserved)) and must be 0")
    }
    try session.bind(
      cookie: cmd.cookie,
      findContext: { () throws(IOMMUError) in
        try Self.context(of: cmd.iommu_fd, caller)
      },
      publish: { _ in })
  }

  func attachIOASID(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let (ioasid, pasid) = try loadAttachment(argument, caller)
    try session.attach(pasid: pasid, to: ioasid, publish: { _ in })
  }

  func detachIOASID(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let (ioasid, pasid) = try loadAttachment(argument, caller)
    try session.detach(pasid: pasid, from: ioasid)
  }

  /// What is attached or detached; `iommu_fd` must be the context that the device is bound to.
  private func loadAttachment(
    _ argument: UInt64, _ caller: any Caller
  ) throws(IOMMUError) -> (ioasid: ObjectID, pasid: PASID?) {
    let size = MemoryLayout<vfio_device_attach_ioasid>.size
    let cmd = try caller.load(vfio_device_attach_ioasid(), from: argument, size: size)
    try checkHead(
      argsz: cmd.argsz, atLeast: size, flags: cmd.flags, known: VFIO_DEVICE_IOASID_VPASID)
    guard try Self.context(of: cmd.iommu_fd, caller) === session.boundContext() else {
      throw IOMMUError(
        .invalidArgument,
        "\(function.name) is bound to another open of /dev/ioasid than descriptor \(cmd.iommu_fd)"
      )
    }
    let hasPASID = cmd.flags & VFIO_DEVICE_IOASID_VPASID != 0
    return (ObjectID(cmd.ioasid), hasPASID ? PASID(rawValue: cmd.vpasid) : nil)
  }

  private static func context(
    of descriptor: Int32, _ caller: any Caller
  ) throws(IOMMUError) -> Context {
    guard let file = try caller.openFile(descriptor: descriptor) as? any ContextFile else {
      throw IOMMUError(
        .badDescriptorState,
        "descriptor \(descriptor) is not an open /dev/ioasid or /dev/iommu")
    }
    return file.context
  }
}
