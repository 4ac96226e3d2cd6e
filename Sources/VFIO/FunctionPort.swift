// SPDX-License-Identifier: Apache-2.0
//
// What a device model holds of the function around it: its way to memory, which the command
// register opens and shuts, its interrupts, its PASIDs, and its own configuration registers.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization

/// A model's side of a `PCIFunction`. Thread-safe, except that each DMA port is used by one
/// thread at a time.
public final class FunctionPort: Sendable {
  let interrupts: InterruptVectors
  private let config: PCIConfigSpace
  private let upstream: any UpstreamBus
  private let gate: MasterGate
  private let pasids: VirtualPASIDs?
  /// What a model asks before it loads a PASID that its user names (MODEL A3).
  public let allowedPASIDs: AllowedPASIDs
  private let carried = Guarded<(any DoorbellPages)?>(nil)
  private let log: DMALog
  private let faults: FaultGate

  init(
    interrupts: InterruptVectors, config: PCIConfigSpace, upstream: any UpstreamBus,
    gate: MasterGate, pasids: VirtualPASIDs?, allowedPASIDs: AllowedPASIDs, log: DMALog,
    faults: FaultGate
  ) {
    self.log = log
    self.faults = faults
    self.pasids = pasids
    self.allowedPASIDs = allowedPASIDs
    self.interrupts = interrupts
    self.config = config
    self.upstream = upstream
    self.gate = gate
  }

  /// A port to memory for one thread of the model. While the function's bus mastering is off
  /// or it is powered down, every access fails with `.notMaster`.
  /// - Parameter waits: Where the thread waits for pages that are missing, if the function asks for
  ///   those (MODEL H1): whoever resets the model cancels it. Nil aborts what misses.
  public func makePort(waits: DeviceWait? = nil) -> any BusPort {
    recovering(gated(nil, waits), waits)
  }

  private func gated(_ pasid: PASID?, _ waits: DeviceWait?) -> GatedPort {
    let port =
      waits != nil
      ? upstream.makeRecoveringPort(pasid: pasid)
      : pasid.map { upstream.makePort(pasid: $0) } ?? upstream.makePort()
    return GatedPort(port: port, gate: gate, log: pasid == nil ? log : nil, faults: faults)
  }

  private func recovering(_ port: any BusPort, _ waits: DeviceWait?) -> any BusPort {
    waits.map { RecoveringPort(port: port, waits: $0) } ?? port
  }

  /// As `makePort()`, for DMA with a PASID. For one use after another, not to be kept: what a
  /// PASID leads to changes hands.
  /// - Parameter pasid: As DMA carries it: one that `physicalPASID(for:)` or a command had.
  public func makePort(pasid: PASID, waits: DeviceWait? = nil) -> any BusPort {
    recovering(gated(pasid, waits), waits)
  }

  /// What DMA carries for a PASID that the user programs; nil where it is not on the device's
  /// own list (MODEL A3).
  public func physicalPASID(for pasid: PASID) -> PASID? { pasids?.physical(of: pasid) }

  /// A port to what a PASID of the user's is attached to, for one thread of the model, which may
  /// keep it. The user's number is looked up in the device's list (MODEL A3), here and at each
  /// access, so that a model never goes by one that is another's by then.
  /// - Throws: `EPERM` where the PASID was not attached.
  public func makePort(
    for virtual: PASID, waits: DeviceWait? = nil
  ) throws(IOMMUError) -> any BusPort {
    let port = gated(try allowedPASIDs.check(virtual), waits)
    return recovering(ListedPort(port: port, pasid: virtual, list: allowedPASIDs), waits)
  }

  /// The doorbells of the present user, closed and zero when it comes; nil while there is none, and
  /// where nobody carries them: each ring is a write of a register then. The model opens them while
  /// it polls, and leaves them closed and zero where it is reset.
  public var doorbells: (any DoorbellPages)? { carried.withLock { $0 } }

  /// Gives the model the doorbells of a user, or takes them away.
  func setDoorbells(_ doorbells: (any DoorbellPages)?) {
    let old = carried.withLock { pages in
      defer { pages = doorbells }
      return pages
    }
    old?.close()
  }

  /// Raises an interrupt: a DMA write of the vector's message. Nothing happens where the
  /// vector is out of range or no messages are in use. By MSI, vectors go round in the messages
  /// that there are.
  public func raise(vector: Int) { interrupts.raise(vector) }

  /// Drives or releases the function's interrupt line. Nothing happens where it has none.
  ///
  /// The line is a wire, not DMA: an IOMMU does not block it, as on hardware.
  public func setLine(asserted: Bool) { interrupts.setLine(asserted: asserted) }

  /// Sets bits of a register of the model's own in configuration space.
  public func setConfigBits(_ bits: UInt32, at offset: Int) {
    config.setBits(bits, at: offset)
  }

  public func configValue(at offset: Int) -> UInt32 { config.value(at: offset) }
}

/// Whether a function may master the bus. Read before each access, without a lock.
final class MasterGate: Sendable {
  private let isOpen = Atomic(false)

  var allowsMaster: Bool {
    get { isOpen.load(ordering: .acquiring) }
    set { isOpen.store(newValue, ordering: .releasing) }
  }
}

/// A port that the function's command register opens and shuts.
final class GatedPort: BusPort {
  private let port: any BusPort
  private let gate: MasterGate
  /// Where the function says what it has written; nil for what it keeps to itself.
  private let log: DMALog?
  /// What makes its accesses fail; nil for what never does.
  private let faults: FaultGate?

  init(
    port: any BusPort, gate: MasterGate, log: DMALog? = nil, faults: FaultGate? = nil
  ) {
    self.faults = faults
    self.port = port
    self.gate = gate
    self.log = log
  }

  /// Makes a write, and logs as much of it as was made.
  /// - Parameter source: Of a copy.
  private func writing(
    _ address: IOVA, _ count: Int, from source: IOVA? = nil, _ body: () throws(BusError) -> Void
  ) throws(BusError) {
    do throws(BusError) {
      try body()
    } catch {
      let start = error.access.contains(.write) ? address : source ?? address
      let done = error.address.rawValue &- start.rawValue
      log?.wrote(address, Int(min(done, UInt64(count))))
      throw error
    }
    log?.wrote(address, count)
  }

  func ask(for error: BusError, waits: DeviceWait) -> Bool {
    port.ask(for: error, waits: waits)
  }

  private func check(_ address: IOVA, _ access: Permissions) throws(BusError) {
    guard gate.allowsMaster else {
      throw BusError(kind: .notMaster, address: address, access: access)
    }
    if faults?.takesOne() == true {
      throw BusError(kind: .translation, address: address, access: access)
    }
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    try check(address, .read)
    // SAFETY: the caller's buffer is passed on unchanged, for the length of the call.
    try unsafe port.read(address, into: buffer)
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    try check(address, .write)
    try writing(address, buffer.count) { () throws(BusError) in
      // SAFETY: as in `read`.
      try unsafe port.write(address, from: buffer)
    }
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    try check(address, .write)
    try writing(address, 8) { () throws(BusError) in try port.store(value, at: address) }
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try check(source, .read)
    try writing(destination, length, from: source) { () throws(BusError) in
      try port.copy(from: source, to: destination, length: length)
    }
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    try check(address, .write)
    try writing(address, length) { () throws(BusError) in
      try port.fill(address, pattern: pattern, length: length)
    }
  }
}

/// A port that goes by a PASID, and ends when that leaves the device's list.
private final class ListedPort: BusPort {
  private let port: any BusPort
  private let pasid: PASID
  private let list: AllowedPASIDs

  init(port: any BusPort, pasid: PASID, list: AllowedPASIDs) {
    self.port = port
    self.pasid = pasid
    self.list = list
  }

  private func access(
    _ address: IOVA, _ access: Permissions, _ body: () throws(BusError) -> Void
  ) throws(BusError) {
    guard try list.use(pasid, body) != nil else {
      throw BusError(kind: .translation, address: address, access: access)
    }
  }

  /// Without the list, which whoever detaches the PASID takes: that ends the wait.
  func ask(for error: BusError, waits: DeviceWait) -> Bool {
    port.ask(for: error, waits: waits)
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    try access(address, .read) { () throws(BusError) in
      // SAFETY: the caller's buffer is passed on unchanged, for the length of the call.
      try unsafe port.read(address, into: buffer)
    }
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    try access(address, .write) { () throws(BusError) in
      // SAFETY: as in `read`.
      try unsafe port.write(address, from: buffer)
    }
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    try access(address, .write) { () throws(BusError) in try port.store(value, at: address) }
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try access(source, .read) { () throws(BusError) in
      try port.copy(from: source, to: destination, length: length)
    }
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    try access(address, .write) { () throws(BusError) in
      try port.fill(address, pattern: pattern, length: length)
    }
  }
}
