// SPDX-License-Identifier: Apache-2.0
//
// A function's place behind the software IOMMU: all its ports are one requester's, or one PASID's
// of it, and its interrupt messages are the remapper's.

import IOMMU
import PageTables
import SoftwareIOMMU

/// The bus above a function that is behind a `SoftwareIOMMU`. Thread-safe.
public final class SoftwareIOMMUBus: UpstreamBus {
  private let iommu: SoftwareIOMMU
  private let requester: RequesterID
  private let pasid: PASID?
  private let port: SerializedPort

  /// - Parameter pasid: Of a slice of a device (MODEL D2, kind 2): what its DMA carries beside the
  ///   requester id of its parent. Its interrupts carry none: the parent sends them for it, and
  ///   the slice's own requests never become interrupts.
  public init(iommu: SoftwareIOMMU, requester: RequesterID, pasid: PASID? = nil) {
    self.iommu = iommu
    self.requester = requester
    self.pasid = pasid
    port = SerializedPort(iommu.port(for: requester, pasid: pasid))
  }

  public func makePort() -> any BusPort { port }

  public func makePort(pasid: PASID) -> any BusPort {
    SerializedPort(iommu.port(for: requester, pasid: pasid))
  }

  public func makeRecoveringPort(pasid: PASID?) -> any BusPort {
    SerializedPort(iommu.port(for: requester, pasid: pasid ?? self.pasid), recovers: true)
  }

  public func makeInterruptPort() -> any BusPort {
    guard pasid != nil else { return port }
    return MessagePort { [iommu, requester] message in
      iommu.interrupts.raise(
        MSIMessage(address: message.address, data: message.data), from: requester)
    }
  }

  public func allocateInterrupt(
    signal: any EventSignal
  ) throws(IOMMUError) -> InterruptMessage {
    let message = try iommu.interrupts.allocate(for: requester, signal: signal)
    return InterruptMessage(address: message.address, data: message.data)
  }

  public func freeInterrupt(_ message: InterruptMessage) {
    iommu.interrupts.free(MSIMessage(address: message.address, data: message.data))
  }

  public func allocateInterrupts(
    signals: [(any EventSignal)?]
  ) throws(IOMMUError) -> InterruptMessage {
    let message = try iommu.interrupts.allocate(for: requester, signals: signals)
    return InterruptMessage(address: message.address, data: message.data)
  }

  public func freeInterrupts(_ first: InterruptMessage, count: Int) {
    iommu.interrupts.free(
      MSIMessage(address: first.address, data: first.data), count: count)
  }
}

/// A requester has one port, which one thread at a time may use: the function's threads, and
/// whoever makes it send an interrupt, take turns, one access each. So do slices of a device that
/// share a PASID.
private final class SerializedPort: BusPort {
  private let port: DMAPort
  /// Whether what is missing is the caller's to ask for.
  private let recovers: Bool

  init(_ port: DMAPort, recovers: Bool = false) {
    self.port = port
    self.recovers = recovers
  }

  private func access(
    _ body: (DMAPort) throws(DMAFault) -> Void
  ) throws(BusError) {
    do throws(DMAFault) {
      try port.turn.withLock { (_) throws(DMAFault) in
        if recovers { try port.deferringMisses(body) } else { try body(port) }
      }
    } catch {
      var result = BusError(
        kind: error.reason == .memoryGone ? .data : .translation, address: error.iova,
        access: error.access)
      if error.missingPages > 0 { result.missing = error }
      throw result
    }
  }

  func ask(for error: BusError, waits: DeviceWait) -> Bool {
    guard let fault = error.missing else { return false }
    return port.ask(for: fault, waits: waits)
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    // SAFETY: the caller's buffer is passed on unchanged, for the length of the call.
    try access { (port) throws(DMAFault) in try unsafe port.read(address, into: buffer) }
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    // SAFETY: as in `read`.
    try access { (port) throws(DMAFault) in try unsafe port.write(address, from: buffer) }
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    try access { (port) throws(DMAFault) in try port.store(value, at: address) }
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    try access { (port) throws(DMAFault) in
      try port.copy(from: source, to: destination, length: length)
    }
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    try access { (port) throws(DMAFault) in
      try port.fill(address, pattern: pattern, length: length)
    }
  }
}
