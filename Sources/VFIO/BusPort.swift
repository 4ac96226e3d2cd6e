// SPDX-License-Identifier: Apache-2.0
//
// What a PCI function is plugged into: the way up to memory, through an IOMMU or straight, and
// the interrupt messages that go the same way. Device models see memory through this only.

import IOMMU
import PageTables
import SoftwareIOMMU

/// A way to memory for one bus master. Every access carries the function's requester id.
///
/// Used by one thread at a time; a function that masters from two threads makes two ports.
public protocol BusPort: AnyObject, Sendable {
  /// Fills `buffer` from memory at `address` and up.
  /// - Throws: Where a byte could not be read. What was read before it is in the buffer.
  func read(
    _ address: IOVA, into buffer: UnsafeMutableRawBufferPointer
  ) throws(BusError)

  /// Writes `buffer` to memory. A write of 4 bytes into the MSI window is an interrupt.
  /// - Throws: Where a byte could not be written. What precedes it has been written.
  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError)

  /// Writes 8 bytes, little-endian; in one access where the address is a multiple of 8, so
  /// that a program that polls them never sees a mixture.
  func store(_ value: UInt64, at address: IOVA) throws(BusError)

  /// Copies memory to memory; where the two overlap the result is unspecified.
  /// - Parameter length: In bytes, not negative.
  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError)

  /// Repeats the 8 bytes of `pattern`, little-endian, over `length` bytes.
  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError)

  /// Asks for what an access of a recovering port lacked, and waits for the answer. Called with
  /// none of the port's locks held.
  /// - Parameter error: One with `missing`.
  /// - Returns: Whether the access may go on at `error.address`; where it may not, the IOMMU has
  ///   counted and logged the fault.
  func ask(for error: BusError, waits: DeviceWait) -> Bool
}

extension BusPort {
  /// A port whose errors stand.
  public func ask(for error: BusError, waits: DeviceWait) -> Bool { false }
}

/// An access that did not complete. The IOMMU has counted and logged it already, unless it is
/// `missing` something.
public struct BusError: Error, Hashable, Sendable {
  public enum Kind: Hashable, Sendable {
    /// The address translates to nothing that the access may use.
    case translation
    /// The address is right, but the memory behind it is gone.
    case data
    /// The function may not master the bus: bus mastering is off, or it is powered down.
    case notMaster
  }

  public var kind: Kind
  public var address: IOVA
  /// `.read` or `.write`: in a copy it says which side failed.
  public var access: Permissions
  /// What the device may ask for (MODEL H1); nil where the error stands.
  package var missing: DMAFault?

  public init(kind: Kind, address: IOVA, access: Permissions) {
    self.kind = kind
    self.address = address
    self.access = access
  }
}

/// What raises an interrupt: this value, written by DMA to this address.
public struct InterruptMessage: Hashable, Sendable {
  public var address: UInt64
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// The bus above one function. Thread-safe.
public protocol UpstreamBus: AnyObject, Sendable {
  func makePort() -> any BusPort

  /// A way to memory for DMA that carries a PASID beside what all DMA of the function carries.
  func makePort(pasid: PASID) -> any BusPort

  /// As `makePort`, for a device that can ask for pages: what is missing is not counted but thrown,
  /// for the device to ask for it.
  func makeRecoveringPort(pasid: PASID?) -> any BusPort

  /// A way for the interrupt messages, which are written as `BusPort.store` of 4 bytes.
  func makeInterruptPort() -> any BusPort

  /// Allocates a message that signals `signal` when this function, and no other, writes it.
  /// - Throws: `ENOSPC` where no message is left.
  func allocateInterrupt(
    signal: any EventSignal
  ) throws(IOMMUError) -> InterruptMessage

  /// Takes a message back. When it returns, writing it signals nothing.
  func freeInterrupt(_ message: InterruptMessage)

  /// Allocates messages that differ in the lowest bits of their data only, as MSI has them: message
  /// n is the one that is returned with n in those bits, which are 0 in it.
  /// - Parameter signals: Of message 0 and up, a power of two of them; nil for a message that is not
  ///   there: it signals nothing.
  /// - Throws: `ENOSPC` where there are not so many left.
  func allocateInterrupts(
    signals: [(any EventSignal)?]
  ) throws(IOMMUError) -> InterruptMessage

  /// Takes back what `allocateInterrupts` made. When it returns, writing one of the messages
  /// signals nothing.
  func freeInterrupts(_ first: InterruptMessage, count: Int)
}

extension UpstreamBus {
  /// A bus without PASIDs: nothing is reached.
  public func makePort(pasid: PASID) -> any BusPort { UnreachablePort() }

  /// A bus without page requests.
  public func makeRecoveringPort(pasid: PASID?) -> any BusPort {
    pasid.map { makePort(pasid: $0) } ?? makePort()
  }

  /// Interrupts go where DMA goes.
  public func makeInterruptPort() -> any BusPort { makePort() }

  /// A bus whose messages have nothing to do with each other: one, and no more.
  public func allocateInterrupts(
    signals: [(any EventSignal)?]
  ) throws(IOMMUError) -> InterruptMessage {
    guard signals.count == 1, case let signal?? = signals.first else {
      throw IOMMUError(.noSpace, "this bus has no \(signals.count) messages in a row")
    }
    return try allocateInterrupt(signal: signal)
  }

  public func freeInterrupts(_ first: InterruptMessage, count: Int) { freeInterrupt(first) }
}

/// A port that everything faults on.
private final class UnreachablePort: BusPort {
  private func fault(_ address: IOVA, _ access: Permissions) -> BusError {
    BusError(kind: .translation, address: address, access: access)
  }

  func read(_ address: IOVA, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
    throw fault(address, .read)
  }

  func write(_ address: IOVA, from buffer: UnsafeRawBufferPointer) throws(BusError) {
    throw fault(address, .write)
  }

  func store(_ value: UInt64, at address: IOVA) throws(BusError) {
    throw fault(address, .write)
  }

  func copy(from source: IOVA, to destination: IOVA, length: Int) throws(BusError) {
    throw fault(source, .read)
  }

  func fill(_ address: IOVA, pattern: UInt64, length: Int) throws(BusError) {
    throw fault(address, .write)
  }
}
