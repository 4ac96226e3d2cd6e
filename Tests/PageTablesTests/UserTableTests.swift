// SPDX-License-Identifier: Apache-2.0
//
// Walks of tables that live elsewhere: faults with their levels, entries that change meanwhile,
// AMD's skipped levels, rights entry by entry.

import Testing

@testable import PageTables

@Suite("B2: tables in somebody else's memory")
struct UserTableTests {
  /// Four tables at 0x1000, 0x2000, 0x3000, 0x4000, and a page at 0x9000.
  static func x86(_ bits: [UInt64] = [7, 7, 7, 7]) -> (TableRoot<IntelFirstStage>, Words) {
    let words = Words()
    words.words = [
      0x1000: 0x2000 | bits[3], 0x2000: 0x3000 | bits[2], 0x3000: 0x4000 | bits[1],
      0x4000: 0x9000 | bits[0],
    ]
    return (
      TableRoot(address: 0x1000, levels: 4, configuration: X86Switches())!, words
    )
  }

  @Test("B2: each entry of the way takes rights: R/W, U/S and XD at every level (SDM 4.6)")
  func rightsByLevel() throws {
    let (root, words) = Self.x86()
    #expect(try root.walk(IOVA(0x123), for: Access(.write), in: words).rights == .all)
    #expect(words.word(0x4000) == 0x9067 && words.word(0x1000) == 0x2027)
    for level in 0..<4 {
      var bits: [UInt64] = [7, 7, 7, 7]
      bits[level] = 5
      var (root, words) = Self.x86(bits)
      let write = fault { try root.walk(IOVA(0), for: Access(.write), in: words) }
      #expect(write == WalkFault(.permission, level: 1, rights: .all.subtracting(.writes)))
      _ = try root.walk(IOVA(0), for: Access(.read), in: words)
      bits[level] = 3
      (root, words) = Self.x86(bits)
      #expect(reason { try root.walk(IOVA(0), for: Access(.read), in: words) } == .permission)
      _ = try root.walk(IOVA(0), for: Access(.readWrite, privileged: true), in: words)
      bits[level] = 7 | 1 << 63
      (root, words) = Self.x86(bits)
      #expect(
        reason { try root.walk(IOVA(0), for: Access(.execute), in: words) } == .permission)
      _ = try root.walk(IOVA(0), for: Access(.readWrite), in: words)
    }
  }

  @Test("B2: a fault names its level: not present, reserved, unreachable")
  func levels() {
    for level in 1...4 {
      let place = UInt64(5 - level) << 12
      let (root, words) = Self.x86()
      words.words[place]! &= ~1
      #expect(
        fault { try root.walk(IOVA(0), for: Access(.read), in: words) }
          == WalkFault(.notPresent, level: level))
      words.words[place] = 0x87 | 1 << 14
      if level > 1 {
        #expect(
          fault { try root.walk(IOVA(0), for: Access(.read), in: words) }
            == WalkFault(.reservedBits, level: level))
      }
      words.words[place] = nil
      var unreachable = WalkFault(.tableUnreachable, level: level)
      unreachable.entry = place
      #expect(fault { try root.walk(IOVA(0), for: Access(.read), in: words) } == unreachable)
    }
    let (root, words) = Self.x86()
    #expect(
      fault { try root.walk(IOVA(1 << 47), for: Access(.read), in: words) }
        == WalkFault(.addressWidth, level: 0))
    #expect(words.loads == 0)
  }

  @Test("B2: an entry that changes between fetch and mark is looked at again")
  func lostExchange() {
    let (root, words) = Self.x86()
    words.afterLoad = { words.words[0x1000] = 0 }
    #expect(
      fault { try root.walk(IOVA(0), for: Access(.read), in: words) }
        == WalkFault(.notPresent, level: 4))
    #expect(words.word(0x1000) == 0, "what changed is not overwritten")
    words.words[0x1000] = 0x2007
    words.afterLoad = { words.words[0x1000] = 0x2003 }
    #expect(reason { try root.walk(IOVA(0), for: Access(.read), in: words) } == .permission)
    #expect(words.word(0x1000) == 0x2023)
  }

  @Test("B2: an entry that changes every time does not keep a walk for ever")
  func restless() {
    struct Restless: TableMemory {
      func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 { 7 }
      func compareExchange(
        _ address: UInt64, expected: UInt64, desired: UInt64
      ) throws(TableMemoryFault) -> Bool { false }
    }
    let (root, _) = Self.x86()
    #expect(
      fault { try root.walk(IOVA(0), for: Access(.read), in: Restless()) }
        == WalkFault(.tableUnreachable, level: 4))
  }

  @Test("I1: what a read leaves may not be kept for writing until a write has marked it")
  func notReady() throws {
    let words = Words()
    words.words = [0x0: 0x4 << 8 | 1, 0x1000: 0x8 << 8 | 1, 0x2000: 0xC << 8 | 0x57]
    let still = TableRoot<RISCVFirstStage>(
      address: 0, levels: 3, configuration: RISCVSwitches(updates: false))!
    let kept = try still.walk(IOVA(0), for: Access(.read), in: words)
    #expect(kept.permissions == .read, "D is clear, and the first write faults")
    #expect(reason { try still.walk(IOVA(0), for: Access(.write), in: words) } == .dirtyFlag)
    let marks = TableRoot<RISCVFirstStage>(
      address: 0, levels: 3, configuration: RISCVSwitches(updates: true))!
    #expect(try marks.walk(IOVA(0), for: Access(.read), in: words).permissions == .read)
    #expect(try marks.walk(IOVA(0), for: Access(.write), in: words).permissions == .readWrite)
    #expect(words.word(0x2000) == 0xC << 8 | 0xD7)
    #expect(try still.walk(IOVA(0), for: Access(.read), in: words).permissions == .readWrite)
  }

  @Test("B2: AMD's tables may skip levels, whose address bits are then zero (48882, 2.2.3)")
  func skippedLevels() throws {
    let words = Words()
    // Level 4 to level 1; and level 4 to level 2, where a leaf of 2 MiB is.
    words.words = [
      0x1000: 0x6000_0000_0000_2201, 0x1008: 0x6000_0000_0000_3401,
      0x2018: 0x6000_0000_0000_9001, 0x3010: 0x6000_0000_0060_0001,
    ]
    let root = TableRoot<AMDv1>(address: 0x1000, levels: 4, configuration: .init())!
    #expect(
      try root.walk(IOVA(0x3123), for: Access(.read), in: words).physical.rawValue == 0x9123)
    for bit in 21..<39 as Range<UInt64> {
      #expect(
        fault { try root.walk(IOVA(0x3123 | 1 << bit), for: Access(.read), in: words) }
          == WalkFault(.notPresent, level: 4))
    }
    let large = try root.walk(IOVA(1 << 39 | 0x41_2345), for: Access(.read), in: words)
    #expect(large.physical.rawValue == 0x61_2345 && large.leafShift == 21)
    for bit in 30..<39 as Range<UInt64> {
      #expect(
        reason {
          try root.walk(IOVA(1 << 39 | 0x41_2345 | 1 << bit), for: Access(.read), in: words)
        } == .notPresent)
    }
  }

  @Test("B2: Arm's upper half: TTB1 translates addresses whose upper bits are one")
  func upperHalf() throws {
    let words = Words()
    // T1SZ 25: 39 bits, from level 1. The last entry of each table.
    words.words = [0x1FF8: 0x2003, 0x2FF8: 0x3003, 0x3FF8: 0x9743]
    let root = TableRoot<ArmStage1<Granule4KiB>>(
      address: 0x1000, levels: 3, addressBits: 39, extending: .ones, configuration: .init())!
    #expect(root.first == 0xFFFF_FF80_0000_0000 && root.last == .max)
    #expect(
      try root.walk(IOVA(.max), for: Access(.read), in: words).physical.rawValue == 0x9FFF)
    #expect(
      reason { try root.walk(IOVA(0x7F_FFFF_FFFF), for: Access(.read), in: words) }
        == .addressWidth)
    #expect(
      reason { try root.walk(IOVA(0xFFFF_FF7F_FFFF_FFFF), for: Access(.read), in: words) }
        == .addressWidth)
  }

  @Test("B2: AMD's guest tables extend by sign, and by zeros where a root says so")
  func guestExtension() throws {
    let words = Words()
    words.words = [0x1800: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: 0x9007]
    for extending in [AddressExtension.sign, .zero] {
      let root = TableRoot<AMDv2>(
        address: 0x1000, levels: 4, extending: extending, configuration: X86Switches())!
      let high = reason { try root.walk(IOVA(1 << 47), for: Access(.read), in: words) }
      let signed = reason {
        try root.walk(IOVA(0xFFFF_8000_0000_0000), for: Access(.read), in: words)
      }
      #expect(high == (extending == .sign ? .addressWidth : nil))
      #expect(signed == (extending == .sign ? nil : .addressWidth))
    }
  }

  @Test("B2: roots that no context entry may name are refused")
  func badRoots() {
    func intel(_ address: UInt64, _ levels: Int, width: Int = 52) -> Bool {
      TableRoot<IntelFirstStage>(
        address: address, levels: levels,
        configuration: X86Switches(writeProtects: true, physicalBits: width)) != nil
    }
    #expect(intel(0x1000, 4) && !intel(0x1800, 4) && !intel(0x1000, 3) && !intel(0x1000, 6))
    #expect(intel(1 << 45, 4, width: 46) && !intel(1 << 46, 4, width: 46))
    #expect(
      TableRoot<IntelFirstStage>(
        address: 0, levels: 4, extending: .ones, configuration: .init()) == nil)
    #expect(
      TableRoot<IntelFirstStage>(
        address: 0, levels: 4, addressBits: 47, configuration: .init()) == nil)
    #expect(
      TableRoot<AMDv1>(address: 0, levels: 7, configuration: .init()) == nil)
  }
}
