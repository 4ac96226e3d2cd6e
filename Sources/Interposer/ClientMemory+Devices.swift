// SPDX-License-Identifier: Apache-2.0
//
// What a program has mapped of our devices' memory, as a type1 container maps it for DMA: peer to
// peer (Linux: `vaddr_get_pfns`, `follow_fault_pfn`). iommufd refuses such addresses.

import IOMMU
import LinuxABI

extension MemoryArea {
  /// The device's memory or registers that are mapped at an address in it; nil where there are none,
  /// or they are no more the device's.
  func device(
    at address: UInt64, of handle: Handle
  ) -> (memory: any DeviceMemory, offset: UInt64)? {
    let place = offset + (address - start)
    if let file = handle.registers, file.registers(at: place) != nil {
      return (RegisterTarget(handle.key, isGiven: file.answers), place)
    }
    return (handle.file as? any DeviceMemoryFile)?.memory(at: place)
  }
}

/// A device's registers as a container maps them, with all else that a VMM has at its guest's
/// addresses. No other device's DMA is carried out on them: it fails, as where a bridge lets none
/// through.
private final class RegisterTarget: DeviceMemory {
  let byteCount = UInt64(Int64.max)
  let identity: MemoryIdentity
  /// As at the time of the map call: what does not answer then cannot be mapped.
  let isGiven: Bool

  init(_ key: FileKey, isGiven: Bool) {
    self.isGiven = isGiven
    identity = MemoryIdentity(space: key.device, object: key.inode, offset: 0)
  }

  func give() {}
  func take() {}
  func clear() {}
  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool { false }
  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool { false }
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
      guard var area = maps.use({ MemoryArea.find(cursor, in: $0) }), area.start <= cursor,
        area.end > cursor, let handle = handles.handle(mappedIn: &area),
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
