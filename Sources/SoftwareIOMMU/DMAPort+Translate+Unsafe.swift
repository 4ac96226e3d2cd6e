// SPDX-License-Identifier: Apache-2.0
//
// How a port translates: transactions, the last page, the IOTLB, the walk. Everything here
// runs on the port's thread, without locks, allocation or reference counting.

import HardwareTables
import IOMMU
import PageTables
import Synchronization

/// What a port knows that no other thread reads.
struct PortState: ~Copyable {
  /// The translation that was used last: it covers `lastSpan` bytes from `lastBase`.
  var lastBase: UInt64 = 0
  var lastSpan: UInt64 = 0
  /// As an IOTLB value.
  var lastValue: UInt64 = 0
  /// Own copy of the channel's sequence number.
  var sequence: UInt64 = 0
  /// Transactions begun and not ended; only the outermost is one.
  var depth = 0
  var context: PortContext = .unknown
  /// Whether the device asks for translations of the context (ATS), rather than sending requests
  /// that are not translated.
  var hasATS = false
  /// What was read of the context's table of PASIDs.
  var configuration: CachedConfiguration = .none
  /// log2 of the largest leaf of a user's table that `tlb` has something of.
  var widestLeaf: UInt8 = 12
  var tlb = IOTLB()
  /// See `DMAPort.waits`.
  var waits: DeviceWait?
  /// An access that misses is thrown to be asked for by whoever called.
  var defersMisses = false
  /// How often the port has asked a process for one address, which has not helped.
  var missedAddress: UInt64 = 0
  var misses = 0
  /// Why the latest walk found nothing, and the latest lookup in a user's tables, until it is
  /// reported.
  var walkFault: WalkFault?
  var lookupFault: LookupFault?
}

extension DMAPort {
  /// Where an address goes.
  struct Hit {
    /// As an IOTLB value: displacement and flags.
    var value: UInt64
    /// Bytes from the address on that have the same value, at least 1.
    var left: UInt64

    @inline(__always) var isLocal: Bool { value & IOTLB.localFlag != 0 }

    /// Local or physical, as `isLocal` says.
    @inline(__always)
    func address(_ iova: UInt64) -> UInt64 { iova &+ (value & ~IOTLB.flags) }
  }

  @inline(__always)
  func enter() {
    // SAFETY: the state is the port thread's own and lives as long as the port.
    if unsafe state.pointee.depth == 0 {
      unsafe state.pointee.sequence &+= 1
      unsafe channel.sequence.store(state.pointee.sequence, ordering: .sequentiallyConsistent)
      if channel.pending.load(ordering: .sequentiallyConsistent) { drain() }
    }
    unsafe state.pointee.depth &+= 1
  }

  @inline(__always)
  func leave() {
    unsafe state.pointee.depth &-= 1
    if unsafe state.pointee.depth == 0 {
      unsafe state.pointee.sequence &+= 1
      unsafe channel.sequence.store(state.pointee.sequence, ordering: .releasing)
    }
  }

  /// Between two pieces of a long transfer: lets invalidations through. Does nothing inside
  /// a caller's own transaction, whose translations are still in use.
  @inline(__always)
  func checkpoint() {
    if unsafe state.pointee.depth == 1, channel.pending.load(ordering: .acquiring) { drain() }
  }

  /// Does what the mail says. The port holds no translation.
  @inline(never)
  private func drain() {
    // Still odd: the port stays inside. The change says that the mail was taken; what it says
    // is done before anything is translated.
    unsafe state.pointee.sequence &+= 2
    let mail = unsafe channel.take(sequence: state.pointee.sequence)
    if let context = mail.context {
      unsafe state.pointee.context = context
      unsafe state.pointee.hasATS = mail.hasATS
    }
    if mail.context != nil || mail.forgetsConfiguration {
      unsafe state.pointee.configuration = .none
    }
    forget(mail)
  }

  /// Forgets what invalidations say. The port holds no translation.
  func forget(_ mail: borrowing PortChannel.Mailbox) {
    unsafe state.pointee.lastSpan = 0
    if mail.flushesAll {
      forgetAll()
    } else {
      for index in 0..<mail.count {
        let range = unsafe mail.ranges[index].widened(to: state.pointee.widestLeaf)
        unsafe state.pointee.tlb.small.forget(first: range.first, last: range.last)
        unsafe state.pointee.tlb.large.forget(first: range.first, last: range.last)
      }
    }
  }

  /// Forgets all translations but the one in use.
  func forgetAll() {
    unsafe state.pointee.tlb.small.forgetAll()
    unsafe state.pointee.tlb.large.forgetAll()
    unsafe state.pointee.widestLeaf = 12
  }

  /// Translates inside a transaction; `need` are IOTLB flags.
  @inline(__always)
  func find(_ iova: UInt64, _ need: UInt64) throws(DMAFault.Reason) -> Hit {
    let offset = unsafe iova &- state.pointee.lastBase
    if unsafe offset < state.pointee.lastSpan,
      unsafe state.pointee.lastValue & need == need
    {
      return unsafe Hit(value: state.pointee.lastValue, left: state.pointee.lastSpan &- offset)
    }
    return try findElsewhere(iova, need)
  }

  @inline(never)
  private func findElsewhere(
    _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Hit {
    if unsafe state.pointee.tlb.large.isUsed {
      let value = unsafe state.pointee.tlb.large.find(iova)
      if value & need == need { return use(value, iova, shift: IOTLB.largeShift) }
    }
    if unsafe state.pointee.tlb.small.isUsed {
      let value = unsafe state.pointee.tlb.small.find(iova)
      if value & need == need { return use(value, iova, shift: IOTLB.smallShift) }
    }
    return try miss(iova, need)
  }

  @inline(__always)
  private func use(_ value: UInt64, _ iova: UInt64, shift: UInt64) -> Hit {
    let span: UInt64 = 1 << shift
    let base = iova & ~(span &- 1)
    unsafe state.pointee.lastBase = base
    unsafe state.pointee.lastSpan = span
    unsafe state.pointee.lastValue = value
    return Hit(value: value, left: span &- (iova &- base))
  }

  /// Walks the table, and remembers what it finds.
  private func miss(_ iova: UInt64, _ need: UInt64) throws(DMAFault.Reason) -> Hit {
    if case .process = unsafe state.pointee.context { return try processHit(iova) }
    let translation = try walk(iova, need)
    let permissions = UInt64(translation.permissions.rawValue) & IOTLB.accessFlags
    guard permissions & need == need else {
      throw reason(of: WalkFault(.permission, level: 1, rights: translation.rights))
    }
    let physical = translation.physical.rawValue
    guard let window = memory.window(around: translation.physical) else { throw .memoryGone }
    var displacement = physical &- iova
    if window.isLocal {
      displacement &+= window.displacement
      // The flags need the low bits. Runs begin at pages, so this does not happen.
      guard displacement & IOTLB.flags == 0 else { throw .memoryGone }
    }
    let value = displacement | permissions | (window.isLocal ? IOTLB.localFlag : 0)

    // The largest granule that the leaf covers and that lies in the pinned window. The one
    // that has the interrupt window in it is never kept.
    let leafShift = UInt64(translation.leafShift)
    if leafShift >= IOTLB.largeShift, iova >> IOTLB.largeShift != Self.interruptGranule,
      Self.contains(window, physical, shift: IOTLB.largeShift)
    {
      unsafe state.pointee.tlb.large.insert(iova, value)
      return use(value, iova, shift: IOTLB.largeShift)
    }
    if Self.contains(window, physical, shift: IOTLB.smallShift) {
      unsafe state.pointee.tlb.small.insert(iova, value)
      return use(value, iova, shift: IOTLB.smallShift)
    }
    // A window that ends inside a page: nothing is kept.
    let page: UInt64 = 1 << IOTLB.smallShift
    let left = min(page &- (iova & (page &- 1)), window.last &- physical &+ 1)
    return Hit(value: value, left: left)
  }

  @inline(__always)
  private func walk(_ iova: UInt64, _ need: UInt64) throws(DMAFault.Reason) -> Translation {
    // SAFETY: the port thread's own state.
    switch unsafe state.pointee.context {
    case .intelFirstStage(let root): return try walk(root, iova, need)
    case .intelSecondStage(let root): return try walk(root, iova, need)
    case .amdV1(let root): return try walk(root, iova, need)
    case .amdV2(let root): return try walk(root, iova, need)
    case .armStage1(let root): return try walk(root, iova, need)
    case .armStage2(let root): return try walk(root, iova, need)
    case .riscvFirstStage(let root): return try walk(root, iova, need)
    case .riscvSecondStage(let root): return try walk(root, iova, need)
    case .intelNested(let root): return try walk(root, iova, need)
    case .smmuNested(let root): return try walk(root, iova, need)
    case .amdNested(let root): return try walk(root, iova, need)
    case .riscvNested(let root): return try walk(root, iova, need)
    case .unknown: throw .unknownRequester
    case .blocked, .cutOff: throw .blocked
    case .host, .process: throw .hostMemory
    }
  }

  @inline(__always)
  func walk<Format: PageTableFormat>(
    _ root: PageTableRoot<Format>, _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Translation {
    if InterruptRemapper.window.contains(iova) { throw .interruptWindow }
    do throws(WalkFault) {
      if root.isMarking {
        // Without the write flag unless the leaf is dirty: the first write misses again.
        let access = Permissions(rawValue: UInt8(truncatingIfNeeded: need))
        return try root.walk(IOVA(iova), marking: access)
      }
      return try root.walk(IOVA(iova))
    } catch {
      throw reason(of: error)
    }
  }

  private static var interruptGranule: UInt64 {
    InterruptRemapper.window.lowerBound >> IOTLB.largeShift
  }

  /// Whether the granule around a physical address lies in a window.
  @inline(__always)
  private static func contains(
    _ window: LocalWindow, _ physical: UInt64, shift: UInt64
  ) -> Bool {
    let inside: UInt64 = (1 << shift) &- 1
    return physical & ~inside >= window.first && physical | inside <= window.last
  }

  /// A hit that is as long as it can be, up to `limit` bytes: neighbours with the same value
  /// are one run. Remote runs end at each GiB of physical space, for segments do.
  @inline(__always)
  func findRun(
    _ iova: UInt64, _ need: UInt64, limit: UInt64
  ) throws(DMAFault.Reason) -> Hit {
    var hit = try find(iova, need)
    if hit.left < limit { extend(&hit, iova, need, limit: limit) }
    return hit
  }

  private func extend(_ hit: inout Hit, _ iova: UInt64, _ need: UInt64, limit: UInt64) {
    while hit.left < limit {
      let next = iova &+ hit.left
      if next == 0 || !hit.isLocal && hit.address(next) & 0x3FFF_FFFF == 0 { return }
      do throws(DMAFault.Reason) {
        let more = try find(next, need)
        guard more.value == hit.value else { return }
        hit.left &+= more.left
      } catch {
        // Nobody asked for it yet.
        unsafe state.pointee.walkFault = nil
        return
      }
    }
  }
}
