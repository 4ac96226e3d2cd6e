// SPDX-License-Identifier: Apache-2.0
//
// BIND_IOMMUFD, ATTACH_IOMMUFD_PT and DETACH_IOMMUFD_PT: what makes a device's security context
// (MODEL C, D).

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  func bind(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 16
    // Since 6.17, as commands of iommufd: the size first, and nothing but zeros behind what is
    // known.
    let size = try caller.load(UInt32.self, from: argument, zero: 0)
    try checkHead(argsz: size, atLeast: minimum)
    let known = MemoryLayout<vfio_device_bind_iommufd>.size
    if Int(size) > known {
      guard try caller.isZero(at: argument &+ UInt64(known), count: UInt64(Int(size) - known))
      else {
        throw IOMMUError(
          .argListTooLong,
          "argsz is \(size), only \(known) bytes are known, and the rest is not zero")
      }
    }
    let structure = try caller.load(
      vfio_device_bind_iommufd(), from: argument, size: min(Int(size), known))
    try checkHead(
      argsz: structure.argsz, atLeast: minimum, flags: structure.flags,
      known: VFIO_DEVICE_BIND_FLAG_TOKEN)
    guard structure.iommufd >= 0 else {
      throw IOMMUError(.invalidArgument, "\(structure.iommufd) is no descriptor to bind to")
    }
    try session.bind(
      token: { () throws(IOMMUError) in
        guard structure.flags & VFIO_DEVICE_BIND_FLAG_TOKEN != 0 else { return nil }
        return VFToken(bytes: try caller.bytes(at: structure.token_uuid_ptr, count: 16))
      },
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
    var structure = try caller.load(
      vfio_device_attach_iommufd_pt(), from: argument, size: minimum)
    try checkHead(
      argsz: structure.argsz, atLeast: minimum, flags: structure.flags,
      known: VFIO_DEVICE_ATTACH_PASID)
    var pasid: PASID?
    if structure.flags & VFIO_DEVICE_ATTACH_PASID != 0 {
      try checkHead(argsz: structure.argsz, atLeast: 16)
      structure = try caller.load(structure, from: argument, size: 16)
      pasid = PASID(rawValue: structure.pasid)
    }
    try session.attach(
      pasid: pasid, to: ObjectID(structure.pt_id),
      publish: { (id) throws(IOMMUError) in
        try caller.store(id.rawValue, to: argument &+ 8)
      })
  }

  func detach(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 8
    var structure = try caller.load(
      vfio_device_detach_iommufd_pt(), from: argument, size: minimum)
    try checkHead(
      argsz: structure.argsz, atLeast: minimum, flags: structure.flags,
      known: VFIO_DEVICE_DETACH_PASID)
    var pasid: PASID?
    if structure.flags & VFIO_DEVICE_DETACH_PASID != 0 {
      try checkHead(argsz: structure.argsz, atLeast: 12)
      structure = try caller.load(structure, from: argument, size: 12)
      pasid = PASID(rawValue: structure.pasid)
    }
    try session.detach(pasid: pasid)
  }
}
