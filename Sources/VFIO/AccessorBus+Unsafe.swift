// SPDX-License-Identifier: Apache-2.0
//
// The bus above a function that no IOMMU routes (MODEL D2, kind 3): its driver reaches memory
// through the accessor of whoever bound it, and raises its interrupts by hand.

import IOMMU
import PageTables
import SoftwareIOMMU

/// The way to memory of a software-mediated function. Thread-safe.
///
/// Every access goes through the address space that the function is attached to at that moment; on
/// none, it fails. An interrupt is no write here: nothing that a user writes can become one.
public final class AccessorBus: UpstreamBus {
  private struct State: Sendable {
    var accessor: Accessor?
    var signals: [UInt32: any EventSignal] = [:]
    var nextSignal: UInt32 = 1
    var faults: UInt64 = 0
    var latest: BusError?
    var rate = FaultRate()
  }

  private let state = Guarded(State())
  /// Told where an unmap ends pins that the driver made.
  private let notice: (any EventSignal)?

  /// Bytes copied at a time: how long an unmap may have to wait.
  private static let pieceLength = 64 << 10

  /// As the event log names the function.
  private let name: String
  private let events: EventLog?

  /// - Parameters:
  ///   - name: As `events` names the function where an access fails.
  ///   - events: Where accesses that fail are noted as DMA faults are, at their rate.
  ///   - notice: Told, before memory goes away, that pins in it have ended.
  public init(
    name: String = "a software device", events: EventLog? = nil,
    notice: (any EventSignal)? = nil
  ) {
    self.name = name
    self.events = events
    self.notice = notice
  }

  /// Linux: `vfio_iommufd_emulated_bind`.
  func connect(to context: Context) throws(IOMMUError) -> Accessor {
    let accessor = try Accessor(context: context, pinsMemory: true, notice: notice)
    state.withLock { $0.accessor = accessor }
    return accessor
  }

  /// When it returns, no memory is reached or pinned any more.
  func disconnect() {
    let accessor = state.withLock { state in
      defer { state.accessor = nil }
      return state.accessor
    }
    accessor?.close()
  }

  /// What the driver pins and reads with; nil while nobody has bound the function.
  public var accessor: Accessor? { state.withLock { $0.accessor } }

  /// Accesses that were refused since the bus was made.
  public var faultCount: UInt64 { state.withLock { $0.faults } }
  /// The latest of them.
  public var latestFault: BusError? { state.withLock { $0.latest } }

  public func makePort() -> any BusPort { AccessorPort(bus: self) }

  public func makeInterruptPort() -> any BusPort {
    MessagePort { [self] message in
      guard message.address == Self.messageAddress else { return }
      // Under the lock, so that nothing is signalled after `freeInterrupt`. It never blocks.
      state.withLock { $0.signals[message.data]?.signal() }
    }
  }

  public func allocateInterrupt(
    signal: any EventSignal
  ) throws(IOMMUError) -> InterruptMessage {
    state.withLock { state in
      defer { state.nextSignal &+= 1 }
      state.signals[state.nextSignal] = signal
      return InterruptMessage(address: Self.messageAddress, data: state.nextSignal)
    }
  }

  public func freeInterrupt(_ message: InterruptMessage) {
    state.withLock { _ = $0.signals.removeValue(forKey: message.data) }
  }

  private static let messageAddress: UInt64 = 0xFEE0_0000

  // MARK: Accesses

  /// Counts an access that failed and makes the error.
  /// - Parameter words: Why, where `reason` has none that fit.
  private func fail(
    _ reason: DMAFault.Reason, _ address: IOVA, _ access: Permissions, words: String? = nil
  ) -> BusError {
    let error = BusError(
      kind: reason == .memoryGone ? .data : .translation, address: address, access: access)
    let recording = events?.isRecording ?? false
    let logs = state.withLock { state -> Bool in
      state.faults &+= 1
      state.latest = error
      return recording && state.rate.admits(reason)
    }
    if logs {
      events?.append(
        .fault(source: name, iova: address, access: access, reason: words ?? "\(reason)"))
    }
    return error
  }

  private func access<Result>(
    _ address: IOVA, count: Int, _ access: Permissions,
    _ body: (Accessor) throws(IOMMUError) -> Result
  ) throws(BusError) -> Result {
    guard let accessor else { throw fail(.blocked, address, access) }
    do throws(IOMMUError) {
      return try body(accessor)
    } catch {
      guard accessor.addressSpace != nil else { throw fail(.blocked, address, access) }
      let reached = accessor.reach(address, count: count, for: access)
      let place = IOVA(address.rawValue &+ reached)
      switch error.errno {
      case .badAddress: throw fail(.memoryGone, place, access)
      case .notPermitted: throw fail(.permission, place, access)
      case .overflow: throw fail(.addressWidth, place, access)
      case .noSuchFileOrDirectory: throw fail(.notPresent, place, access)
      default: throw fail(.notPresent, place, access, words: error.reason)
      }
    }
  }

  fileprivate func load(_ address: IOVA, count: Int) throws(BusError) -> [UInt8] {
    guard count > 0 else { return [] }
    return try access(address, count: count, .read) { (accessor) throws(IOMMUError) in
      try accessor.read(address, count: count)
    }
  }

  fileprivate func store(_ bytes: [UInt8], at address: IOVA) throws(BusError) {
    guard !bytes.isEmpty else { return }
    try access(address, count: bytes.count, .write) { (accessor) throws(IOMMUError) in
      try accessor.write(bytes, to: address)
    }
  }

  /// Calls `body` for each piece of a transfer, with its offset.
  fileprivate func forEachPiece(
    of length: Int, _ body: (_ offset: UInt64, _ count: Int) throws(BusError) -> Void
  ) throws(BusError) {
    var done = 0
    while done < length {
      let count = min(length - done, Self.pieceLength)
      try body(UInt64(done), count)
      done += count
    }
  }
}

/// Memory by an accessor.
private final class AccessorPort: BusPort {
  private let bus: AccessorBus

  init(bus: AccessorBus) { self.bus = bus }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    let bytes = try bus.load(address, count: buffer.count)
    // SAFETY: the array has as many bytes as the caller's buffer.
    unsafe buffer.copyBytes(from: bytes)
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    // SAFETY: the bytes are copied here, once.
    try bus.store(unsafe [UInt8](buffer), at: address)
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    try bus.store(value.littleEndianBytes, at: address)
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try bus.forEachPiece(of: length) { (offset, count) throws(BusError) in
      try bus.store(
        bus.load(IOVA(source.rawValue &+ offset), count: count),
        at: IOVA(destination.rawValue &+ offset))
    }
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    let word = pattern.littleEndianBytes
    try bus.forEachPiece(of: length) { (offset, count) throws(BusError) in
      try bus.store(
        (0..<count).map { word[$0 % 8] }, at: IOVA(address.rawValue &+ offset))
    }
  }
}

/// A port that takes interrupt messages and nothing else.
final class MessagePort: BusPort {
  private let deliver: @Sendable (InterruptMessage) -> Void

  init(_ deliver: @escaping @Sendable (InterruptMessage) -> Void) { self.deliver = deliver }

  private func refuse(_ address: IOVA, _ access: Permissions) -> BusError {
    BusError(kind: .translation, address: address, access: access)
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    guard buffer.count == 4 else { throw refuse(address, .write) }
    // SAFETY: the buffer has 4 bytes.
    let data = unsafe buffer.loadUnaligned(as: UInt32.self)
    deliver(InterruptMessage(address: address.rawValue, data: UInt32(littleEndian: data)))
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    throw refuse(address, .read)
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    throw refuse(address, .write)
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    throw refuse(source, .read)
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    throw refuse(address, .write)
  }
}
