// SPDX-License-Identifier: Apache-2.0
//
// The synthetic physical space: what page-table leaves point at. Pinning a run of client
// memory gives it a segment here, at the same offset modulo 1 GiB as its virtual address, so
// that large pages form as they would in a machine with enough contiguous memory.

import PageTables
import Synchronization

/// One machine's physical space. Thread-safe.
public final class PhysicalMemory: Sendable {
  @usableFromInline let table = SegmentTable()
  private let slots = RankedMutex(.physicalMemory, SlotAllocator(count: SegmentTable.slotCount))

  /// Addresses have 52 bits.
  public static let addressBits: UInt64 = 52

  public init() {}

  private let pinLimit = Atomic<UInt64>(.max)

  /// How many bytes of a mapping are pinned in one go, in whole host pages; each goes to its own
  /// place. Tests make it small so that small mappings meet what large ones do (Linux:
  /// `TEMP_MEMORY_LIMIT`, which bounds the scratch memory of a batch).
  public var mostPinnedAtOnce: UInt64 {
    get { pinLimit.load(ordering: .relaxed) }
    set {
      let pages = max(newValue, Pages.hostPage) & ~(Pages.hostPage - 1)
      pinLimit.store(newValue == .max ? .max : pages, ordering: .relaxed)
    }
  }

  /// Gives a run a place in physical space.
  ///
  /// - Parameter address: What the segment's address is congruent to, modulo 1 GiB: the
  ///   virtual address or file offset that was pinned. A multiple of 4 KiB.
  /// - Throws: `ENOMEM` where physical space is used up.
  public func insert(
    _ run: consuming PinnedRun, congruentTo address: UInt64
  ) throws(IOMMUError) -> PhysicalAddress {
    try FailurePoint.pass(.segment)
    let slotSize: UInt64 = 1 << SegmentTable.slotShift
    let offset = address & (slotSize - 1)
    let length = run.length
    let (end, overflow) = offset.addingReportingOverflow(length)
    let count = overflow ? UInt64.max : (end + slotSize - 1) >> SegmentTable.slotShift
    // Moved into its slot: a copy for each of several, but none for one.
    var run: PinnedRun? = consume run
    let slot = slots.withLock { state -> Int? in
      guard count <= UInt64(SegmentTable.slotCount),
        let slot = state.allocate(Int(count))
      else { return nil }
      let first = UInt64(slot) << SegmentTable.slotShift + offset
      for index in slot + 1..<slot + Int(count) {
        if let run { table.fill(index, with: run, at: first) }
      }
      if let run = run.take() { table.fill(slot, with: run, at: first) }
      return slot
    }
    guard let slot else {
      throw IOMMUError(
        .noMemory,
        "no physical space is left to pin \(hex(length)) bytes at \(hex(address))")
    }
    return PhysicalAddress(UInt64(slot) << SegmentTable.slotShift + offset)
  }

  /// Takes a segment out. No DMA may be using it any more (the driver's unmap has returned).
  /// - Parameters: `address` and `length` exactly as `insert` returned and was given.
  public func remove(_ address: PhysicalAddress, length: UInt64) {
    let first = Int(address.rawValue >> SegmentTable.slotShift)
    let last = Int((address.rawValue + length - 1) >> SegmentTable.slotShift)
    slots.withLock { state in
      for slot in first...last { table.clear(slot) }
      state.free(first, count: last - first + 1)
    }
  }

  /// The segment around an address; nil where there is none. No lock, no allocation, no
  /// reference counting: this is the DMA path. The answer holds only inside the driver's
  /// invalidation protocol.
  @inlinable
  public func window(around address: PhysicalAddress) -> LocalWindow? {
    guard
      let window = table.window(at: Int(address.rawValue >> SegmentTable.slotShift)),
      address.rawValue >= window.first, address.rawValue <= window.last
    else { return nil }
    return window
  }

  /// Reads memory that is reached by calls. The range lies in one segment.
  /// - Returns: False where the owner's memory is gone: the DMA faults.
  public func readRemote(
    at address: PhysicalAddress, into buffer: UnsafeMutableRawBufferPointer
  ) -> Bool {
    guard let (memory, start) = remote(at: address) else { return false }
    return unsafe memory.read(at: start, into: buffer)
  }

  /// Writes memory that is reached by calls. As `readRemote`.
  public func writeRemote(
    at address: PhysicalAddress, from buffer: UnsafeRawBufferPointer
  ) -> Bool {
    guard let (memory, start) = remote(at: address) else { return false }
    return unsafe memory.write(at: start, from: buffer)
  }

  private func remote(at address: PhysicalAddress) -> (any RemoteMemory, UInt64)? {
    guard
      let segment = table.segment(at: Int(address.rawValue >> SegmentTable.slotShift)),
      segment.contains(address),
      let memory = segment.run.memory
    else { return nil }
    return (memory, segment.run.address + (address.rawValue - segment.first))
  }

  /// What the byte at an address is, whoever maps it; nil where nothing is pinned there.
  public func identity(of address: PhysicalAddress) -> MemoryIdentity? {
    guard
      let segment = table.segment(at: Int(address.rawValue >> SegmentTable.slotShift)),
      segment.contains(address)
    else { return nil }
    var identity = segment.run.identity
    identity.offset &+= address.rawValue - segment.first
    return identity
  }

  /// How many pins cover a byte of memory. Slow: it looks at every segment (tests ask it).
  public func pinCount(of identity: MemoryIdentity) -> Int {
    slots.withLock { state in
      var count = 0
      for slot in 0..<state.highest {
        guard let segment = table.segment(at: slot),
          Int(segment.first >> SegmentTable.slotShift) == slot,
          segment.run.identity.space == identity.space,
          segment.run.identity.object == identity.object,
          identity.offset >= segment.run.identity.offset,
          identity.offset - segment.run.identity.offset < segment.run.length
        else { continue }
        count += 1
      }
      return count
    }
  }

  /// Slots in use: zero once everything is unpinned.
  public var usedSlots: Int { slots.withLock { $0.used } }
}

/// Hands out runs of slots: single ones from a stack of free ones, longer runs first-fit.
struct SlotAllocator {
  private let count: Int
  /// Slots at and above this were never used.
  private(set) var highest = 0
  private(set) var used = 0
  private var freeSingles: [Int] = []
  /// Free runs of more than one slot: first slot and length.
  private var freeRuns: [(first: Int, count: Int)] = []

  init(count: Int) { self.count = count }

  mutating func allocate(_ wanted: Int) -> Int? {
    if wanted == 1, let slot = freeSingles.popLast() {
      used += 1
      return slot
    }
    if wanted > 1 || highest == count,
      let index = freeRuns.firstIndex(where: { $0.count >= wanted })
    {
      let run = freeRuns[index]
      if run.count == wanted {
        freeRuns.remove(at: index)
      } else {
        freeRuns[index] = (run.first + wanted, run.count - wanted)
      }
      used += wanted
      return run.first
    }
    guard count - highest >= wanted else { return nil }
    defer { highest += wanted }
    used += wanted
    return highest
  }

  mutating func free(_ first: Int, count: Int) {
    used -= count
    if count == 1 { freeSingles.append(first) } else { freeRuns.append((first, count)) }
  }
}
