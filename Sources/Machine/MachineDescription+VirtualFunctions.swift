// SPDX-License-Identifier: Apache-2.0
//
// Where a machine's virtual functions are: requester ids on their physical function's bus that no
// other device has.

import IOMMU

extension MachineDescription {
  /// The most virtual functions of one device: half of a bus, so that a place is found.
  static let mostVirtualFunctions = 64

  /// First VF Offset of a device: 0x80, as many devices have it, or the next that leaves room for
  /// all of its virtual functions on its bus. VF Stride is 1.
  ///
  /// Physical functions choose in the order of the file, so that the answer is always the same.
  /// - Returns: Nil where there is no room, and of a device without virtual functions.
  func firstVirtualOffset(of device: DeviceDescription) -> UInt16? {
    virtualOffsets[device.address]
  }

  private var virtualOffsets: [RequesterID: UInt16] {
    var taken = Set(devices.map(\.address.rawValue) + bridges.map(\.address.rawValue))
    for port in rootPorts { taken.insert(port.address.rawValue) }
    var offsets: [RequesterID: UInt16] = [:]
    for device in devices where device.virtualFunctions > 0 {
      let base = device.address.rawValue
      let count = UInt32(device.virtualFunctions)
      // Requester ids of the bus, the last inclusive.
      let last = base | 0xFF
      let starts =
        Array(stride(from: base + 0x80, through: last, by: 1))
        + Array(stride(from: base + 1, to: min(base + 0x80, last), by: 1))
      let start = starts.first { start in
        start + count - 1 <= last && !(start..<start + count).contains { taken.contains($0) }
      }
      guard let start else { continue }
      for requester in start..<start + count { taken.insert(requester) }
      offsets[device.address] = UInt16(truncatingIfNeeded: start - base)
    }
    return offsets
  }
}
