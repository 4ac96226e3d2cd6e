// SPDX-License-Identifier: Apache-2.0
//
// The interrupts of a controller: messages, and the line with INTMS and INTMC where the driver has
// switched no messages on (NVM Express 1.4, 7.5).

import IOMMU
import VFIO

/// The interrupt line: asserted while a completion queue whose vector is not masked has entries
/// that the driver has not taken. Thread-safe.
final class NVMeLine: Sendable {
  private struct State: Sendable {
    /// Bit n: vector n has entries.
    var waiting: UInt32 = 0
    var mask: UInt32 = 0
    var isAsserted = false
    var function: FunctionPort?
  }

  // `InterruptVectors` has a lock of its own, which comes after a device model's.
  private let state = Guarded(State())

  func connect(to function: FunctionPort) { state.withLock { $0.function = function } }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      let asserts = state.waiting & ~state.mask != 0
      guard asserts != state.isAsserted else { return }
      state.isAsserted = asserts
      state.function?.setLine(asserted: asserts)
    }
  }

  func setMask(_ mask: UInt32) { change { $0.mask = mask } }

  /// - Parameter vector: One past 31 has no bit, and no line.
  func setWaiting(_ vector: UInt16, _ isWaiting: Bool) {
    guard vector < 32 else { return }
    change { state in
      if isWaiting { state.waiting |= 1 << vector } else { state.waiting &= ~(1 << vector) }
    }
  }

  func reset() {
    change { state in
      state.waiting = 0
      state.mask = 0
    }
  }
}
