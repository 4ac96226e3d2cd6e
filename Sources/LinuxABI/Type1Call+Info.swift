// SPDX-License-Identifier: Apache-2.0
//
// VFIO_IOMMU_GET_INFO of a container: a structure, and behind it a chain of capabilities in the
// order of type1: dirty bitmaps, mappings left, ranges of IOVA.

import CLinuxABI
import IOMMU
import VFIO

extension Type1Call {
  func getInfo() throws(IOMMUError) {
    let minimum = 16
    let whole = MemoryLayout<vfio_iommu_type1_info>.size
    var info = try caller.load(vfio_iommu_type1_info(), from: argument, size: minimum)
    try checkHead(argsz: info.argsz, atLeast: minimum)
    let room = Int(info.argsz)
    let information = try container.information
    info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS
    info.iova_pgsizes = information.pageSizes
    let chain = CapabilityChain(information, at: whole).bytes
    // All of the chain or none: who has no room learns how much it takes.
    if room < whole + chain.count {
      info.argsz = UInt32(whole + chain.count)
    } else {
      try caller.store(bytes: chain, to: argument &+ UInt64(whole))
      info.cap_offset = UInt32(whole)
    }
    try caller.store(info, to: argument, size: min(room, whole))
  }
}

extension CapabilityChain {
  fileprivate init(_ information: VFIOContainer.Information, at start: Int) {
    self.init(at: start)
    addHeader(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION)
    add(UInt32(0))
    add(UInt32(0))
    add(information.dirtyPageSizes)
    add(information.longestBitmap)
    addHeader(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)
    add(information.mappingsLeft)
    add(UInt32(0))
    addRanges(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, information.ranges)
  }
}
