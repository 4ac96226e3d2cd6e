// SPDX-License-Identifier: Apache-2.0
//
// Admin commands (NVM Express 1.4, 5): queues, and the way to identify, features and logs.

import IOMMU
import VFIO

extension NVMeEngine {
  /// Carries an admin command out.
  /// - Returns: Dword 0 of its completion; nil where it completes later.
  func administer(_ command: NVMeCommand) throws(NVMeStatus) -> UInt32? {
    guard command.fuse == 0, command.dataPointer == 0 else { throw .invalidField }
    switch NVMeCommand.Admin(rawValue: command.opcode) {
    case .createSubmissionQueue: try createSubmissionQueue(command)
    case .createCompletionQueue: try createCompletionQueue(command)
    case .deleteSubmissionQueue: try deleteSubmissionQueue(command)
    case .deleteCompletionQueue: try deleteCompletionQueue(command)
    case .identify: try identify(command)
    case .getLogPage: try getLogPage(command)
    case .setFeatures: return try setFeature(command)
    case .getFeatures: return try getFeature(command)
    case .abort: return abort(command)
    case .requestEvent:
      guard events.take(command.identifier) else { throw .eventLimit }
      return nil
    case .format: try format(command)
    case nil: throw .invalidOpcode
    }
    return 0
  }

  /// The namespace of a number.
  func store(_ number: UInt32) throws(NVMeStatus) -> BlockStore {
    guard number > 0, number <= stores.count else { throw .invalidNamespace }
    return stores[Int(number) - 1]
  }

  /// Stands for all namespaces.
  static let everyNamespace: UInt32 = 0xFFFF_FFFF

  // MARK: Queues

  private func queueNumber(_ command: NVMeCommand) -> UInt16 {
    UInt16(truncatingIfNeeded: command.dword(10))
  }

  /// Size and address of a queue that is to be made, checked.
  private func place(
    _ command: NVMeCommand, entrySize: UInt32, needed: UInt32
  ) throws(NVMeStatus) -> (address: UInt64, size: UInt32) {
    let size = command.dword(10) >> 16 + 1
    guard size > 1, size <= UInt32(configuration.queueEntries), entrySize == needed else {
      throw .invalidQueueSize
    }
    // A list of pages is not offered (CAP.CQR).
    guard command.dword(11) & 1 != 0 else { throw .invalidField }
    let address = command.pointers.0
    guard address & (1 << UInt64(pageShift) - 1) == 0 else { throw .invalidPRPOffset }
    return (address, size)
  }

  private var entrySizes: NVMeRegisters.Configuration {
    core.monitor.withLock { $0.registers.configuration }
  }

  private func createCompletionQueue(_ command: NVMeCommand) throws(NVMeStatus) {
    let number = queueNumber(command)
    guard number > 0, number < completions.count, completions[Int(number)] == nil else {
      throw .invalidQueue
    }
    let (address, size) = try place(command, entrySize: entrySizes.completionSize, needed: 4)
    let vector = UInt16(truncatingIfNeeded: command.dword(11) >> 16)
    guard vector <= UInt16(configuration.queues) else { throw .invalidVector }
    add(
      CompletionQueue(
        number: number, address: address, size: size,
        vector: command.dword(11) & 2 != 0 ? vector : nil))
  }

  private func createSubmissionQueue(_ command: NVMeCommand) throws(NVMeStatus) {
    let number = queueNumber(command)
    let target = UInt16(truncatingIfNeeded: command.dword(11) >> 16)
    guard number > 0, number < submissions.count, submissions[Int(number)] == nil,
      target > 0, target < completions.count
    else { throw .invalidQueue }
    guard let completions = completions[Int(target)] else { throw .noCompletionQueue }
    let (address, size) = try place(command, entrySize: entrySizes.submissionSize, needed: 6)
    add(
      SubmissionQueue(number: number, address: address, size: size, completions: completions))
  }

  private func deleteSubmissionQueue(_ command: NVMeCommand) throws(NVMeStatus) {
    let number = queueNumber(command)
    guard number > 0, number < submissions.count, let queue = submissions[Int(number)] else {
      throw .invalidQueue
    }
    remove(queue)
  }

  private func deleteCompletionQueue(_ command: NVMeCommand) throws(NVMeStatus) {
    let number = queueNumber(command)
    guard number > 0, number < completions.count, let queue = completions[Int(number)] else {
      throw .invalidQueue
    }
    guard queue.users == 0 else { throw .invalidQueueDeletion }
    remove(queue)
  }

  // MARK: Abort, events, format

  /// Only what waits for an event can be aborted: all else is done by the time that it is asked.
  /// - Returns: 0 where it was, 1 where it was not.
  private func abort(_ command: NVMeCommand) -> UInt32 {
    let queue = UInt16(truncatingIfNeeded: command.dword(10))
    let identifier = UInt16(truncatingIfNeeded: command.dword(10) >> 16)
    return queue == 0 && events.cancel(identifier) ? 0 : 1
  }

  /// Completes requests for events where there is something to tell. Between two commands: each
  /// takes room of the admin completion queue.
  func deliverEvents() {
    guard isRunning, !isParked, let admin = submissions[0] else { return }
    do throws(BusError) {
      while admin.completions.room > 0, let (identifier, event) = events.next() {
        if admin.completions.isFull { try post(admin.completions) }
        admin.completions.stage(
          identifier: identifier, queue: 0, head: admin.head,
          status: event == nil ? .abortRequested : .success, result: event?.result ?? 0)
      }
      try post(admin.completions)
    } catch {
      fail()
    }
  }

  /// The formats are those that the namespaces have: formatting clears.
  private func format(_ command: NVMeCommand) throws(NVMeStatus) {
    let settings = command.dword(10)
    // One format, no metadata, no protection; all of them clear what was there.
    guard settings & 0xF == 0, settings >> 9 & 7 <= 1 else { throw .invalidFormat }
    guard settings & 0x1F0 == 0 else { throw .invalidFormat }
    let targets =
      command.namespace == Self.everyNamespace ? stores : [try store(command.namespace)]
    guard targets.allSatisfy({ !$0.isReadOnly }) else { throw .writeProtected }
    for target in targets {
      try target.deallocate(at: 0, count: target.blockCount * UInt64(target.blockSize))
      try target.flush()
    }
  }
}
