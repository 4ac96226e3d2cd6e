// SPDX-License-Identifier: Apache-2.0
//
// The machine that is there when nobody brings one.

import IOMMU

extension MachineDescription {
  /// One Intel IOMMU and three copy engines: one alone in its group on the root bus, as integrated
  /// engines are; two in one group, as functions of one chip without access control between them
  /// are. Such a chip is a card: it is below a root port, whose link resets both functions, so a
  /// program meets a hot reset with a neighbour too. They fill, as drivers expect that do not ask.
  public static let standard = MachineDescription(
    name: "default",
    iommus: [IOMMUDescription(name: "dmar0", kind: .intel)],
    devices: [
      engine(RequesterID(bus: 0xe0, device: 4, function: 0), group: 0),
      engine(RequesterID(bus: 0xe1, device: 0, function: 0), group: 1, rootPort: port),
      engine(RequesterID(bus: 0xe1, device: 0, function: 1), group: 1, rootPort: port),
    ])

  private static let port = RequesterID(bus: 0xe0, device: 5, function: 0)

  private static func engine(
    _ address: RequesterID, group: UInt32, rootPort: RequesterID? = nil
  ) -> DeviceDescription {
    DeviceDescription(
      model: .copyEngine(CopyEngineDescription(fill: true)), address: address, group: group,
      iommu: "dmar0", rootPort: rootPort)
  }
}
