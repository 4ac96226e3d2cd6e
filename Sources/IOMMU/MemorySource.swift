// SPDX-License-Identifier: Apache-2.0
//
// Where the memory behind a mapping comes from: our own process, another process, a file.
// Whoever brings a new kind of memory implements these two protocols; the engine knows no
// other.

/// Memory that can be mapped into an address space and pinned for DMA.
///
/// Addresses are the source's own, in bytes: virtual addresses where the source is a process,
/// offsets where it is a file. Implementations are thread-safe.
public protocol MemorySource: AnyObject, Sendable {
  /// Makes `address ..< address + length` reachable by DMA until the runs are released.
  ///
  /// Linux: `pin_user_pages`. Called when the first page table or accessor needs the memory,
  /// not when it is mapped, so a bad address fails there as it does on Linux.
  /// - Parameters:
  ///   - address: First byte, a multiple of the host's page size.
  ///   - length: In bytes, not zero, a multiple of the host's page size.
  ///   - writable: Whether devices will write: then every page must be writable by its owner.
  ///   - place: Called for each run, in order and without gaps, until all of the range is
  ///     covered. A run keeps what it needs alive; the engine drops it at unpin. What `place`
  ///     throws is passed on; the engine then takes back what was placed.
  /// - Throws: `EFAULT` where a page is not there or may not be written.
  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError)

  /// The same memory as a type1 container maps it: with what its owner has mapped of devices
  /// (peer to peer). By itself a source gives none of that: iommufd does not pin it.
  var includingDevices: any MemorySource { get }

  /// Whether all of a range is a device's memory, which no account is charged for.
  func isDeviceMemory(address: UInt64, length: UInt64) -> Bool
}

extension MemorySource {
  public var includingDevices: any MemorySource { self }
  public func isDeviceMemory(address: UInt64, length: UInt64) -> Bool { false }
}

/// A stretch of pinned memory that is reached in one way.
public struct PinnedRun: Sendable {
  /// In bytes; a multiple of the host's page size.
  public let length: UInt64
  /// What the first byte *is*, whoever maps it and wherever: two runs with equal identities
  /// are the same memory.
  public let identity: MemoryIdentity
  // Flat rather than a `Backing`: a map copies runs, and plain fields copy fastest.
  let address: UInt64
  let owner: (any AnyObject & Sendable)?
  let memory: (any RemoteMemory)?

  /// Whether it is mapped in this process.
  var isLocal: Bool { memory == nil }

  public enum Backing: Sendable {
    /// Mapped in this process: DMA is a plain access. `owner` keeps the mapping alive.
    case local(base: UInt, owner: (any AnyObject & Sendable)?)
    /// Reached by calls: DMA goes through `memory`, at `address` and up.
    case remote(any RemoteMemory, address: UInt64)
  }

  public init(length: UInt64, backing: Backing, identity: MemoryIdentity) {
    self.length = length
    self.identity = identity
    switch backing {
    case .local(let base, let owner):
      address = UInt64(base)
      self.owner = owner
      memory = nil
    case .remote(let memory, let address):
      self.address = address
      owner = nil
      self.memory = memory
    }
  }

  public var backing: Backing {
    if let memory {
      .remote(memory, address: address)
    } else {
      .local(base: UInt(address), owner: owner)
    }
  }
}

/// Names a byte of memory independently of who maps it: the file or the process that it
/// belongs to, and where in it.
public struct MemoryIdentity: Hashable, Sendable {
  /// Device number of the file's file system, or 0 for anonymous memory.
  public var space: UInt64
  /// Inode of the file, or the address-space number of the process.
  public var object: UInt64
  /// Offset in the file, or virtual address, in bytes.
  public var offset: UInt64

  public init(space: UInt64, object: UInt64, offset: UInt64) {
    self.space = space
    self.object = object
    self.offset = offset
  }
}

/// Memory that can only be reached by calls: another process's private pages.
///
/// Thread-safe. An access that the owner's memory cannot serve any more (it was unmapped, the
/// process executed another program or is gone) returns false: the DMA faults.
public protocol RemoteMemory: AnyObject, Sendable {
  /// Copies from `address` into `buffer`, wholly or not at all as far as the caller may know.
  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool
  /// Copies `buffer` to `address`.
  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool
}
