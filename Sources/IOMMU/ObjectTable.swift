// SPDX-License-Identifier: Apache-2.0
//
// The ids of one context and what they name (Linux: `iommufd_ctx.objects`). Ids start at 1,
// the lowest free one is given out next, and they mean nothing in another context (A1).

import SystemPackage

/// Names an object inside one context.
public struct ObjectID: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public var rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public init(_ rawValue: UInt32) { self.rawValue = rawValue }

  public var description: String { String(rawValue) }
}

/// What an id can name.
enum ContextObject: Sendable {
  case ioas(AddressSpace)
  case hwpt(HWPT)
  case device(DeviceObject)
  case faultQueue(FaultQueue)
  case virtualIOMMU(VirtualIOMMUObject)
  case virtualDevice(VirtualDeviceObject)
  case eventQueue(VirtualEventQueue)
  case hardwareQueue(HardwareQueueObject)
  /// An object of somebody above the engine, such as the self-test driver.
  case foreign(any ForeignObject)

  /// For sentences: "object 3 is a device".
  var kind: String {
    switch self {
    case .ioas: "an IOAS"
    case .hwpt(let table):
      switch table.kind {
      case .paging: "a page table (HWPT)"
      case .nested: "a nested page table (HWPT)"
      case .shared: "a process's own page table (HWPT)"
      }
    case .device: "a device"
    case .faultQueue: "a fault queue"
    case .virtualIOMMU: "a virtual IOMMU"
    case .virtualDevice: "a virtual device"
    case .eventQueue: "an event queue"
    case .hardwareQueue: "a hardware queue"
    case .foreign(let object): object.kind
    }
  }
}

/// An object that lives in a context's table but belongs to a module above the engine.
public protocol ForeignObject: AnyObject, Sendable {
  /// With its article, for sentences: "a mock device".
  var kind: String { get }
  /// Called once, when the object is destroyed or its context closes, without locks held.
  func destroy()
}

/// Objects by id, with the number of other objects that use each. Guarded by its context.
struct ObjectTable: Sendable {
  private struct Slot: Sendable {
    var object: ContextObject?
    /// The id is taken by an object that is not there yet, or not any more.
    var isReserved = false
    /// How many others need the object. It can be destroyed at zero.
    var users = 0
  }

  /// Index 0 stands for id 1.
  private var slots: [Slot] = []
  /// No free slot lies below this index.
  private var lowestFree = 0
  private(set) var count = 0
  private var reserved = 0

  /// Whether no id is in use. As on Linux, one that only was in use counts.
  var isEmpty: Bool { count == 0 && reserved == 0 }

  subscript(id: ObjectID) -> ContextObject? {
    let index = Int(id.rawValue) - 1
    return index >= 0 && index < slots.count ? slots[index].object : nil
  }

  /// The address space of that id; nil where it names nothing or something else.
  func addressSpace(_ id: ObjectID) -> AddressSpace? {
    let index = Int(id.rawValue) - 1
    guard index >= 0, index < slots.count, case .ioas(let space)? = slots[index].object else {
      return nil
    }
    return space
  }

  /// Linux's limit: ids have 31 bits.
  private static let limit = Int(Int32.max)

  /// Reserves the lowest free id and publishes what `make` returns for it.
  mutating func insert<Made>(
    _ make: (ObjectID) -> (ContextObject, Made)
  ) throws(IOMMUError) -> Made {
    let id = try reserve()
    let (object, made) = make(id)
    publish(object, as: id)
    return made
  }

  /// Takes the lowest free id, which names nothing until `publish` or `cancel`.
  mutating func reserve() throws(IOMMUError) -> ObjectID {
    try FailurePoint.pass(.object)
    var index = lowestFree
    while index < slots.count, slots[index].object != nil || slots[index].isReserved {
      index += 1
    }
    guard index < Self.limit else {
      throw IOMMUError(.noMemory, "the context holds \(Self.limit) objects, the most it can")
    }
    if index == slots.count { slots.append(Slot()) }
    slots[index].isReserved = true
    lowestFree = index + 1
    reserved += 1
    return ObjectID(UInt32(index + 1))
  }

  /// Lets a reserved id name an object.
  mutating func publish(_ object: ContextObject, as id: ObjectID) {
    slots[Int(id.rawValue) - 1] = Slot(object: object)
    reserved -= 1
    count += 1
  }

  /// Gives a reserved id back.
  mutating func cancel(_ id: ObjectID) {
    let index = Int(id.rawValue) - 1
    slots[index] = Slot()
    lowestFree = min(lowestFree, index)
    reserved -= 1
  }

  /// Takes an object out that nobody is using, and lets its id name nothing for ever.
  mutating func entomb(_ id: ObjectID) {
    slots[Int(id.rawValue) - 1] = Slot(isReserved: true)
    reserved += 1
    count -= 1
  }

  func users(of id: ObjectID) -> Int { slots[Int(id.rawValue) - 1].users }

  mutating func addUser(of id: ObjectID, count: Int = 1) {
    slots[Int(id.rawValue) - 1].users += count
  }

  mutating func dropUser(of id: ObjectID) {
    slots[Int(id.rawValue) - 1].users -= 1
  }

  /// Takes an object out; nobody may be using it.
  mutating func remove(_ id: ObjectID) {
    let index = Int(id.rawValue) - 1
    slots[index] = Slot()
    lowestFree = min(lowestFree, index)
    count -= 1
  }

  /// All ids in use, lowest first.
  var ids: [ObjectID] {
    slots.indices.filter { slots[$0].object != nil }.map { ObjectID(UInt32($0 + 1)) }
  }
}
