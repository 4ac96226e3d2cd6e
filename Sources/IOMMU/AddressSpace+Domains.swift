// SPDX-License-Identifier: Apache-2.0
//
// The page tables that mirror an address space: filled when they join, emptied when they go.

import PageTables
import SystemPackage

extension AddressSpace {
  /// Fills a page table with all that is mapped and keeps it in step from now on.
  ///
  /// Linux: `iopt_table_add_domain`. On failure the table is empty and the space unchanged.
  /// - Throws: `EADDRINUSE` where a mapping lies outside the table's aperture or is not
  ///   aligned to its pages, `EFAULT` where mapped memory is not there to pin.
  func add(_ domain: any PagingDomain) throws(IOMMUError) {
    try whileSlotsStay { () throws(IOMMUError) in try fillAndKeep(domain) }
  }

  private func fillAndKeep(_ domain: any PagingDomain) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      try refuseDummyRoot(state, "attached to")
      let geometry = domain.geometry
      let alignment = max(state.alignment, geometry.pageSizes.smallest)
      guard alignment <= Pages.hostPage else {
        throw IOMMUError(
          .invalidArgument,
          "the IOMMU's smallest page, \(hex(alignment)) bytes, is larger than the host's")
      }
      if alignment != state.alignment { try checkAligned(to: alignment, in: state) }
      let owner = Reserved.Owner.domain(ObjectIdentifier(domain))
      try checkWidth(of: domain)
      try reserve(outside(geometry.aperture), for: owner, in: &state)
      do throws(IOMMUError) {
        try fillAll(into: domain, state: state)
      } catch {
        state.reserved.removeAll { $0.owner == owner }
        throw error
      }
      state.alignment = alignment
      state.domains.append(domain)
    }
  }

  private func outside(_ aperture: ClosedRange<UInt64>) -> [ClosedRange<UInt64>] {
    var ranges: [ClosedRange<UInt64>] = []
    if aperture.lowerBound > 0 { ranges.append(0...aperture.lowerBound - 1) }
    if aperture.upperBound < .max { ranges.append(aperture.upperBound + 1...UInt64.max) }
    return ranges
  }

  private func fillAll(
    into domain: any PagingDomain, state: borrowing State
  ) throws(IOMMUError) {
    var filled: [Area] = []
    do throws(IOMMUError) {
      let largePages = state.largePages
      try state.areas.visit { (area) throws(IOMMUError) in
        try fill(area, into: domain, largePages: largePages)
        filled.append(area)
      }
    } catch {
      for area in filled { unfill(area, from: domain) }
      throw error
    }
  }

  /// Empties a page table and lets go of it. Linux: `iopt_table_remove_domain`.
  func remove(_ domain: any PagingDomain) {
    state.withLock { state in
      guard let index = state.domains.firstIndex(where: { $0 === domain }) else { return }
      state.domains.remove(at: index)
      var position = state.areas.firstEnding(atOrAfter: 0)
      while let here = position {
        unfill(state.areas[here], from: domain)
        position = state.areas.position(after: here)
      }
      state.reserved.removeAll { $0.owner == .domain(ObjectIdentifier(domain)) }
      state.alignment = minimumAlignment(in: state)
    }
  }
}
