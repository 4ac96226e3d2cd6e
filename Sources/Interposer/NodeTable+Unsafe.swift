// SPDX-License-Identifier: Apache-2.0
//
// What of the program's file system is ours: nodes of devices and attributes in /sys, by the file
// that stands for each.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// An attribute where programs find it. Thread-safe.
final class AttributePlace: Sendable {
  let path: String
  let attribute: any Attribute
  private let isRemoved = Atomic(false)

  init(_ path: String, _ attribute: any Attribute) {
    self.path = path
    self.attribute = attribute
  }

  /// What a user may do by an open: 4 for reading, 2 for writing. The files are their user's who
  /// started the run, the machine's root; who is root besides may do what somebody may.
  func permissions(of user: UInt32) -> UInt16 {
    let bits = attribute.mode
    if user == 0, geteuid() == 0 { return bits | bits >> 3 | bits >> 6 }
    return user == geteuid() ? bits >> 6 : bits
  }

  func remove() { isRemoved.store(true, ordering: .releasing) }

  /// - Throws: `ENODEV` where it has gone, as kernfs has it.
  func check() throws(IOMMUError) {
    guard !isRemoved.load(ordering: .acquiring) else {
      throw IOMMUError(.noSuchDevice, "\(path) has been removed")
    }
  }
}

/// Our nodes and attributes, by what stands for them in the program's file system. Thread-safe.
final class NodeTable: Sendable {
  enum Place: Sendable {
    case node(any DeviceNode)
    case attribute(AttributePlace)
    /// Was there; a program may still hold what stood for it.
    case gone(path: String)

    var path: String {
      switch self {
      case .node(let node): node.path
      case .attribute(let attribute): attribute.path
      case .gone(let path): path
      }
    }
  }

  private struct State: Sendable {
    var byKey: [FileKey: Place] = [:]
    var gone: [FileKey: String] = [:]
    var names: Set<[UInt8]> = []
  }

  /// How many of those that went are remembered: opens of the others find what stood for them.
  private static let mostGone = 1024
  private let state = Guarded(State())
  private let threadNodes: [any ThreadNode]
  /// The program's root directory; nil where it is the supervisor's too.
  let root: OwnedDescriptor?
  /// Of our file systems that programs cannot write.
  private let readOnlyDevices: Set<UInt64>
  /// Where paths into those begin: `/sys/`.
  private let readOnlyPlaces: [String]

  /// - Parameters:
  ///   - view: Its links under /dev are other names of nodes: `/dev/char/10:127`.
  ///   - root: The program's root directory, as we reach it.
  ///   - fileSystems: Our file systems' roots, by name.
  ///   - shadow: Where what stands for them is; nil where it is mounted in the program's root.
  init(
    _ nodes: [any DeviceNode], threadNodes: [any ThreadNode], view: View, root: String,
    fileSystems: [String: OwnedDescriptor], shadow: ShadowTree? = nil
  ) throws(InterposerError) {
    self.threadNodes = threadNodes
    // A shadow's file system has others' files too.
    let protected = shadow == nil ? fileSystems.filter { MountView.isReadOnly($0.key) } : [:]
    readOnlyDevices = Set(protected.compactMap { Self.key($0.value.number)?.device })
    readOnlyPlaces = protected.keys.map { "/\($0)/" }
    if shadow == nil {
      let top = System.open(root + "/", System.pathOnly)
      guard top >= 0 else {
        throw InterposerError("the program's root cannot be looked at; see `iommu doctor`")
      }
      self.root = OwnedDescriptor(top)
    } else {
      self.root = nil
    }
    func find(_ path: String, _ place: Place) throws(InterposerError) {
      let descriptor = System.open(
        shadow?.real(path) ?? root + path, System.pathOnly)
      guard descriptor >= 0 else {
        throw InterposerError("the program's \(path) cannot be looked at; see `iommu doctor`")
      }
      let file = OwnedDescriptor(descriptor)
      guard add(place, at: file.number) else {
        throw InterposerError("the program's \(path) cannot be looked at; see `iommu doctor`")
      }
    }
    for node in nodes { try find(node.path, .node(node)) }
    for entry in view.entries {
      switch entry.kind {
      case .attribute(let attribute):
        try find(entry.path, .attribute(AttributePlace(entry.path, attribute)))
      case .link where entry.path.hasPrefix("/dev/"): addName(entry.path)
      default: break
      }
    }
  }

  /// From here on the file that a descriptor has open stands for a place of ours.
  /// - Returns: False where the file cannot be looked at.
  func add(_ place: Place, at descriptor: Int32) -> Bool {
    guard let key = Self.key(descriptor) else { return false }
    state.withLock { state in
      state.byKey[key] = place
      state.names.insert(Self.name(place.path))
    }
    return true
  }

  /// The last component of a path may lead to a place of ours.
  func addName(_ path: String) { state.withLock { _ = $0.names.insert(Self.name(path)) } }

  /// What stands for some of the places.
  func keys(where isMeant: (String) -> Bool) -> [FileKey] {
    state.withLock { state in state.byKey.filter { isMeant($0.value.path) }.map(\.key) }
  }

  /// What stood for places stands for nothing any more.
  func remove(_ keys: [FileKey]) {
    state.withLock { state in
      for key in keys {
        guard let place = state.byKey.removeValue(forKey: key) else { continue }
        if case .attribute(let attribute) = place { attribute.remove() }
        if state.gone.count == Self.mostGone { state.gone = [:] }
        state.gone[key] = place.path
      }
    }
  }

  func isCandidate(_ path: [UInt8]) -> Bool {
    guard let last = path.split(separator: UInt8(ascii: "/")).last else { return false }
    return state.withLock { $0.names.contains(Array(last)) }
  }

  /// The file of a thread that a path in `/proc` names; nil where it names none of ours.
  func threadNode(
    _ path: [UInt8], of caller: ClientCaller
  ) -> (node: any ThreadNode, thread: Int32)? {
    guard !threadNodes.isEmpty, path.starts(with: Array("/proc/".utf8)),
      path.last != UInt8(ascii: "/")
    else { return nil }
    var parts = String(decoding: path, as: UTF8.self).split(separator: "/").dropFirst()
    let last = parts.popLast()
    guard let node = threadNodes.first(where: { $0.name == last ?? "" }) else { return nil }
    let process = caller.processID
    let thread: Int32
    switch (parts.popFirst(), parts.popFirst(), parts.popFirst()) {
    case ("thread-self"?, nil, _): thread = caller.thread
    case ("self"?, nil, _): thread = process
    case (let owner?, nil, _) where owner == "\(process)": thread = process
    case (let owner?, "task"?, let number?) where owner == "self" || owner == "\(process)":
      guard let task = ProcessStatus.number(number),
        unsafe access("/proc/\(process)/task/\(task)", F_OK) == 0
      else { return nil }
      thread = task
    default: return nil
    }
    return (node, thread)
  }

  func place(_ descriptor: Int32) -> Place? {
    guard let key = Self.key(descriptor) else { return nil }
    return state.withLock { $0.byKey[key] ?? $0.gone[key].map { .gone(path: $0) } }
  }

  /// Whether a file is in one of our file systems that programs cannot write.
  func isReadOnly(_ descriptor: Int32) -> Bool {
    Self.key(descriptor).map { readOnlyDevices.contains($0.device) } ?? false
  }

  /// Whether a path, from a root directory, begins in the place of one of them.
  func beginsReadOnly(_ path: String) -> Bool { readOnlyPlaces.contains { path.hasPrefix($0) } }

  private static func name(_ path: String) -> [UInt8] {
    Array(path.utf8.split(separator: UInt8(ascii: "/")).last ?? [])
  }

  private static func key(_ descriptor: Int32) -> FileKey? {
    var identity = csys_identity()
    return unsafe csys_identity_known(descriptor, &identity) < 0 ? nil : FileKey(identity)
  }
}
