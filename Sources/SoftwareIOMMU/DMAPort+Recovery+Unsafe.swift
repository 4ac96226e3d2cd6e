// SPDX-License-Identifier: Apache-2.0
//
// What a port does about an access that missed (MODEL H1): it leaves its transaction, and then the
// page table is told, or pages are asked for and waited for; then the access goes on where it was.

import HardwareTables
import IOMMU
import PageTables

/// An access that found no translation that it may use.
struct Miss: Error {
  var reason: DMAFault.Reason
  /// The first byte that could not be reached.
  var iova: UInt64
  var access: Permissions

  init(_ reason: DMAFault.Reason, _ iova: UInt64, _ access: Permissions) {
    self.reason = reason
    self.iova = iova
    self.access = access
  }
}

extension DMAFault.Reason {
  /// Whether an entry of the table may change that: what a device takes for a page that is not
  /// there yet (PCI Express, 10.2.3: a translation without the permission).
  var isRecoverable: Bool { self == .notPresent || self == .permission }
}

extension DMAPort {
  var source: SoftwareIOMMU.Source {
    SoftwareIOMMU.Source(requester: requester, pasid: pasid)
  }

  /// Translates inside a transaction, and recovers where that misses.
  @inline(__always)
  func findOrRecover(
    _ iova: UInt64, _ need: UInt64, _ access: Permissions
  ) throws(DMAFault) -> Hit {
    while true {
      do throws(DMAFault.Reason) {
        return try find(iova, need)
      } catch {
        try recover(Miss(error, iova, access), length: 1)
      }
    }
  }

  /// Makes an access that missed possible. Returns where it may be tried again; translations from
  /// before are not valid any more.
  ///
  /// Inside a transaction, which it leaves meanwhile: so that of an unmap, of a switch and of
  /// whoever maps the page none waits for this port. Inside a caller's own transaction nothing can
  /// be done.
  /// - Parameter length: Bytes that the access is to reach from there on, at least 1.
  /// - Throws: The fault, which is counted; or one with `missingPages`, or of an access that its
  ///   device has cancelled, which are not.
  @inline(never)
  func recover(_ miss: Miss, length: UInt64) throws(DMAFault) {
    // Before anything else is walked, or switched.
    let cause = takeCause(of: miss.reason, nil)
    // SAFETY: the port thread's own state, here and below.
    guard miss.reason.isRecoverable, unsafe state.pointee.depth == 1 else {
      throw fail(miss, cause)
    }
    leave()
    let switches = requesters.pageRequests.switches
    let resolution = requesters.resolve(source)
    // A switch that has ended meanwhile has left mail: the context is not the one that was missed
    // in.
    let isStale = channel.pending.load(ordering: .sequentiallyConsistent)
    enter()
    if isStale { return }
    if let table = resolution.table {
      leave()
      let isThere = table.recover(miss.iova, miss.access)
      enter()
      if isThere { return }
    }
    // Where its ATS is off (a user's EATS, EN_ATS), the device asks for no pages either.
    guard let answerer = resolution.answerer, unsafe state.pointee.hasATS, !confirmsByHand,
      mayAsk(answerer, miss)
    else {
      // It asks for no pages of a table that nobody says anything of.
      let asks = unsafe resolution.features.pageRequests && state.pointee.hasATS
      throw fail(
        miss, cause, pageRequest: asks && resolution.answerer == nil ? .unasked : nil)
    }
    let context = unsafe state.pointee.context
    guard !context.refusesPageRequests else {
      // The request is answered by the IOMMU; DTF hides that too.
      if case .riscvNested(let root) = context, root.hidesFaults { throw fail(miss, nil) }
      throw fail(miss, .pageRequestForbidden)
    }
    let pages = missingPages(miss, length, atMost: resolution.features.pagesPerGroup)
    if unsafe state.pointee.defersMisses {
      var fault = fault(miss, cause)
      fault.missingPages = pages
      throw fault
    }
    guard let waits else { throw fail(miss, cause) }
    leave()
    let outcome = request(
      pages, for: miss, of: answerer, since: switches, resolution.features, waits)
    enter()
    switch outcome {
    case .tryAgain: return
    case .giveUp: throw fail(miss, cause, pageRequest: .refused)
    case .cancelled: throw fault(miss, cause)
    }
  }

  /// Whether asking is worth it: a process may have memory that can be read and not be brought in
  /// to be written, on a file system that is full.
  private func mayAsk(_ answerer: PageAnswerer, _ miss: Miss) -> Bool {
    guard case .process = answerer else { return true }
    // SAFETY: as in `recover`.
    if unsafe state.pointee.missedAddress != miss.iova {
      unsafe state.pointee.missedAddress = miss.iova
      unsafe state.pointee.misses = 0
    }
    unsafe state.pointee.misses += 1
    defer { if unsafe state.pointee.misses > 16 { unsafe state.pointee.misses = 0 } }
    return unsafe state.pointee.misses <= 16
  }

  /// Neighbours that the same access lacks too, the first included.
  private func missingPages(_ miss: Miss, _ length: UInt64, atMost limit: Int) -> Int {
    let need = UInt64(miss.access.rawValue) & IOTLB.accessFlags
    let first = miss.iova >> IOTLB.smallShift
    let last = (miss.iova &+ (length &- 1)) >> IOTLB.smallShift
    var count = 1
    while count < limit, first + UInt64(count) <= last {
      do throws(DMAFault.Reason) {
        _ = try find((first + UInt64(count)) << IOTLB.smallShift, need)
        break
      } catch {
        guard error.isRecoverable else { break }
        count += 1
      }
    }
    // Nobody asked for those.
    unsafe state.pointee.walkFault = nil
    return count
  }

  private func request(
    _ pages: Int, for miss: Miss, of answerer: PageAnswerer, since switches: UInt64,
    _ features: SoftwareIOMMU.DeviceFeatures, _ wait: DeviceWait
  ) -> PageRequestQueue.Outcome {
    let first = miss.iova & ~0xFFF
    return requesters.pageRequests.request(
      (0..<UInt64(pages)).map { first &+ $0 << IOTLB.smallShift },
      access: PageRequest.Access(miss.access), from: source, to: answerer, since: switches,
      features: features, wait: wait)
  }

  // MARK: Ports that several share

  /// Makes an access that throws what misses, with `missingPages`, for the caller to ask for when
  /// it has let go of the port.
  package func deferringMisses<Result>(
    _ body: (DMAPort) throws(DMAFault) -> Result
  ) throws(DMAFault) -> Result {
    // SAFETY: as in `recover`.
    unsafe state.pointee.defersMisses = true
    defer { unsafe state.pointee.defersMisses = false }
    return try body(self)
  }

  /// Asks for the pages that an access of `deferringMisses` lacked, and waits for them.
  ///
  /// Called by a thread that has not the port's turn, and holds no lock.
  /// - Returns: Whether the access may be tried again from `fault.iova` on. Where it may not, the
  ///   fault is counted, unless the device has cancelled.
  package func ask(for fault: DMAFault, waits: DeviceWait) -> Bool {
    let miss = Miss(fault.reason, fault.iova.rawValue, fault.access)
    let switches = requesters.pageRequests.switches
    let resolution = requesters.resolve(source)
    // Detached meanwhile, or another table: the access finds out.
    guard let answerer = resolution.answerer,
      !channel.pending.load(ordering: .sequentiallyConsistent)
    else { return true }
    let pages = min(max(fault.missingPages, 1), resolution.features.pagesPerGroup)
    let outcome = request(
      pages, for: miss, of: answerer, since: switches, resolution.features, waits)
    if outcome == .giveUp {
      var fault = fault
      fault.missingPages = 0
      fault.pageRequest = .refused
      faults.record(fault)
    }
    return outcome == .tryAgain
  }
}

extension PageRequest.Access {
  init(_ access: Permissions) {
    self = []
    if access.contains(.read) { insert(.read) }
    if access.contains(.write) { insert(.write) }
  }

  var permissions: Permissions {
    (contains(.read) ? Permissions.read : []).union(contains(.write) ? .write : [])
  }
}
