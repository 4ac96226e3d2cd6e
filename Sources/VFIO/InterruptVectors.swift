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
/// that its IOMMU blocks cannot raise one.
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

  struct Vector: Sendable {
    var signal: any EventSignal
    var message: InterruptMessage
  }

  struct State: Sendable {
    var mode = Mode.none
    var vectors: [Int: Vector] = [:]
    /// MSI-X vectors that were raised while nobody listened: masked, in hardware's words.
    var pending: Set<Int> = []
    var line = LineState()
    var error: (any EventSignal)?
    var request: (any EventSignal)?
  }

  /// Vectors of each kind.
  private let counts: (line: Int, msi: Int, msix: Int)
  let upstream: any UpstreamBus
  private let config: PCIConfigSpace
  private let port: any BusPort
  let state = RankedMutex(.interruptVectors, State())

  init(
    msixVectors: Int, msiVectors: Int, config: PCIConfigSpace, upstream: any UpstreamBus,
    gate: MasterGate
  ) {
    counts = (config.interruptPin == 0 ? 0 : 1, msiVectors, msixVectors)
    self.config = config
    self.upstream = upstream
    // Used under the lock only, so by one thread at a time.
    port = GatedPort(port: upstream.makeInterruptPort(), gate: gate)
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

  /// Raises a message-signalled interrupt.
  func raise(_ vector: Int) {
    state.withLock { state in
      switch state.mode {
      case .msi, .msix:
        if let target = state.vectors[vector] {
          send(target.message)
        } else if state.mode == .msix, vector >= 0, vector < counts.msix {
          state.pending.insert(vector)
        }
      case .none, .line: break
      }
    }
  }

  /// Bit n is set where vector n was raised while masked; 64 vectors a word.
  func pendingBits(word: Int) -> UInt64 {
    state.withLock { state in
      state.pending.reduce(0) { bits, vector in
        vector / 64 == word ? bits | 1 << UInt64(vector % 64) : bits
      }
    }
  }

  /// Vectors that were raised while masked, in order.
  var pendingVectors: [Int] { state.withLock { $0.pending.sorted() } }

  /// Takes pending vectors over from a state that was moved here.
  func setPending(_ vectors: Set<Int>) { state.withLock { $0.pending = vectors } }

  /// Raises what is pending and has a listener by now: the device goes on.
  func raisePending() {
    state.withLock { state in
      guard state.mode == .msix else { return }
      for vector in state.pending.sorted() {
        guard let target = state.vectors[vector] else { continue }
        state.pending.remove(vector)
        send(target.message)
      }
    }
  }

  /// A message that does not get through was the device's DMA and has been counted as a
  /// fault; nobody is signalled.
  private func send(_ message: InterruptMessage) {
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

  private func triggerMessages(
    _ state: inout State, _ mode: Mode, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    if case .none = arguments, state.mode == mode, count == 0 {
      disableMessages(&state)
      return
    }
    guard state.mode == mode || state.mode == .none else { throw otherKindInUse(state.mode) }
    switch arguments {
    case .events(let events):
      let wasOff = state.mode == .none
      if wasOff {
        guard start + count > 0 else {
          throw IOMMUError(
            .outOfRange, "interrupts cannot be switched on with no vector at all")
        }
        state.mode = mode
        if mode == .msix { config.setMSIXEnabled(true) }
      }
      do throws(IOMMUError) {
        try arm(&state, start: start, events)
      } catch {
        if wasOff { disableMessages(&state) }
        throw error
      }
    case .none:
      guard state.mode == mode else { throw notInUse(mode) }
      for vector in start..<start + count { state.vectors[vector]?.signal.signal() }
    case .booleans(let flags):
      guard state.mode == mode else { throw notInUse(mode) }
      for (vector, flag) in zip(start..., flags) where flag {
        state.vectors[vector]?.signal.signal()
      }
    }
  }

  /// Gives vectors their events, in order. On an error those of this call are taken back.
  private func arm(
    _ state: inout State, start: Int, _ events: [Event]
  ) throws(IOMMUError) {
    for (vector, event) in zip(start..., events) {
      do throws(IOMMUError) {
        if let old = state.vectors.removeValue(forKey: vector) {
          upstream.freeInterrupt(old.message)
        }
        switch event {
        case .remove: break
        case .invalid(let error): throw error
        case .signal(let signal):
          let message = try upstream.allocateInterrupt(signal: signal)
          state.vectors[vector] = Vector(signal: signal, message: message)
          if state.pending.remove(vector) != nil { send(message) }
        }
      } catch {
        for vector in start...vector {
          if let old = state.vectors.removeValue(forKey: vector) {
            upstream.freeInterrupt(old.message)
          }
        }
        throw error
      }
    }
  }

  private func disableMessages(_ state: inout State) {
    for vector in state.vectors.values { upstream.freeInterrupt(vector.message) }
    state.vectors = [:]
    state.pending = []
    state.mode = .none
    config.setMSIXEnabled(false)
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
      state.line = LineState()
      state.error = nil
      state.request = nil
    }
  }

  /// Asks the user to let the device go, where it wants to be asked. Linux: `vfio_pci_request`.
  func requestRelease() { state.withLock { $0.request?.signal() } }

  /// The device asserted nothing any more (it was reset). What is set up stays.
  func deviceReset() {
    state.withLock { state in
      state.pending = []
      state.line.asserted = false
    }
  }
}
