// SPDX-License-Identifier: Apache-2.0
//
// What a program has mapped of our devices' memory, as a type1 container maps it for DMA: peer to
// peer (Linux: `vaddr_get_pfns`, `follow_fault_pfn`). iommufd refuses such addresses.

import IOMMU
import LinuxABI

extension MemoryArea {
  /// The device's memory that is mapped at an address in it; nil where that is no memory, or is no
  /// more the device's.
  func device(
    at address: UInt64, of handle: Handle
  ) -> (memory: any DeviceMemory, offset: UInt64)? {
    (handle.file as? any DeviceMemoryFile)?.memory(at: offset + (address - start))
  }
}

// MARK: as a type1 container maps it

extension ClientMemory {
  var includingDevices: any MemorySource { ClientMemoryAndDevices(client: self) }

  /// Whether all of a range is mapped from our devices' memory.
  func isDeviceMemory(address: UInt64, length: UInt64) -> Bool {
    var cursor = address
    let (end, overflow) = address.addingReportingOverflow(length)
    guard !overflow else { return false }
    while cursor < end {
      guard let area = maps.use({ MemoryArea.find(cursor, in: $0) }), area.start <= cursor,
        area.end > cursor, area.inode != 0, let handle = handles.handle(FileKey(area)),
        area.device(at: cursor, of: handle) != nil
      else { return false }
      cursor = area.end
    }
    return true
  }
}

/// An address space with the device memory that it has mapped (Linux: `vaddr_get_pfns`).
private final class ClientMemoryAndDevices: MemorySource {
  let client: ClientMemory

  init(client: ClientMemory) { self.client = client }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try client.pin(
      address: address, length: length, writable: writable, allowsDevices: true, place: place)
  }

  func isDeviceMemory(address: UInt64, length: UInt64) -> Bool {
    client.isDeviceMemory(address: address, length: length)
  }
}
