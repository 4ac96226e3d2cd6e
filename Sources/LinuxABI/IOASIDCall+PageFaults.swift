// SPDX-License-Identifier: Apache-2.0
//
// Page requests as an attribute of an ioasid (MODEL B7, H1, K1): PAGE_FAULT_FD and PAGE_RESPONSE.

import CLinuxABI
import IOMMU
import SystemPackage

extension IOASIDCall {
  /// PAGE_FAULT_FD: a descriptor to poll and read.
  /// - Throws: `EINVAL` for a page table whose faults are not the user's; what
  ///   `Context.makeFaultQueue(for:)` throws.
  func pageFaultDescriptor() throws(IOMMUError) -> Int {
    let cmd = try load(ioasid_page_fault_fd(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    let ioasid = ObjectID(cmd.ioasid)
    if let process = context.process(of: ioasid) {
      throw IOMMUError(
        .invalidArgument,
        "ioasid \(ioasid) is the page table of \(process.name): what is missing there is faulted "
          + "in, and asked of nobody")
    }
    let queue = try context.makeFaultQueue(for: ioasid)
    let file = FaultQueueFile(queue: queue, context: context, space: ioasid)
    do throws(IOMMUError) {
      return Int(try caller.install(file, closeOnExec: true))
    } catch {
      file.close()
      throw error
    }
  }

  /// PAGE_RESPONSE: the one answer to a group of page requests.
  /// - Throws: `ENOENT` where the ioasid is none, or has no descriptor for its page requests;
  ///   `EINVAL` for a code that is none, and for a group that nobody has read or that has ended.
  func respondToPageFault() throws(IOMMUError) {
    let cmd = try load(ioasid_page_response(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    guard let code = PageResponse.Code(rawValue: cmd.code) else {
      throw IOMMUError(
        .invalidArgument,
        "a page response is \(IOMMUFD_PAGE_RESP_SUCCESS) (success) or "
          + "\(IOMMUFD_PAGE_RESP_INVALID) (invalid), not \(cmd.code)")
    }
    try context.faultQueue(of: ObjectID(cmd.ioasid)).respond(to: cmd.cookie, with: code)
  }
}
