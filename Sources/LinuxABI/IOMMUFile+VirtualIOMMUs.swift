// SPDX-License-Identifier: Apache-2.0
//
// VIOMMU_ALLOC, VDEVICE_ALLOC, VEVENTQ_ALLOC and HW_QUEUE_ALLOC, and the file that an event queue
// is read through.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

extension Command {
  /// VIOMMU_ALLOC.
  @Sendable
  static func viommuAlloc(call: Invocation, cmd: inout iommu_viommu_alloc) throws(IOMMUError) {
    try requireZero(cmd.flags, "flags")
    let id = try call.context.allocateVirtualIOMMU(
      type: UserData.type(ofClient: cmd.type), for: ObjectID(cmd.dev_id),
      on: ObjectID(cmd.hwpt_id),
      data: call.userData(type: cmd.type, length: cmd.data_len, address: cmd.data_uptr))
    cmd.out_viommu_id = id.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try call.context.destroy(id) }
  }

  /// VDEVICE_ALLOC.
  @Sendable
  static func vdeviceAlloc(
    call: Invocation, cmd: inout iommu_vdevice_alloc
  ) throws(IOMMUError) {
    let id = try call.context.allocateVirtualDevice(
      ObjectID(cmd.dev_id), in: ObjectID(cmd.viommu_id), virtualID: cmd.virt_id)
    cmd.out_vdevice_id = id.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try call.context.destroy(id) }
  }

  /// VEVENTQ_ALLOC: a queue and its descriptor.
  @Sendable
  static func veventqAlloc(
    call: Invocation, cmd: inout iommu_veventq_alloc
  ) throws(IOMMUError) {
    try requireZero(cmd.flags, "flags")
    try requireZero(cmd.__reserved, "__reserved")
    let queue = try call.context.makeEventQueue(
      in: ObjectID(cmd.viommu_id), type: cmd.type, depth: cmd.veventq_depth)
    let file = VirtualEventFile(queue, context: call.context)
    do throws(IOMMUError) {
      let descriptor = try call.caller.install(file, closeOnExec: true)
      cmd.out_veventq_id = queue.id.rawValue
      cmd.out_veventq_fd = UInt32(bitPattern: descriptor)
      try call.respond(with: cmd)
    } catch {
      // Closing twice is harmless: the descriptor, where there was one, goes as well.
      file.close()
      try? call.context.destroy(queue.id)
      throw error
    }
  }

  /// HW_QUEUE_ALLOC.
  @Sendable
  static func hwQueueAlloc(
    call: Invocation, cmd: inout iommu_hw_queue_alloc
  ) throws(IOMMUError) {
    try requireZero(cmd.flags, "flags")
    let id = try call.context.allocateHardwareQueue(
      in: ObjectID(cmd.viommu_id), type: cmd.type, index: cmd.index,
      base: IOVA(cmd.nesting_parent_iova), length: cmd.length)
    cmd.out_hw_queue_id = id.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try call.context.destroy(id) }
  }
}

/// The file of an event queue (Linux: `[iommufd-viommu-event]`). It is only read.
final class VirtualEventFile: EventFile {
  let name = "iommufd-viommu-event"
  let isWritable = false
  private let queue: VirtualEventQueue
  /// Nil once closed.
  private let context: Guarded<Context?>

  init(_ queue: VirtualEventQueue, context: Context) {
    self.queue = queue
    self.context = Guarded(context)
  }

  var readiness: Readiness { queue.readiness }

  /// No count is ragged, but the first record has to fit (`EINVAL`).
  func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    try queue.read(count: count, deliver: deliver)
  }

  func close() {
    let context = context.withLock { $0.take() }
    context?.close(queue)
  }
}
