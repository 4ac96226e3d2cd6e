// SPDX-License-Identifier: Apache-2.0
//
// Long stretches on their way into a page table, in steps: between two of them the call may end
// because nobody waits for it any more.

import PageTables

extension AddressSpace {
  /// Maps a stretch with the same leaves as in one go. All or nothing.
  /// - Throws: What the page table throws; `EINTR`.
  @inline(never)
  func mapLong(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions,
    domain: any PagingDomain, largePages: Bool
  ) throws(IOMMUError) {
    // No leaf is larger than what both addresses are aligned to alike: where a step ends at a
    // multiple of that, it cuts none.
    let difference = iova.rawValue ^ physical.rawValue
    let alike = difference == 0 ? UInt64.max : difference & (0 &- difference)
    let largest =
      UInt64(1) << (63 - domain.geometry.pageSizes.rawValue.leadingZeroBitCount)
    let step = largePages ? max(Interruption.step, min(alike, largest)) : Interruption.step
    var offset: UInt64 = 0
    do throws(IOMMUError) {
      while offset < length {
        try Interruption.check()
        let from = IOVA(iova.rawValue &+ offset)
        let piece = min(length - offset, step - (from.rawValue & (step - 1)))
        let to = PhysicalAddress(physical.rawValue &+ offset)
        if largePages {
          try domain.map(from, to: to, length: piece, permissions: permissions)
        } else {
          try mapSmall(from, to: to, length: piece, permissions: permissions, domain: domain)
        }
        offset += piece
      }
    } catch {
      if offset > 0 { domain.unmap(iova, length: offset) }
      throw error
    }
  }

  /// OPTION_HUGE_PAGES off: leaves no larger than a host page.
  func mapSmall(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64,
    permissions: Permissions, domain: any PagingDomain
  ) throws(IOMMUError) {
    var offset: UInt64 = 0
    do throws(IOMMUError) {
      while offset < length {
        let step = min(Pages.hostPage, length - offset)
        try domain.map(
          IOVA(iova.rawValue + offset), to: PhysicalAddress(physical.rawValue + offset),
          length: step, permissions: permissions)
        offset += step
      }
    } catch {
      if offset > 0 { domain.unmap(iova, length: offset) }
      throw error
    }
  }
}
