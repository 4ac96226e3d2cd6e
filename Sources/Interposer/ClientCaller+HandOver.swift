// SPDX-License-Identifier: Apache-2.0
//
// What a call takes of the caller's descriptors, where we can have no copies of them: the caller hands
// them over, all that are missing at once, and its call begins anew.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension ClientCaller {
  /// How often a call may begin anew because what it names has become something else meanwhile.
  private static let mostRounds = 16

  /// The caller, for whoever traces it.
  var waiting: WaitingThread {
    WaitingThread(thread: thread, process: processID, listener: server.listener, call: id)
  }

  static func isMissing(_ descriptors: [Int32]) -> IOMMUError {
    IOMMUError(
      .resourceTemporarilyUnavailable,
      "descriptors \(descriptors) of the program are to be handed over first")
  }

  /// A copy of an eventfd: one that is in use, or has been handed over for this call.
  func copy(ofEvent number: UInt64, _ descriptor: Int32) -> OwnedDescriptor? {
    if let copy = server.handed.event(number) { return copy }
    guard let copy = handOver?.copies[descriptor],
      // It may be another one by now.
      ClientDescriptor.eventNumber(copy) == number
    else { return nil }
    server.handed.keep(copy, ofEvent: number)
    return copy
  }

  /// A copy of a file that cannot be opened anew.
  func handedOver(_ descriptor: ClientDescriptor) throws(IOMMUError) -> OwnedDescriptor {
    if let copy = handOver?.copies[descriptor.number],
      let identity = System.identity(copy.number), FileKey(identity) == descriptor.key
    {
      return copy
    }
    missing.append(descriptor.number)
    throw Self.isMissing(missing)
  }

  /// Has the caller hand over what is missing and begin its call anew.
  func askForMissing() throws(IOMMUError) {
    let round = (handOver?.round ?? 0) + 1
    if let failure = handOver?.failure, failure != 0 {
      throw IOMMUError(
        .init(rawValue: -failure),
        "the program could not hand over descriptors \(missing) (\(System.message(failure)))")
    }
    guard round <= Self.mostRounds else {
      throw IOMMUError(
        .badFileDescriptor,
        "descriptors \(missing) are something else each time that they are looked at")
    }
    guard let (ours, theirs) = socketPair(sequenced: true) else {
      throw IOMMUError(
        .tooManyOpenFilesInSystem,
        "the supervisor can open no more files: close some, or raise ulimit -n where iommu starts"
      )
    }
    defer { close(theirs) }
    let end = OwnedDescriptor(ours)
    let socket = csys_notif_add_fd(server.listener, id, theirs, -1, UInt32(O_CLOEXEC))
    guard socket >= 0 else {
      throw IOMMUError(
        socket == -ENOENT ? .noSuchProcess : .tooManyOpenFiles,
        "the program has no free descriptor to hand over \(missing) by")
    }
    let copies = (handOver?.copies ?? [:]).merging(events) { _, new in new }
    let handOver = HandOver(
      missing, socket: socket, ours: end, round: round, copies: copies)
    server.handed.expect(handOver, of: thread)
    do throws(IOMMUError) {
      try server.tracer.handOver(handOver, of: waiting)
    } catch {
      _ = server.handed.take(of: thread)
      throw error
    }
  }
}
