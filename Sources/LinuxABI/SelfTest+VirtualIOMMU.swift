// SPDX-License-Identifier: Apache-2.0
//
// The operations of the back door that look at what virtual IOMMUs did to mock devices.

import CLinuxABI
import IOMMU
import SelfTestDriver
import SystemPackage

extension SelfTest {
  /// The bound mock device of an id.
  /// - Throws: `ENOENT` for no bound device, `EINVAL` for another IOMMU's.
  private func boundMock(_ id: UInt32) throws(IOMMUError) -> RequesterID {
    let device = try context.physicalDevice(ObjectID(id))
    guard device.driver === driver else {
      throw IOMMUError(.invalidArgument, "device \(id), \(device.name), is no mock device")
    }
    return device.requester
  }

  /// DEV_CHECK_CACHE: what a mock device has in one of its cache's slots.
  func checkDeviceCache(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (slot, expected) = (cmd.check_dev_cache.id, cmd.check_dev_cache.cache)
    let found = try driver.cache(of: boundMock(cmd.id), slot: slot)
    guard let found, found == expected else {
      throw IOMMUError(
        .invalidArgument,
        "slot \(slot) of device \(cmd.id)'s cache holds "
          + (found.map { hex($0) } ?? "nothing: there are four") + ", not \(hex(expected))")
    }
  }

  /// TRIGGER_VEVENT: a mock device has an event for the guest that it works for.
  func triggerEvent(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    try driver.reportEvent(of: boundMock(cmd.trigger_vevent.dev_id))
  }
}
