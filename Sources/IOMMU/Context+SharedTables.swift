// SPDX-License-Identifier: Apache-2.0
//
// Page tables that are a process's own (MODEL B3, the mails' "user application CPU page table").
// Linux has them for drivers only (`iommu_sva_bind_device`); here they are page tables like others.
// Programs make them on /dev/ioasid (MODEL K1).

import PageTables
import SystemPackage

extension Context {
  /// Makes a page table that is a process's own address space: a device on it reaches the
  /// process's virtual addresses, follows `munmap`, and faults in what is not present.
  ///
  /// MODEL B3. It is attached, with a PASID or without, detached and destroyed as other page
  /// tables. Nothing can be mapped in it, invalidated or tracked: that is the process's own
  /// doing. DMA faults where the process itself would, and everywhere once it is gone.
  /// - Parameters:
  ///   - device: A bound device, which says whose IOMMU walks the table.
  ///   - process: Whoever has it may share it (MODEL A2).
  /// - Throws: `ENOENT` for the device; `EOPNOTSUPP` where its IOMMU cannot walk the table of a
  ///   CPU. It has to have PASIDs: those tables are first-stage tables, which hardware finds
  ///   through a PASID table only, also for DMA without a PASID.
  public func allocateSharedHWPT(
    for device: ObjectID, process: any ProcessAddressSpace
  ) throws(IOMMUError) -> ObjectID {
    let object = try self.device(device)
    let driver = object.device.driver
    let system = system
    return try configuration.withLock { (_) throws(IOMMUError) in
      try FailurePoint.pass(.driverObject)
      let domain = try driver.makeSharedDomain(for: object.device.requester, process: process)
      return try insertTable(dependingOn: nil, faultQueue: nil) { id, _ in
        HWPT(
          id: id,
          addressSpace: AddressSpace(id: id, memory: system.memory, events: system.events),
          kind: .shared(domain), driver: driver, attributes: .pasid)
      }.id
    }
  }

  /// Whose page table an id names; nil for other objects and none.
  package func process(of table: ObjectID) -> (any ProcessAddressSpace)? {
    guard case .hwpt(let table)? = objects.withLock({ $0.table[table] }),
      case .shared(let domain) = table.kind
    else { return nil }
    return domain.process
  }

  /// What is asked of a page table that only its process can answer or do.
  func sharedTableRefusal(_ table: HWPT, _ domain: any SharedDomain) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "HWPT \(table.id) is the page table of \(domain.process.name): its pages change, are "
        + "invalidated and are marked dirty by the process's own doing, not by calls")
  }
}
