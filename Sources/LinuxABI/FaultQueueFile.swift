// SPDX-License-Identifier: Apache-2.0
//
// FAULT_QUEUE_ALLOC and the file that it returns: page requests are read from it and answered by
// writing (MODEL H1; Linux: `iommufd_fault_fops_read` and `…_write`).

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

extension Command {
  /// FAULT_QUEUE_ALLOC: a fault queue, and a descriptor to read and answer it.
  @Sendable
  static func faultQueueAlloc(
    call: Invocation, cmd: inout iommu_fault_alloc
  ) throws(IOMMUError) {
    try requireZero(cmd.flags, "flags")
    let file = FaultQueueFile(queue: try call.context.makeFaultQueue(), context: call.context)
    do throws(IOMMUError) {
      let descriptor = try call.caller.install(file, closeOnExec: true)
      cmd.out_fault_id = file.queue.id.rawValue
      cmd.out_fault_fd = UInt32(bitPattern: descriptor)
      try call.respond(with: cmd)
    } catch {
      file.close()
      try call.context.destroy(file.queue.id)
      throw error
    }
  }
}

/// The descriptor of a fault queue. While it is open the queue cannot be destroyed, and the
/// context stays.
final class FaultQueueFile: EventFile {
  let name = "iommufd-pgfault"
  /// `/dev/ioasid` takes answers by ioctl.
  var isWritable: Bool { space == nil }
  let queue: FaultQueue
  /// The ioasid whose queue it is; nil where it is `/dev/iommu`'s.
  let space: ObjectID?
  /// Nil once closed. The descriptor of a call that failed is closed by the call and again by
  /// whoever installed it.
  private let context: Guarded<Context?>

  /// Bytes of `struct iommu_hwpt_pgfault`, or of `struct ioasid_page_fault`.
  var recordSize: Int { space == nil ? 40 : 56 }
  /// Bytes of `struct iommu_hwpt_page_response`.
  static let responseSize = 8

  init(queue: FaultQueue, context: Context, space: ObjectID? = nil) {
    self.queue = queue
    self.space = space
    self.context = Guarded(context)
  }

  var readiness: Readiness { queue.readiness }

  /// Groups are read whole: one that does not fit ends the read, and where it is the first one
  /// the read fails (`EINVAL`).
  func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    guard count >= 0, count % recordSize == 0 else {
      throw IOMMUError(
        .illegalSeek,
        "\(count) bytes are no whole records: page requests have \(recordSize) each")
    }
    var done = 0
    while true {
      let reading: FaultQueue.Reading
      do throws(IOMMUError) {
        reading = try queue.read(atMost: (count - done) / recordSize) {
          (group) throws(IOMMUError) in
          try deliver(group.requests.flatMap { record($0, of: group) })
        }
      } catch {
        guard done > 0 else { throw error }
        return done
      }
      switch reading {
      case .delivered(let requests):
        done += requests * recordSize
      case .tooLarge where done == 0:
        throw IOMMUError(
          .invalidArgument,
          "the oldest group of page requests does not fit in \(count) bytes; groups are read "
            + "whole")
      case .tooLarge, .empty:
        return done
      }
    }
  }

  /// `struct iommu_hwpt_pgfault`, and behind it what `struct ioasid_page_fault` has; little-endian.
  private func record(_ request: PageRequest, of group: FaultQueue.Delivery) -> [UInt8] {
    var flags: UInt32 = 0
    if request.isLast { flags |= IOMMU_PGFAULT_FLAGS_LAST_PAGE }
    if request.pasid != nil { flags |= IOMMU_PGFAULT_FLAGS_PASID_VALID }
    var words: [UInt32] = [
      flags, space == nil ? group.device.rawValue : 0, request.pasid?.rawValue ?? 0,
      request.group,
      request.access.rawValue, 0, UInt32(truncatingIfNeeded: request.address.rawValue),
      UInt32(truncatingIfNeeded: request.address.rawValue >> 32), 0, group.cookie,
    ]
    if space != nil {
      words += [
        UInt32(truncatingIfNeeded: group.deviceCookie),
        UInt32(truncatingIfNeeded: group.deviceCookie >> 32), group.space.rawValue, 0,
      ]
    }
    return words.flatMap { word in
      (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) }
    }
  }

  /// Answers groups, one after the other, up to the first answer that is wrong.
  func write(
    count: Int, fetch: (_ offset: Int, _ size: Int) throws(IOMMUError) -> [UInt8]
  ) throws(IOMMUError) -> Int {
    guard space == nil else {
      throw IOMMUError(
        .invalidArgument,
        "page requests of an ioasid are answered by PAGE_RESPONSE on /dev/ioasid, not by write")
    }
    guard count >= 0, count % Self.responseSize == 0 else {
      throw IOMMUError(
        .illegalSeek,
        "\(count) bytes are no whole answers: page responses have \(Self.responseSize) each")
    }
    var done = 0
    while done < count {
      do throws(IOMMUError) {
        try respond(try fetch(done, Self.responseSize))
      } catch {
        guard done > 0 else { throw error }
        return done
      }
      done += Self.responseSize
    }
    return done
  }

  /// `struct iommu_hwpt_page_response`.
  private func respond(_ bytes: [UInt8]) throws(IOMMUError) {
    let (cookie, number): (UInt32, UInt32) = (bytes.number(at: 0), bytes.number(at: 4))
    guard let code = PageResponse.Code(rawValue: number) else {
      throw IOMMUError(
        .invalidArgument,
        "a page response is \(IOMMUFD_PAGE_RESP_SUCCESS) (success) or "
          + "\(IOMMUFD_PAGE_RESP_INVALID) (invalid), not \(number)")
    }
    try queue.respond(to: cookie, with: code)
  }

  func close() {
    guard let context = context.withLock({ $0.take() }) else { return }
    if let space { context.close(queue, of: space) } else { context.close(queue) }
  }
}
