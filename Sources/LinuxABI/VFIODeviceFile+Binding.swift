// SPDX-License-Identifier: Apache-2.0
//
// BIND_IOMMUFD, ATTACH_IOMMUFD_PT and DETACH_IOMMUFD_PT: what makes a device's security context
// (MODEL C, D). Structures as of Linux 6.12: the token and the PASIDs that came later are
// refused by their flags, as there.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  func bind(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 16
    let structure = try caller.load(
      vfio_device_bind_iommufd(), from: argument, size: minimum)
    try check(structure.argsz, atLeast: minimum, flags: structure.flags)
    guard structure.iommufd >= 0 else {
      throw IOMMUError(.invalidArgument, "\(structure.iommufd) is no descriptor to bind to")
    }
    try session.bind(
      findContext: { () throws(IOMMUError) in
        guard let file = try caller.openFile(descriptor: structure.iommufd) as? any ContextFile
        else {
          throw IOMMUError(
            .badDescriptorState, "descriptor \(structure.iommufd) is not an open /dev/iommu")
        }
        return file.context
      },
      publish: { (id) throws(IOMMUError) in
        try caller.store(id.rawValue, to: argument &+ 12)
      })
  }

  func attach(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 12
    let structure = try caller.load(
      vfio_device_attach_iommufd_pt(), from: argument, size: minimum)
    try check(structure.argsz, atLeast: minimum, flags: structure.flags)
    try session.attach(
      to: ObjectID(structure.pt_id),
      publish: { (id) throws(IOMMUError) in
        try caller.store(id.rawValue, to: argument &+ 8)
      })
  }

  func detach(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 8
    let structure = try caller.load(
      vfio_device_detach_iommufd_pt(), from: argument, size: minimum)
    try check(structure.argsz, atLeast: minimum, flags: structure.flags)
    try session.detach()
  }

  /// The two things that all structures of VFIO begin with.
  func check(
    _ argsz: UInt32, atLeast minimum: Int, flags: UInt32 = 0
  ) throws(IOMMUError) {
    guard Int(argsz) >= minimum else {
      throw IOMMUError(.invalidArgument, "argsz is \(argsz); \(minimum) bytes are needed")
    }
    guard flags == 0 else {
      throw IOMMUError(
        .invalidArgument, "flags are \(hex(flags)) and none is known here")
    }
  }
}
