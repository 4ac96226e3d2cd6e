// SPDX-License-Identifier: Apache-2.0
//
// A function's interrupts as VFIO shares them out: which kind is in use, which event each
// vector signals, what is pending. Facts: Linux 6.12, drivers/vfio/pci/vfio_pci_intrs.c.

import IOMMU
import PageTables
import SoftwareIOMMU
import SystemPackage

/// One function's interrupts. Thread-safe.
///
/// An MSI or MSI-X interrupt is a DMA write of the vector's message by the device, so a device
/// that its IOMMU blocks cannot raise one. Of MSI-X the message is what stands in the table that the
/// device has in a BAR, whoever wrote it there.
public final class InterruptVectors: Sendable {
  /// The interrupt indices of a PCI device. Linux: `VFIO_PCI_…_IRQ_INDEX`.
  public enum Index: UInt32, Sendable {
    case line = 0
    case msi = 1
    case msix = 2
    case error = 3
    case request = 4
  }

  /// What to do with a range of vectors. Linux: `VFIO_IRQ_SET_ACTION_…`.
  public enum Action: Sendable {
    case mask, unmask, trigger
  }

  /// What each vector of the range is given. Linux: `VFIO_IRQ_SET_DATA_…`.
  public enum Arguments: Sendable {
    /// The action, on all of them; with a count of 0 the whole index is torn down.
    case none
    /// The action on those that say true.
    case booleans([Bool])
    /// Events that the vectors signal from now on.
    case events([Event])
  }

  /// One event argument, looked up beforehand so that no call is made under the lock.
  public enum Event: Sendable {
    /// A negative descriptor, -1 by custom: the vector signals nothing from now on.
    case remove(descriptor: Int32)
    case signal(any EventSignal)
    /// A descriptor that is no eventfd: the error counts when its turn comes.
    case invalid(IOMMUError)
  }

  /// Which of the three exclusive kinds is in use.
  enum Mode: Sendable {
    case none, line, msi, msix

    var index: Index? {
      switch self {
      case .none: nil
      case .line: .line
      case .msi: .msi
      case .msix: .msix
      }
    }
  }

  /// A vector that the user listens to.
  struct Vector: Sendable {
    var signal: any EventSignal
    var message: InterruptMessage
  }

  struct State: Sendable {
    var mode = Mode.none
    var vectors: [Int: Vector] = [:]
    /// Messages that were raised while masked.
    var pending: Set<Int> = []
    /// The device's MSI-X table.
    var table: [TableEntry]
    /// MSI's messages; nil while it is not in use.
    var block: MessageBlock?
    var line = LineState()
    var error: (any EventSignal)?
    var request: (any EventSignal)?
  }

  /// Vectors of each kind.
  let counts: (line: Int, msi: Int, msix: Int)
  let upstream: any UpstreamBus
  let config: PCIConfigSpace
  private let port: any BusPort
  let state: RankedMutex<State>

  /// - Parameter log: What the device has written: a message may go anywhere, once a program has
  ///   rewritten the MSI-X table.
  init(
    msix: MSIXLayout?, msi: MSILayout?, config: PCIConfigSpace, upstream: any UpstreamBus,
    gate: MasterGate, log: DMALog
  ) {
    counts = (config.interruptPin == 0 ? 0 : 1, msi?.vectors ?? 0, msix?.vectors ?? 0)
    self.config = config
    self.upstream = upstream
    // Used under the lock only, so by one thread at a time.
    port = GatedPort(port: upstream.makeInterruptPort(), gate: gate, log: log)
    let table = Array(repeating: TableEntry(), count: msix?.vectors ?? 0)
    state = RankedMutex(.interruptVectors, State(table: table))
  }

  /// Vectors of an index; 0 where the function has none of the kind.
  public func count(of index: Index) -> Int {
    switch index {
    case .line: counts.line
    case .msi: counts.msi
    case .msix: counts.msix
    case .error, .request: 1
    }
  }

  /// A message that does not get through was the device's DMA and has been counted as a
  /// fault; nobody is signalled.
  func send(_ message: InterruptMessage) {
    try? port.store(message.data, at: IOVA(message.address))
  }

  // MARK: Set-up by the user

  /// Sets up, tears down or triggers interrupts.
  ///
  /// Linux: `VFIO_DEVICE_SET_IRQS`, after its structure was checked (`check`).
  /// - Parameter action: Nil where the user asked for none of the three, or for several.
  /// - Throws: `ENOTTY` for an action that the index does not have; `EINVAL` for a range or a
  ///   state that does not fit; what looking up an event threw. A failing vector takes the
  ///   others of its call with it: they signal nothing then.
  public func set(
    _ index: Index, action: Action?, start: Int, arguments: Arguments, count: Int
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      // Messages and the line exclude each other.
      defer { showLine(&state) }
      switch (index, action) {
      case (.line, .mask?):
        try maskLine(&state, start: start, count: count, arguments)
      case (.line, .unmask?):
        try unmaskLine(&state, start: start, count: count, arguments)
      case (.line, .trigger?):
        try triggerLine(&state, start: start, count: count, arguments)
      case (.msi, .trigger?):
        try triggerMessages(&state, .msi, start: start, count: count, arguments)
      case (.msix, .trigger?):
        try triggerMessages(&state, .msix, start: start, count: count, arguments)
      case (.error, .trigger?):
        try triggerNotice(&state.error, start: start, count: count, arguments)
      case (.request, .trigger?):
        try triggerNotice(&state.request, start: start, count: count, arguments)
      default:
        throw IOMMUError(
          .inappropriateIOCTLForDevice,
          "interrupt index \(index) has no such action; only INTx can be masked and unmasked")
      }
    }
  }

  /// Checks a range before its arguments are read.
  /// - Throws: `EINVAL` for an index or a range that the function does not have.
  public func check(index: UInt32, start: UInt32, count: UInt32) throws(IOMMUError) -> Index {
    guard let index = Index(rawValue: index) else {
      throw IOMMUError(.invalidArgument, "a PCI device has no interrupt index \(index)")
    }
    let limit = self.count(of: index)
    let (end, overflow) = start.addingReportingOverflow(count)
    guard !overflow, end != .max, Int(start) < limit, Int(end) <= limit else {
      throw IOMMUError(
        .invalidArgument,
        "vectors \(start) and \(count) up are not all there: interrupt index \(index) has \(limit)"
      )
    }
    return index
  }

  func otherKindInUse(_ mode: Mode) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "interrupt index \(mode.index.map { "\($0)" } ?? "none") is in use; disable it first")
  }

  func notInUse(_ mode: Mode) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "interrupt index \(mode.index.map { "\($0)" } ?? "none") is not in use: give it eventfds")
  }

  /// The device is closed: everything off and forgotten. When it returns, nothing is signalled.
  func disableAll() {
    state.withLock { state in
      disableMessages(&state)
      for vector in state.table.indices { state.table[vector] = TableEntry() }
      state.line.signal = nil
      state.line.asserted = false
      showLine(&state)
      state.line = LineState()
      state.error = nil
      state.request = nil
    }
  }

  /// Asks the user to let the device go, where it wants to be asked. Linux: `vfio_pci_request`.
  func requestRelease() { state.withLock { $0.request?.signal() } }

  /// The device asserts nothing any more (it was reset). What is set up stays: Linux saves and
  /// restores it, but not what a program has rewritten in the MSI-X table.
  func deviceReset() {
    state.withLock { state in
      restoreMessages(&state)
      state.line.asserted = false
      showLine(&state)
    }
  }
}
