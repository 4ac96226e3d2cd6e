// SPDX-License-Identifier: Apache-2.0
//
// A bus without an IOMMU: writes below the window go nowhere, messages signal at once. And a
// device model with many vectors and a register file that keeps what is written.

import IOMMU
import PageTables
import Synchronization
import SystemPackage
import VFIO

/// Counts what it is told.
final class Counter: EventSignal {
  private let value = Atomic(0)
  var count: Int { value.load(ordering: .sequentiallyConsistent) }
  func signal() { value.add(1, ordering: .sequentiallyConsistent) }
}

final class TestBus: UpstreamBus, BusPort {
  private struct State: Sendable {
    var messages: [UInt32: any EventSignal] = [:]
    var next: UInt32 = 1
    var isBlocked = false
    /// What was written outside of the messages' address.
    var writes: [InterruptMessage] = []
  }
  private let state = Guarded(State())

  var isBlocked: Bool {
    get { state.withLock { $0.isBlocked } }
    set { state.withLock { $0.isBlocked = newValue } }
  }
  var writes: [InterruptMessage] { state.withLock { $0.writes } }
  var messageCount: Int { state.withLock { $0.messages.count } }

  func makePort() -> any BusPort { self }

  func allocateInterrupt(signal: any EventSignal) throws(IOMMUError) -> InterruptMessage {
    state.withLock { state in
      defer { state.next += 1 }
      state.messages[state.next] = signal
      return InterruptMessage(address: 0xFEE0_0000, data: state.next)
    }
  }

  func freeInterrupt(_ message: InterruptMessage) {
    state.withLock { _ = $0.messages.removeValue(forKey: message.data) }
  }

  func allocateInterrupts(
    signals: [(any EventSignal)?]
  ) throws(IOMMUError) -> InterruptMessage {
    state.withLock { state in
      let count = UInt32(signals.count)
      let first = (state.next + count - 1) & ~(count - 1)
      for (data, signal) in zip(first..., signals) { state.messages[data] = signal }
      state.next = first + count
      return InterruptMessage(address: 0xFEE0_0000, data: first)
    }
  }

  func freeInterrupts(_ first: InterruptMessage, count: Int) {
    for data in first.data..<first.data + UInt32(count) {
      freeInterrupt(InterruptMessage(address: first.address, data: data))
    }
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    let data = buffer.loadUnaligned(as: UInt32.self)
    guard address.rawValue == 0xFEE0_0000 else {
      state.withLock {
        $0.writes.append(InterruptMessage(address: address.rawValue, data: data))
      }
      return
    }
    guard !isBlocked, let signal = state.withLock({ $0.messages[data] }) else {
      throw BusError(kind: .translation, address: address, access: .write)
    }
    signal.signal()
  }

  private func refuse(_ address: IOVA) throws(BusError) {
    throw BusError(kind: .translation, address: address, access: .read)
  }
  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    try refuse(address)
  }
  func store(_ value: UInt64, at address: IOVA) throws(BusError) { try refuse(address) }
  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try refuse(source)
  }
  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    try refuse(address)
  }
}

/// BAR 0 keeps what is written, byte for byte, and notes the accesses; BAR 2 has the table.
final class TestModel: PCIDeviceModel {
  struct Access: Hashable, Sendable {
    var offset: UInt64
    var width: Int
  }
  struct State: Sendable {
    var bytes = [UInt8](repeating: 0, count: 4096)
    var reads: [Access] = []
    var writes: [Access] = []
    var resets = 0
    var port: FunctionPort?
  }
  let state = Guarded(State())

  let identity = PCIIdentity(vendor: 0x1234, device: 0x5678, classCode: 0xFF_0000)
  let bars = [
    BAR(index: 0, size: 4096, is64Bit: false),
    BAR(index: 2, size: 64 << 10, is64Bit: true, isPrefetchable: true),
  ]
  let msix: MSIXLayout? = MSIXLayout(
    vectors: 70, tableBAR: 2, tableOffset: 0x100, pendingBAR: 2, pendingOffset: 0x8000)
  let interruptPin: UInt8
  let msi: MSILayout?
  let configRegisters = [
    ConfigRegister(offset: 0x48, initialValue: 0xAB, writable: 0xFF00),
    ConfigRegister(offset: 0x180, clearedByOne: 0xFFFF),
  ]

  struct Resets: OptionSet {
    let rawValue: Int
    static let function = Resets(rawValue: 1)
    static let power = Resets(rawValue: 2)
  }
  let hasFunctionReset: Bool
  let isResetByPower: Bool

  init(interruptPin: UInt8 = 0, msi: MSILayout? = nil, resets: Resets = .function) {
    self.interruptPin = interruptPin
    self.msi = msi
    hasFunctionReset = resets.contains(.function)
    isResetByPower = resets.contains(.power)
  }

  func connect(to function: FunctionPort) { state.withLock { $0.port = function } }

  func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 {
    state.withLock { state in
      state.reads.append(Access(offset: offset, width: width))
      guard bar == 0 else { return 0x5555_5555_5555_5555 }
      return (0..<width).reversed().reduce(0) {
        $0 << 8 | UInt64(state.bytes[Int(offset) + $1])
      }
    }
  }

  func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {
    state.withLock { state in
      state.writes.append(Access(offset: offset, width: width))
      guard bar == 0 else { return }
      for index in 0..<width {
        state.bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
      }
    }
  }

  func reset() { state.withLock { $0.resets += 1 } }
  func remove() {}

  var port: FunctionPort { state.withLock { $0.port! } }
}

/// The function, bound to a context and open.
struct TestFunction {
  let system = IOMMUSystem()
  let bus = TestBus()
  let model: TestModel
  let context: Context
  let device: VFIODevice
  let session: DeviceSession
  var function: PCIFunction { device.function }

  init(
    interruptPin: UInt8 = 0, msi: MSILayout? = nil, resets: TestModel.Resets = .function
  ) throws {
    model = TestModel(interruptPin: interruptPin, msi: msi, resets: resets)
    let group = system.addGroup()
    let driver = PlainDriver()
    let physical = try system.addDevice(
      name: "0000:00:01.0", requester: RequesterID(bus: 0, device: 1, function: 0),
      driver: driver, group: group)
    context = Context(system: system)
    device = VFIODevice(
      index: 3, function: PCIFunction(device: physical, model: model, upstream: bus),
      group: VFIOGroup(group: group))
    session = device.open()
  }

  func bind() throws {
    let context = context
    try session.bind(findContext: { context }, publish: { _ in })
  }

  func read(
    _ region: PCIRegion, _ offset: UInt64, _ count: Int, isMapped: Bool = false
  ) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    let done = try bytes.withUnsafeMutableBytes {
      try function.read(region, at: offset, into: $0, isMapped: isMapped)
    }
    return Array(bytes[..<done])
  }

  @discardableResult
  func write(
    _ region: PCIRegion, _ offset: UInt64, _ bytes: [UInt8], isMapped: Bool = false
  ) throws -> Int {
    try bytes.withUnsafeBytes {
      try function.write(region, at: offset, from: $0, isMapped: isMapped)
    }
  }

  /// A register of configuration space.
  func config(_ offset: UInt64, _ width: Int = 4) throws -> UInt32 {
    try read(.config, offset, width).reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }

  func setConfig(_ offset: UInt64, _ value: UInt32, _ width: Int = 4) throws {
    try write(
      .config, offset, (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) })
  }
}

/// An IOMMU that takes every switch and makes no page table.
final class PlainDriver: IOMMUDriver {
  let name = "plain0"
  func capabilities(for device: RequesterID) -> IOMMUCapabilities { IOMMUCapabilities() }
  func reservedRegions(for device: RequesterID) -> [ReservedRegion] { [] }
  func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    HardwareInformation(type: 0, data: [])
  }
  func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    throw IOMMUError(.noMemory, "this IOMMU makes no page table")
  }
  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {}
}

/// The errno that a call throws; nil where it throws none.
func errno(_ body: () throws -> Void) -> Errno? {
  do {
    try body()
    return nil
  } catch {
    return (error as? IOMMUError)?.errno
  }
}
