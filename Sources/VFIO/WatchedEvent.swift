// SPDX-License-Identifier: Apache-2.0
//
// An event that the framework waits for: the user's eventfd that unmasks INTx. Linux: `struct
// virqfd`.

import IOMMU

/// An event that tells when somebody signals it. Thread-safe.
public final class WatchedEvent: EventSignal {
  /// Begins to watch; gives what ends it, or nil where the host has no thread for it. What is called
  /// may be called once more after the end.
  public typealias Watch =
    @Sendable (_ body: @escaping @Sendable () -> Void) -> (@Sendable () -> Void)?

  private let event: any EventSignal
  let watch: Watch
  let isAbandoned: @Sendable () -> Bool

  /// - Parameter isAbandoned: Whether nobody but us has the event any more. Asked for where another
  ///   one shall take its place only.
  public init(
    _ event: any EventSignal, watch: @escaping Watch,
    isAbandoned: @escaping @Sendable () -> Bool = { false }
  ) {
    self.event = event
    self.watch = watch
    self.isAbandoned = isAbandoned
  }

  public func signal() { event.signal() }
}

/// A watch of INTx. Ends with its last reference.
final class LineWatch: Sendable {
  private let event: WatchedEvent
  private let stop = Guarded<(@Sendable () -> Void)?>(nil)

  init(_ event: WatchedEvent) { self.event = event }

  /// Whether nobody can signal it any more.
  var isAbandoned: Bool { event.isAbandoned() }

  func begin(_ body: @escaping @Sendable (LineWatch) -> Void) -> Bool {
    guard let end = event.watch({ [weak self] in if let self { body(self) } }) else {
      return false
    }
    stop.withLock { $0 = end }
    return true
  }

  deinit { stop.withLock { $0 }?() }
}
