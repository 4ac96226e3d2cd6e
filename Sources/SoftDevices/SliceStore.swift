// SPDX-License-Identifier: Apache-2.0
//
// The slices of one mediating driver: by name, and no more than it can have.

import IOMMU
import SystemPackage
import VFIO

/// What a mediating driver has made. Thread-safe; nothing is called under its lock.
final class SliceStore<Slice: Sendable>: Sendable {
  /// Most slices that there may be at once.
  let capacity: Int

  private struct State: Sendable {
    var slices: [UUID: Slice] = [:]
    /// Slices that there are or that are being made.
    var count = 0
  }

  private let state = Guarded(State())

  init(capacity: Int) { self.capacity = max(0, capacity) }

  subscript(uuid: UUID) -> Slice? { state.withLock { $0.slices[uuid] } }

  var all: [Slice] { state.withLock { Array($0.slices.values) } }

  /// How many more there can be, and those that there are.
  var occupancy: (left: Int, slices: [Slice]) {
    state.withLock { (capacity - $0.count, Array($0.slices.values)) }
  }

  /// Makes a slice and keeps it.
  /// - Parameter full: For a sentence: "0000:e0:06.0 has no more slices".
  /// - Throws: `EUSERS` where there are as many as there may be; what `make` throws.
  func add(
    _ uuid: UUID, full: String, _ make: () throws(IOMMUError) -> Slice
  ) throws(IOMMUError) -> Slice {
    let isThere = state.withLock { state -> Bool in
      guard state.count < capacity else { return false }
      state.count += 1
      return true
    }
    guard isThere else { throw IOMMUError(.tooManyUsers, "\(full); it has \(capacity)") }
    do throws(IOMMUError) {
      let slice = try make()
      state.withLock { $0.slices[uuid] = slice }
      return slice
    } catch {
      state.withLock { $0.count -= 1 }
      throw error
    }
  }

  /// Forgets a slice that was taken apart.
  func remove(_ uuid: UUID) {
    state.withLock { state in
      state.slices[uuid] = nil
      state.count -= 1
    }
  }
}
