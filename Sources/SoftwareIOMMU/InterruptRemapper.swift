// SPDX-License-Identifier: Apache-2.0
//
// Interrupts are writes to a window of bus addresses. The remapper turns such a write into a
// signal, if the entry that it names was made for the device that wrote (MODEL C4; VT-d
// revision 4.1, section 5.1: interrupt remapping; source-id verification in 5.1.3 and 9.10).

import HardwareTables
import IOMMU
import Synchronization

/// What a device writes to raise an interrupt.
public struct MSIMessage: Hashable, Sendable {
  /// Bus address, in the interrupt window, a multiple of 4.
  public var address: UInt64
  /// The 4 bytes to write there.
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// The interrupt-remapping table of one IOMMU. Thread-safe.
public final class InterruptRemapper: Sendable {
  /// Where interrupts are written, on every machine. Both ends inclusive.
  public static let window: ClosedRange<UInt64> = 0xFEE0_0000...0xFEEF_FFFF
  /// Handles have 16 bits.
  public static let capacity = 1 << 16

  private struct Entry {
    let requester: RequesterID
    let signal: any EventSignal
  }

  private enum Slot {
    case free
    /// Of a block whose device has fewer messages than that.
    case vacant
    case entry(Entry)

    var isFree: Bool {
      if case .free = self { true } else { false }
    }
  }

  private struct State {
    var slots: [Slot] = []
    var free: [Int] = []

    mutating func release(_ handle: Int) {
      guard handle < slots.count, !slots[handle].isFree else { return }
      slots[handle] = .free
      free.append(handle)
    }

    /// Where `count` slots in a row are free; nil where there is no such place.
    func place(of count: Int) -> Int? {
      var length = 0
      for (handle, slot) in slots.enumerated() {
        length = slot.isFree ? length + 1 : 0
        if length == count { return handle + 1 - count }
      }
      let start = slots.count - length
      return start + count <= InterruptRemapper.capacity ? start : nil
    }
  }

  private let state = RankedMutex(.interrupts, State())
  private let events: EventLog

  init(events: EventLog) { self.events = events }

  /// Makes an interrupt for one device.
  ///
  /// The message has VT-d's remappable format (5.1.2.2), on AMD machines too: handle bits 0
  /// to 14 in address bits 5 to 19, handle bit 15 in bit 2, bit 4 set; no subhandle, data 0.
  /// - Throws: `ENOSPC` where all handles are taken.
  public func allocate(
    for requester: RequesterID, signal: any EventSignal
  ) throws(IOMMUError) -> MSIMessage {
    let entry = Entry(requester: requester, signal: signal)
    let handle = state.withLock { state -> Int? in
      if let handle = state.free.popLast() {
        state.slots[handle] = .entry(entry)
        return handle
      }
      guard state.slots.count < Self.capacity else { return nil }
      state.slots.append(.entry(entry))
      return state.slots.count - 1
    }
    guard let handle else {
      throw IOMMUError(
        .noSpace,
        "all \(Self.capacity) interrupts of the IOMMU are taken, \(requester) gets none")
    }
    return Self.message(handle: handle)
  }

  /// Makes interrupts for one device that differ in their data only, as MSI has them: message n is
  /// the one that is returned with n in the lowest 16 bits of its data.
  ///
  /// The message has the subhandle-valid bit (VT-d 5.1.2.2): its data is added to its handle.
  /// - Parameter signals: Of message 0 and up; nil for what is not there, which faults.
  /// - Throws: `ENOSPC` where there are not so many handles in a row.
  public func allocate(
    for requester: RequesterID, signals: [(any EventSignal)?]
  ) throws(IOMMUError) -> MSIMessage {
    let slots = signals.map { signal -> Slot in
      signal.map { .entry(Entry(requester: requester, signal: $0)) } ?? .vacant
    }
    let handle = state.withLock { state -> Int? in
      guard let start = state.place(of: slots.count) else { return nil }
      let taken = start..<start + slots.count
      state.free.removeAll { taken.contains($0) }
      for (handle, slot) in zip(taken, slots) {
        if handle < state.slots.count {
          state.slots[handle] = slot
        } else {
          state.slots.append(slot)
        }
      }
      return start
    }
    guard let handle else {
      throw IOMMUError(
        .noSpace,
        "the IOMMU has no \(signals.count) interrupts in a row left, \(requester) gets none")
    }
    var message = Self.message(handle: handle)
    message.address |= Self.subhandleValid
    return message
  }

  /// Takes back what `allocate(for:signals:)` made, as `free` does.
  public func free(_ first: MSIMessage, count: Int) {
    guard let handle = Self.handle(address: first.address, data: first.data) else { return }
    state.withLock { state in
      for handle in handle..<handle + count { state.release(handle) }
    }
  }

  /// Takes an interrupt back: when it returns, its signal is not used any more. A message that
  /// is not allocated is passed over.
  public func free(_ message: MSIMessage) {
    guard let handle = Self.handle(address: message.address, data: message.data) else { return }
    state.withLock { $0.release(handle) }
  }

  /// Interrupts in use.
  public var count: Int { state.withLock { $0.slots.count - $0.free.count } }

  /// A device raises an interrupt beside its DMA ports: for a slice of it, whose own requests
  /// carry a PASID and cannot be interrupts.
  /// - Returns: False where the message is not one of this requester's.
  @discardableResult
  public func raise(_ message: MSIMessage, from requester: RequesterID) -> Bool {
    deliver(from: requester, address: message.address, data: message.data) == nil
  }

  /// A device wrote to the window.
  /// - Returns: Why it is not one of this requester's messages; nil where it was delivered.
  func deliver(
    from requester: RequesterID, address: UInt64, data: UInt32
  ) -> InterruptRefusal? {
    guard address & 0b1_0000 != 0 else { return .notRemappable }
    guard let handle = Self.handle(address: address, data: data) else { return .reservedBits }
    let index = UInt16(truncatingIfNeeded: handle)
    let refusal = state.withLock { state -> InterruptRefusal? in
      guard handle < Self.capacity else { return .beyondTable(index: index) }
      guard handle < state.slots.count, case .entry(let entry) = state.slots[handle] else {
        return .notPresent(index: index)
      }
      guard entry.requester == requester else { return .wrongSource(index: index) }
      // Under the lock, so that nothing is signalled after `free`. It never blocks.
      entry.signal.signal()
      return nil
    }
    if refusal == nil { events.append(.interrupt(requester, vector: UInt32(handle))) }
    return refusal
  }

  static func message(handle: Int) -> MSIMessage {
    let handle = UInt64(handle)
    return MSIMessage(
      address: window.lowerBound | (handle & 0x7FFF) << 5 | 1 << 4 | (handle >> 15 & 1) << 2,
      data: 0)
  }

  /// In the address: the lowest 16 bits of the data count.
  private static let subhandleValid: UInt64 = 1 << 3

  /// The number that a message names, which may lie past the table; nil where it is not of the
  /// remappable format.
  static func handle(address: UInt64, data: UInt32) -> Int? {
    let hasSubhandle = address & subhandleValid != 0
    guard window.contains(address), address & 0b1_0011 == 0b1_0000,
      hasSubhandle ? data <= 0xFFFF : data == 0
    else {
      return nil
    }
    return Int(address >> 5 & 0x7FFF | (address >> 2 & 1) << 15) + Int(data)
  }
}
