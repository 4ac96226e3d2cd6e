// SPDX-License-Identifier: Apache-2.0
//
// /dev/vfio/vfio: containers (MODEL C6, J1), and what an open of it answers. The policy is
// VFIO's. Facts: Linux 6.12, drivers/vfio/{container,vfio_iommu_type1}.c; structures and errnos
// of the mappings as in 7.1.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage
import VFIO

/// The node `/dev/vfio/vfio`.
public final class VFIOContainerNode: DeviceNode {
  public let path = "/dev/vfio/vfio"
  public let number = DeviceNumber(major: 10, minor: 196)
  private let system: IOMMUSystem

  /// - Parameter system: Whose groups the containers take.
  public init(system: IOMMUSystem) { self.system = system }

  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    VFIOContainerFile(container: VFIOContainer(system: system), number: number)
  }
}

/// An open container. Groups that are in it keep it when the file is closed.
final class VFIOContainerFile: OpenFile {
  let name = "vfio-container"
  let container: VFIOContainer
  let number: DeviceNumber

  init(container: VFIOContainer, number: DeviceNumber) {
    self.container = container
    self.number = number
  }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case VFIO_GET_API_VERSION:
      return Int(VFIO_API_VERSION)
    case VFIO_CHECK_EXTENSION:
      return VFIOContainer.Extension(rawValue: argument).map { container.has($0) } == true
        ? 1 : 0
    case VFIO_SET_IOMMU:
      try container.setIOMMU(argument)
    default:
      // Without a model nothing is known, not even that a command is unknown.
      let model = try container.requireModel()
      let call = Type1Call(
        container: container, model: model, caller: caller, argument: argument)
      try call.run(command)
    }
    return 0
  }

  func close() {}
}

/// One call of the commands on mappings.
struct Type1Call {
  let container: VFIOContainer
  let model: VFIOContainer.Model
  let caller: any Caller
  let argument: UInt64

  func run(_ command: UInt32) throws(IOMMUError) {
    switch command {
    case VFIO_IOMMU_GET_INFO: try getInfo()
    case VFIO_IOMMU_MAP_DMA: try map()
    case VFIO_IOMMU_UNMAP_DMA: try unmap()
    case VFIO_IOMMU_DIRTY_PAGES: try dirtyPages()
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "a \(model) container has no command \(hex(command))")
    }
  }

  private func map() throws(IOMMUError) {
    let cmd = try caller.load(vfio_iommu_type1_dma_map(), from: argument, size: 32)
    try checkHead(
      argsz: cmd.argsz, atLeast: 32, flags: cmd.flags,
      known: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)
    var permissions: Permissions = []
    if cmd.flags & VFIO_DMA_MAP_FLAG_READ != 0 { permissions.insert(.read) }
    if cmd.flags & VFIO_DMA_MAP_FLAG_WRITE != 0 { permissions.insert(.write) }
    let (owner, right) = try caller.memoryOwner()
    try container.map(
      VFIOContainer.Request(
        source: caller.memory(), address: cmd.vaddr, iova: cmd.iova, size: cmd.size,
        permissions: permissions,
        account: VFIOContainer.account(of: owner, isUnlimited: right == .unlimited)))
  }

  private func unmap() throws(IOMMUError) {
    let minimum = 24
    var cmd = try caller.load(vfio_iommu_type1_dma_unmap(), from: argument, size: minimum)
    try checkHead(
      argsz: cmd.argsz, atLeast: minimum, flags: cmd.flags,
      known: VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL)
    switch cmd.flags {
    case 0:
      cmd.size = try container.unmap(iova: cmd.iova, size: cmd.size)
    case VFIO_DMA_UNMAP_FLAG_ALL:
      cmd.size = try container.unmapAll(iova: cmd.iova, size: cmd.size)
    case VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP:
      try checkHead(argsz: cmd.argsz, atLeast: minimum + MemoryLayout<vfio_bitmap>.size)
      let bitmap = try caller.load(
        from: argument &+ UInt64(minimum), zero: vfio_bitmap())
      let dirty = try Type1Bitmap(bitmap, first: cmd.iova, size: cmd.size, caller: caller)
      cmd.size = try container.unmap(
        iova: cmd.iova, size: cmd.size, bitmapPageSize: dirty.pageSize
      ) { (mapping) throws(IOMMUError) in try dirty.set(mapping) }
    default:
      throw IOMMUError(
        .invalidArgument, "a dirty bitmap is not read of all mappings at once: flags 3")
    }
    try caller.store(cmd, to: argument, size: minimum)
  }
}
