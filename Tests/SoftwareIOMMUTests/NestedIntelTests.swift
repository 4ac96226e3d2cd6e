// SPDX-License-Identifier: Apache-2.0
//
// MODEL B2, B5, G1, G2 with VT-d's first-stage tables of users: IOMMU_HWPT_DATA_VTD_S1 and its
// invalidations.

import Glibc
import HardwareTables
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

extension NestedBench {
  /// `struct iommu_hwpt_vtd_s1`.
  static func intelData(
    _ table: UInt64, flags: UInt64 = 0, width: UInt64 = 48, type: UInt32 = 1,
    length: Int = 24
  ) -> UserData {
    UserData(
      type: type, length: UInt32(length),
      memory: UserBytes(Array((bytes(flags, table, width) + bytes(0)).prefix(length))))
  }

  func intel(
    _ table: UInt64, flags: UInt64 = 0, width: UInt64 = 48
  ) throws -> any NestedDomain {
    try bench.iommu.makeNestedDomain(
      for: Bench.device, parent: parent, attributes: [],
      data: Self.intelData(table, flags: flags, width: width))
  }

  /// `struct iommu_hwpt_vtd_s1_invalidate`, one after the other.
  static func intelInvalidations(
    _ entries: [(address: UInt64, pages: UInt64, flags: UInt64)], type: UInt32 = 0
  ) -> UserDataArray {
    UserDataArray(
      type: type, entryLength: 24, count: UInt32(entries.count),
      memory: UserBytes(entries.flatMap { bytes($0.address, $0.pages, $0.flags) }))
  }

  @discardableResult
  func mapIntel(
    _ iova: UInt64, to target: UInt64, in root: UInt64, leafLevel: Int = 1,
    permissions: Permissions = [.read, .write, .execute], levels: Int = 4
  ) -> UInt64 {
    map(
      iova, to: target, in: root, levels: levels, as: IntelFirstStage.self,
      leafLevel: leafLevel, permissions: permissions,
      X86Switches(writeProtects: false, noExecute: false))
  }
}

@Suite("B2: first-stage tables of VT-d that users own", .serialized)
struct NestedIntelTests {
  typealias Guest = NestedBench

  @Test("B2: VTD_S1 data of another type or length is refused as Linux does")
  func data() throws {
    let guest = try Guest(.init())
    func refused(
      _ data: UserData, parent: (any PagingDomain)? = nil, attributes: PagingAttributes = []
    ) -> String? {
      refusal { () throws(IOMMUError) in
        _ = try guest.bench.iommu.makeNestedDomain(
          for: Bench.device, parent: parent ?? guest.parent, attributes: attributes, data: data)
      }
    }
    let ok = Guest.intelData(0x10_0000)
    #expect(refused(ok) == nil)
    #expect(refused(ok, attributes: .pasid) == nil)
    #expect(refused(Guest.intelData(0, type: 2)) == "\(Errno.operationNotSupported)")
    #expect(refused(Guest.intelData(0, type: 0)) == "\(Errno.operationNotSupported)")
    #expect(refused(Guest.intelData(0, length: 20)) == "\(Errno.invalidArgument)")
    #expect(refused(Guest.intelData(0, length: 32)) == "\(Errno.invalidArgument)")
    #expect(refused(ok, attributes: .dirtyTracking) == "\(Errno.operationNotSupported)")
    let plain = try guest.bench.domain()
    #expect(refused(ok, parent: plain) == "\(Errno.invalidArgument)", "no NEST_PARENT")
    let other = try Guest(.init())
    #expect(
      refused(ok, parent: other.parent) == "\(Errno.invalidArgument)", "another machine's")
    let bench = Bench(.init(nests: false))
    let domain = try bench.domain()
    #expect(
      refusal { () throws(IOMMUError) in
        _ = try bench.iommu.makeNestedDomain(
          for: Bench.device, parent: domain, attributes: [], data: ok)
      } == "\(Errno.operationNotSupported)", "no nested translation")
  }

  @Test("B2: a width or flag that the unit has not is refused when a device is attached")
  func attach() throws {
    let guest = try Guest(.init())
    let root = guest.page()
    guest.mapIntel(0x5000, to: guest.page(), in: root)
    let good = try guest.intel(root)
    try guest.attach(good)
    try guest.bench.port.store(UInt64(1), at: IOVA(0x5000))
    for (flags, width) in [(0, 39), (0, 57), (0, 0), (1, 64)] as [(UInt64, UInt64)] {
      let bad = try guest.intel(root, flags: flags, width: width)
      #expect(
        refusal { () throws(IOMMUError) in try guest.attach(bad) }
          == "\(Errno.invalidArgument)", "flags \(flags), width \(width)")
      try guest.bench.port.store(UInt64(2), at: IOVA(0x5000))
    }
    // SRE and WPE; EAFE, which sets a bit more in entries.
    try guest.attach(try guest.intel(root, flags: 5))
    try guest.bench.port.store(UInt64(3), at: IOVA(0x5000))
    #expect(guest[root] & 0x420 == 0x20)
    try guest.attach(try guest.intel(root, flags: 2))
    try guest.bench.port.store(UInt64(4), at: IOVA(0x5000))
    #expect(guest[root] & 0x420 == 0x420)
    let five = try Guest(.init(levels: 5))
    let wide = five.page()
    five.mapIntel(0x5000, to: five.page(), in: wide, levels: 5)
    try five.attach(try five.intel(wide, width: 57))
    try five.bench.port.store(UInt64(1), at: IOVA(0x5000))
  }

  @Test("B2: DMA goes where the user's table says, and marks it as hardware does")
  func walks() throws {
    let guest = try Guest(.init())
    let (root, target) = (guest.page(), guest.page())
    let leaf = guest.mapIntel(0x7FFF_1234_5000, to: target, in: root)
    let upper = guest.mapIntel(0xFFFF_8000_0000_0000, to: target, in: root)
    try guest.attach(try guest.intel(root))
    let port = guest.bench.port
    #expect(try port.load(IOVA(0x7FFF_1234_5008)) == UInt64(0))
    #expect(guest[leaf] & 0x60 == 0x20, "accessed, not dirty")
    try port.store(UInt64(0x1234), at: IOVA(0x7FFF_1234_5008))
    #expect(guest[leaf] & 0x60 == 0x60)
    #expect(guest[target + 8] == 0x1234)
    try port.store(UInt64(0x77), at: IOVA(0xFFFF_8000_0000_0010))
    #expect(guest[target + 16] == 0x77)
    #expect(guest[upper] & 0x60 == 0x60)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x8000_0000_0000)) }
        == .addressWidth, "not canonical")
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x6000)) }
        == .notPresent)
    guest.mapIntel(0x6000, to: target, in: root, permissions: .read)
    #expect(try port.load(IOVA(0x6008)) == UInt64(0x1234))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x6000)) }
        == .permission)
    guest[guest.mapIntel(0x7000, to: target, in: root)] |= 1 << 63
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x7000)) }
        == .reservedBits, "XD without NXE")
    // Supervisor's.
    guest[guest.mapIntel(0x8000, to: target, in: root)] &= ~4
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(0x8000), as: UInt64.self) }
        == .permission)
  }

  @Test("B5: a user's table reaches only what the parent maps, and as it allows it")
  func parentRights() throws {
    let guest = try Guest(.init())
    let root = guest.page()
    let window = UInt64(guest.pages) * 4096
    guest.mapIntel(0x5000, to: Guest.base - 4096, in: root)
    guest.mapIntel(0x6000, to: Guest.base + window, in: root)
    guest.mapIntel(0x7000, to: 0x000F_FFFF_FFFF_F000, in: root)
    // A large leaf reaches those of its pages that are mapped.
    guest.mapIntel(0x20_0000, to: 0, in: root, leafLevel: 2)
    let still = Buffer(4096)
    let physical = try guest.bench.pin(still.run(), at: 0x80_0000)
    try guest.parent.map(
      IOVA(0x80_0000), to: physical, length: 4096, permissions: .read)
    guest.mapIntel(0x8000, to: 0x80_0000, in: root)
    let far = guest.page()
    guest[root + 8] = 0x80_0000 | 7
    try guest.attach(try guest.intel(root))
    let port = guest.bench.port
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x7000)) }
        == .addressWidth, "beyond what the parent translates")
    for iova: UInt64 in [0x5000, 0x6000, 0x20_0000] {
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(iova)) }
          == .notPresent, "\(iova)")
    }
    try port.store(UInt64(9), at: IOVA(0x20_0000 + far))
    #expect(guest[far] == 9)
    #expect(try port.load(IOVA(0x8000)) == UInt64(0))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x8000)) }
        == .permission, "the parent lets it be read")
    // A table page that cannot be marked.
    #expect(
      reason { () throws(DMAFault) in
        _ = try port.load(IOVA(0x80_0000_0000), as: UInt64.self)
      } == .notPresent, "an entry of zeros")
    still.bytes.storeBytes(of: (far | 7).littleEndian, as: UInt64.self)
    #expect(
      reason { () throws(DMAFault) in
        _ = try port.load(IOVA(0x80_0000_0000), as: UInt64.self)
      } == .permission, "the accessed bit cannot be set")
    #expect(guest.isIntact)
    #expect(still[0] == UInt8(truncatingIfNeeded: far | 7))
  }

  @Test("B2, G1: tables in memory that is reached by calls are walked and marked too")
  func remote() throws {
    let guest = try Guest(.init(), far: true)
    let (root, target) = (guest.page(), guest.page())
    let leaf = guest.mapIntel(0x5000, to: target, in: root)
    try guest.attach(try guest.intel(root))
    let port = guest.bench.port
    try port.store(UInt64(0x55), at: IOVA(0x5010))
    #expect(guest[target + 16] == 0x55)
    #expect(guest[leaf] & 0x60 == 0x60)
    #expect(try port.load(IOVA(0x5010)) == UInt64(0x55))
    #expect(guest.isIntact)
  }

  @Test("G1: what was cached is used until it is invalidated, by range or whole, and not after")
  func invalidation() throws {
    let guest = try Guest(.init())
    let (root, old, new) = (guest.page(), guest.page(), guest.page())
    let leaf = guest.mapIntel(0x5000, to: old, in: root)
    let other = guest.mapIntel(0x9000, to: old, in: root)
    let domain = try guest.intel(root)
    try guest.attach(domain)
    let port = guest.bench.port
    func points(_ iova: UInt64) throws -> UInt64 {
      guest[old] = 1
      guest[new] = 2
      return try port.load(IOVA(iova))
    }
    let flags: [UInt64] = [0, 1]
    for flag in flags {
      guest[leaf] = old | 7
      guest[other] = old | 7
      #expect(
        domain.invalidate(Guest.intelInvalidations([(0, .max, flag)])).handled == 1)
      #expect(try points(0x5000) == 1)
      #expect(try points(0x9000) == 1)
      guest[leaf] = new | 7
      guest[other] = new | 7
      #expect(try points(0x5000) == 1, "stale use before the invalidation is real")
      #expect(domain.invalidate(Guest.intelInvalidations([(0x6000, 2, flag)])).handled == 1)
      #expect(try points(0x5000) == 1, "another range")
      #expect(domain.invalidate(Guest.intelInvalidations([(0x4000, 2, flag)])).handled == 1)
      #expect(try points(0x5000) == 2)
      #expect(try points(0x9000) == 1, "beyond the range")
      #expect(
        domain.invalidate(Guest.intelInvalidations([(0x1000, .max / 4096, 0)])).handled == 1)
      #expect(try points(0x9000) == 2, "a range past the end of all addresses")
    }
    #expect(try points(0x5000) == 2)
    guest[leaf] = 0
    #expect(domain.invalidate(Guest.intelInvalidations([(0x5000, 0, 0)])).handled == 1)
    #expect(try points(0x5000) == 2, "no pages are none")
    #expect(domain.invalidate(Guest.intelInvalidations([(0x5000, 1, 0)])).handled == 1)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
        == .notPresent)
  }

  @Test("G1: a bad entry stops an array there, with Linux's errno and the count before it")
  func badInvalidations() throws {
    let guest = try Guest(.init())
    let domain = try guest.intel(guest.page())
    func outcome(_ requests: UserDataArray) -> String {
      let (handled, failure) = domain.invalidate(requests)
      return "\(handled) \(failure.map { "\($0.errno)" } ?? "-")"
    }
    let good: (address: UInt64, pages: UInt64, flags: UInt64) = (0x5000, 1, 0)
    let (invalid, unsupported) = (Errno.invalidArgument, Errno.operationNotSupported)
    #expect(outcome(Guest.intelInvalidations([])) == "0 -")
    #expect(outcome(Guest.intelInvalidations([], type: 1)) == "0 \(invalid)")
    #expect(outcome(Guest.intelInvalidations([good], type: 0xDEAD)) == "0 \(invalid)")
    #expect(outcome(Guest.intelInvalidations([good, (0, 1, 2), good])) == "1 \(unsupported)")
    #expect(
      outcome(Guest.intelInvalidations([good, good, (0, 1, 1 << 32)])) == "2 \(unsupported)")
    #expect(outcome(Guest.intelInvalidations([(0x5001, 1, 0), good])) == "0 \(invalid)")
    #expect(outcome(Guest.intelInvalidations([good, (0x5000, .max, 0)])) == "1 \(invalid)")
    #expect(outcome(Guest.intelInvalidations([(0x5001, .max, 2)])) == "0 \(unsupported)")
    for length in [23, 25] as [UInt32] {
      #expect(
        outcome(
          UserDataArray(
            type: 0, entryLength: length, count: 1,
            memory: UserBytes(Array(repeating: 0, count: 64)))) == "0 \(invalid)")
    }
    #expect(
      outcome(
        UserDataArray(
          type: 0, entryLength: 24, count: 3,
          memory: UserBytes(Array(repeating: 0, count: 48)))) == "2 \(Errno.badAddress)")
  }

  @Test("B5, G2: after the parent unmaps a page no DMA reaches it, nor a table that lay there")
  func parentChanges() throws {
    let guest = try Guest(.init())
    let (root, target) = (guest.page(), guest.page())
    let leaf = guest.mapIntel(0x5000, to: target, in: root)
    let domain = try guest.intel(root)
    try guest.attach(domain)
    let port = guest.bench.port
    func access() -> DMAFault.Reason? {
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
    }
    func remap(_ ipa: UInt64) throws {
      try guest.parent.map(
        IOVA(ipa), to: PhysicalAddress(guest.first + ipa - Guest.base), length: 4096,
        permissions: .readWrite)
    }
    for page in [target, leaf & ~4095, root] {
      #expect(access() == nil)
      guest.parent.unmap(IOVA(page), length: 4096)
      #expect(access() == .notPresent)
      try remap(page)
    }
    #expect(access() == nil)
    // Left alone, the table is the device's no more.
    try guest.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    #expect(access() == .blocked)
  }

  @Test(
    "I1, B5: a parent that keeps dirty bits knows the data and the tables that were written")
  func dirtyParent() throws {
    let guest = try Guest(.init(), attributes: [.nestParent, .dirtyTracking])
    let (root, target) = (guest.page(), guest.page())
    let leaf = guest.mapIntel(0x5000, to: target, in: root)
    try guest.attach(try guest.intel(root))
    let parent = try #require(guest.parent as? any DirtyTrackingDomain)
    let port = guest.bench.port
    func dirty() throws -> Set<UInt64> {
      var pages: Set<UInt64> = []
      try parent.readDirty(parent.geometry.aperture, clear: true) { first, length in
        for page in stride(from: first, to: first + length, by: 4096) { pages.insert(page) }
      }
      return pages
    }
    try port.store(UInt64(1), at: IOVA(0x5000))
    try parent.setDirtyTracking(true)
    #expect(try dirty() == [])
    #expect(try port.load(IOVA(0x5000)) == UInt64(1))
    #expect(try dirty() == [], "all was marked before")
    try port.store(UInt64(2), at: IOVA(0x5000))
    #expect(try dirty() == [target])
    try port.store(UInt64(3), at: IOVA(0x5000))
    #expect(try dirty() == [target], "again, after it was read")
    guest.mapIntel(0x6000, to: target, in: root)
    #expect(try port.load(IOVA(0x6000)) == UInt64(3))
    #expect(try dirty() == [leaf & ~4095], "the accessed bit was set there")
    try port.store(UInt64(4), at: IOVA(0x6000))
    #expect(try dirty() == [leaf & ~4095, target])
  }

  @Test("D1: a PASID on a user's table is its own, and the interrupt window is memory there")
  func pasids() throws {
    let guest = try Guest(.init(pasidBits: 8))
    let (root, target) = (guest.page(), guest.page())
    guest.mapIntel(0xFEE0_0000, to: target, in: root)
    guest.mapIntel(0x5000, to: target, in: root)
    let domain = try guest.intel(root)
    let pasid = PASID(rawValue: 7)
    try guest.attach(domain, pasid: pasid)
    let port = guest.bench.iommu.port(for: Bench.device, pasid: pasid)
    try port.store(UInt32(0x1234), at: IOVA(0xFEE0_0010))
    #expect(guest[target + 16] == 0x1234)
    try port.store(UInt64(1), at: IOVA(0x5000))
    #expect(
      reason { () throws(DMAFault) in
        try guest.bench.port.store(UInt64(1), at: IOVA(0x5000))
      } == .unknownRequester, "no PASID")
    let neighbour = guest.bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: 8))
    #expect(
      reason { () throws(DMAFault) in try neighbour.store(UInt64(1), at: IOVA(0x5000)) }
        == .unknownRequester, "a first-stage table is one PASID's")
    try guest.bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .blocked)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(1), at: IOVA(0x5000)) } == .blocked)
    try guest.attach(domain)
    try guest.bench.port.store(UInt64(1), at: IOVA(0x5000))
    #expect(
      reason { () throws(DMAFault) in
        _ = try guest.bench.port.load(IOVA(0xFEE0_0000), as: UInt64.self)
      } == .interruptWindow)
  }

  @Test("G2: after an invalidation returns, no DMA on another thread uses the old translation")
  func threads() throws {
    let guest = try Guest(.init(), pages: 64)
    let root = guest.page()
    let targets = [guest.page(), guest.page()]
    let leaf = guest.mapIntel(0x5000, to: targets[0], in: root)
    let domain = try guest.intel(root)
    try guest.attach(domain)
    guest.movePage(among: targets, behind: guest.bench.port) { new, _ in
      guest[leaf] = targets[new] | 7
      #expect(domain.invalidate(Guest.intelInvalidations([(0x5000, 1, 1)])).failure == nil)
    }
  }

  @Test("B2: a table that is let go of leaves nothing behind, whatever goes first")
  func lifetimes() throws {
    weak var freed: IntelNestedDomain?
    weak var below: IntelSecondStageDomain?
    let port: DMAPort
    do {
      let guest = try Guest(.init())
      let (root, target) = (guest.page(), guest.page())
      guest.mapIntel(0x5000, to: target, in: root)
      let domain = try guest.intel(root)
      freed = domain as? IntelNestedDomain
      below = guest.parent as? IntelSecondStageDomain
      try guest.attach(domain)
      port = guest.bench.port
      try port.store(UInt64(1), at: IOVA(0x5000))
      #expect(freed != nil && below != nil)
      // The device leaves; nobody has the tables then.
      try guest.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    }
    #expect(freed == nil)
    #expect(below == nil)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(1), at: IOVA(0x5000)) } == .blocked)
  }
}
