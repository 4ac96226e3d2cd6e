// SPDX-License-Identifier: Apache-2.0
//
// One suite for every format with every number of levels (see `Kind`).

import Testing

@testable import PageTables

@Suite("B: page tables of every format")
struct TableTests {
  @Test(
    "B: a leaf of every size translates its first and last byte and no neighbour",
    arguments: Kind.allCases)
  func everyLeafSize(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        let sizes = Format.pageSizes(levels: levels).rawValue
        for shift in 12..<57 where sizes >> UInt64(shift) & 1 == 1 {
          var table = PageTable<Format>(levels: levels)
          var gather = TableGather()
          let size: UInt64 = 1 << UInt64(shift)
          let limit = table.root.last
          // Both ends of the table, and the second place of that size.
          for base in [0, size, limit - (size - 1)] where base <= limit - (size - 1) {
            let physical = PhysicalAddress(size)
            try table.map(
              IOVA(base), to: physical, length: size, permissions: .read, gather: &gather)
            for offset in [0, size / 2, size - 1] {
              let found = try table.walk(IOVA(base + offset))
              #expect(found.physical.rawValue == physical.rawValue + offset)
              #expect(Int(found.leafShift) == shift)
              #expect(found.permissions == .read)
            }
            if base > 0 {
              #expect(reason { try table.walk(IOVA(base - 1)) } == .notPresent)
            }
            if base + (size - 1) < limit {
              #expect(reason { try table.walk(IOVA(base + size)) } == .notPresent)
            }
            #expect(table.unmap(IOVA(base), length: size, gather: &gather) == size)
            #expect(gather.first == base)
            #expect(gather.last == base + (size - 1))
            table.free(&gather)
            #expect(table.pageCount == table.rootPages, "only the root is left")
          }
        }
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B: an address past the width faults, and a map past it is refused",
    arguments: Kind.allCases)
  func addressWidth(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var table = PageTable<Format>(levels: levels)
        var gather = TableGather()
        let last = table.root.last
        let granule: UInt64 = 1 << UInt64(Format.granuleShift)
        let limit: UInt64 = 1 << UInt64(Format.physicalBits(table.root.configuration))
        func map(_ iova: UInt64, _ physical: UInt64, _ length: UInt64) throws(MapFailure) {
          try table.map(
            IOVA(iova), to: PhysicalAddress(physical), length: length, permissions: .readWrite,
            gather: &gather)
        }
        if last < .max {
          #expect(reason { try table.walk(IOVA(last + 1)) } == .addressWidth)
          #expect(reason { try table.walk(IOVA(.max)) } == .addressWidth)
          #expect(throws: MapFailure.addressWidth) { try map(last + 1, 0, granule) }
        }
        #expect(throws: MapFailure.addressWidth) {
          try map(last - (granule - 1), 0, 2 * granule)
        }
        #expect(throws: MapFailure.addressWidth) { try map(0 &- granule, 0, 2 * granule) }
        #expect(throws: MapFailure.physicalWidth) { try map(0, limit - granule, 2 * granule) }
        #expect(throws: MapFailure.physicalWidth) { try map(0, limit, granule) }
        #expect(throws: MapFailure.misaligned) { try map(granule / 2, 0, granule) }
        #expect(throws: MapFailure.misaligned) { try map(0, granule / 2, granule) }
        #expect(throws: MapFailure.misaligned) { try map(0, 0, granule / 2) }
        #expect(throws: MapFailure.misaligned) { try map(0, 0, 0) }
        #expect(table.pageCount == table.rootPages)
        try map(last - (granule - 1), limit - granule, granule)
        #expect(try table.walk(IOVA(last)).physical.rawValue == limit - 1)
        #expect(
          table.unmap(IOVA(last - (granule - 1)), length: .max, gather: &gather) == granule)
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B2: a canonical table translates both halves, and faults between them",
    arguments: Kind.allCases)
  func canonical(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        guard Format.addressExtension == .sign else { return }
        var table = PageTable<Format>(levels: levels)
        var gather = TableGather()
        let half: UInt64 = 1 << UInt64(Format.addressBits(levels: levels) - 1)
        #expect(table.root.first == 0 && table.root.last == .max)
        for first in [half - 4096, 0 &- half] {
          try table.map(
            IOVA(first), to: PhysicalAddress(0x1000), length: 4096, permissions: .readWrite,
            gather: &gather)
          #expect(try table.walk(IOVA(first | 0xABC)).physical.rawValue == 0x1ABC)
        }
        for address in [half, 0 &- half - 1, 1 << 63, 0x7FFF_FFFF_FFFF_FFFF] {
          #expect(reason { try table.walk(IOVA(address)) } == .addressWidth)
        }
        #expect(throws: MapFailure.addressWidth) {
          try table.map(
            IOVA(half - 4096), to: PhysicalAddress(0), length: 8192, permissions: .read,
            gather: &gather)
        }
        #expect(throws: MapFailure.addressWidth) {
          try table.map(
            IOVA(half - 4096), to: PhysicalAddress(0), length: 0 &- 2 * half &+ 8192,
            permissions: .read, gather: &gather)
        }
        #expect(throws: MapFailure.occupied(IOVA(0 &- half))) {
          try table.map(
            IOVA(0 &- half), to: PhysicalAddress(0), length: 4096, permissions: .read,
            gather: &gather)
        }
        // A range over the gap has both; one inside it has none.
        #expect(table.unmap(IOVA(half), length: 0 &- 2 * half, gather: &gather) == 0)
        #expect(gather.isEmpty)
        #expect(table.unmap(IOVA(1), length: .max, gather: &gather) == 8192)
        #expect(gather.first == half - 4096)
        #expect(gather.last == 0 &- half + 4095)
        table.free(&gather)
        #expect(table.pageCount == table.rootPages)
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B: a narrower address width than the levels translate is kept", arguments: Kind.allCases)
  func narrowWidth(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        guard Format.addressExtension != .sign else { return }
        let bits = Format.hasFixedRoot ? 20 : Format.shift(level: levels) + 1
        var table = PageTable<Format>(levels: levels, addressBits: bits)
        var gather = TableGather()
        let size: UInt64 = 1 << UInt64(bits)
        let granule: UInt64 = 1 << UInt64(Format.granuleShift)
        #expect(table.root.last == size - 1)
        try table.map(
          IOVA(size - granule), to: PhysicalAddress(0), length: granule, permissions: .read,
          gather: &gather)
        #expect(reason { try table.walk(IOVA(size)) } == .addressWidth)
        #expect(table.unmap(IOVA(0), length: .max, gather: &gather) == granule)
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B1: a map over a live leaf is refused and leaves everything as it was",
    arguments: Kind.allCases)
  func occupied(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var table = PageTable<Format>(levels: levels)
        var gather = TableGather()
        let granule: UInt64 = 1 << UInt64(Format.granuleShift)
        try table.map(
          IOVA(5 * granule), to: PhysicalAddress(9 * granule), length: granule,
          permissions: .read, gather: &gather)
        let pages = table.pageCount
        #expect(throws: MapFailure.occupied(IOVA(5 * granule))) {
          try table.map(
            IOVA(granule), to: PhysicalAddress(1 << 30), length: 9 * granule,
            permissions: .readWrite, gather: &gather)
        }
        #expect(gather.first == granule)
        #expect(gather.last == 5 * granule - 1)
        table.free(&gather)
        #expect(table.pageCount == pages)
        for page: UInt64 in 0..<16 where page != 5 {
          #expect(reason { try table.walk(IOVA(page * granule)) } == .notPresent)
        }
        #expect(
          try table.walk(IOVA(5 * granule + 0x123)).physical.rawValue == 9 * granule + 0x123)
        // A large leaf where a table is.
        if levels > 1 {
          #expect(throws: MapFailure.self) {
            try table.map(
              IOVA(0), to: PhysicalAddress(0), length: 1 << UInt64(Format.shift(level: 2)),
              permissions: .read, gather: &gather)
          }
          #expect(gather.isEmpty)
        }
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B: a map that runs out of table pages takes back what it added, wherever it stops",
    arguments: Kind.allCases)
  func outOfMemory(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        // Four lowest tables, and a bit, of small leaves: the physical side is odd.
        let granule: UInt64 = 1 << UInt64(Format.granuleShift)
        let span: UInt64 = 1 << UInt64(Format.shift(level: 2))
        let length: UInt64 = levels > 1 ? 4 * span : span / 2
        let start: UInt64 = levels > 1 ? span - granule : 0
        var whole = 0
        for limit in 1... {
          var table = PageTable<Format>(levels: levels, maximumPages: limit)
          var gather = TableGather()
          do {
            try table.map(
              IOVA(start), to: PhysicalAddress(start ^ granule), length: length,
              permissions: .read, gather: &gather)
            whole = table.pageCount
          } catch {
            #expect(error == .outOfMemory)
            table.free(&gather)
            #expect(table.pageCount == table.rootPages, "limit \(limit)")
            #expect(reason { try table.walk(IOVA(start)) } == .notPresent)
            continue
          }
          #expect(limit == whole)
          break
        }
      }
    }
    try kind.run(Body())
  }

  @Test("B: unmapping a part of a large leaf takes the leaf whole and says so")
  func partialUnmap() throws {
    var table = PageTable<IntelSecondStage>(levels: 4)
    var gather = TableGather()
    try table.map(
      IOVA(1 << 30), to: PhysicalAddress(2 << 30), length: 1 << 30, permissions: .readWrite,
      gather: &gather)
    #expect(table.unmap(IOVA(1 << 30 | 0x1000), length: 4096, gather: &gather) == 1 << 30)
    #expect(gather.first == 1 << 30)
    #expect(gather.last == (2 << 30) - 1)
    #expect(reason { try table.walk(IOVA(1 << 30)) } == .notPresent)
    table.free(&gather)

    // A leaf that AMD repeats in 16 entries, by its middle.
    var other = PageTable<AMDv1>(levels: 4)
    try other.map(
      IOVA(0x10000), to: PhysicalAddress(0x30000), length: 0x10000, permissions: .read,
      gather: &gather)
    #expect(try other.walk(IOVA(0x1_7123)).leafShift == 16)
    #expect(other.unmap(IOVA(0x17000), length: 4096, gather: &gather) == 0x10000)
    #expect(gather.first == 0x10000)
    #expect(gather.last == 0x1FFFF)
    other.free(&gather)
    #expect(other.pageCount == 1)
  }

  @Test("B: a root of 16 tables side by side (DDI 0487, D8.2.2) is one, aligned to its size")
  func concatenated() throws {
    func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
      let bits = Format.shift(level: levels + 1) + 4
      var table = PageTable<Format>(levels: levels, addressBits: bits)
      var gather = TableGather()
      let granule: UInt64 = 1 << UInt64(Format.granuleShift)
      #expect(table.rootPages == 16 && table.pageCount == 16)
      #expect(table.root.page.address % (16 * granule) == 0)
      #expect(table.root.last == 1 << UInt64(bits) - 1)
      let part: UInt64 = 1 << UInt64(Format.shift(level: levels + 1))
      for number in 0..<16 as Range<UInt64> {
        // The last page of each part, and the first of the next.
        try table.map(
          IOVA(number * part + part - granule), to: PhysicalAddress(number * granule),
          length: granule, permissions: .readWrite, gather: &gather)
        try table.map(
          IOVA(number * part), to: PhysicalAddress((number + 16) * granule), length: granule,
          permissions: .read, gather: &gather)
      }
      for number in 0..<16 as Range<UInt64> {
        let last = try table.walk(IOVA(number * part + part - 1))
        #expect(last.physical.rawValue == (number + 1) * granule - 1)
        let first = try table.walk(IOVA(number * part))
        #expect(first.physical.rawValue == (number + 16) * granule)
      }
      #expect(table.unmap(IOVA(0), length: .max, gather: &gather) == 32 * granule)
      table.free(&gather)
      #expect(table.pageCount == 16)
    }
    try run(ArmStage2<Granule4KiB>.self, levels: 3)
    try run(ArmStage2<Granule4KiB>.self, levels: 2)
    try run(ArmStage2<Granule16KiB>.self, levels: 2)
    try run(ArmStage2<Granule64KiB>.self, levels: 2)
  }

  @Test("I1: protecting a part of a large leaf changes it whole, says so, and keeps the rest")
  func partialProtect() throws {
    var table = PageTable<AMDv1>(levels: 4, keepsDirty: true)
    var gather = TableGather()
    table.setMarking(true)
    try table.map(
      IOVA(0x10000), to: PhysicalAddress(0x30000), length: 0x10000, permissions: .readWrite,
      attributes: .forceSnoop, gather: &gather)
    _ = try table.root.walk(IOVA(0x1_7000), marking: .write)
    try table.protect(first: 0x17000, last: 0x17FFF, permissions: .read, gather: &gather)
    #expect(gather.first == 0x10000 && gather.last == 0x1FFFF)
    for page in 0x10...0x1F as ClosedRange<UInt64> {
      let found = try table.walk(IOVA(page << 12))
      #expect(found.permissions == .read && found.leafShift == 16)
      #expect(found.physical.rawValue == (page + 0x20) << 12)
    }
    var dirty: [UInt64] = []
    table.readDirty(first: 0, last: .max, clear: true, gather: &gather) { first, _ in
      dirty.append(first)
    }
    #expect(dirty == [0x10000], "what was written stays written")
    #expect(throws: MapFailure.noPermissions) {
      try table.protect(first: 0, last: .max, permissions: .execute, gather: &gather)
    }
  }

  @Test("B: permissions are what all entries on the way allow, and a walk for more is refused")
  func permissions() throws {
    var table = PageTable<IntelSecondStage>(levels: 4)
    var gather = TableGather()
    try table.map(
      IOVA(0), to: PhysicalAddress(0x1000), length: 4096, permissions: .readWrite,
      gather: &gather)
    _ = try table.root.walk(IOVA(0), for: .readWrite)
    // Take W from the topmost entry.
    table.root.page.store(table.root.page.load(0) & ~2, at: 0)
    #expect(try table.walk(IOVA(0)).permissions == .read)
    _ = try table.root.walk(IOVA(0), for: .read)
    #expect(reason { try table.root.walk(IOVA(0), for: .write) } == .permission)
  }

  @Test("B: a walk stops at an entry with reserved bits")
  func reservedBits() throws {
    let intel = PageTable<IntelSecondStage>(levels: 4)
    intel.root.page.store(0x83, at: 0)
    #expect(reason { try intel.walk(IOVA(0)) } == .reservedBits)
    let amd = PageTable<AMDv1>(levels: 4)
    amd.root.page.store(0x6000_0000_0000_1A01, at: 0)
    #expect(reason { try amd.walk(IOVA(0)) } == .reservedBits)
    intel.root.page.store(0, at: 0)
    amd.root.page.store(0, at: 0)
  }

  @Test("B: mapping and unmapping in turn keeps memory bounded and gives pages back")
  func pageReuse() throws {
    var table = PageTable<IntelSecondStage>(levels: 4)
    var gather = TableGather()
    for round: UInt64 in 0..<1000 {
      try table.map(
        IOVA(round << 30), to: PhysicalAddress(0x1000), length: 4096, permissions: .read,
        gather: &gather)
      #expect(table.pageCount == 4)
      table.unmap(IOVA(round << 30), length: 4096, gather: &gather)
      table.free(&gather)
    }
    let small = table.footprint
    for place: UInt64 in 0..<1000 {
      try table.map(
        IOVA(place << 30), to: PhysicalAddress(0x1000), length: 4096, permissions: .read,
        gather: &gather)
    }
    #expect(table.pageCount > 2000)
    #expect(table.footprint > table.pageCount * 4096)
    table.unmap(IOVA(0), length: 1000 << 30, gather: &gather)
    table.free(&gather)
    #expect(table.pageCount == 1)
    #expect(table.footprint <= 2 * small)
  }
}
