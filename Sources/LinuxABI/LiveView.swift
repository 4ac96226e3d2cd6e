// SPDX-License-Identifier: Apache-2.0
//
// A view and its device nodes while they change: devices come and go, and whoever shows them
// to programs carries each change out before the call that caused it returns.

import IOMMU
import SystemPackage

extension View {
  /// What comes and goes in one step.
  public struct Change: Sendable {
    /// Entries and nodes that go, by path, each with all that lies below it, in this order: links
    /// to a place before the place. A path that is not there is passed over.
    public var removed: [String]
    /// Entries that come: parents first, links to a place after the place. A directory that is
    /// there already stays; anything else that is there is replaced.
    public var added: [Entry]
    /// Nodes that come, before the entries; those of `removed` go after the entries.
    public var addedNodes: [any DeviceNode]

    public init(
      removed: [String] = [], added: [Entry] = [], addedNodes: [any DeviceNode] = []
    ) {
      self.removed = removed
      self.added = added
      self.addedNodes = addedNodes
    }
  }
}

/// Who shows a view to programs.
public protocol ViewCarrier: AnyObject, Sendable {
  /// Shows programs the view after a change; none of them sees half of what was added below one
  /// new place.
  /// - Throws: Where the change cannot be shown; then nothing of it is.
  func carry(_ change: View.Change) throws(IOMMUError)
}

/// What programs see now. Thread-safe.
///
/// A device that comes at run time:
/// ```swift
/// try machine.files.change(
///   View.Change(added: builder.view.entries, addedNodes: [node]))
/// ```
/// and goes: `View.Change(removed: ["/sys/class/mdev_bus/…", path, node.path])`. The change is
/// seen by every program of the run, in each mount namespace that has our /sys and /dev, when
/// the call returns. Directories of the host can get no entries: what will have some must be
/// in the view from the start, or be below something that is.
public final class LiveView: Sendable {
  private struct State: Sendable {
    var view: View
    var nodes: [any DeviceNode]
    var carrier: (any ViewCarrier)?
  }

  /// One change at a time: held while it is carried out.
  private let changing = Guarded(())
  private let state: Guarded<State>

  public init(_ view: View = View(), nodes: [any DeviceNode] = []) {
    state = Guarded(State(view: view, nodes: nodes))
  }

  public var view: View { state.withLock { $0.view } }

  public var nodes: [any DeviceNode] { state.withLock { $0.nodes } }

  /// From here on a carrier shows changes to programs.
  /// - Parameter start: Shows the view as it is, and gives the carrier of what changes. No
  ///   change comes in between.
  public func carry<Carrier: ViewCarrier, Failure: Error>(
    _ start: (View, [any DeviceNode]) throws(Failure) -> Carrier
  ) throws(Failure) -> Carrier {
    try changing.withLock { _ throws(Failure) in
      let (view, nodes) = state.withLock { ($0.view, $0.nodes) }
      let carrier = try start(view, nodes)
      state.withLock { $0.carrier = carrier }
      return carrier
    }
  }

  /// Makes a change, and returns when it is to be seen.
  /// - Throws: What the carrier throws, `ENOSPC` or `EIO`; then nothing has changed.
  public func change(_ change: View.Change) throws(IOMMUError) {
    try changing.withLock { _ throws(IOMMUError) in
      if let carrier = state.withLock({ $0.carrier }) { try carrier.carry(change) }
      state.withLock { state in
        state.nodes.removeAll { change.removes($0.path) }
        for node in change.addedNodes {
          state.nodes.removeAll { $0.path == node.path }
          state.nodes.append(node)
        }
        state.view.entries.removeAll { change.removes($0.path) }
        state.view.add(change.added)
      }
    }
  }
}

extension View.Change {
  /// Whether a path is one of those that go, or lies below one.
  public func removes(_ path: String) -> Bool {
    removed.contains { place in
      path.hasPrefix(place)
        && (path.utf8.count == place.utf8.count
          || path.utf8.dropFirst(place.utf8.count).first == UInt8(ascii: "/"))
    }
  }
}

extension View {
  fileprivate mutating func add(_ added: [Entry]) {
    var places: [String: Int] = [:]
    places.reserveCapacity(entries.count + added.count)
    for (index, entry) in entries.enumerated() { places[entry.path] = index }
    for entry in added {
      switch (places[entry.path], entry.kind) {
      case (nil, _):
        places[entry.path] = entries.count
        entries.append(entry)
      case (_?, .directory), (_?, .exclusiveDirectory): break
      case (let index?, _): entries[index] = entry
      }
    }
  }
}
