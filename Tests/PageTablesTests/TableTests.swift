// SPDX-License-Identifier: Apache-2.0
//
// One suite for every format with every number of levels.

import Testing

@testable import PageTables

/// A format with a number of levels, as a test argument.
enum Kind: CaseIterable, Sendable, CustomTestStringConvertible {
  case intel3, intel4, intel5, amd1, amd2, amd3, amd4, amd5, amd6

  var levels: Int {
    switch self {
    case .amd1: 1
    case .amd2: 2
    case .intel3, .amd3: 3
    case .intel4, .amd4: 4
    case .intel5, .amd5: 5
    case .amd6: 6
    }
  }
  var testDescription: String { "\(self)" }

  /// Runs a generic test for this kind.
  func run(_ test: some TableTest) throws {
    switch self {
    case .intel3, .intel4, .intel5: try test.run(IntelSecondStage.self, levels: levels)
    default: try test.run(AMDv1.self, levels: levels)
    }
  }
}

protocol TableTest {
  func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws
}

@Suite("B: page tables of every format")
struct TableTests {
  @Test(
    "B: a leaf of every size translates its first and last byte and no neighbour",
    arguments: Kind.allCases)
  func everyLeafSize(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        let sizes = Format.pageSizes(levels: levels).rawValue
        for shift in 12..<52 where sizes >> UInt64(shift) & 1 == 1 {
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
              #expect(throws: WalkFault.notPresent) { try table.walk(IOVA(base - 1)) }
            }
            if base + (size - 1) < limit {
              #expect(throws: WalkFault.notPresent) { try table.walk(IOVA(base + size)) }
            }
            #expect(table.unmap(IOVA(base), length: size, gather: &gather) == size)
            #expect(gather.first == base)
            #expect(gather.last == base + (size - 1))
            table.free(&gather)
            #expect(table.pageCount == 1, "only the root is left")
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
        func map(_ iova: UInt64, _ physical: UInt64, _ length: UInt64) throws(MapFailure) {
          try table.map(
            IOVA(iova), to: PhysicalAddress(physical), length: length, permissions: .readWrite,
            gather: &gather)
        }
        if last < .max {
          #expect(throws: WalkFault.addressWidth) { try table.walk(IOVA(last + 1)) }
          #expect(throws: WalkFault.addressWidth) { try table.walk(IOVA(.max)) }
          #expect(throws: MapFailure.addressWidth) { try map(last + 1, 0, 4096) }
        }
        #expect(throws: MapFailure.addressWidth) { try map(last - 4095, 0, 8192) }
        #expect(throws: MapFailure.addressWidth) { try map(0xFFFF_FFFF_FFFF_F000, 0, 8192) }
        #expect(throws: MapFailure.physicalWidth) { try map(0, 0xF_FFFF_FFFF_F000, 8192) }
        #expect(throws: MapFailure.physicalWidth) { try map(0, 1 << 52, 4096) }
        #expect(throws: MapFailure.misaligned) { try map(0x800, 0, 4096) }
        #expect(throws: MapFailure.misaligned) { try map(0, 0x800, 4096) }
        #expect(throws: MapFailure.misaligned) { try map(0, 0, 0x800) }
        #expect(throws: MapFailure.misaligned) { try map(0, 0, 0) }
        #expect(table.pageCount == 1)
        try map(last - 4095, 0xF_FFFF_FFFF_F000, 4096)
        #expect(try table.walk(IOVA(last)).physical.rawValue == 0xF_FFFF_FFFF_FFFF)
        #expect(table.unmap(IOVA(last - 4095), length: .max, gather: &gather) == 4096)
      }
    }
    try kind.run(Body())
  }

  @Test(
    "B: a narrower address width than the levels translate is kept", arguments: Kind.allCases)
  func narrowWidth(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var table = PageTable<Format>(levels: levels, addressBits: 20)
        var gather = TableGather()
        #expect(table.root.last == 0xF_FFFF)
        try table.map(
          IOVA(0xF_F000), to: PhysicalAddress(0), length: 4096, permissions: .read,
          gather: &gather)
        #expect(throws: WalkFault.addressWidth) { try table.walk(IOVA(0x10_0000)) }
        #expect(table.unmap(IOVA(0), length: .max, gather: &gather) == 4096)
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
        try table.map(
          IOVA(0x5000), to: PhysicalAddress(0x9000), length: 4096, permissions: .read,
          gather: &gather)
        let pages = table.pageCount
        #expect(throws: MapFailure.occupied(IOVA(0x5000))) {
          try table.map(
            IOVA(0x1000), to: PhysicalAddress(0x1_0000_0000), length: 0x9000,
            permissions: .readWrite, gather: &gather)
        }
        #expect(gather.first == 0x1000)
        #expect(gather.last == 0x4FFF)
        table.free(&gather)
        #expect(table.pageCount == pages)
        for page: UInt64 in 0..<16 where page != 5 {
          #expect(throws: WalkFault.notPresent) { try table.walk(IOVA(page << 12)) }
        }
        #expect(try table.walk(IOVA(0x5123)).physical.rawValue == 0x9123)
        // A large leaf where a table is.
        if levels > 1 {
          #expect(throws: MapFailure.self) {
            try table.map(
              IOVA(0), to: PhysicalAddress(0), length: 1 << 21, permissions: .read,
              gather: &gather)
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
        // 8 MiB of 4 KiB leaves (the physical side is odd) in 2 MiB steps.
        let length: UInt64 = levels > 1 ? 8 << 20 : 1 << 20
        let start: UInt64 = levels > 1 ? 0x1F_F000 : 0
        var whole = 0
        for limit in 1... {
          var table = PageTable<Format>(levels: levels, maximumPages: limit)
          var gather = TableGather()
          do {
            try table.map(
              IOVA(start), to: PhysicalAddress(start ^ 0x1000), length: length,
              permissions: .read, gather: &gather)
            whole = table.pageCount
          } catch {
            #expect(error == .outOfMemory)
            table.free(&gather)
            #expect(table.pageCount == 1, "limit \(limit)")
            #expect(throws: WalkFault.notPresent) { try table.walk(IOVA(start)) }
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
    #expect(throws: WalkFault.notPresent) { try table.walk(IOVA(1 << 30)) }
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
    #expect(throws: WalkFault.permission) { try table.root.walk(IOVA(0), for: .write) }
  }

  @Test("B: a walk stops at an entry with reserved bits")
  func reservedBits() throws {
    let intel = PageTable<IntelSecondStage>(levels: 4)
    intel.root.page.store(0x83, at: 0)
    #expect(throws: WalkFault.reservedBits) { try intel.walk(IOVA(0)) }
    let amd = PageTable<AMDv1>(levels: 4)
    amd.root.page.store(0x6000_0000_0000_1201, at: 0)
    #expect(throws: WalkFault.reservedBits) { try amd.walk(IOVA(0)) }
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
