// SPDX-License-Identifier: Apache-2.0
//
// VFIO's type1 commands on /dev/iommu (MODEL J1): they work on the address space that
// IOMMU_VFIO_IOAS chose. Linux: `drivers/iommu/iommufd/vfio_compat.c`.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

/// One call of the compatibility commands.
struct CompatibilityCall {
  let file: IOMMUFile
  let caller: any Caller
  let argument: UInt64

  var context: Context { file.context }

  /// - Returns: Nil where the command is not one of these.
  func run(_ command: UInt32) throws(IOMMUError) -> Int? {
    switch command {
    case VFIO_GET_API_VERSION: return Int(VFIO_API_VERSION)
    case VFIO_CHECK_EXTENSION: return try checkExtension()
    case VFIO_SET_IOMMU: try setIOMMU()
    case VFIO_IOMMU_GET_INFO: try getInfo()
    case VFIO_IOMMU_MAP_DMA: try map()
    case VFIO_IOMMU_UNMAP_DMA: try unmap()
    default: return nil
    }
    return 0
  }

  private func checkExtension() throws(IOMMUError) -> Int {
    switch argument {
    case UInt64(VFIO_TYPE1_IOMMU), UInt64(VFIO_TYPE1v2_IOMMU), UInt64(VFIO_UNMAP_ALL): 1
    case UInt64(VFIO_DMA_CC_IOMMU):
      try context.enforcesSnoop(in: context.compatibilityIOAS()) ? 1 : 0
    default: 0
    }
  }

  /// Type1 may cut areas, so it goes without large pages; type1v2 never cuts.
  private func setIOMMU() throws(IOMMUError) {
    guard argument == UInt64(VFIO_TYPE1_IOMMU) || argument == UInt64(VFIO_TYPE1v2_IOMMU) else {
      throw IOMMUError(
        .invalidArgument, "VFIO_SET_IOMMU takes type1 (1) and type1v2 (3), not \(argument)")
    }
    let ioas = try context.compatibilityIOAS()
    if argument == UInt64(VFIO_TYPE1_IOMMU) { try context.setLargePages(false, in: ioas) }
  }

  private func map() throws(IOMMUError) {
    let cmd = try caller.load(vfio_iommu_type1_dma_map(), from: argument, size: 32)
    try checkHead(
      argsz: cmd.argsz, atLeast: 32, flags: cmd.flags,
      known: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE)
    var permissions: Permissions = []
    if cmd.flags & VFIO_DMA_MAP_FLAG_READ != 0 { permissions.insert(.read) }
    if cmd.flags & VFIO_DMA_MAP_FLAG_WRITE != 0 { permissions.insert(.write) }
    let ioas = try context.compatibilityIOAS()
    try context.mapAsType1(
      caller.memory(), start: cmd.vaddr, length: cmd.size, into: ioas, permissions: permissions,
      at: IOVA(cmd.iova), account: file.account(of: caller))
  }

  private func unmap() throws(IOMMUError) {
    var cmd = try caller.load(vfio_iommu_type1_dma_unmap(), from: argument, size: 24)
    try checkHead(
      argsz: cmd.argsz, atLeast: 24, flags: cmd.flags, known: VFIO_DMA_UNMAP_FLAG_ALL)
    let ioas = try context.compatibilityIOAS()
    let result: (unmapped: UInt64, failure: IOMMUError?)
    if cmd.flags & VFIO_DMA_UNMAP_FLAG_ALL != 0 {
      guard cmd.iova == 0, cmd.size == 0 else {
        throw IOMMUError(
          .invalidArgument, "iova and size must be 0 with VFIO_DMA_UNMAP_FLAG_ALL")
      }
      result = try context.unmapAllAsFarAsPossible(from: ioas)
    } else {
      result = try context.unmapAsFarAsPossible(
        IOVA(cmd.iova), length: cmd.size, from: ioas)
    }
    // Also where it failed: the program learns how far it went.
    cmd.size = result.unmapped
    try caller.store(cmd, to: argument, size: 24)
    if let failure = result.failure { throw failure }
  }

  /// The structure, and behind it a chain of capabilities, each as far as there is room; only
  /// where there is room for all does `cap_offset` lead there. `argsz` comes back as the room
  /// that is needed.
  private func getInfo() throws(IOMMUError) {
    var cmd = try caller.load(vfio_iommu_type1_info(), from: argument, size: 16)
    try checkHead(argsz: cmd.argsz, atLeast: 16)
    let room = UInt64(cmd.argsz)
    let ioas = try context.compatibilityIOAS()
    cmd.iova_pgsizes = try context.commonPageSizes(of: ioas).rawValue
    cmd.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS
    let ranges = try context.mappableRanges(of: ioas).ranges

    // 24 bytes of structure, 12 of the first capability on a multiple of 8, then the second.
    let available = vfio_iommu_type1_info_dma_avail(
      header: vfio_info_cap_header(
        id: UInt16(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL), version: 1, next: 0), avail: .max)
    if room >= 24 + 12 { try caller.store(available, to: argument &+ 24) }
    let size = try storeRanges(ranges, room: room)
    if room >= 40 { try caller.store(UInt32(40), to: argument &+ 24 &+ 4) }
    if room >= size { cmd.cap_offset = 24 }
    cmd.argsz = UInt32(truncatingIfNeeded: size)
    try caller.store(cmd, to: argument, size: Int(min(room, 24)))
  }

  /// The second capability: the ranges that fit, and its header where all do.
  /// - Returns: Where it ends, in bytes from the structure's start.
  private func storeRanges(
    _ ranges: [ClosedRange<UInt64>], room: UInt64
  ) throws(IOMMUError) -> UInt64 {
    var iovas = vfio_iommu_type1_info_cap_iova_range()
    iovas.header.id = UInt16(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)
    iovas.header.version = 1
    iovas.nr_iovas = UInt32(ranges.count)
    var end: UInt64 = 40 + 16
    for range in ranges {
      if room >= end + 16 {
        try caller.store(
          vfio_iova_range(start: range.lowerBound, end: range.upperBound),
          to: argument &+ end)
      }
      end += 16
    }
    if room >= end { try caller.store(iovas, to: argument &+ 40) }
    return end
  }
}
