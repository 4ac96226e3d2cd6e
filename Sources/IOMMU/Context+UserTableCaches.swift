// SPDX-License-Identifier: Apache-2.0
//
// Invalidation of what IOMMUs and devices have cached of a space whose table is the user's (MODEL
// G1, G2), as the proposal's INVALIDATE_CACHE says it. In each vendor's words: Context.invalidate.

import PageTables
import SystemPackage

/// One thing to forget of a space with a user's table.
public struct SpaceInvalidation: Hashable, Sendable {
  public var request: CacheInvalidation
  /// Names the device that the device's granularity, a device TLB or entries of a PASID table are
  /// meant of; not looked at for what the IOMMU keeps by address or PASID.
  public var cookie: UInt64

  public init(_ request: CacheInvalidation, cookie: UInt64 = 0) {
    self.request = request
    self.cookie = cookie
  }

  fileprivate var isOfDevice: Bool {
    request.granularity == .device || !request.caches.isSubset(of: .iotlb)
  }
}

extension Context {
  /// Makes IOMMUs and devices forget what they cached of a user's table, one after the other. When
  /// it returns, no DMA on any thread uses what the handled ones named (MODEL G1, G2).
  ///
  /// What no device is attached to is cached nowhere, and forgotten at once.
  /// - Returns: How many were handled, and why it stopped before the last.
  /// - Throws: `ENOENT` where there is no such space, `EINVAL` where its table is not the user's.
  public func invalidate(
    _ requests: [SpaceInvalidation], of space: ObjectID
  ) throws(IOMMUError) -> (handled: Int, failure: IOMMUError?) {
    _ = try addressSpace(space)
    for (index, request) in requests.enumerated() {
      // Again for each: an attach between two of them makes another table.
      guard let use = configuration.withLock({ $0.userTables[space] }) else {
        throw notUsers(space)
      }
      do throws(IOMMUError) {
        try invalidate(request, of: space, use)
      } catch {
        return (index, error)
      }
    }
    guard !requests.isEmpty || userTable(of: space) != nil else { throw notUsers(space) }
    return (requests.count, nil)
  }

  private func notUsers(_ space: ObjectID) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "ioasid \(space) is filled by the kernel, which invalidates by itself; only caches of a "
        + "user's tables are invalidated by call")
  }

  private func invalidate(
    _ entry: SpaceInvalidation, of space: ObjectID, _ use: UserTableUse
  ) throws(IOMMUError) {
    let request = entry.request
    try check(request, of: space, use.table)
    var object: DeviceObject?
    if entry.isOfDevice {
      let found = try device(device(cookie: entry.cookie))
      guard pasids(of: found, in: space).isEmpty == false else {
        throw IOMMUError(
          .invalidArgument, "\(found.name) is not attached to ioasid \(space)")
      }
      object = found
    }
    try check(request, of: space, use.table, attachedTo: object)
    for table in use.tables {
      guard case .nested(let domain, _) = table.kind,
        object == nil || object?.device.driver === table.driver
      else { continue }
      try domain.invalidate(request, of: object?.device.requester)
    }
  }

  /// - Throws: `EINVAL`.
  private func check(
    _ request: CacheInvalidation, of space: ObjectID, _ table: UserTable
  ) throws(IOMMUError) {
    let known: CacheInvalidation.Caches = [.iotlb, .deviceTLB, .pasid]
    guard !request.caches.isEmpty, request.caches.isSubset(of: known) else {
      throw IOMMUError(
        .invalidArgument, "caches \(hex(request.caches.rawValue)) are none, or unknown ones")
    }
    guard request.caches.contains(.pasid) else { return }
    guard table.format.isPASIDTable else {
      throw IOMMUError(
        .invalidArgument,
        "ioasid \(space) is \(table.format), no table of PASIDs that entries could be cached of"
      )
    }
    if case .range = request.granularity {
      throw IOMMUError(
        .invalidArgument,
        "an entry of a PASID table has no range of addresses; invalidate the PASID cache by "
          + "device or by PASID")
    }
  }

  /// A PASID table has entries for what its width says; a page table is attached by a PASID, or
  /// without.
  /// - Throws: `EINVAL`.
  private func check(
    _ request: CacheInvalidation, of space: ObjectID, _ table: UserTable,
    attachedTo object: DeviceObject?
  ) throws(IOMMUError) {
    let pasid: PASID
    switch request.granularity {
    case .device: return
    case .pasid(let named): pasid = named
    case .range(let named, _):
      // A page table translates the same addresses whatever the PASID.
      guard table.format.isPASIDTable else { return }
      pasid = named
    }
    guard !table.format.isPASIDTable else {
      guard UInt64(pasid.rawValue) >> UInt64(table.width) == 0 else {
        throw IOMMUError(
          .invalidArgument,
          "ioasid \(space) is a table of PASIDs of \(table.width) bits, not of "
            + "\(pasid.rawValue)")
      }
      return
    }
    let devices = object.map { [$0] } ?? boundDevices
    guard devices.contains(where: { pasids(of: $0, in: space).contains(pasid.nonzero) }) else {
      throw IOMMUError(
        .invalidArgument, "ioasid \(space) is not attached by PASID \(pasid.rawValue)")
    }
  }

  /// The PASIDs by which a bound device is attached to a space; nil stands for DMA without one.
  private func pasids(of object: DeviceObject, in space: ObjectID) -> [PASID?] {
    object.group.attachedPASIDs(of: object).filter {
      object.group.table(of: object, pasid: $0)?.space.id == space
    }
  }
}
