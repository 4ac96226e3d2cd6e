// SPDX-License-Identifier: Apache-2.0
//
// A virtual function in /sys: as any function, but that its own configuration space has no ids and
// no base addresses, and that it comes with its group.

import IOMMU
import VFIO

extension MachineView {
  /// All that comes with a virtual function, but for its links to the physical one and its driver.
  mutating func addVirtualFunction(_ device: DeviceDescription, _ function: PCIFunction) {
    functions[device.address] = Function(function)
    addFunction(device)
    addGroup(GroupDescription(number: device.group, devices: [device.address]))
    builder.link(
      "/sys/devices/virtual/iommu/\(device.iommu)/devices/\(device.address)",
      to: path(of: device.address))
  }
}

extension MachineView.Function {
  init(_ function: PCIFunction) {
    var sizes = [UInt64](repeating: 0, count: 6)
    for bar in function.bars { sizes[bar.index] = bar.size }
    var virtualSizes = [UInt64](repeating: 0, count: 6)
    if let sriov = function.sriov {
      for bar in sriov.bars { virtualSizes[bar.index] = bar.size * UInt64(sriov.total) }
    }
    var contents = function.config.contents
    if function.isVirtual {
      // Where the system knows them to be: the function's registers do not say.
      for (bar, address) in zip(function.bars, function.barAddresses) {
        let register = 0x10 + bar.index * 4
        for byte in 0..<(bar.is64Bit ? 8 : 4) {
          contents[register + byte] |= UInt8(truncatingIfNeeded: address >> UInt64(8 * byte))
        }
      }
    }
    self.init(
      configuration: contents, barSizes: sizes, virtualBARSizes: virtualSizes,
      hardware: function.isVirtual ? function.config.virtualFunctionContents : nil)
  }
}
