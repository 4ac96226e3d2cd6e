// SPDX-License-Identifier: Apache-2.0
//
// What one open of /dev/iommu owns (Linux: `iommufd_ctx`, the proposal's `iommu_ctx`; MODEL
// A1): the objects behind its ids, and their lives. Calls on address spaces, page tables and
// devices are in the files beside this one.

import Synchronization
import SystemPackage

/// An isolated set of address spaces, page tables and bound devices. Thread-safe.
///
/// Ids are local to the context. `close()`, or the last reference to it, ends it; devices that
/// are still bound then keep it alive until they are unbound, as an open device file does on
/// Linux.
public final class Context: Sendable {
  let system: IOMMUSystem

  struct Objects: Sendable {
    var table = ObjectTable()
    /// Reasons to stay: the open itself, and each bound device.
    var holders = 1
    var isClosed = false
    /// Of these, the files that hold the open (`ContextHold`): the user's side lives on in them.
    var holds = 0
    /// The address space that the VFIO compatibility calls work on.
    var compatibilityIOAS: ObjectID?
  }

  let objects = RankedMutex(.objects, Objects())
  /// Changed under the lock of `objects`; read by each map without it.
  private let perProcess = Atomic(false)
  /// Serializes what changes which table a device uses.
  let configuration = RankedMutex(.configuration, Configuration())

  struct Configuration: Sendable {
    /// Tables that attaching to an address space made, for the next compatible device.
    var automaticTables: [ObjectID: [HWPT]] = [:]
    /// By the `DeviceObject` that each stands for.
    var virtualDevices: [ObjectIdentifier: VirtualDeviceObject] = [:]
    /// By the driver's part.
    var hardwareQueues: [ObjectIdentifier: ObjectID] = [:]
    /// Spaces whose table is the user's.
    var userTables: [ObjectID: UserTableUse] = [:]
    /// Where the page requests of devices go that are attached to a space (MODEL H1).
    var faultQueues: [ObjectID: FaultQueue] = [:]
  }

  /// Whether DMA may bypass the CPU's caches, and notice of changes (MODEL F2).
  public let noSnoop = NoSnoopWatch()
  /// What drivers share with the program, which maps it through the context's file.
  public let areas = MmapAreas()
  /// What pins of memory that was mapped without an account are charged to.
  let account: MemoryAccount?

  /// - Parameter account: For memory that is mapped without one (MODEL B6); nil has no limit.
  public init(system: IOMMUSystem, account: MemoryAccount? = nil) {
    self.system = system
    self.account = account
    system.contextOpened()
  }

  deinit {
    // Bindings hold a reference: nothing is bound any more.
    guard objects.withLock({ $0.holders }) > 0 else { return }
    destroyAll()
    system.contextClosed()
  }

  /// Ends the user's side. What no bound device needs is freed; the rest goes with the last
  /// of them. Call once.
  public func close() { dropHolder(closing: true) }

  func addHolder() throws(IOMMUError) {
    try objects.withLock { (objects) throws(IOMMUError) in
      guard !objects.isClosed || objects.holds > 0 else {
        throw IOMMUError(.badFileDescriptor, "the context was closed")
      }
      objects.holders += 1
    }
  }

  func dropHolder(closing: Bool = false) {
    let isLast = objects.withLock { objects in
      if closing { objects.isClosed = true }
      objects.holders -= 1
      return objects.holders == 0
    }
    guard isLast else { return }
    destroyAll()
    system.contextClosed()
  }

  /// Destroys everything, users before what they use. No device is bound any more.
  private func destroyAll() {
    while true {
      let ids = objects.withLock { objects in
        objects.table.ids.filter { objects.table.users(of: $0) == 0 }
      }
      if ids.isEmpty { return }
      for id in ids {
        // Nobody else can reach the context; an object that is in use comes later.
        try? destroyWhateverMaps(id)
      }
    }
  }

  /// Objects alive: zero in a context that was closed.
  public var objectCount: Int { objects.withLock { $0.table.count } }

  /// Destroys an object.
  ///
  /// Linux: `IOMMU_DESTROY`.
  /// - Throws: `ENOENT` for an id that names nothing, `EBUSY` while another object needs it or a
  ///   program has pages of it mapped.
  public func destroy(_ id: ObjectID) throws(IOMMUError) {
    try checkUnmapped(id)
    try destroyWhateverMaps(id)
  }

  private func destroyWhateverMaps(_ id: ObjectID) throws(IOMMUError) {
    let object = try configuration.withLock { (configuration) throws(IOMMUError) in
      let object = try takeOut(id)
      dismantle(object, &configuration)
      return object
    }
    // Objects from above call back into the context: no lock is held for them.
    if case .foreign(let object) = object { object.destroy() }
  }

  /// Removes an unused object from the table.
  ///
  /// The caller holds `configuration`.
  private func takeOut(_ id: ObjectID) throws(IOMMUError) -> ContextObject {
    let (object, users) = try objects.withLock {
      (objects) throws(IOMMUError) -> (ContextObject, Int) in
      guard let object = objects.table[id] else {
        throw IOMMUError(.noSuchFileOrDirectory, "this context has no object \(id)")
      }
      let users = objects.table.users(of: id)
      if users == 0 {
        objects.table.remove(id)
        if objects.compatibilityIOAS == id { objects.compatibilityIOAS = nil }
      }
      return (object, users)
    }
    guard users == 0 else { throw inUse(id, object, users: users) }
    return object
  }

  /// Frees what an object held. Its id is gone already.
  private func dismantle(_ object: ContextObject, _ configuration: inout Configuration) {
    switch object {
    case .ioas(let space):
      // No hardware queue is left in it that could refuse.
      try? stopFollowing(space)
      space.destroy()
      configuration.userTables[space.id] = nil
      // The queue goes when it is closed.
      configuration.faultQueues[space.id] = nil
      if let link = space.link { dropUser(of: link.parent.id) }
    case .hwpt(let table):
      if let queue = table.faultQueue {
        dropUser(of: queue.id)
        if table.isAutomatic {
          destroyIfUnused(queue, of: table.space.id, &configuration)
        }
      }
      switch table.kind {
      case .paging(let domain):
        configuration.automaticTables[table.addressSpace.id]?.removeAll { $0 === table }
        table.addressSpace.remove(domain)
        dropUser(of: table.addressSpace.id)
      case .shared:
        break
      case .nested(_, let parent):
        dropUser(of: table.virtualIOMMU?.id ?? parent.id)
        guard let space = table.userSpace else { break }
        configuration.userTables[space.id]?.tables.removeAll { $0 === table }
        dropUser(of: space.id)
        destroyIfUnused(parent, &configuration)
      }
    case .device(let object):
      entombVirtualDevice(of: object, &configuration)
      object.group.release(object.endpoint, by: object.owner)
    case .virtualIOMMU(let object):
      dismantle(object)
    case .virtualDevice(let object):
      dismantle(object, &configuration)
    case .eventQueue(let queue):
      dismantle(queue)
    case .hardwareQueue(let queue):
      dismantle(queue, &configuration)
    case .faultQueue, .foreign:
      break
    }
  }

  /// Destroys an automatic table that the last device has left.
  func destroyIfUnused(_ table: HWPT, _ configuration: inout Configuration) {
    guard table.isAutomatic, objects.withLock({ $0.table.users(of: table.id) }) == 0,
      let object = try? takeOut(table.id)
    else { return }
    dismantle(object, &configuration)
  }

  /// Adds an object of a module above the engine.
  public func insert<Object: ForeignObject>(
    _ make: (ObjectID) -> Object
  ) throws(IOMMUError) -> Object {
    try objects.withLock { (objects) throws(IOMMUError) in
      try objects.table.insert { id in
        let object = make(id)
        return (.foreign(object), object)
      }
    }
  }

  /// Takes an id for an object of a module above the engine, before what the object needs is
  /// made: ids are given in the order that Linux gives them. The id names nothing as yet;
  /// follow with `publish(_:as:)` or `giveBack(_:)`. Thread-safe.
  /// - Throws: `ENOMEM` where no id is free.
  public func reserveID() throws(IOMMUError) -> ObjectID {
    try objects.withLock { (objects) throws(IOMMUError) in try objects.table.reserve() }
  }

  /// Lets an id of `reserveID()` name its object.
  public func publish(_ object: any ForeignObject, as id: ObjectID) {
    objects.withLock { $0.table.publish(.foreign(object), as: id) }
  }

  /// Frees an id of `reserveID()` whose object could not be made.
  public func giveBack(_ id: ObjectID) { objects.withLock { $0.table.cancel(id) } }

  /// An object that `insert(_:)` or `publish(_:as:)` added.
  /// - Throws: `ENOENT` where the id names nothing, or something else.
  public func foreignObject(_ id: ObjectID) throws(IOMMUError) -> any ForeignObject {
    guard case .foreign(let object)? = objects.withLock({ $0.table[id] }) else {
      throw noObject(id, wanted: "such an object")
    }
    return object
  }

  // MARK: Looking up

  func addressSpace(_ id: ObjectID) throws(IOMMUError) -> AddressSpace {
    guard let space = objects.withLock({ $0.table.addressSpace(id) }) else {
      throw noObject(id, wanted: "an IOAS")
    }
    return space
  }

  func device(_ id: ObjectID) throws(IOMMUError) -> DeviceObject {
    guard case .device(let device)? = objects.withLock({ $0.table[id] }) else {
      throw noObject(id, wanted: "a device")
    }
    return device
  }

  /// `ENOENT`, as Linux says both for an id that is free and for one of another kind.
  func noObject(_ id: ObjectID, wanted: String) -> IOMMUError {
    let found = objects.withLock { $0.table[id]?.kind }
    return IOMMUError(
      .noSuchFileOrDirectory,
      found.map { "object \(id) of this context is \($0), not \(wanted)" }
        ?? "this context has no object \(id); \(wanted) is needed")
  }

  func addUser(of id: ObjectID) { objects.withLock { $0.table.addUser(of: id) } }

  func dropUser(of id: ObjectID) { objects.withLock { $0.table.dropUser(of: id) } }

  // MARK: Options

  /// Whether locked memory is counted per process instead of per user.
  ///
  /// Linux: `IOMMU_OPTION_RLIMIT_MODE`. MODEL B6.
  public var accountsPerProcess: Bool { perProcess.load(ordering: .relaxed) }

  /// - Throws: `EBUSY` once the context has objects.
  public func setAccountsPerProcess(_ value: Bool) throws(IOMMUError) {
    try objects.withLock { (objects) throws(IOMMUError) in
      guard objects.table.isEmpty else {
        throw IOMMUError(
          .resourceBusy,
          "the accounting mode is chosen before the first object is made; the context has "
            + "\(objects.table.count)")
      }
      perProcess.store(value, ordering: .relaxed)
    }
  }
}
