// SPDX-License-Identifier: Apache-2.0
//
// Random operations on every format, against a model that has no tables.

import Testing

@testable import PageTables

@Suite("B: random operations against the model")
struct RandomTableTests {
  @Test(
    "B: walks agree with the model after every map, refused map and unmap",
    arguments: Kind.allCases)
  func random(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var random = Random(state: UInt64(levels) + (Format.self == AMDv1.self ? 100 : 0))
        var table = PageTable<Format>(levels: levels)
        var model = TableModel()
        var gather = TableGather()
        let bits = UInt64(Format.addressBits(levels: levels))

        /// A length of any magnitude, at most a quarter of the table.
        func length() -> UInt64 {
          let magnitude = UInt64.random(in: 12...min(bits - 2, 40), using: &random)
          let top: UInt64 = 1 << magnitude
          // Small counts of odd pages, or one round size: never millions of leaves.
          let pages = UInt64.random(in: 1...64, using: &random) << 12
          return Bool.random(using: &random) ? top : min(top, pages)
        }
        func place(_ length: UInt64) -> UInt64 {
          let last = table.root.last - (length - 1)
          let any = UInt64.random(in: 0...last, using: &random)
          // Close together in half of the cases, aligned in half of them.
          let near = Bool.random(using: &random) ? any : any & 0xFF_FFFF
          let round: UInt64 = length & (0 &- length)
          return min(near, last) & ~(Bool.random(using: &random) ? round - 1 : 0xFFF)
        }
        func probe(_ address: UInt64) {
          let found: Translation? = try? table.walk(IOVA(address))
          let expected = model.walk(address)
          #expect(found?.physical.rawValue == expected?.physical)
          #expect(found?.permissions == expected?.permissions)
        }

        for _ in 0..<600 {
          let action = Int.random(in: 0..<10, using: &random)
          if action < 6 {
            let length = length()
            let first = place(length)
            // Congruent modulo a random power of two, so that leaves of all sizes form.
            let alignment: UInt64 = 1 << UInt64.random(in: 12...30, using: &random)
            let physical =
              UInt64.random(in: 0..<(1 << 49), using: &random) & ~(alignment - 1)
              | first & (alignment - 1)
            // Millions of small leaves test nothing more than thousands do.
            guard length / alignment < 4096 else { continue }
            let permissions: Permissions = [.read, .write, .readWrite].randomElement(
              using: &random)!
            let free = !model.overlaps(first, first + (length - 1))
            do {
              try table.map(
                IOVA(first), to: PhysicalAddress(physical), length: length,
                permissions: permissions, gather: &gather)
              #expect(free)
              model.map(
                .init(
                  first: first, length: length, physical: physical, permissions: permissions))
            } catch {
              #expect(!free)
              if case .occupied(let address) = error {
                #expect(model.overlaps(address.rawValue, address.rawValue + (length - 1)))
              } else {
                Issue.record("\(error)")
              }
              table.free(&gather)
            }
            probe(first)
            probe(first + (length - 1))
            if first > 0 { probe(first - 1) }
          } else if action < 9, !model.areas.isEmpty {
            let area = model.remove(at: Int.random(in: 0..<model.areas.count, using: &random))
            let bytes = table.unmap(
              IOVA(area.first), length: area.length, gather: &gather)
            #expect(bytes == area.length)
            #expect(gather.first == area.first)
            #expect(gather.last == area.last)
            table.free(&gather)
            probe(area.first)
            probe(area.last)
          }
          for area in model.areas.shuffled(using: &random).prefix(3) {
            probe(area.first)
            probe(area.last)
            probe(area.first + UInt64.random(in: 0..<area.length, using: &random))
          }
          probe(UInt64.random(in: 0...table.root.last, using: &random))
        }
        let mapped = model.areas.reduce(0) { $0 + $1.length }
        #expect(table.unmap(IOVA(0), length: .max, gather: &gather) == mapped)
        table.free(&gather)
        #expect(table.pageCount == 1)
      }
    }
    try kind.run(Body())
  }
}
