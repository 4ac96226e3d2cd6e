// SPDX-License-Identifier: Apache-2.0
//
// What a bound device and its IOMMU can do: DEVICE_GET_INFO (MODEL B8, K1).

import CLinuxABI
import IOMMU
import SystemPackage

extension IOASIDCall {
  /// The structure and a chain of capabilities behind it, IOVA ranges first. Where there is no
  /// room for the whole chain only the structure is filled in; `argsz` says what it takes.
  func deviceInfo() throws(IOMMUError) {
    var cmd = try load(ioasid_device_info(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    let room = Int(cmd.argsz)
    let device = try context.device(cookie: cmd.cookie)
    let abilities = try context.dmaAbilities(of: device)
    cmd.flags =
      IOASID_DEVICE_INFO_PGSIZES | IOASID_DEVICE_INFO_ADDR_WIDTH | IOASID_DEVICE_INFO_CAPS
    if abilities.capabilities.snoopControl { cmd.flags |= IOASID_DEVICE_INFO_ENFORCE_SNOOP }
    cmd.iova_pgsizes = abilities.pageSizes.rawValue
    cmd.addr_width = UInt32(abilities.addressBits)
    let size = MemoryLayout<ioasid_device_info>.size
    let chain = Self.chain(abilities, at: size)
    if room >= size + chain.count {
      cmd.cap_offset = UInt32(size)
      try caller.store(bytes: chain, to: argument &+ UInt64(size))
    } else {
      cmd.cap_offset = 0
    }
    cmd.argsz = UInt32(size + chain.count)
    try caller.store(cmd, to: argument)
  }

  /// - Parameter offset: Where the chain begins, in bytes from the start of the structure.
  private static func chain(_ abilities: DMAAbilities, at offset: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    func append(_ value: some FixedWidthInteger) {
      for index in 0..<value.bitWidth / 8 {
        bytes.append(UInt8(truncatingIfNeeded: value >> (8 * index)))
      }
    }
    let hasPASIDs = abilities.capabilities.pasidBits > 0
    let ranges = abilities.mappableRanges
    append(UInt16(IOASID_DEVICE_INFO_CAP_IOVA_RANGE))
    append(UInt16(1))
    append(hasPASIDs ? UInt32(offset + 16 + 16 * ranges.count) : 0)
    append(UInt32(ranges.count))
    append(UInt32(0))
    for range in ranges {
      append(range.lowerBound)
      append(range.upperBound)
    }
    if hasPASIDs {
      append(UInt16(IOASID_DEVICE_INFO_CAP_PASID))
      append(UInt16(1))
      append(UInt32(0))
      append(UInt32(abilities.capabilities.pasidBits))
      append(UInt32(0))
    }
    return bytes
  }
}
