// SPDX-License-Identifier: Apache-2.0
//
// Spaces whose table is the user's (MODEL B2, B9): made with their table, or given one later. The
// page tables behind them are made when a device is attached, one for each IOMMU driver.

import PageTables
import SystemPackage

extension Context {
  /// The table of a space, and what stands for it.
  struct UserTableUse: Sendable {
    let table: UserTable
    /// Given when the space was made: it goes with that only.
    let isPermanent: Bool
    /// Being unbound: devices are on their way off.
    var isLeaving = false
    /// Nested tables that attaches have made.
    var tables: [HWPT] = []
  }

  /// The tables of users that some IOMMU of the machine walks, each format once, by number.
  /// MODEL B8.
  public var machineUserTables: [UserTable.Support] {
    var widths: [UserTable.Format: UInt64] = [:]
    for device in system.groups.flatMap({ $0.devices.map(\.physical) }) {
      for support in device.driver.userTables(for: device.requester) {
        widths[support.format, default: 0] |= support.widths.rawValue
      }
    }
    return widths.map { UserTable.Support($0, widths: UserTable.Widths(rawValue: $1)) }
      .sorted { $0.format.rawValue < $1.format.rawValue }
  }

  /// Makes a space whose table is the user's, nested on a space that the engine maps.
  ///
  /// It is attached, detached and destroyed as others. Nothing is mapped in it: what its table
  /// says holds, as far as the parent maps what it points at.
  /// - Parameter parent: A space of this context (MODEL A1) without a table of the user's.
  /// - Throws: `EINVAL` for a table that no IOMMU could walk; `EOPNOTSUPP` for one that none of
  ///   this machine walks; `ENOENT`; as `allocateIOAS(nestedOn:parentChanges:attributes:)`.
  public func allocateIOAS(
    of table: UserTable, nestedOn parent: ObjectID,
    attributes: AddressSpaceAttributes = AddressSpaceAttributes(allowsPASIDs: true)
  ) throws(IOMMUError) -> ObjectID {
    try checkMachine(walks: table)
    return try configuration.withLock { (configuration) throws(IOMMUError) in
      let child = try makeChild(
        of: parent, changes: .carriedThrough, attributes: attributes, ownedBy: .user,
        configuration)
      configuration.userTables[child.id] = UserTableUse(table: table, isPermanent: true)
      return child.id
    }
  }

  /// Gives a nested space a table of the user's. The devices that are attached to it go through
  /// that from then on, each in one step; where one cannot, none does.
  ///
  /// The first proposal's BIND_PGTABLE.
  /// - Parameter child: A nested space in which nothing is mapped.
  /// - Throws: `ENOENT`; `EINVAL` for a space that nests on none, and as an attach; `EEXIST`
  ///   where it has a table; `EBUSY` where something is mapped in it or nested on it;
  ///   `EOPNOTSUPP`.
  public func bind(_ table: UserTable, to child: ObjectID) throws(IOMMUError) {
    try checkMachine(walks: table)
    try configuration.withLock { (configuration) throws(IOMMUError) in
      let space = try addressSpace(child)
      guard let link = space.link else {
        throw IOMMUError(
          .invalidArgument,
          "ioasid \(child) has no parent; a table of the user's nests on one")
      }
      try checkParent(link.parent, configuration)
      guard configuration.userTables[child] == nil else {
        throw IOMMUError(
          .fileExists, "ioasid \(child) has a table of the user's already; unbind that first")
      }
      try space.beginUserTable()
      configuration.userTables[child] = UserTableUse(table: table, isPermanent: false)
      do throws(IOMMUError) {
        try moveAll(of: space, &configuration)
      } catch {
        configuration.userTables[child]?.isLeaving = true
        try? moveAll(of: space, &configuration)
        configuration.userTables[child] = nil
        space.endUserTable()
        throw error
      }
    }
  }

  /// Takes a table back that `bind` gave. Attached devices reach nothing then but what is mapped
  /// in the space.
  /// - Throws: `ENOENT`; `EINVAL` where no table was bound; what an attach throws.
  public func unbindUserTable(of child: ObjectID) throws(IOMMUError) {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      let space = try addressSpace(child)
      guard let use = configuration.userTables[child], !use.isPermanent else {
        throw IOMMUError(
          .invalidArgument,
          configuration.userTables[child] == nil
            ? "no table of the user's was bound to ioasid \(child)"
            : "ioasid \(child) was made with its table, and keeps it")
      }
      configuration.userTables[child]?.isLeaving = true
      do throws(IOMMUError) {
        try moveAll(of: space, &configuration)
      } catch {
        configuration.userTables[child]?.isLeaving = false
        try? moveAll(of: space, &configuration)
        throw error
      }
      configuration.userTables[child] = nil
      space.endUserTable()
    }
  }

  /// The table of a space that the user owns; nil for other objects and none.
  package func userTable(of space: ObjectID) -> UserTable? {
    configuration.withLock { $0.userTables[space]?.table }
  }

  private func checkMachine(walks table: UserTable) throws(IOMMUError) {
    try table.check()
    let known = machineUserTables
    guard
      known.contains(where: { $0.format == table.format && $0.widths.contains(table.width) })
    else {
      let widths = known.first { $0.format == table.format }.map { UserTable.list($0.widths) }
      throw IOMMUError(
        .operationNotSupported,
        widths.map {
          "the IOMMUs of this machine walk \(table.format) of \($0) bits, not of \(table.width)"
        }
          ?? "no IOMMU of this machine takes \(table.format) by itself; DEVICE_GET_INFO says what a "
          + "device's does, and which tables of PASIDs")
    }
  }

  /// Only what the engine maps is a floor for a table that nobody trusts.
  func checkParent(
    _ parent: AddressSpace, _ configuration: Configuration
  ) throws(IOMMUError) {
    guard configuration.userTables[parent.id] == nil else {
      throw IOMMUError(
        .invalidArgument,
        "the table of ioasid \(parent.id) is the user's, which nothing nests on; nest on "
          + "ioasid \(parent.link?.parent.id.description ?? "its parent") as it does")
    }
  }

  /// Moves the devices that are attached to a space from one of its two kinds of table to the
  /// other.
  private func moveAll(
    of space: AddressSpace, _ configuration: inout Configuration
  ) throws(IOMMUError) {
    let use = configuration.userTables[space.id]
    let left =
      use?.isLeaving == true ? use?.tables : configuration.automaticTables[space.id]
    for object in boundDevices {
      for pasid in object.group.attachedPASIDs(of: object) {
        guard let table = object.group.table(of: object, pasid: pasid),
          left?.contains(where: { $0 === table }) == true
        else { continue }
        let change = AttachmentChange(object: object, pasid: pasid, mode: .replace, hint: .none)
        _ = try attachAutomatically(change, to: space, &configuration)
      }
    }
  }

  // MARK: Attaching

  /// The nested table of the device's driver, or a new one.
  /// - Returns: The page table.
  func attach(
    _ change: AttachmentChange, to space: AddressSpace, use: UserTableUse,
    _ configuration: inout Configuration
  ) throws(IOMMUError) -> ObjectID {
    try check(use.table, of: space, fits: change)
    let queue = configuration.faultQueues[space.id]
    let tables = use.tables.filter { $0.faultQueue === queue }
    return try attach(change, toOneOf: tables, &configuration) {
      configuration throws(IOMMUError) in
      try makeUserTable(
        for: change.object, space: space, use: use, faultQueue: queue, &configuration)
    }
  }

  /// - Throws: `EINVAL`.
  private func check(
    _ table: UserTable, of space: AddressSpace, fits change: AttachmentChange
  ) throws(IOMMUError) {
    let (device, driver) = (change.object.device, change.object.device.driver)
    let known = driver.userTables(for: device.requester)
    guard let support = known.first(where: { $0.format == table.format }) else {
      let others = known.map(\.format.description).joined(separator: ", ")
      throw IOMMUError(
        .invalidArgument,
        "ioasid \(space.id) is \(table.format); \(driver.name), the IOMMU of "
          + "\(change.object.name), walks \(others.isEmpty ? "no tables of users" : others)")
    }
    guard support.widths.contains(table.width) else {
      throw IOMMUError(
        .invalidArgument,
        "ioasid \(space.id) is \(table.format) of \(table.width) bits; \(driver.name), the IOMMU "
          + "of \(change.object.name), walks those of \(UserTable.list(support.widths))")
    }
    guard table.format.isPASIDTable else { return }
    if change.object.endpoint.kind.isMediated {
      throw IOMMUError(
        .invalidArgument,
        "\(change.object.name) is \(change.object.endpoint.kind): its parent has the PASID table, "
          + "and a user's, such as ioasid \(space.id), cannot be put in its place")
    }
    if let pasid = change.pasid {
      throw IOMMUError(
        .invalidArgument,
        "ioasid \(space.id) is \(table.format), which stands for all PASIDs of a device: attach "
          + "it without PASID \(pasid.rawValue)")
    }
  }

  private func makeUserTable(
    for object: DeviceObject, space: AddressSpace, use: UserTableUse, faultQueue: FaultQueue?,
    _ configuration: inout Configuration
  ) throws(IOMMUError) -> HWPT {
    guard let link = space.link else { throw noObject(space.id, wanted: "a nested IOAS") }
    let (device, driver) = (object.device, object.device.driver)
    let parent = try nestParent(of: link.parent, for: object, &configuration)
    do throws(IOMMUError) {
      guard let paging = parent.paging else {
        throw noObject(parent.id, wanted: "a kernel-managed page table")
      }
      let hasPASIDs =
        space.attributes.allowsPASIDs && device.capabilities.pasidBits > 0
        && !use.table.format.isPASIDTable
      let attributes: PagingAttributes = hasPASIDs ? .pasid : []
      try FailurePoint.pass(.driverObject)
      let domain = try driver.makeUserTable(
        use.table, for: device.requester, parent: paging, attributes: attributes)
      let table = try insertTable(dependingOn: parent.id, faultQueue: faultQueue?.id) {
        id, queue in
        HWPT(
          id: id, addressSpace: link.parent, kind: .nested(domain, parent: parent),
          driver: driver, attributes: attributes, isAutomatic: true, faultQueue: queue,
          userSpace: space)
      }
      addUser(of: space.id)
      configuration.userTables[space.id]?.tables.append(table)
      return table
    } catch {
      destroyIfUnused(parent, &configuration)
      throw error
    }
  }

  /// The table of a space that users' tables nest on: one for each driver.
  private func nestParent(
    of space: AddressSpace, for object: DeviceObject, _ configuration: inout Configuration
  ) throws(IOMMUError) -> HWPT {
    let driver = object.device.driver
    if let table = configuration.automaticTables[space.id]?.first(where: {
      $0.driver === driver && $0.attributes.contains(.nestParent)
    }) {
      return table
    }
    let hasPASIDs = space.attributes.allowsPASIDs && object.device.capabilities.pasidBits > 0
    let table: HWPT
    do throws(IOMMUError) {
      table = try makeTable(
        for: object, space: space, attributes: hasPASIDs ? [.nestParent, .pasid] : .nestParent,
        data: nil, isAutomatic: true)
    } catch {
      // Some IOMMUs keep the PASIDs to the tables above.
      guard hasPASIDs, error.errno == .operationNotSupported else { throw error }
      table = try makeTable(
        for: object, space: space, attributes: .nestParent, data: nil, isAutomatic: true)
    }
    // Devices that are attached to the space itself go through it too.
    configuration.automaticTables[space.id, default: []].insert(table, at: 0)
    return table
  }
}

extension AddressSpace {
  /// From now on the user's table says what is mapped.
  /// - Throws: `EBUSY` where something is mapped, or nested on this.
  func beginUserTable() throws(IOMMUError) {
    try withTree { (state) throws(IOMMUError) in
      try check(state)
      guard state.areas.isEmpty, state.mappings.all.isEmpty else {
        throw IOMMUError(
          .resourceBusy,
          "ioasid \(id) has mappings; unmap all of them, then bind the user's table")
      }
      guard state.children.isEmpty else {
        throw IOMMUError(
          .resourceBusy,
          "ioasid \(state.children[0].id) is nested on ioasid \(id), which takes no table of the "
            + "user's then")
      }
      state.specials.insert(.userTable)
    }
  }

  /// What is mapped is said by calls again.
  func endUserTable() {
    // Nothing in it throws.
    try? withTree { state in _ = state.specials.remove(.userTable) }
  }
}
