// SPDX-License-Identifier: Apache-2.0
//
// Pages that a driver shares with a program, which maps them through its /dev/iommu at an offset
// that a command told it: a hardware queue's registers. Linux: `struct iommufd_mmap`, one tree of
// them in each context.

import SystemPackage

/// Who keeps the pages: the carrier, in the file that the program maps; in a test, memory of this
/// process. Thread-safe.
public protocol MmapBacking: AnyObject, Sendable {
  /// Zeroed memory of this process that a program maps at `offset` of the file. It stays in
  /// place until `freePages`.
  /// - Parameters:
  ///   - offset: In bytes, a multiple of 4 KiB; each is asked for once.
  ///   - length: In bytes, a multiple of 4 KiB, not zero.
  /// - Returns: Its address.
  /// - Throws: `ENOMEM`.
  func makePages(at offset: UInt64, length: UInt64) throws(IOMMUError) -> UInt

  /// Whether a program, any of them, has a part of the range mapped.
  func isMapped(at offset: UInt64, length: UInt64) -> Bool

  /// Gives back what `makePages` made. No program has it mapped by then, or its last is gone.
  func freePages(at offset: UInt64, length: UInt64, base: UInt)
}

/// Pages shared with a program. They live as long as this object does.
public final class MmapArea: Sendable {
  /// What the program passes to `mmap(2)`, in bytes: tell it in the command's output.
  public let offset: UInt64
  /// In bytes, a multiple of 4 KiB.
  public let length: UInt64
  let base: UInt
  private let backing: any MmapBacking

  fileprivate init(offset: UInt64, length: UInt64, backing: any MmapBacking) throws(IOMMUError)
  {
    self.offset = offset
    self.length = length
    self.backing = backing
    base = try backing.makePages(at: offset, length: length)
  }

  deinit { backing.freePages(at: offset, length: length, base: base) }

  /// Whether a program has a part of it mapped: its owner cannot be destroyed then (`EBUSY`).
  /// Costs a look at every process of the run: ask at destroy only, under no lock.
  public var isMapped: Bool { backing.isMapped(at: offset, length: length) }
}

/// The areas of one context's file. Thread-safe; a leaf of the lock order, but for the carrier.
public final class MmapAreas: Sendable {
  private struct Entry: Sendable {
    let offset: UInt64
    let length: UInt64
  }

  private struct State: Sendable {
    var entries: [UInt64: Entry] = [:]
    var backing: (any MmapBacking)?
    var next = MmapAreas.first
  }

  private let state = RankedMutex(.mmapAreas, State())

  /// Offsets lie where no file reaches, so that a carrier knows such an `mmap` by its offset. The
  /// first page is left out: an offset is never the round number.
  private static let first: UInt64 = 1 << 45 | 4096
  /// Exclusive.
  private static let end: UInt64 = 1 << 46

  public init() {}

  /// Says who keeps the pages of areas made from now on; nil, the start: this process alone.
  public func keep(in backing: (any MmapBacking)?) {
    state.withLock { $0.backing = backing }
  }

  /// Makes an area of zeros.
  ///
  /// Linux: `iommufd_viommu_alloc_mmap`. An offset is never given out twice: a mapping that
  /// outlived its area shows nobody else's pages.
  /// - Parameter length: In bytes, a multiple of 4 KiB, not zero.
  /// - Throws: `EINVAL` for another length; `ENOMEM`.
  public func make(length: UInt64) throws(IOMMUError) -> MmapArea {
    guard length > 0, length & 4095 == 0, length <= Self.end - Self.first else {
      throw IOMMUError(
        .invalidArgument, "an area to map has whole pages of 4 KiB, not \(hex(length)) bytes")
    }
    let (offset, backing) = try state.withLock { (state) throws(IOMMUError) in
      guard length <= Self.end - state.next else {
        throw IOMMUError(.noMemory, "the context has no offsets left for areas to map")
      }
      defer { state.next += length }
      return (state.next, state.backing)
    }
    let area = try MmapArea(
      offset: offset, length: length, backing: backing ?? LocalMmapBacking())
    state.withLock { $0.entries[offset] = Entry(offset: offset, length: length) }
    return area
  }

  /// Makes an area unknown to `mmap`. The pages go with the last reference to it.
  public func remove(_ area: MmapArea) {
    state.withLock { _ = $0.entries.removeValue(forKey: area.offset) }
  }

  /// Whether `mmap(2)` may map the range: exactly one area, whole.
  ///
  /// Linux: `iommufd_fops_mmap`.
  /// - Parameters:
  ///   - offset: In the file, in bytes.
  ///   - length: In bytes, rounded up to whole pages.
  /// - Throws: `EINVAL` where it is not shared, `EPERM` where it is executable, `ENXIO` where no
  ///   area has this offset and this length; in this order.
  public func check(
    offset: UInt64, length: UInt64, isShared: Bool, isExecutable: Bool
  ) throws(IOMMUError) {
    guard isShared else {
      throw IOMMUError(.invalidArgument, "pages of /dev/iommu are mapped MAP_SHARED only")
    }
    guard !isExecutable else {
      throw IOMMUError(.notPermitted, "pages of /dev/iommu cannot be mapped PROT_EXEC")
    }
    let entry = state.withLock { $0.entries[offset] }
    guard let entry, entry.length == length else {
      throw IOMMUError(
        .noSuchAddressOrDevice,
        entry.map {
          "\(hex(length)) bytes are asked for at \(hex(offset)) of /dev/iommu, where the area has "
            + "\(hex($0.length)): an area is mapped whole"
        }
          ?? "/dev/iommu has nothing at \(hex(offset)) to map: pass the offset that the command "
          + "returned")
    }
  }
}
