// SPDX-License-Identifier: Apache-2.0
//
// The back door of the kernel's self-tests, IOMMU_TEST_CMD: one command with many operations.
// It is there only on a node that was made with a mock driver (`--self-test-driver`).

import CLinuxABI
import IOMMU
import SelfTestDriver
import SystemPackage

extension IOMMUNode {
  /// A node whose contexts also know the self-tests' back door. The tests are written for
  /// root and run by anybody here, so every caller counts as privileged.
  /// - Parameter selfTestDriver: Makes the mock devices.
  public convenience init(selfTestDriver driver: MockIOMMU) {
    self.init(
      system: driver.system, additionalCommands: [.selfTest(driver)], trustsCallers: true,
      failures: FailNthNode())
  }
}

extension Command {
  static func selfTest(_ driver: MockIOMMU) -> Command {
    // The minimum is the end of `last`, the field that the first Linux with the command had.
    Command(IOMMU_TEST_CMD, "IOMMU_TEST_CMD", minimumSize: 68, returning: iommu_test_cmd()) {
      (call, cmd) throws(IOMMUError) in
      if cmd.op == IOMMU_TEST_OP_DMABUF_GET {
        return try SelfTest(call: call, driver: driver).makeBuffer(cmd)
      }
      try SelfTest(call: call, driver: driver).run(&cmd)
      return 0
    }
  }
}

/// One call of the back door. Its operations are in the files beside this one.
struct SelfTest {
  let call: Invocation
  let driver: MockIOMMU

  var context: Context { call.context }
  var caller: any Caller { call.caller }
  var memory: PhysicalMemory { driver.system.memory }

  func run(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    switch cmd.op {
    case IOMMU_TEST_OP_ADD_RESERVED: try addReserved(cmd)
    case IOMMU_TEST_OP_MOCK_DOMAIN, IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: try makeDevice(&cmd)
    case IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE: try replaceTable(&cmd)
    case IOMMU_TEST_OP_MD_CHECK_MAP: try checkMap(cmd)
    case IOMMU_TEST_OP_MD_CHECK_REFS: try checkPins(cmd)
    case IOMMU_TEST_OP_CREATE_ACCESS: try makeAccessor(&cmd)
    case IOMMU_TEST_OP_ACCESS_REPLACE_IOAS: try replaceSpace(cmd)
    case IOMMU_TEST_OP_ACCESS_PAGES: try pinPages(&cmd)
    case IOMMU_TEST_OP_DESTROY_ACCESS_PAGES: try unpinPages(cmd)
    case IOMMU_TEST_OP_ACCESS_RW: try readWrite(cmd)
    case IOMMU_TEST_OP_DIRTY: try makeDirty(&cmd)
    case IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: try setMemoryLimit(cmd)
    case IOMMU_TEST_OP_MD_CHECK_IOTLB: try checkIOTLB(cmd)
    case IOMMU_TEST_OP_DEV_CHECK_CACHE: try checkDeviceCache(cmd)
    case IOMMU_TEST_OP_TRIGGER_IOPF: try triggerPageRequest(cmd)
    case IOMMU_TEST_OP_TRIGGER_VEVENT: try triggerEvent(cmd)
    case IOMMU_TEST_OP_PASID_ATTACH: try attachPASID(&cmd)
    case IOMMU_TEST_OP_PASID_REPLACE: try replacePASID(&cmd)
    case IOMMU_TEST_OP_PASID_DETACH: try detachPASID(cmd)
    case IOMMU_TEST_OP_PASID_CHECK_HWPT: try checkPASID(cmd)
    case IOMMU_TEST_OP_DMABUF_REVOKE: try revokeBuffer(cmd)
    default:
      throw IOMMUError(
        .operationNotSupported, "IOMMU_TEST_CMD has no operation \(cmd.op)")
    }
  }

  /// SET_TEMP_MEMORY_LIMIT: the scratch memory of a pin, 8 bytes for each page of the batch. The
  /// kernel's default has no effect here: we batch without scratch memory.
  private func setMemoryLimit(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    guard cmd.memory_limit.limit >= 12 else {
      throw IOMMUError(
        .invalidArgument,
        "a memory limit of \(cmd.memory_limit.limit) bytes; 12 are the least a batch needs")
    }
    let limit = UInt64(cmd.memory_limit.limit)
    memory.mostPinnedAtOnce = limit >= 65_536 ? .max : limit / 8 * 4096
  }
}
