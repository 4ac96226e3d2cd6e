// SPDX-License-Identifier: Apache-2.0
//
// Hostile first-stage tables on a parent: random words that point anywhere and change while they
// are walked. No access may leave what the parent maps, nor write what it lets only be read.

import Testing

@testable import PageTables

/// The pages that a parent maps, by their physical addresses. Anything else is a breach.
private final class Arena: TableMemory {
  struct Page {
    var words: [UInt64]
    var permissions: Permissions
  }
  var pages: [UInt64: Page] = [:]
  let pageShift: UInt64
  var breaches: [UInt64] = []
  var random: Random
  /// Makes a word for a table of the user's.
  var word: (inout Random) -> UInt64 = { _ in 0 }

  init(pageShift: Int, seed: UInt64) {
    self.pageShift = UInt64(pageShift)
    random = Random(state: seed)
  }

  func allows(_ address: UInt64, _ access: Permissions) -> Bool {
    pages[address >> pageShift]?.permissions.isSuperset(of: access) ?? false
  }

  private func index(_ address: UInt64) -> Int {
    Int(address & (1 << pageShift - 1)) / 8
  }

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    guard allows(address, .read), address % 8 == 0 else {
      breaches.append(address)
      throw .unreachable
    }
    let word = pages[address >> pageShift]!.words[index(address)]
    // The user changes it behind the walker's back.
    if Int.random(in: 0..<4, using: &random) == 0 {
      pages[address >> pageShift]!.words[index(address)] = self.word(&random)
    }
    return word
  }

  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    guard allows(address, .readWrite), address % 8 == 0 else {
      breaches.append(address)
      throw .unreachable
    }
    guard pages[address >> pageShift]!.words[index(address)] == expected else { return false }
    pages[address >> pageShift]!.words[index(address)] = desired
    return true
  }
}

/// Runs random tables of one pair of formats.
struct NestedFuzz<First: PageTableFormat, Second: PageTableFormat> {
  var random: Random
  private(set) var found = 0

  init(seed: UInt64) { random = Random(state: seed) }

  /// One parent, one set of words, many walks.
  mutating func round(_ configure: (inout Random) -> First.Configuration) {
    let shift = max(First.granuleShift, Second.granuleShift)
    let arena = Arena(pageShift: shift, seed: random.next())
    let page: UInt64 = 1 << UInt64(shift)
    var parent = PageTable<Second>(
      levels: max(3, Second.levelRange.lowerBound), keepsDirty: Bool.random(using: &random))
    parent.setMarking(Bool.random(using: &random))
    var gather = TableGather()
    var mapped: [UInt64] = []
    for _ in 0..<12 {
      let ipa = UInt64.random(in: 0..<32, using: &random) * page
      let physical = UInt64.random(in: 0..<(1 << 16), using: &random) * page
      let permissions: Permissions =
        Int.random(in: 0..<4, using: &random) == 0 ? .read : [.read, .write, .execute]
      guard arena.pages[physical / page] == nil,
        (try? parent.map(
          IOVA(ipa), to: PhysicalAddress(physical), length: page, permissions: permissions,
          gather: &gather)) != nil
      else {
        parent.free(&gather)
        continue
      }
      mapped.append(ipa)
      arena.pages[physical / page] = .init(
        words: Array(repeating: 0, count: Int(page / 8)),
        permissions: Second.granted(permissions))
    }
    let configuration = configure(&random)
    let targets = mapped
    arena.word = { random in
      let level = Int.random(in: First.levelRange, using: &random)
      let ipa =
        Int.random(in: 0..<8, using: &random) == 0
        ? random.next() & 0x0000_FFFF_FFFF_F000 : targets.randomElement(using: &random)!
      var word: UInt64
      if Bool.random(using: &random) {
        word = First.tableEntry(ipa & ~(page - 1), level: level)
      } else {
        let size = Int.random(in: 0...1, using: &random) == 0 ? 1 : min(level, 3)
        word = First.leafEntry(
          ipa & ~(page - 1), shift: First.shift(level: size), level: size,
          permissions: [.read, .write, .execute], attributes: [], configuration)
      }
      if Int.random(in: 0..<8, using: &random) == 0 {
        word ^= 1 << UInt64.random(in: 0..<64, using: &random)
      }
      return Int.random(in: 0..<32, using: &random) == 0 ? random.next() : word
    }
    for key in arena.pages.keys.sorted() {
      // The first words of each table are what addresses mostly meet.
      for index in 0..<64 { arena.pages[key]!.words[index] = arena.word(&random) }
    }
    for _ in 0..<64 { walk(arena, parent.root, configuration, mapped) }
    #expect(arena.breaches.isEmpty, "\(First.self) on \(Second.self): \(arena.breaches)")
  }

  private mutating func walk(
    _ arena: Arena, _ parent: PageTableRoot<Second>, _ configuration: First.Configuration,
    _ mapped: [UInt64]
  ) {
    let levels = Int.random(in: First.levelRange, using: &random)
    let start =
      Bool.random(using: &random)
      ? mapped.randomElement(using: &random)! : random.next() & 0xFFFF_F000
    guard
      let root = TableRoot<First>(
        address: start, levels: levels, configuration: configuration)
    else { return }
    var iova = random.next()
    if Int.random(in: 0..<8, using: &random) != 0 {
      iova = 0
      for level in 1...levels {
        iova |= UInt64.random(in: 0..<8, using: &random) << UInt64(First.shift(level: level))
      }
      iova |= UInt64.random(in: 0..<4096, using: &random)
    }
    let access = Access(
      [.read, .write, .execute, .readWrite].randomElement(using: &random)!,
      privileged: Bool.random(using: &random))
    do throws(WalkFault) {
      let translation = try root.walk(IOVA(iova), for: access, through: parent, in: arena)
      found += 1
      let inside =
        (1 << UInt64(min(Int(translation.leafShift), Int(arena.pageShift)))) - 1 as UInt64
      for address in [
        translation.physical.rawValue, translation.physical.rawValue & ~inside,
        translation.physical.rawValue | inside,
      ] where !arena.allows(address, access.permissions) {
        arena.breaches.append(address)
      }
      let kept = translation.rights.permissions(privileged: false)
      if kept.contains(.write), !arena.allows(translation.physical.rawValue, .write) {
        arena.breaches.append(translation.physical.rawValue)
      }
    } catch {
      if error.stage == .second, error.reason == .tableUnreachable {
        arena.breaches.append(error.ipa)
      }
    }
  }
}

@Suite("B5: hostile tables on a parent")
struct NestedFuzzTests {
  @Test("B5: no table reaches what its parent does not map, whatever is in it and changes")
  func hostile() {
    // As long as asked, a second without being asked, and long enough to reach something.
    let seconds = fuzzSeconds
    let deadline = ContinuousClock.now + .milliseconds(Int64(seconds * 1000))
    var intel = NestedFuzz<IntelFirstStage, IntelSecondStage>(seed: 1)
    var amd = NestedFuzz<AMDv2, AMDv1>(seed: 2)
    var skipping = NestedFuzz<AMDv1, IntelSecondStage>(seed: 3)
    var arm4 = NestedFuzz<ArmStage1<Granule4KiB>, ArmStage2<Granule4KiB>>(seed: 4)
    var arm16 = NestedFuzz<ArmStage1<Granule16KiB>, ArmStage2<Granule16KiB>>(seed: 5)
    var arm64 = NestedFuzz<ArmStage1<Granule64KiB>, ArmStage2<Granule64KiB>>(seed: 6)
    var mixed = NestedFuzz<ArmStage1<Granule4KiB>, ArmStage2<Granule64KiB>>(seed: 7)
    var riscv = NestedFuzz<RISCVFirstStage, RISCVSecondStage>(seed: 8)
    func x86(_ random: inout Random) -> X86Switches {
      X86Switches(
        writeProtects: Bool.random(using: &random), noExecute: Bool.random(using: &random),
        physicalBits: [39, 52].randomElement(using: &random)!)
    }
    func arm(_ random: inout Random) -> ArmStage1Switches {
      ArmStage1Switches(
        updatesAccessFlag: Bool.random(using: &random),
        updatesDirtyState: Bool.random(using: &random),
        outputBits: [36, 48, 52].randomElement(using: &random)!)
    }
    var rounds = 0
    repeat {
      rounds += 1
      intel.round(x86)
      amd.round(x86)
      skipping.round { UpdateSwitch(updates: Bool.random(using: &$0)) }
      arm4.round(arm)
      arm16.round(arm)
      arm64.round(arm)
      mixed.round(arm)
      riscv.round {
        RISCVSwitches(
          updates: Bool.random(using: &$0), memoryTypes: Bool.random(using: &$0),
          supervisorUserAccess: Bool.random(using: &$0))
      }
    } while rounds < 20 || ContinuousClock.now < deadline
    for found in [
      intel.found, amd.found, skipping.found, arm4.found, arm16.found, arm64.found,
      mixed.found, riscv.found,
    ] {
      #expect(found > 0, "a fuzzer that reaches nothing proves nothing")
    }
  }
}
