// SPDX-License-Identifier: Apache-2.0
//
// The operation of the back door that makes a mock device ask for a page (MODEL H1).

import CLinuxABI
import IOMMU
import PageTables
import SelfTestDriver
import SystemPackage

extension SelfTest {
  /// TRIGGER_IOPF: a group of one page request. It succeeds whatever becomes of that.
  func triggerPageRequest(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let device = try context.physicalDevice(ObjectID(cmd.trigger_iopf.dev_id))
    guard device.driver === driver else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.name) is no mock device; only those ask for pages on command")
    }
    let pasid = cmd.trigger_iopf.pasid
    driver.requestPage(
      PageRequest(
        pasid: pasid == 0 ? nil : PASID(rawValue: pasid), group: cmd.trigger_iopf.grpid,
        access: PageRequest.Access(rawValue: cmd.trigger_iopf.perm),
        address: IOVA(cmd.trigger_iopf.addr)),
      by: device)
  }
}
