// SPDX-License-Identifier: Apache-2.0
//
// The mock IOMMU's user-managed page table: no table at all, but a cache of four slots that
// shows which invalidations arrived.

import IOMMU
import PageTables

/// Linux: `struct mock_iommu_domain_nested`. Thread-safe.
public final class MockNestedDomain: NestedDomain {
  /// `IOMMU_HWPT_DATA_SELFTEST`.
  static let dataType: UInt32 = 0xdead
  /// `IOMMU_HWPT_INVALIDATE_DATA_SELFTEST`.
  private static let invalidateType: UInt32 = 0xdead_beef
  /// `IOMMU_TEST_INVALIDATE_FLAG_ALL`.
  private static let invalidatesAll: UInt32 = 1
  /// `MOCK_NESTED_DOMAIN_IOTLB_NUM`.
  private static let slots = 4

  private let cache: RankedMutex<[UInt32]>
  /// What it was made in; nil for one that was made on a page table.
  let virtualIOMMU: MockVirtualIOMMU?

  /// - Parameter data: `struct iommu_hwpt_selftest`; its first word fills the cache.
  /// - Throws: `EOPNOTSUPP` for data of another type, `EINVAL` for a wrong length, `EFAULT`.
  init(_ data: UserData, in virtualIOMMU: MockVirtualIOMMU? = nil) throws(IOMMUError) {
    guard data.type == Self.dataType else {
      throw IOMMUError(
        .operationNotSupported,
        "the mock IOMMU nests on data of type \(hex(Self.dataType)), not \(hex(data.type))")
    }
    let bytes = try data.bytes(type: Self.dataType, minimum: 4, known: 8)
    self.virtualIOMMU = virtualIOMMU
    cache = RankedMutex(.domain, Array(repeating: bytes.number(at: 0), count: Self.slots))
  }

  /// What a slot of the cache holds; nil where there is no such slot.
  public func iotlb(_ slot: UInt32) -> UInt32? {
    cache.withLock { slot < UInt32($0.count) ? $0[Int(slot)] : nil }
  }

  public func invalidate(
    _ requests: UserDataArray
  ) -> (handled: UInt32, failure: IOMMUError?) {
    guard requests.type == Self.invalidateType else {
      return (
        0,
        IOMMUError(
          .invalidArgument,
          "the mock IOMMU takes invalidations of type \(hex(Self.invalidateType)), not "
            + "\(hex(requests.type))")
      )
    }
    for index in 0..<requests.count {
      do throws(IOMMUError) {
        try invalidate(
          requests.bytes(index, type: Self.invalidateType, minimum: 8, known: 8), index)
      } catch {
        return (index, error)
      }
    }
    return (requests.count, nil)
  }

  /// One `struct iommu_hwpt_invalidate_selftest`: flags and slot.
  private func invalidate(_ entry: [UInt8], _ index: UInt32) throws(IOMMUError) {
    let (flags, slot): (UInt32, UInt32) = (entry.number(at: 0), entry.number(at: 4))
    guard flags & ~Self.invalidatesAll == 0 else {
      throw IOMMUError(
        .operationNotSupported, "entry \(index) has flags \(hex(flags)); only 1 is known")
    }
    guard slot < UInt32(Self.slots) else {
      throw IOMMUError(
        .invalidArgument, "entry \(index) names slot \(slot); there are \(Self.slots)")
    }
    cache.withLock { cache in
      if flags & Self.invalidatesAll != 0 {
        for slot in cache.indices { cache[slot] = 0 }
      } else {
        cache[Int(slot)] = 0
      }
    }
  }
}
