// SPDX-License-Identifier: Apache-2.0
//
// Ways through a user's tables that lead somewhere, for fuzzers: what is random alone lets few
// accesses through.

import FuzzSupport
import HardwareTables
import PageTables

@testable import IOMMU
@testable import SoftwareIOMMU

/// Tables that translate four pages in a row, and what names them to the driver.
struct FuzzPath {
  /// Of the first of the four pages.
  var iova: UInt64 = 0
  /// Words by their addresses, the parent's.
  var words: [(address: UInt64, value: UInt64)] = []
  var data: [UInt64] = []

  static let pages: UInt64 = 4
  /// PASIDs that go through the tables, where the table of PASIDs is the user's.
  static let pasids: [UInt64] = [0, 1, 2, 64, 255]

  /// - Parameters:
  ///   - tables: Pages for tables, as the parent has them: at least seven.
  ///   - targets: Pages to be found.
  init(
    _ configuration: SoftwareIOMMU.Configuration, tables: [UInt64], targets: [UInt64],
    _ random: inout Random
  ) {
    let tables = tables.shuffled(using: &random)
    // Now and then a device writes its own tables.
    let others = targets.filter { !tables.prefix(7).contains($0) }
    let targets =
      others.isEmpty || Int.random(in: 0..<8, using: &random) == 0 ? targets : others
    let (top, root) = (tables[0], tables[1])
    let levels = configuration.levels
    switch configuration.architecture {
    case .intel:
      let isWide = levels == 5 && random.bool()
      plant(
        Array(tables[1...]), targets, isWide ? 5 : 4, as: IntelFirstStage.self, X86Switches(),
        &random)
      data = [0, root, isWide ? 57 : 48]
    case .amd:
      plant(Array(tables[1...]), targets, 4, as: AMDv2.self, X86Switches(), &random)
      for pasid in Self.pasids { words.append((top + pasid * 8, root | 1)) }
      // V, TV, GV, GIoV and the GCR3 table.
      data = [
        3 | 1 << 54 | 1 << 55 | (top >> 12 & 7) << 58,
        (top >> 15 & 0xFFFF) << 16 | (top >> 31) << 43, 0, 0,
      ]
    case .smmuV3:
      plant(
        Array(tables[1...]), targets, 4, as: ArmStage1<Granule4KiB>.self, ArmStage1Switches(),
        &random)
      // T0SZ 16, EPD1, V, IPS, AA64, HA, HD, R, A; of substreams 0 to 63.
      let isTable = Int.random(in: 0..<8, using: &random) != 0
      for index in 0..<(isTable ? 64 : 1) as Range<UInt64> {
        words.append(
          (
            top + index * 64,
            16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 3 << 42 | 1 << 45 | 1 << 46
          ))
        words.append((top + index * 64 + 8, root))
      }
      // V, Config 5, the table, S1CDMax; S1DSS 2.
      data = [1 | 5 << 1 | top | (isTable ? 6 << 59 : 0), isTable ? 2 : 0]
    case .riscv:
      let deep = min(levels, 4)
      plant(
        Array(tables[1...]), targets, deep, as: PageTables.RISCVFirstStage.self,
        RISCVSwitches(), &random)
      let iosatp = UInt64(deep + 5) << 60 | root >> 12
      let isDirectory = Int.random(in: 0..<4, using: &random) != 0
      for process in Self.pasids where isDirectory {
        words.append((top + process * 16, 1))
        words.append((top + process * 16 + 8, iosatp))
      }
      // V; PDTV and DPE, PD8.
      data = isDirectory ? [1 | 1 << 5 | 1 << 9, 0, 1 << 60 | top >> 12] : [1, 0, iosatp]
    }
  }

  private mutating func plant<Format: PageTableFormat>(
    _ tables: [UInt64], _ targets: [UInt64], _ levels: Int, as format: Format.Type,
    _ switches: Format.Configuration, _ random: inout Random
  ) {
    for level in 1...levels {
      // The sign is clear, and four pages lie in one table.
      let last: UInt64 = level == levels ? 255 : 511
      let index = UInt64.random(in: 0...last, using: &random) & (level == 1 ? ~3 : .max)
      iova |= index << UInt64(Format.shift(level: level))
      guard level > 1 else { continue }
      words.append(
        (
          tables[levels - level] + index * 8,
          Format.tableEntry(tables[levels - level + 1], level: level)
        ))
    }
    for page in 0..<Self.pages {
      words.append(
        (
          tables[levels - 1] + (iova >> 12 & 511 + page) * 8,
          Format.leafEntry(
            targets.randomElement(using: &random) ?? 0, shift: 12, level: 1,
            permissions: [.read, .write, .execute], attributes: [], switches)
        ))
    }
  }
}
