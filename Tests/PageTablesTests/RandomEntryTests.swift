// SPDX-License-Identifier: Apache-2.0
//
// Tables that somebody else wrote: random entries, switches and accesses, walked by the module
// and by a slow walker of each specification.

import FuzzSupport
import Testing

@testable import PageTables

/// Entries by their addresses; where there is none, nothing can be read.
final class Words: TableMemory {
  var words: [UInt64: UInt64] = [:]
  var loads = 0
  /// What was exchanged.
  var stores: [UInt64: UInt64] = [:]
  /// Runs once, after the next load.
  var afterLoad: (() -> Void)?

  /// The entry at an address, 0 where there is none.
  func word(_ address: UInt64) -> UInt64 { words[address] ?? 0 }

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    loads += 1
    guard let word = words[address] else { throw .unreachable }
    let then = afterLoad
    afterLoad = nil
    then?()
    return word
  }

  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    guard let word = words[address] else { throw .unreachable }
    guard word == expected else { return false }
    words[address] = desired
    stores[address] = desired
    return true
  }
}

@Suite("B2: tables of random entries agree with slow walks of the specifications")
struct RandomEntryTests {
  /// Tables in few places, every word of which may be looked at.
  static func fill(
    _ words: Words, granule: Int, tables: Int, roots: Int, _ random: inout Random,
    _ entry: (inout Random) -> UInt64
  ) {
    for place in 0..<UInt64(roots + tables) {
      let base = place << UInt64(granule)
      // A few entries of each are enough: addresses are chosen to meet them.
      for index in 0..<4 as Range<UInt64> { words.words[base + index * 8] = entry(&random) }
    }
  }

  /// Address bits that choose among the first four entries of every table, most of the time.
  static func address(
    _ random: inout Random, granule: Int, levels: Int, width: Int, ones: Bool
  ) -> UInt64 {
    var address = UInt64.random(in: 0..<(1 << UInt64(granule)), using: &random)
    for level in 0..<levels {
      address |=
        UInt64.random(in: 0..<4, using: &random) << UInt64(granule + (granule - 3) * level)
    }
    let mask: UInt64 = width == 64 ? .max : 1 << UInt64(width) - 1
    address &= mask
    if ones { address |= ~mask }
    if Int.random(in: 0..<16, using: &random) == 0 {
      address ^= 1 << UInt64.random(in: 30..<64, using: &random)
    }
    return address
  }

  static func access(_ random: inout Random) -> Access {
    Access(
      [.read, .write, .execute, .readWrite].randomElement(using: &random)!,
      privileged: Bool.random(using: &random))
  }

  /// Bits of `mask`, each set with a chance of one in `odds`.
  static func sparse(_ random: inout Random, _ mask: UInt64, odds: Int) -> UInt64 {
    var value: UInt64 = 0
    for bit in 0..<64 as Range<UInt64> where mask >> bit & 1 == 1 {
      if Int.random(in: 0..<odds, using: &random) == 0 { value |= 1 << bit }
    }
    return value
  }

  static func compare<Format: PageTableFormat>(
    _ root: TableRoot<Format>, _ words: Words, _ address: UInt64, _ access: Access,
    _ expected: SlowResult?
  ) -> Bool {
    words.stores = [:]
    let before = expected?.changed.keys.map { ($0, words.words[$0]) } ?? []
    let found = try? root.walk(IOVA(address), for: access, in: words)
    // Where it faults, upper entries may be marked (SDM 4.8).
    let marks = expected?.changed ?? (Format.self is any X86Format.Type ? words.stores : [:])
    if found?.physical.rawValue != expected?.address || words.stores != marks {
      Issue.record(
        """
        \(Format.self) \(root.levels) levels, 0x\(String(address, radix: 16)) for \(access): \
        \(String(describing: found)), not \(String(describing: expected))
        """)
    }
    for (place, entry) in before { words.words[place] = entry }
    return expected != nil
  }

  /// Runs 200 rounds from one seed.
  static func many(seed: UInt64, _ round: (inout Random) -> Int) {
    var random = Random(state: seed)
    let found = (0..<200).reduce(0) { sum, _ in sum + round(&random) }
    #expect(found > 300, "\(found) walks that end")
  }

  @Test("B2: RISC-V, both stages")
  func riscv() { Self.many(seed: 39, Self.riscv) }

  /// One set of tables, many walks.
  /// - Returns: How many end.
  static func riscv(_ random: inout Random) -> Int {
    var found = 0
    let words = Words()
    let levels = Int.random(in: 3...5, using: &random)
    let switches = RISCVSwitches(
      updates: Bool.random(using: &random), memoryTypes: Bool.random(using: &random),
      supervisorUserAccess: Bool.random(using: &random))
    Self.fill(words, granule: 12, tables: 8, roots: 4, &random) { random in
      let table = UInt64.random(in: 4..<12, using: &random) << 10
      let broken = Self.sparse(&random, .max, odds: 300)
      switch Int.random(in: 0..<4, using: &random) {
      case 0, 1: return 1 | table ^ broken
      case 2:
        let low = UInt64.random(in: 0..<256, using: &random) | 1
        let napot: UInt64 = Bool.random(using: &random) ? 0 : 1 << 63 | 8 << 10
        return low | Self.sparse(&random, 0xFFFF << 14, odds: 2) | napot
      default:
        return 0xDF | UInt64.random(in: 0..<1 << 10, using: &random) << 37 ^ broken
      }
    }
    for _ in 0..<40 {
      let access = Self.access(&random)
      let ones = Bool.random(using: &random)
      let va = Self.address(
        &random, granule: 12, levels: levels, width: 12 + 9 * levels - 1, ones: ones)
      let first = TableRoot<RISCVFirstStage>(
        address: 0, levels: levels, configuration: switches)!
      let expected = slowRISCV(
        words.words, root: 0, levels: levels, second: false, address: va,
        SlowAccess(access), updates: switches.updatesEntries,
        memoryTypes: switches.hasMemoryTypes, sum: switches.allowsSupervisorUserAccess)
      if Self.compare(first, words, va, access, expected) { found += 1 }
      let ipa = Self.address(
        &random, granule: 12, levels: levels, width: 14 + 9 * levels, ones: false)
      let second = TableRoot<RISCVSecondStage>(
        address: 0, levels: levels, configuration: switches)!
      let expectedSecond = slowRISCV(
        words.words, root: 0, levels: levels, second: true, address: ipa,
        SlowAccess(access), updates: switches.updatesEntries,
        memoryTypes: switches.hasMemoryTypes, sum: false)
      if Self.compare(second, words, ipa, access, expectedSecond) { found += 1 }
    }
    return found
  }

  @Test("B2: Intel's first stage and AMD's guest tables")
  func x86() { Self.many(seed: 86, Self.x86) }

  static func x86(_ random: inout Random) -> Int {
    var found = 0
    let words = Words()
    let levels = Int.random(in: 4...5, using: &random)
    let width = [52, 46, 39].randomElement(using: &random)!
    let (wp, nx, smep) = (
      Bool.random(using: &random), Bool.random(using: &random), Bool.random(using: &random)
    )
    let switches = X86Switches(
      writeProtects: wp, noExecute: nx, preventsSupervisorExecution: smep,
      physicalBits: width)
    Self.fill(words, granule: 12, tables: 8, roots: 1, &random) { random in
      let low: UInt64 =
        Bool.random(using: &random) ? 7 : 1 | UInt64.random(in: 0..<512, using: &random)
      let address: UInt64
      switch Int.random(in: 0..<8, using: &random) {
      case 0: address = UInt64.random(in: 0..<16, using: &random) << 36
      case 1: address = UInt64.random(in: 0..<64, using: &random) << 21
      default: address = UInt64.random(in: 1..<9, using: &random) << 12
      }
      return (low | address | Self.sparse(&random, 1 << 63, odds: 6))
        ^ Self.sparse(&random, .max, odds: 1000)
    }
    for _ in 0..<40 {
      let access = Self.access(&random)
      let va = Self.address(
        &random, granule: 12, levels: levels, width: 12 + 9 * levels - 1,
        ones: Bool.random(using: &random))
      func expected(amd: Bool) -> SlowResult? {
        slowX86(
          words.words, root: 0, levels: levels, address: va, SlowAccess(access),
          writeProtect: wp, noExecute: nx, smep: smep, physicalBits: width, amd: amd)
      }
      let intel = TableRoot<IntelFirstStage>(
        address: 0, levels: levels, configuration: switches)!
      if Self.compare(intel, words, va, access, expected(amd: false)) { found += 1 }
      let amd = TableRoot<AMDv2>(address: 0, levels: levels, configuration: switches)!
      if Self.compare(amd, words, va, access, expected(amd: true)) { found += 1 }
    }
    return found
  }

  @Test("B2: Arm stage 1 and 2 with 4 KiB")
  func arm4KiB() { Self.many(seed: 4) { Self.arm(Granule4KiB.self, &$0) } }

  @Test("B2: Arm stage 1 and 2 with 16 KiB")
  func arm16KiB() { Self.many(seed: 16) { Self.arm(Granule16KiB.self, &$0) } }

  @Test("B2: Arm stage 1 and 2 with 64 KiB")
  func arm64KiB() { Self.many(seed: 64) { Self.arm(Granule64KiB.self, &$0) } }

  static func arm<Granule: ArmGranule>(_ granule: Granule.Type, _ random: inout Random) -> Int {
    var found = 0
    let shift = Granule.shift
    let words = Words()
    let levels = Int.random(in: 1...(shift == 16 ? 3 : 4), using: &random)
    let least = shift + (shift - 3) * (levels - 1) + 1
    let limit = shift == 16 ? 52 : 48
    let width1 = Int.random(in: least...min(limit, least + shift - 4), using: &random)
    let width2 = Int.random(in: least...min(limit, least + shift), using: &random)
    let (ha, hd, affd) = (
      Bool.random(using: &random), Bool.random(using: &random), Bool.random(using: &random)
    )
    let outputs = (shift == 16 ? [36, 48, 52] : [36, 48]).randomElement(using: &random)!
    var first = ArmStage1Switches(
      updatesAccessFlag: ha, updatesDirtyState: hd, outputBits: outputs)
    first.ignoresAccessFlag = affd
    first.neverExecutesWritable = Bool.random(using: &random)
    first.ignoresTablePermissions = Bool.random(using: &random)
    var second = ArmStage2Switches(
      updatesAccessFlag: ha, updatesDirtyState: hd, outputBits: outputs)
    second.ignoresAccessFlag = affd
    Self.fill(words, granule: shift, tables: 8, roots: 16, &random) { random in
      let table = UInt64.random(in: 16..<24, using: &random) << UInt64(shift)
      let attributes = UInt64.random(in: 0..<1024, using: &random) << 2
      switch Int.random(in: 0..<4, using: &random) {
      case 0, 1: return table | 3 | Self.sparse(&random, 15 << 59, odds: 8)
      case 2:
        return table | 3 | attributes | 0x400
          | Self.sparse(&random, 0xF << 51 | 0xF << 32 | 0xF000, odds: 3)
      default:
        return UInt64.random(in: 0..<64, using: &random) << 30 | attributes | 1 | 0x440
          | Self.sparse(&random, 0xF << 51 | 0x3FF << 20, odds: 3)
      }
    }
    for _ in 0..<40 {
      let access = Self.access(&random)
      let upper = Bool.random(using: &random)
      let va = Self.address(
        &random, granule: shift, levels: levels, width: width1, ones: upper)
      let root1 = TableRoot<ArmStage1<Granule>>(
        address: 0, levels: levels, addressBits: width1, extending: upper ? .ones : .zero,
        configuration: first)!
      let expected1 = slowArm(
        words.words, root: 0, granule: shift, startLevel: 4 - levels, width: width1,
        upper: upper, second: false, address: va, SlowAccess(access), ha: ha, hd: hd,
        affd: affd, wxn: first.neverExecutesWritable, hpd: first.ignoresTablePermissions,
        outputBits: outputs)
      if Self.compare(root1, words, va, access, expected1) { found += 1 }
      let ipa = Self.address(
        &random, granule: shift, levels: levels, width: width2, ones: false)
      let root2 = TableRoot<ArmStage2<Granule>>(
        address: 0, levels: levels, addressBits: width2, configuration: second)!
      let expected2 = slowArm(
        words.words, root: 0, granule: shift, startLevel: 4 - levels, width: width2,
        upper: false, second: true, address: ipa, SlowAccess(access), ha: ha, hd: hd,
        affd: affd, wxn: false, hpd: false, outputBits: outputs)
      if Self.compare(root2, words, ipa, access, expected2) { found += 1 }
    }
    return found
  }
}
