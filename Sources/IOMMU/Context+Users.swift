// SPDX-License-Identifier: Apache-2.0
//
// Who needs an object that cannot be destroyed yet, for the sentence that says so.

import SystemPackage

extension Context {
  /// How many users a sentence names.
  static let usersNamed = 3
  /// Objects that are looked at: a program can make very many, and fail as often as it likes.
  private static let usersSought = 4096

  /// Refuses to destroy an object that others need. The caller holds `configuration`.
  func inUse(_ id: ObjectID, _ object: ContextObject, users: Int) -> IOMMUError {
    var names = names(ofUsersOf: id, object, spacesCalled: "IOAS")
    // Whoever else needs a queue has it open.
    if names.count < users, object.isRead { names.append("its open descriptor") }
    return IOMMUError(
      .resourceBusy,
      "object \(id), \(object.kind), is in use by \(Self.list(names, of: users))")
  }

  /// Who needs an object, in words, for an interface that does not speak of objects.
  /// - Parameter word: What it calls an address space: `ioasid`.
  package func users(of id: ObjectID, spacesCalled word: String) -> String {
    configuration.withLock { _ in
      let found = objects.withLock { objects in
        objects.table[id].map { ($0, objects.table.users(of: id)) }
      }
      guard let (object, users) = found else { return "nobody any more" }
      return Self.list(names(ofUsersOf: id, object, spacesCalled: word), of: users)
    }
  }

  /// - Parameter count: How many there are at least: of some the names are not known.
  static func list(_ names: [String], of count: Int) -> String {
    var words = Array(names.prefix(usersNamed))
    let others = max(count, names.count) - words.count
    if others > 0 { words.append("\(others) other\(others == 1 ? "" : "s")") }
    return words.count < 2
      ? words.joined()
      : words.dropLast().joined(separator: ", ") + " and " + words[words.count - 1]
  }

  private func names(
    ofUsersOf id: ObjectID, _ object: ContextObject, spacesCalled space: String
  ) -> [String] {
    let others = objects.withLock { objects in
      objects.table.ids.prefix(Self.usersSought).filter { $0 != id }.compactMap {
        objects.table[$0]
      }
    }
    // The devices on a table that an attach made: the user made neither, nor destroys it.
    var tables: Set<ObjectID> = [id]
    var names: [String] = []
    if case .device = object { names.append("the file that bound it") }
    for other in others {
      if case .hwpt(let table) = other, table.isAutomatic, table.space.id == id {
        tables.insert(table.id)
      } else if let name = other.name(asUserOf: id, spacesCalled: space) {
        names.append(name)
      }
    }
    for case .device(let device) in others {
      let attached = device.group.tables(of: device, sought: Self.usersSought)
      if attached.contains(where: { tables.contains($0.id) }) {
        names.append("device \(device.id) (\(device.name))")
      }
    }
    if case .device(let device) = object {
      let attached = device.group.tables(of: device, sought: Self.usersSought)
      names += Set(
        attached.map { $0.isAutomatic ? "\(space) \($0.space.id)" : "HWPT \($0.id)" }
      ).sorted().map { "its attachment to \($0)" }
    }
    return names
  }
}

extension DeviceGroup {
  /// The tables that a bound device is attached to, with a PASID or without.
  /// - Parameter sought: How many attachments of the group are looked at.
  fileprivate func tables(of object: DeviceObject, sought: Int) -> [HWPT] {
    state.withLock { state in
      state.attachments.values.prefix(sought).compactMap { attachment in
        attachment.devices.contains { $0 === object } ? attachment.table : nil
      }
    }
  }
}

extension ContextObject {
  /// Whether it has a descriptor that records are read from.
  fileprivate var isRead: Bool {
    switch self {
    case .faultQueue, .eventQueue: true
    default: false
    }
  }

  /// What it is called where it needs the object of that id; nil where it does not.
  fileprivate func name(asUserOf id: ObjectID, spacesCalled word: String) -> String? {
    switch self {
    case .ioas(let space):
      return space.link?.parent.id == id ? "\(word) \(space.id)" : nil
    case .hwpt(let table):
      var needed = [table.faultQueue?.id]
      switch table.kind {
      case .paging: needed.append(table.addressSpace.id)
      case .nested(_, let parent): needed.append(table.virtualIOMMU?.id ?? parent.id)
      case .shared: break
      }
      return needed.contains(id) ? "HWPT \(table.id)" : nil
    case .virtualIOMMU(let object):
      return object.parent.id == id ? "virtual IOMMU \(object.id)" : nil
    case .virtualDevice(let object):
      return object.virtualIOMMU.id == id ? "virtual device \(object.id)" : nil
    case .eventQueue(let queue):
      return queue.virtualIOMMU.id == id ? "event queue \(queue.id)" : nil
    case .hardwareQueue(let queue):
      let needs = queue.virtualIOMMU.id == id || queue.predecessor == id
      return needs ? "hardware queue \(queue.id)" : nil
    case .foreign(let object as Accessor.Record):
      return object.space == id ? "access \(object.id)" : nil
    case .device, .faultQueue, .foreign:
      return nil
    }
  }
}
