// SPDX-License-Identifier: Apache-2.0
//
// What a machine file says of PASIDs: the work-queue engine, and who manages a device's PASIDs.

import IOMMU
import Yams

extension MachineParser {
  func workQueue(
    _ fields: MachineReader.Fields, driver: DeviceDescription.HostDriver?
  ) -> WorkQueueDescription {
    var queue = WorkQueueDescription()
    if let node = fields["mode"],
      let mode = reader.choice(
        node, "who submits to the queue", of: WorkQueueDescription.Mode.self)
    {
      queue.mode = mode
    }
    if let node = fields["depth"],
      let depth = reader.number(node, "a number of commands", in: 1...64)
    {
      queue.depth = Int(depth)
    }
    if let node = fields["slices"],
      let slices = reader.number(node, "a number of slices", in: 1...64)
    {
      queue.slices = Int(slices)
      checkShared(node, driver, by: .mediatedQueue)
    }
    return queue
  }

  /// Slices are of a device that a mediating driver has.
  func checkShared(
    _ node: Node, _ driver: DeviceDescription.HostDriver?,
    by mediating: DeviceDescription.HostDriver
  ) {
    guard let driver, driver != mediating else { return }
    reader.report(
      node,
      "found slices of a device with host-driver \(driver.rawValue), expected "
        + "host-driver \(mediating.rawValue)")
  }

  /// A mediating driver knows one model.
  func checkDriver(
    _ fields: MachineReader.Fields, _ driver: DeviceDescription.HostDriver,
    drives model: DeviceDescription.Model
  ) {
    let expected: DeviceDescription.HostDriver? =
      switch model {
      case .copyEngine: .mediated
      case .workQueue: .mediatedQueue
      case .nvme: nil
      }
    guard driver.isMediating, driver != expected, let node = fields["host-driver"] else {
      return
    }
    reader.report(
      node,
      "found \(driver.rawValue), which does not drive a \(model.name), expected "
        + (expected.map { "\($0.rawValue) to make slices of it" }
          ?? "vfio-pci, pci-stub or none"))
  }

  /// What a device's user has of its PASIDs, checked against its model and its IOMMU.
  func pasids(
    _ fields: MachineReader.Fields, _ model: DeviceDescription.Model,
    behind iommu: IOMMUDescription?
  ) -> DeviceDescription.PASIDUse? {
    let use = fields["pasids"].flatMap {
      reader.choice($0, "who manages its PASIDs", of: DeviceDescription.PASIDUse.self)
    }
    guard let iommu else { return use }
    if case .workQueue(let queue) = model {
      if iommu.pasidBits == 0 {
        reader.report(
          fields["model"] ?? fields.node,
          "found a work-queue engine behind \(iommu.name), which has no PASIDs; it works by those "
            + "only: give \(iommu.name) 'pasid-bits'")
      } else if let use, use != .registered, queue.mode == .shared {
        reader.report(
          fields["pasids"] ?? fields.node,
          "found '\(use.rawValue)' beside a shared work queue, expected registered: what CPUs "
            + "submit names a PASID that is attached")
      }
    } else if let use, use != PASIDUse.none, iommu.pasidBits == 0 {
      reader.report(
        fields["pasids"] ?? fields.node,
        "found '\(use.rawValue)' behind \(iommu.name), which has no PASIDs; expected none, or an "
          + "IOMMU with 'pasid-bits'")
    }
    return use
  }

  private typealias PASIDUse = DeviceDescription.PASIDUse
}
