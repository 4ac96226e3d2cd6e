// SPDX-License-Identifier: Apache-2.0
//
// The PASIDs that one device may use: each device keeps its own list, and the driver of a mediated
// device looks here before it loads a PASID into hardware (MODEL A3).

import IOMMU
import SystemPackage

/// A device's own list of PASIDs. Thread-safe.
///
/// VFIO keeps it: an attach with a PASID enters it, a detach and the device's close take it out. So
/// it is a matter of the calls that the user made with both files, and no callback fills it. The
/// IOMMU blocks what was not attached all the same; the list is there for what the IOMMU cannot
/// tell apart, a PASID of a neighbour under the same requester id.
public final class AllowedPASIDs: Sendable {
  private let list = Guarded<[PASID: PASID]>([:])

  public init() {}

  /// Lets the device use a PASID.
  /// - Parameters:
  ///   - virtual: As its user calls it.
  ///   - physical: As its DMA carries it. The user never sees it.
  public func allow(virtual: PASID, physical: PASID) {
    list.withLock { $0[virtual] = physical }
  }

  /// Takes a PASID out; when it returns, no access by it goes on. Nothing where it is not there.
  public func revoke(_ virtual: PASID) { list.withLock { _ = $0.removeValue(forKey: virtual) } }

  /// Takes all of them out.
  public func revokeAll() { list.withLock { $0 = [:] } }

  /// What a driver asks before it loads a PASID that came from its user.
  /// - Returns: What to load.
  /// - Throws: `EPERM` where the PASID was not attached.
  public func check(_ virtual: PASID) throws(IOMMUError) -> PASID {
    guard let physical = list.withLock({ $0[virtual] }) else {
      throw IOMMUError(
        .notPermitted,
        "PASID \(virtual.rawValue) is not on the device's list; attach it first "
          + "(VFIO_DEVICE_ATTACH_PASID)")
    }
    return physical
  }

  /// Makes one access with a PASID. Whoever revokes it waits for that: a physical PASID that is
  /// free again may be a neighbour's the next moment.
  /// - Parameter body: A bounded piece of DMA: the list is held for as long. It must not attach or
  ///   detach.
  /// - Returns: Nil where the PASID is not on the list.
  func use<Result, Failure: Error>(
    _ virtual: PASID, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    try list.withLock { (list) throws(Failure) in
      guard list[virtual] != nil else { return nil }
      return try body()
    }
  }

  /// What the user may name now, by number.
  public var virtual: [PASID] {
    list.withLock { $0.keys.sorted { $0.rawValue < $1.rawValue } }
  }
}
