// SPDX-License-Identifier: Apache-2.0
//
// The operations of the back door that attach mock devices by PASID and look into user-managed
// page tables.

import CLinuxABI
import IOMMU
import SelfTestDriver
import SystemPackage

extension SelfTest {
  /// The mock device of an id.
  /// - Throws: `ENOENT` for no object or one of another kind.
  func mockDevice(_ id: UInt32) throws(IOMMUError) -> MockDevice {
    guard let device = try context.foreignObject(ObjectID(id)) as? MockDevice else {
      throw IOMMUError(.noSuchFileOrDirectory, "object \(id) is no mock device")
    }
    return device
  }

  /// PASID_ATTACH.
  func attachPASID(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let device = try mockDevice(cmd.id)
    let pasid = PASID(rawValue: cmd.pasid_attach.pasid)
    let table = try device.attach(pasid, to: ObjectID(cmd.pasid_attach.pt_id))
    cmd.pasid_attach.pt_id = table.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in device.detach(pasid) }
  }

  /// PASID_REPLACE.
  func replacePASID(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let table = try mockDevice(cmd.id).replace(
      PASID(rawValue: cmd.pasid_replace.pasid), with: ObjectID(cmd.pasid_replace.pt_id))
    cmd.pasid_replace.pt_id = table.rawValue
    try call.respond(with: cmd)
  }

  /// PASID_DETACH.
  func detachPASID(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    try mockDevice(cmd.id).detach(PASID(rawValue: cmd.pasid_detach.pasid))
  }

  /// PASID_CHECK_HWPT: whether a PASID goes through a page table; 0 stands for none.
  func checkPASID(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (pasid, wanted) = (cmd.pasid_check.pasid, cmd.pasid_check.hwpt_id)
    let attached = try mockDevice(cmd.id).table(of: PASID(rawValue: pasid))
    if wanted != 0 { try context.requireHWPT(ObjectID(wanted)) }
    guard attached?.rawValue ?? 0 == wanted else {
      throw IOMMUError(
        .invalidArgument,
        "PASID \(pasid) of mock device \(cmd.id) goes through "
          + (attached.map { "HWPT \($0)" } ?? "nothing") + ", not HWPT \(wanted)")
    }
  }

  /// MD_CHECK_IOTLB: what a mock nested table has in one of its cache's slots.
  func checkIOTLB(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (slot, expected) = (cmd.check_iotlb.id, cmd.check_iotlb.iotlb)
    guard let domain = try context.nestedDomain(ObjectID(cmd.id)) as? MockNestedDomain else {
      throw IOMMUError(.invalidArgument, "HWPT \(cmd.id) is not the mock IOMMU's")
    }
    guard let found = domain.iotlb(slot), found == expected else {
      throw IOMMUError(
        .invalidArgument,
        "slot \(slot) of HWPT \(cmd.id)'s IOTLB holds "
          + (domain.iotlb(slot).map { hex($0) } ?? "nothing: there are four")
          + ", not \(hex(expected))")
    }
  }
}
