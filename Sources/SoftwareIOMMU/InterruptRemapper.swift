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

  private struct State {
    var entries: [Entry?] = []
    var free: [Int] = []
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
        state.entries[handle] = entry
        return handle
      }
      guard state.entries.count < Self.capacity else { return nil }
      state.entries.append(entry)
      return state.entries.count - 1
    }
    guard let handle else {
      throw IOMMUError(
        .noSpace,
        "all \(Self.capacity) interrupts of the IOMMU are taken, \(requester) gets none")
    }
    return Self.message(handle: handle)
  }

  /// Takes an interrupt back: when it returns, its signal is not used any more. A message that
  /// is not allocated is passed over.
  public func free(_ message: MSIMessage) {
    guard let handle = Self.handle(address: message.address, data: message.data) else { return }
    state.withLock { state in
      guard handle < state.entries.count, state.entries[handle] != nil else { return }
      state.entries[handle] = nil
      state.free.append(handle)
    }
  }

  /// Interrupts in use.
  public var count: Int { state.withLock { $0.entries.count - $0.free.count } }

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
    let index = UInt16(handle)
    let refusal = state.withLock { state -> InterruptRefusal? in
      guard handle < state.entries.count, let entry = state.entries[handle] else {
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

  /// The handle that a message names; nil where it is not of the remappable format.
  static func handle(address: UInt64, data: UInt32) -> Int? {
    guard window.contains(address), address & 0b1_1011 == 0b1_0000, data == 0 else {
      return nil
    }
    return Int(address >> 5 & 0x7FFF | (address >> 2 & 1) << 15)
  }
}
