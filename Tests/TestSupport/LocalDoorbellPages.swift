// SPDX-License-Identifier: Apache-2.0
//
// Pages of doorbells in this process, as a carrier would keep them: what the program does to them
// is `ring`, which stores or traps as its mapping would.

import IOMMU

/// Doorbells of one open. Thread-safe.
public final class LocalDoorbellPages: DoorbellPages {
  private struct State: Sendable {
    var words: [UInt32]
    var isOpen = false
    var openings = 0
  }

  private let state: Guarded<State>
  public let byteCount: UInt64

  public init(byteCount: UInt64) {
    self.byteCount = byteCount
    state = Guarded(State(words: Array(repeating: 0, count: Int(byteCount / 4))))
  }

  /// A program's store.
  /// - Parameter trap: Writes the register, where the page is closed: when the tracer has come
  ///   round to it, it may be open again.
  public func ring(_ offset: UInt64, _ value: UInt32, trap: () -> Void) {
    let landed = state.withLock { state -> Bool in
      if state.isOpen { state.words[Int(offset / 4)] = value }
      return state.isOpen
    }
    if !landed { trap() }
  }

  public var isOpen: Bool { state.withLock { $0.isOpen } }
  /// How often it was opened.
  public var openings: Int { state.withLock { $0.openings } }

  public func open() {
    state.withLock { state in
      state.openings += state.isOpen ? 0 : 1
      state.isOpen = true
    }
  }
  public func load(_ offset: UInt64) -> UInt32 { state.withLock { $0.words[Int(offset / 4)] } }
  public func store(_ value: UInt32, at offset: UInt64) {
    state.withLock { $0.words[Int(offset / 4)] = value }
  }
  public func close() { state.withLock { $0.isOpen = false } }
}

/// Keeps device memory in this process, and doorbells too.
public final class LocalBarBacking: DeviceMemoryBacking {
  private let memory = LocalDeviceMemoryBacking()
  private let pages = Guarded<(latest: LocalDoorbellPages?, offset: UInt64)>((nil, 0))

  public init() {}

  /// What was made last.
  public var doorbells: LocalDoorbellPages? { pages.withLock { $0.latest } }
  /// Where in the file that was.
  public var offset: UInt64 { pages.withLock { $0.offset } }

  public func makeMemory(
    at offset: UInt64, length: UInt64
  ) throws(IOMMUError) -> any DeviceMemory {
    try memory.makeMemory(at: offset, length: length)
  }

  public func makeDoorbells(
    at offset: UInt64, length: UInt64
  ) throws(IOMMUError) -> (any DoorbellPages)? {
    let doorbells = LocalDoorbellPages(byteCount: length)
    pages.withLock { $0 = (doorbells, offset) }
    return doorbells
  }
}
