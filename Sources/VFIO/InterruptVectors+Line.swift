// SPDX-License-Identifier: Apache-2.0
//
// INTx, the level-triggered line, which masks itself each time it is signalled; and the two
// single notices that are no interrupts of the device: an error, a request to let it go.

import IOMMU
import SystemPackage

/// The interrupt line of a function.
struct LineState: Sendable {
  /// What the device drives.
  var asserted = false
  /// Masked by the user, or by itself after it was signalled.
  var masked = false
  /// Masked because the function sleeps.
  var maskedForSleep = false
  /// The user wrote Interrupt Disable into the command register.
  var disabled = false
  /// What Interrupt Status in the status register says.
  var isShown = false
  var signal: (any EventSignal)?
  /// What unmasks it when the user signals it; nil for none.
  var unmasking: LineWatch?
}

extension InterruptVectors {
  /// The device drives or releases its line.
  func setLine(asserted: Bool) {
    guard count(of: .line) > 0 else { return }
    state.withLock { state in
      state.line.asserted = asserted
      showLine(&state)
      deliverLine(&state)
    }
  }

  /// Interrupt Status follows the line, masked or not; with messages in use there is no line.
  func showLine(_ state: inout State) {
    let isShown = state.line.asserted && state.mode != .msi && state.mode != .msix
    guard state.line.isShown != isShown else { return }
    state.line.isShown = isShown
    config.setInterruptStatus(isShown)
  }

  /// Follows Interrupt Disable in the command register. Linux: `virq_disabled`.
  func setLineDisabled(_ disabled: Bool) {
    state.withLock { state in
      guard state.line.disabled != disabled else { return }
      state.line.disabled = disabled
      if disabled {
        if state.mode == .line { state.line.masked = true }
      } else {
        unmask(&state)
      }
    }
  }

  /// Follows a function into its sleep and out of it: what is not masked by then is masked for that
  /// long. Linux: `pm_intx_masked`.
  func setLineAsleep(_ isAsleep: Bool) {
    state.withLock { state in
      if isAsleep {
        guard state.mode == .line, !state.line.masked else { return }
        state.line.masked = true
        state.line.maskedForSleep = true
      } else if state.line.maskedForSleep {
        state.line.maskedForSleep = false
        unmask(&state)
      }
    }
  }

  /// Tells the user of an error that the device reported. Linux: `err_trigger`.
  func signalError() { state.withLock { $0.error?.signal() } }

  /// Signals an asserted line once and masks it, as the handler of a shared line does.
  private func deliverLine(_ state: inout State) {
    guard state.mode == .line, state.line.asserted, !state.line.masked else { return }
    state.line.masked = true
    signalLine(state)
  }

  private func signalLine(_ state: State) {
    if state.mode == .line, !state.line.disabled { state.line.signal?.signal() }
  }

  private func unmask(_ state: inout State) {
    guard state.mode == .line, state.line.masked, !state.line.disabled else { return }
    state.line.masked = false
    deliverLine(&state)
  }

  func maskLine(
    _ state: inout State, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    guard state.mode == .line else { throw notInUse(.line) }
    guard start == 0, count == 1 else { throw oneOnly() }
    switch arguments {
    case .none: state.line.masked = true
    case .booleans(let flags): if flags.first == true { state.line.masked = true }
    case .events:
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "masking INTx by an eventfd is not offered, as on Linux")
    }
  }

  func unmaskLine(
    _ state: inout State, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    guard state.mode == .line else { throw notInUse(.line) }
    guard start == 0, count == 1 else { throw oneOnly() }
    switch arguments {
    case .none: unmask(&state)
    case .booleans(let flags): if flags.first == true { unmask(&state) }
    case .events(let events):
      switch events.first {
      case .remove?, nil: state.line.unmasking = nil
      case .invalid(let error)?: throw error
      case .signal(let signal)?: try unmask(&state, by: signal)
      }
    }
  }

  /// Unmasks the line whenever the user signals an event. Linux: `vfio_virqfd_enable`.
  private func unmask(_ state: inout State, by signal: any EventSignal) throws(IOMMUError) {
    guard let event = signal as? WatchedEvent else {
      throw IOMMUError(
        .operationNotSupported,
        "this event can be signalled, but not waited for; use DATA_NONE or DATA_BOOL")
    }
    // Linux lets go of an eventfd with its last close.
    guard state.line.unmasking?.isAbandoned ?? true else {
      throw IOMMUError(
        .resourceBusy, "INTx is unmasked by an eventfd already; remove it by -1 first")
    }
    let watch = LineWatch(event)
    // What it calls waits for the lock that is held here.
    let hasBegun = watch.begin { [weak self] watch in
      self?.state.withLock { state in
        guard let self, state.line.unmasking === watch else { return }
        self.unmask(&state)
      }
    }
    guard hasBegun else { throw IOMMUError(.noMemory, "the host has no thread left") }
    state.line.unmasking = watch
  }

  func triggerLine(
    _ state: inout State, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    if case .none = arguments, state.mode == .line, count == 0 {
      state.line.signal = nil
      state.line.unmasking = nil
      state.line.masked = false
      state.mode = .none
      return
    }
    guard state.mode == .line || state.mode == .none else { throw otherKindInUse(state.mode) }
    guard start == 0, count == 1 else { throw oneOnly() }
    switch arguments {
    case .events(let events):
      switch events.first {
      case .invalid(let error)?: throw error
      case .signal(let signal)?: state.line.signal = signal
      case .remove?, nil: state.line.signal = nil
      }
      if state.mode == .none {
        state.mode = .line
        state.line.masked = state.line.disabled
        deliverLine(&state)
      }
    case .none:
      guard state.mode == .line else { throw notInUse(.line) }
      signalLine(state)
    case .booleans(let flags):
      guard state.mode == .line else { throw notInUse(.line) }
      if flags.first == true { signalLine(state) }
    }
  }

  private func oneOnly() -> IOMMUError {
    IOMMUError(.invalidArgument, "a function has one interrupt line: start 0, count 1")
  }

  /// The error and request notices. Linux: `vfio_pci_set_ctx_trigger_single`.
  func triggerNotice(
    _ notice: inout (any EventSignal)?, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    guard start == 0, count <= 1 else { throw oneOnly() }
    switch arguments {
    case .none:
      guard let signal = notice else {
        throw IOMMUError(.invalidArgument, "no eventfd is set for this notice")
      }
      if count == 0 { notice = nil } else { signal.signal() }
    case .booleans(let flags):
      guard let flag = flags.first else { throw noArgument() }
      if flag { notice?.signal() }
    case .events(let events):
      switch events.first {
      case nil: throw noArgument()
      case .invalid(let error)?: throw error
      case .signal(let signal)?: notice = signal
      case .remove(descriptor: -1)?: notice = nil
      case .remove(let descriptor)?:
        throw IOMMUError(.invalidArgument, "\(descriptor) is no descriptor; -1 removes")
      }
    }
  }

  private func noArgument() -> IOMMUError {
    IOMMUError(.invalidArgument, "a count of 0 gives this notice nothing to set or signal")
  }
}
