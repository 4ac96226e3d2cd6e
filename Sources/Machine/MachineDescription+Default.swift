// SPDX-License-Identifier: Apache-2.0
//
// The machine that is there when nobody brings one.

import IOMMU

extension MachineDescription {
  /// One Intel IOMMU and three copy engines: one alone in its group, two in one group, as
  /// functions of one chip without access control between them are.
  public static let standard = MachineDescription(
    name: "default",
    iommus: [IOMMUDescription(name: "dmar0", kind: .intel)],
    devices: [
      engine(device: 4, function: 0, group: 0),
      engine(device: 5, function: 0, group: 1),
      engine(device: 5, function: 1, group: 1),
    ])

  private static func engine(
    device: UInt8, function: UInt8, group: UInt32
  ) -> DeviceDescription {
    DeviceDescription(
      model: .copyEngine(CopyEngineDescription()),
      address: RequesterID(bus: 0xe0, device: device, function: function),
      group: group, iommu: "dmar0")
  }
}
