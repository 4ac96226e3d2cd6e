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
    let chain = CapabilityChain(abilities, at: size).bytes
    if room >= size + chain.count {
      cmd.cap_offset = UInt32(size)
      try caller.store(bytes: chain, to: argument &+ UInt64(size))
    } else {
      cmd.cap_offset = 0
    }
    cmd.argsz = UInt32(size + chain.count)
    try caller.store(cmd, to: argument)
  }
}

extension CapabilityChain {
  fileprivate init(_ abilities: DMAAbilities, at start: Int) {
    self.init(at: start)
    addRanges(IOASID_DEVICE_INFO_CAP_IOVA_RANGE, abilities.mappableRanges)
    addHeader(IOASID_DEVICE_INFO_CAP_NESTING)
    add(IOASID_NESTING_SOFTWARE | (abilities.userTables.isEmpty ? 0 : IOASID_NESTING_HARDWARE))
    add(UInt32(0))
    addFormats(
      IOASID_DEVICE_INFO_CAP_USER_PAGE_TABLE,
      abilities.userTables.filter { !$0.format.isPASIDTable })
    addFormats(
      IOASID_DEVICE_INFO_CAP_USER_PASID_TABLE,
      abilities.userTables.filter { $0.format.isPASIDTable })
    guard abilities.capabilities.pasidBits > 0 else { return }
    addHeader(IOASID_DEVICE_INFO_CAP_PASID)
    add(UInt32(abilities.capabilities.pasidBits))
    add(UInt32(0))
  }

  /// `struct ioasid_device_info_cap_user_table`; none where there are no formats.
  private mutating func addFormats(_ id: UInt32, _ formats: [UserTable.Support]) {
    guard !formats.isEmpty else { return }
    addHeader(id)
    add(UInt32(formats.count))
    add(UInt32(0))
    for support in formats {
      add(support.format.rawValue)
      add(UInt32(0))
      add(support.widths.rawValue)
    }
  }
}
