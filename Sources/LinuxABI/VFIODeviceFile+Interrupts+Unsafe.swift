// SPDX-License-Identifier: Apache-2.0
//
// SET_IRQS: a header, and as many bytes or descriptors behind it as it says.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

/// An eventfd of a program that its carrier can wait for. Thread-safe.
public protocol WatchableEventFD: EventSignal {
  /// Calls `body`, in a thread of the carrier's, each time that the eventfd was signalled, and at
  /// once where it is; its count is read, so that it is 0 again.
  /// - Returns: What ends that; nil where the host has no thread for it.
  func watch(_ body: @escaping @Sendable () -> Void) -> (@Sendable () -> Void)?

  /// Whether no program has it open any more, as far as the carrier can see; its own copy does not
  /// count. It takes as long as looking through all processes.
  var isAbandoned: Bool { get }
}

extension VFIODeviceFile {
  func setInterrupts(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 20
    let header = try caller.load(vfio_irq_set(), from: argument, size: minimum)
    try checkHead(argsz: header.argsz, atLeast: minimum)
    guard
      header.flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK) == 0
    else {
      throw IOMMUError(
        .invalidArgument, "interrupt flags \(hex(header.flags)) have unknown bits")
    }
    let index = try function.interrupts.check(
      index: header.index, start: header.start, count: header.count)
    // At most the vectors that there are, from here on.
    let count = Int(header.count)
    let room = Int(header.argsz) - minimum
    let data = argument &+ UInt64(minimum)
    let arguments: InterruptVectors.Arguments
    switch header.flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
    case VFIO_IRQ_SET_DATA_NONE:
      arguments = .none
    case VFIO_IRQ_SET_DATA_BOOL:
      let bytes = try load(UInt8.self, count: count, room: room, from: data, caller)
      arguments = .booleans(bytes.map { $0 != 0 })
    case VFIO_IRQ_SET_DATA_EVENTFD:
      let descriptors = try load(Int32.self, count: count, room: room, from: data, caller)
      try caller.prepare(eventFDs: descriptors)
      let isWatched = Self.action(header.flags) == .unmask
      arguments = .events(descriptors.map { Self.event($0, isWatched: isWatched, caller) })
    default:
      throw IOMMUError(
        .invalidArgument,
        "interrupt flags \(hex(header.flags)) do not name one kind of data")
    }
    try function.interrupts.set(
      index, action: Self.action(header.flags), start: Int(header.start),
      arguments: arguments, count: count)
  }

  private static func action(_ flags: UInt32) -> InterruptVectors.Action? {
    switch flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
    case VFIO_IRQ_SET_ACTION_MASK: .mask
    case VFIO_IRQ_SET_ACTION_UNMASK: .unmask
    case VFIO_IRQ_SET_ACTION_TRIGGER: .trigger
    default: nil
    }
  }

  private static func event(
    _ descriptor: Int32, isWatched: Bool, _ caller: any Caller
  ) -> InterruptVectors.Event {
    guard descriptor >= 0 else { return .remove(descriptor: descriptor) }
    do throws(IOMMUError) {
      let event = try caller.eventFD(descriptor: descriptor)
      guard isWatched, let watchable = event as? any WatchableEventFD else {
        return .signal(event)
      }
      return .signal(
        WatchedEvent(
          event, watch: { watchable.watch($0) }, isAbandoned: { watchable.isAbandoned }))
    } catch {
      return .invalid(error)
    }
  }

  /// Copies `count` integers in.
  /// - Throws: `EINVAL` where `room` is too small for them; `EFAULT`.
  private func load<Value: FixedWidthInteger & BitwiseCopyable>(
    _ type: Value.Type, count: Int, room: Int, from address: UInt64, _ caller: any Caller
  ) throws(IOMMUError) -> [Value] {
    guard count * MemoryLayout<Value>.size <= room else {
      throw IOMMUError(
        .invalidArgument, "argsz leaves \(room) bytes for the data of \(count) vectors")
    }
    var values = [Value](repeating: 0, count: count)
    guard count > 0 else { return values }
    var failure: IOMMUError?
    // SAFETY: the buffer is the array's storage for the length of the closure.
    unsafe values.withUnsafeMutableBytes { bytes in
      do throws(IOMMUError) {
        try unsafe caller.copyIn(from: address, into: bytes)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    return values
  }
}
