// SPDX-License-Identifier: Apache-2.0
//
// A device's own list of the PASIDs that it may use: virtual ones, as its user names them, each
// with the physical one that its DMA carries (MODEL A3, E1, E2).

import SystemPackage

/// The PASIDs that a device or a slice is attached by. Thread-safe.
///
/// The list of its kind that the seeds ask for: a device model looks a PASID up here before it
/// lets the device use it, and finds nothing where it is not attached.
public final class VirtualPASIDs: Sendable {
  public let kind: DeviceKind
  /// As sentences name the device.
  let name: String
  private let spaces: PASIDSpaces
  private let assigned = Guarded<[PASID: Assignment]>([:])

  private struct Assignment: Sendable {
    let physical: PASID
    /// Of a PASID that devices share.
    let key: PASIDSpaces.SharedKey?
  }

  init(name: String, kind: DeviceKind, spaces: PASIDSpaces) {
    self.name = name
    self.kind = kind
    self.spaces = spaces
  }

  /// What DMA carries on the bus under a PASID of the user's; nil where it is not attached. For
  /// device models only: the number is never told to a user.
  public func physical(of virtual: PASID) -> PASID? {
    assigned.withLock { $0[virtual]?.physical }
  }

  /// The user's name for a physical PASID; nil where the device may not use it.
  public func virtual(of physical: PASID) -> PASID? {
    assigned.withLock { assigned in assigned.first { $0.value.physical == physical }?.key }
  }

  /// The virtual PASIDs that are attached, in ascending order.
  public var all: [PASID] { assigned.withLock { $0.keys.sorted() } }

  /// Finds a physical PASID for a virtual one that is about to be attached.
  /// - Parameter owner: The context.
  /// - Throws: `EINVAL` where the device has no virtual PASIDs or not this one, `EOPNOTSUPP`
  ///   where its table is the user's; `ENOSPC` where no physical PASID is free, `EBUSY` where it
  ///   is taken.
  func assign(
    _ virtual: PASID, on device: PhysicalDevice, owner: ObjectIdentifier
  ) throws(IOMMUError) {
    guard let allocation = kind.allocation else {
      throw refusal(of: virtual, on: device)
    }
    let assignment: Assignment
    switch allocation {
    case .identity:
      try spaces.claim(virtual, on: device, for: name, isIdentity: true)
      assignment = Assignment(physical: virtual, key: nil)
    case .perRequester:
      try check(virtual, on: device)
      assignment = Assignment(physical: try spaces.allocate(on: device, for: name), key: nil)
    case .global:
      try check(virtual, on: device)
      let key = PASIDSpaces.SharedKey(owner: owner, virtual: virtual)
      assignment = Assignment(
        physical: try spaces.allocateShared(key, on: device, for: name), key: key)
    }
    assigned.withLock { $0[virtual] = assignment }
    spaces.sources.enter(
      DMASources.Holder(name: name, virtual: virtual), device.requester, assignment.physical)
  }

  /// The virtual PASID was detached: its physical one is free. Nothing where it has none.
  func free(_ virtual: PASID, on device: PhysicalDevice) {
    guard let assignment = assigned.withLock({ $0.removeValue(forKey: virtual) }) else {
      return
    }
    spaces.sources.leave(
      DMASources.Holder(name: name, virtual: virtual), device.requester, assignment.physical)
    if let key = assignment.key {
      spaces.freeShared(key, on: device)
    } else {
      spaces.free(assignment.physical, on: device)
    }
  }

  /// Refuses a PASID on a device that takes none whatever its page table is, before the table is
  /// blamed.
  /// - Throws: `EINVAL`, as for the table: a device whose whole PASID table is the user's passes.
  func checkPossible(_ virtual: PASID, on device: PhysicalDevice) throws(IOMMUError) {
    guard kind.allocation == nil, kind != .physicalDelegated else { return }
    throw refusal(of: virtual, on: device)
  }

  private func refusal(of virtual: PASID, on device: PhysicalDevice) -> IOMMUError {
    guard kind == .physicalDelegated else {
      let why =
        device.capabilities.pasidBits == 0
        ? "; \(device.driver.name), its IOMMU, has no PASIDs (the machine file's pasid-bits)"
        : ""
      return IOMMUError(
        .invalidArgument,
        "\(name) is \(kind), so it cannot be attached with PASID \(virtual.rawValue)\(why)")
    }
    return IOMMUError(
      .operationNotSupported,
      "\(name) is \(kind), which is attached as a whole: PASID \(virtual.rawValue) is for that "
        + "table to translate, and its IOMMU reads no PASID tables of users")
  }

  /// Virtual PASIDs have the width that the IOMMU's have, so that a guest sees one number.
  private func check(_ virtual: PASID, on device: PhysicalDevice) throws(IOMMUError) {
    let bits = device.capabilities.pasidBits
    guard virtual.rawValue != 0, virtual.rawValue >> UInt32(bits) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(name) has PASIDs of \(bits) bits from 1 up, not \(virtual.rawValue)")
    }
  }
}

/// The page tables of PASIDs that slices of one device share: two slices that the IOMMU cannot
/// tell apart by a PASID go through the same table there, until the last one leaves.
final class SharedRoutes: Sendable {
  private struct User: Sendable {
    let device: any BindableDevice
    let route: DeviceGroup.Route
  }

  /// Held while the driver switches, so that slices do not cross on their way.
  private let users = RankedMutex<[PASID: [User]]>(.sharedRoutes, [:])

  /// Sends a slice's DMA under a virtual PASID along a route.
  /// - Throws: `EINVAL` where a sibling uses another table; what the driver throws. Then all is
  ///   as it was.
  func set(
    _ route: DeviceGroup.Route, of device: any BindableDevice, virtual: PASID, physical: PASID
  ) throws(IOMMUError) {
    try users.withLock { (all) throws(IOMMUError) in
      var users = all[physical] ?? []
      let index = users.firstIndex { $0.device === device }
      if route.isBlocked {
        if let index { users.remove(at: index) }
        // The table is the same for all; where page requests go is the eldest's to say.
        if index == 0 || users.isEmpty {
          try (users.first?.route ?? route).apply(to: device.physical, pasid: physical)
        }
      } else {
        if let other = users.first(where: { $0.device !== device }),
          other.route.tableID != route.tableID
        {
          throw IOMMUError(
            .invalidArgument,
            "\(device.name) shares \(device.physical.name) and PASID \(virtual.rawValue) with "
              + "\(other.device.name), which is attached to another page table by it; detach "
              + "that first")
        }
        if index ?? users.count == 0 { try route.apply(to: device.physical, pasid: physical) }
        let user = User(device: device, route: route)
        if let index { users[index] = user } else { users.append(user) }
      }
      all[physical] = users.isEmpty ? nil : users
    }
  }
}
