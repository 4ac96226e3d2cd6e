// SPDX-License-Identifier: Apache-2.0
//
// The N of /dev/vfio/devices/vfioN, while devices come and go.

import IOMMU

/// Numbers of VFIO devices, the lowest free one first. Linux: `vfio.device_ida`. Thread-safe.
public final class DeviceIndices: Sendable {
  private let taken = Guarded<Set<UInt32>>([])

  public init() {}

  public func take() -> UInt32 {
    taken.withLock { taken in
      var index: UInt32 = 0
      while !taken.insert(index).inserted { index += 1 }
      return index
    }
  }

  public func free(_ index: UInt32) { taken.withLock { _ = $0.remove(index) } }
}
