// SPDX-License-Identifier: Apache-2.0
//
// What VFIO's groups and containers ask of a context beside its own calls (MODEL C6, J1): to
// stay open for them, a space for the compatibility calls, and a look at what is mapped.

import PageTables

/// Keeps a context open after its own file was closed, as a file does that holds another (Linux:
/// `iommufd_ctx_from_file`): devices can still be bound. The last to go ends it. Thread-safe.
public final class ContextHold: Sendable {
  public let context: Context

  /// - Throws: `EBADF` where the context was closed.
  public init(_ context: Context) throws(IOMMUError) {
    try context.addHolder()
    context.objects.withLock { $0.holds += 1 }
    self.context = context
  }

  deinit {
    context.objects.withLock { $0.holds -= 1 }
    context.dropHolder()
  }
}

extension Context {
  /// The address space that the compatibility calls work on; one is made where none was chosen.
  /// It is like any other, and the user may destroy it.
  ///
  /// Linux: `iommufd_vfio_compat_ioas_create`.
  /// - Throws: `ENOMEM` where no id is free.
  @discardableResult
  public func ensureCompatibilityIOAS() throws(IOMMUError) -> ObjectID {
    let system = system
    return try objects.withLock { (objects) throws(IOMMUError) in
      if let id = objects.compatibilityIOAS { return id }
      let id = try objects.table.insert { id in
        (.ioas(AddressSpace(id: id, memory: system.memory, events: system.events)), id)
      }
      objects.compatibilityIOAS = id
      return id
    }
  }

  /// The first mapping of a space that ends at or after an IOVA; nil where all end before it.
  /// Both ends inclusive, in bytes. For who knows that nobody maps meanwhile.
  package func firstMapping(
    endingAtOrAfter iova: UInt64, in ioas: IOASReference
  ) -> ClosedRange<UInt64>? {
    ioas.space.state.withLock { state in
      guard let position = state.areas.firstEnding(atOrAfter: iova) else { return nil }
      let (first, last) = state.areas.bounds(at: position)
      return first...last
    }
  }
}
