// SPDX-License-Identifier: Apache-2.0
//
// What makes the copy engine go: its thread, which fetches descriptors and carries them out,
// and the lock between it and the registers. Idle, the thread sleeps. Channels of a shared engine
// have no thread each: the engine's takes turns.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import VFIO

/// The engine without its registers' addresses. Thread-safe.
final class CopyEngineCore: Sendable {
  /// Bytes copied between two looks at whether the transfer is still wanted.
  static let pieceLength = 256 << 10
  /// Between the first doorbell after an error and the first descriptor, in microseconds: more than
  /// a program needs to go on after a register access that was carried out for it, on a host that
  /// is busy, too; and less than drivers wait before they take a channel for dead (Linux: 200 ms).
  static let recoveryTime: UInt32 = 50_000

  let monitor: Monitor<CopyEngineState>
  private let function = Guarded<FunctionPort?>(nil)
  private let thread = Guarded<DeviceThread?>(nil)
  /// Whose thread does the work; nil for one of its own.
  private let engine: SharedCopyEngine?
  /// Where the thread waits for pages. Cancelled where the transfer in hand is to be dropped; both
  /// under the monitor's lock.
  let waits = DeviceWait()
  /// Descriptors with a PASID that was not on the list.
  let refusals = Atomic<UInt64>(0)

  init(configuration: CopyEngine.Configuration, engine: SharedCopyEngine? = nil) {
    self.engine = engine
    monitor = Monitor(CopyEngineState(configuration: configuration))
  }

  func connect(to port: FunctionPort) {
    function.withLock { $0 = port }
    engine?.add(self, function: port)
  }

  /// Reads registers; some reads let the interrupt line go.
  func read(_ body: (inout CopyEngineState) -> UInt64) -> UInt64 {
    let function = self.function.withLock { $0 }
    return monitor.withLock { state in
      let value = body(&state)
      followLine(&state, function)
      return value
    }
  }

  /// Drives the interrupt line. With the monitor held, as all that changes it.
  private func followLine(_ state: inout CopyEngineState, _ function: FunctionPort?) {
    let asserts = state.wantsLine
    guard asserts != state.drivesLine else { return }
    state.drivesLine = asserts
    function?.setLine(asserted: asserts)
  }

  /// Changes registers, and does what that asks for.
  func change(_ body: (inout CopyEngineState) -> CopyChannel.Actions) {
    let function = self.function.withLock { $0 }
    let needsThread = monitor.change { state in
      carryOut(body(&state), &state, function)
      // Nobody needs a thread before the first doorbell or the first error to be reported.
      guard !state.isStopping, !state.isQuiesced, state.channel.hasWork else { return false }
      guard engine == nil else { return true }
      guard !state.hasThread else { return false }
      state.hasThread = true
      return true
    }
    guard needsThread, let function else { return }
    guard let engine else {
      start(function)
      return
    }
    if !engine.wake(self) { failWithoutThread(function) }
  }

  private func start(_ function: FunctionPort) {
    // Under the lock, so that `stop` either sees the thread or keeps it from being started.
    let hasStarted = thread.withLock { thread -> Bool in
      guard !monitor.withLock({ $0.isStopping }) else { return true }
      thread = DeviceThread { [self] in run(function) }
      return thread != nil
    }
    if !hasStarted { failWithoutThread(function) }
  }

  /// The host has no thread left: the transfer fails as one whose data never came, and the next
  /// doorbell tries again.
  private func failWithoutThread(_ function: FunctionPort) {
    monitor.change { state in
      state.hasThread = false
      carryOut(state.channel.fail(.readData), &state, function)
    }
  }

  /// With the monitor held, which also keeps an interrupt from coming after a reset.
  private func carryOut(
    _ actions: CopyChannel.Actions, _ state: inout CopyEngineState, _ function: FunctionPort?
  ) {
    if actions.contains(.cancel) { waits.cancel() }
    defer { followLine(&state, function) }
    guard actions.contains(.interrupt), state.interruptsEnabled else { return }
    guard !state.isQuiesced else {
      state.owesInterrupt = true
      return
    }
    function?.raise(vector: 0)
  }

  // MARK: Reset and removal

  /// Function-level reset. When it returns, no DMA goes on.
  func reset() {
    let function = self.function.withLock { $0 }
    monitor.change { state in
      waits.cancel()
      _ = state.channel.writeCommand(CopyChannel.Command.reset)
    }
    // The thread finishes the reset where it has something in hand.
    monitor.wait { state in
      guard !state.channel.isBusy else { return nil as Void? }
      state.powerOn()
      followLine(&state, function)
      return ()
    }
  }

  /// Ends the thread. When it returns, no DMA goes on, now or later.
  func stop() {
    reset()
    monitor.change { $0.isStopping = true }
    if let engine {
      // For what was taken in hand between the two; no more is.
      reset()
      engine.remove(self)
      return
    }
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
  }

  // MARK: The thread

  /// What the thread has in hand.
  enum Work: Sendable {
    case descriptor(CopyChannel.Fetch)
    case status(address: UInt64, value: UInt64)
  }

  private enum Step: Sendable {
    case work(Work)
    case pause, end
  }

  private func run(_ function: FunctionPort) {
    let port = function.makePort(waits: waits)
    while true {
      let step = monitor.wait { state -> Step? in
        if state.isStopping { return .end }
        if !state.isQuiesced, state.channel.takePause() { return .pause }
        return begin(&state).map { .work($0) }
      }
      switch step {
      case .end: return
      case .pause: DeviceThread.sleep(microseconds: Self.recoveryTime)
      case .work(let work): _ = perform(work, port, function)
      }
    }
  }

  private func begin(_ state: inout CopyEngineState) -> Work? {
    guard !state.isQuiesced else { return nil }
    if let status = state.channel.beginStatus() {
      return .status(address: status.address, value: status.value)
    }
    guard let fetch = state.channel.begin() else { return nil }
    waits.renew()
    return .descriptor(fetch)
  }

  /// Takes the next work in hand; nil where there is none, or the channel has stopped.
  func takeWork() -> Work? {
    monitor.withLock { $0.isStopping ? nil : begin(&$0) }
  }

  /// Does the work in hand.
  /// - Returns: Bytes that it was about.
  func perform(_ work: Work, _ port: any BusPort, _ function: FunctionPort) -> Int {
    switch work {
    case .status(let address, let value):
      // It reports an error already; one more in reporting it changes nothing.
      try? port.store(value, at: IOVA(address))
      monitor.change { $0.channel.finish() }
      return 0
    case .descriptor(let fetch):
      return execute(fetch, port, function)
    }
  }

  private func execute(
    _ fetch: CopyChannel.Fetch, _ port: any BusPort, _ function: FunctionPort
  ) -> Int {
    var next: UInt64 = fetch.address
    var control: CopyDescriptor.Control = []
    var bytes = 0
    do throws(ChannelFailure) {
      let descriptor = try read(fetch, port)
      next = descriptor.next
      control = descriptor.control
      try check(descriptor)
      bytes = control.contains(.null) ? 0 : Int(descriptor.length)
      try transfer(descriptor, dataPort(of: descriptor, port, function))
    } catch {
      guard !error.isCancelled, goesOn(after: error.errors, fetch, function) else {
        monitor.change { $0.channel.finish() }
        return bytes
      }
    }
    // The data is in place: now the status, then the interrupt.
    let completion = monitor.withLock { state -> Completion? in
      guard state.channel.isCurrent(fetch) else { return nil }
      let before = state.channel.progress
      let value = state.channel.complete(fetch, next: next)
      return Completion(
        address: state.channel.completionAddress, value: value, before: before)
    }
    guard let completion else {
      monitor.change { $0.channel.finish() }
      return bytes
    }
    var failed = false
    if control.contains(.writeStatus) {
      failed = !writeStatus(completion.value, at: completion.address, port)
    }
    let raises = monitor.change { state -> Bool in
      guard state.channel.isOfThisChain(fetch) else { return false }
      if failed {
        if state.isQuiesced, waits.isCancelled {
          state.channel.putBack(completion.before)
        } else {
          recordError(.completionAddress, &state, function)
        }
        return false
      }
      state.channel.deliver()
      guard control.contains(.interrupt), state.channel.requestInterrupt() else { return false }
      followLine(&state, function)
      return state.interruptsEnabled
    }
    if raises { function.raise(vector: 0) }
    monitor.change { $0.channel.finish() }
    return bytes
  }

  private struct Completion {
    var address: UInt64
    var value: UInt64
    var before: CopyChannel.Progress
  }

  /// Records an error of the descriptor in hand.
  /// - Returns: Whether the channel carries on because the error is masked.
  private func goesOn(
    after errors: ChannelErrors, _ fetch: CopyChannel.Fetch, _ function: FunctionPort
  ) -> Bool {
    monitor.change { state in
      // What happens to a transfer that was aborted meanwhile is nobody's error.
      guard state.channel.isCurrent(fetch) else { return false }
      // Nor is what waited for a page when the engine was stopped: it is done again.
      if state.isQuiesced, waits.isCancelled { return false }
      recordError(errors, &state, function)
      return state.channel.isCurrent(fetch)
    }
  }

  private func recordError(
    _ errors: ChannelErrors, _ state: inout CopyEngineState, _ function: FunctionPort
  ) {
    let mask = function.configValue(at: CopyEngine.Config.channelErrorMask)
    function.setConfigBits(
      errors.rawValue & ~mask, at: CopyEngine.Config.channelErrors)
    carryOut(state.channel.fail(errors), &state, function)
  }

  private func writeStatus(_ value: UInt64, at address: UInt64, _ port: any BusPort) -> Bool {
    guard address % 8 == 0 else { return false }
    // Who sees the status sees the data.
    atomicMemoryFence(ordering: .releasing)
    do throws(BusError) {
      try port.store(value, at: IOVA(address))
      return true
    } catch {
      return false
    }
  }

  // MARK: Descriptors

  /// Why a descriptor came to nothing.
  private struct ChannelFailure: Error {
    var errors: ChannelErrors
    var isCancelled = false
  }

  private func read(
    _ fetch: CopyChannel.Fetch, _ port: any BusPort
  ) throws(ChannelFailure) -> CopyDescriptor {
    guard fetch.address % CopyDescriptor.size == 0 else {
      throw ChannelFailure(errors: fetch.alignmentError)
    }
    do throws(BusError) {
      return CopyDescriptor(words: try port.loadWords(IOVA(fetch.address)))
    } catch {
      throw ChannelFailure(errors: fetch.addressError)
    }
  }

  private func check(_ descriptor: CopyDescriptor) throws(ChannelFailure) {
    let configuration = monitor.withLock { $0.configuration }
    if let errors = descriptor.error(
      transferLimit: 1 << UInt64(configuration.transferCapacity & 31),
      canFill: configuration.canFill, takesPASIDs: configuration.takesPASIDs)
    {
      throw ChannelFailure(errors: errors)
    }
  }

  /// Where a descriptor's data is: in the channel's own space, or in that of a PASID. One that is
  /// not on the device's list is refused here, and the IOMMU never sees it (MODEL A3).
  private func dataPort(
    of descriptor: CopyDescriptor, _ port: any BusPort, _ function: FunctionPort
  ) throws(ChannelFailure) -> any BusPort {
    guard descriptor.control.contains(.pasid) else { return port }
    do throws(IOMMUError) {
      return try function.makePort(
        // A slice's channel shares its engine's thread: waiting would hold up its neighbours.
        for: PASID(rawValue: descriptor.pasid), waits: engine == nil ? waits : nil)
    } catch {
      refusals.add(1, ordering: .relaxed)
      throw ChannelFailure(errors: .control)
    }
  }

  private func transfer(
    _ descriptor: CopyDescriptor, _ port: any BusPort
  ) throws(ChannelFailure) {
    guard !descriptor.control.contains(.null) else { return }
    let isFill = descriptor.operationCode == CopyDescriptor.Operation.fill.rawValue
    let length = UInt64(descriptor.length)
    var done: UInt64 = 0
    while done < length {
      guard !waits.isCancelled else {
        throw ChannelFailure(errors: [], isCancelled: true)
      }
      let piece = min(length - done, UInt64(Self.pieceLength))
      let destination = IOVA(descriptor.destination &+ done)
      do throws(BusError) {
        if isFill {
          try port.fill(destination, pattern: descriptor.source, length: Int(piece))
        } else {
          try port.copy(
            from: IOVA(descriptor.source &+ done), to: destination, length: Int(piece))
        }
      } catch {
        throw ChannelFailure(errors: Self.errors(of: error))
      }
      done += piece
    }
  }

  private static func errors(of error: BusError) -> ChannelErrors {
    switch (error.kind, error.access.contains(.write)) {
    case (.data, false): .readData
    case (.data, true): .writeData
    case (.translation, false), (.notMaster, false): .source
    case (.translation, true), (.notMaster, true): .destination
    }
  }
}
