// SPDX-License-Identifier: Apache-2.0
//
// Memory that a device has and programs map: a memory BAR (MODEL C4). It can be taken from all who
// map it at once, as a BAR is that does not decode any more, and given again.

/// A stretch of a device's memory. Thread-safe.
///
/// Whoever can map it (a type1 container, the Swift API) uses it as a source whose addresses are
/// offsets from its first byte: another device's DMA reaches it then, peer to peer. Such a mapping
/// holds through a revocation, and its DMA fails as long as the memory is taken.
public protocol DeviceMemory: MemorySource, RemoteMemory {
  /// In bytes, a multiple of 4 KiB.
  var byteCount: UInt64 { get }
  /// What its first byte is.
  var identity: MemoryIdentity { get }
  /// Whether it answers; false at first.
  var isGiven: Bool { get }

  /// From the return on it answers: what was in it when it was taken is there again.
  func give()
  /// When it returns nothing reaches the memory: mappings of programs fault (SIGBUS), accesses and
  /// DMA fail. What is stored while this runs is kept or lost, as a posted write is.
  func take()
  /// Makes all bytes zero, given or not. Who has it mapped sees zeros, and no fault.
  func clear()
}

extension DeviceMemory {
  /// Linux: `follow_fault_pfn`: there is nothing to pin, but it must answer.
  /// - Throws: `EFAULT` while it is taken, and outside of it.
  public func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard address <= byteCount, length <= byteCount - address else {
      throw IOMMUError(
        .badAddress,
        "bytes \(hex(address)) + \(hex(length)) lie outside device memory of "
          + "\(hex(byteCount)) bytes")
    }
    guard isGiven else {
      throw IOMMUError(
        .badAddress, "the device does not decode memory: set bit 1 of its command register")
    }
    var identity = identity
    identity.offset &+= address
    try place(
      PinnedRun(length: length, backing: .remote(self, address: address), identity: identity))
  }

  public func isDeviceMemory(address: UInt64, length: UInt64) -> Bool { true }
}

/// Who keeps the memory of one open of a device: the carrier, in the file that programs map; this
/// process, where there is none. Thread-safe.
public protocol DeviceMemoryBacking: AnyObject, Sendable {
  /// Makes memory of zeros, taken.
  /// - Parameters:
  ///   - offset: Where it lies in the file, in bytes, a multiple of 4 KiB; each once.
  ///   - length: In bytes, a multiple of 4 KiB, not zero.
  /// - Throws: `ENOMEM`.
  func makeMemory(at offset: UInt64, length: UInt64) throws(IOMMUError) -> any DeviceMemory

  /// Makes a page of doorbells, or several; nil, unless a carrier says otherwise, where programs
  /// map none: each of their stores is a write of a register then.
  /// - Parameters: As of `makeMemory`.
  /// - Throws: `ENOMEM`.
  func makeDoorbells(at offset: UInt64, length: UInt64) throws(IOMMUError) -> (
    any DoorbellPages
  )?
}

extension DeviceMemoryBacking {
  public func makeDoorbells(
    at offset: UInt64, length: UInt64
  ) throws(IOMMUError) -> (any DoorbellPages)? { nil }
}
