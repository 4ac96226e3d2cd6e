// SPDX-License-Identifier: Apache-2.0
//
// Hostile first-stage tables on a parent: random words that point anywhere and change while they
// are walked. No access may leave what the parent maps, nor write what it lets only be read.

import FuzzSupport
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
private struct NestedFuzz<First: PageTableFormat, Second: PageTableFormat>
where First.Configuration: RandomConfiguration {
  var random: Random
  private(set) var found = 0

  init(random: Random) { self.random = random }

  /// One parent, one set of words, many walks.
  mutating func round() {
    let shift = max(First.granuleShift, Second.granuleShift)
    let arena = Arena(pageShift: shift, seed: random.next())
    let page: UInt64 = 1 << UInt64(shift)
    var parent = PageTable<Second>(
      levels: Int.random(in: Second.levelRange, using: &random), keepsDirty: random.bool())
    parent.setMarking(random.bool())
    var gather = TableGather()
    var mapped: [UInt64] = []
    for _ in 0..<12 {
      // Some side by side, so that there are leaves of more than one page.
      let count: UInt64 = [1, 1, 1, 4].randomElement(using: &random)!
      let ipa = UInt64.random(in: 0..<32 / count, using: &random) * count * page
      let physical = UInt64.random(in: 0..<(1 << 16) / count, using: &random) * count * page
      let permissions: Permissions =
        Int.random(in: 0..<4, using: &random) == 0 ? .read : [.read, .write, .execute]
      let pages = physical / page..<physical / page + count
      guard pages.allSatisfy({ arena.pages[$0] == nil }),
        (try? parent.map(
          IOVA(ipa), to: PhysicalAddress(physical), length: count * page,
          permissions: permissions, gather: &gather)) != nil
      else {
        parent.free(&gather)
        continue
      }
      for (index, number) in pages.enumerated() {
        mapped.append(ipa + UInt64(index) * page)
        arena.pages[number] = .init(
          words: Array(repeating: 0, count: Int(page / 8)),
          permissions: Second.granted(permissions))
      }
    }
    let configuration = First.Configuration.random(&random)
    let targets = mapped
    arena.word = { random in
      let level = Int.random(in: First.levelRange, using: &random)
      let ipa =
        Int.random(in: 0..<8, using: &random) == 0
        ? random.next() & 0x0000_FFFF_FFFF_F000 : targets.randomElement(using: &random)!
      var word: UInt64
      if random.bool() {
        word = First.tableEntry(ipa & ~(page - 1), level: level)
      } else {
        let size = random.bool() ? 1 : min(level, 3)
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
      random.bool()
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
      privileged: random.bool())
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
    var found: [String: Int] = [:]
    let pairs = FirstKind.allCases.flatMap { first in
      SecondKind.allCases.map { (first, $0) }
    }
    let rounds = Fuzzing.run("NestedFuzzTests", least: 5) { random in
      for (first, second) in pairs {
        found["\(first) on \(second)", default: 0] += first.round(on: second, &random)
      }
    }
    if rounds < 20 { return }
    for (pair, found) in found {
      #expect(found > 0, "\(pair): a fuzzer that reaches nothing proves nothing")
    }
  }
}

/// What a user may own.
private enum FirstKind: CaseIterable {
  case intel, amdGuest, amdHost, arm4KiB, arm16KiB, arm64KiB, riscv

  /// Returns: Walks that found something.
  func round(on second: SecondKind, _ random: inout Random) -> Int {
    switch self {
    case .intel: second.round(IntelFirstStage.self, &random)
    case .amdGuest: second.round(AMDv2.self, &random)
    // No user owns one: it is here for it skips levels.
    case .amdHost: second.round(AMDv1.self, &random)
    case .arm4KiB: second.round(ArmStage1<Granule4KiB>.self, &random)
    case .arm16KiB: second.round(ArmStage1<Granule16KiB>.self, &random)
    case .arm64KiB: second.round(ArmStage1<Granule64KiB>.self, &random)
    case .riscv: second.round(RISCVFirstStage.self, &random)
    }
  }
}

/// What a parent may be.
private enum SecondKind: CaseIterable {
  case intel, amd, arm4KiB, arm16KiB, arm64KiB, riscv

  func round<First: PageTableFormat>(
    _ first: First.Type, _ random: inout Random
  ) -> Int where First.Configuration: RandomConfiguration {
    switch self {
    case .intel: round(first, IntelSecondStage.self, &random)
    case .amd: round(first, AMDv1.self, &random)
    case .arm4KiB: round(first, ArmStage2<Granule4KiB>.self, &random)
    case .arm16KiB: round(first, ArmStage2<Granule16KiB>.self, &random)
    case .arm64KiB: round(first, ArmStage2<Granule64KiB>.self, &random)
    case .riscv: round(first, RISCVSecondStage.self, &random)
    }
  }

  private func round<First: PageTableFormat, Second: PageTableFormat>(
    _ first: First.Type, _ second: Second.Type, _ random: inout Random
  ) -> Int where First.Configuration: RandomConfiguration {
    var fuzz = NestedFuzz<First, Second>(random: random)
    fuzz.round()
    random = fuzz.random
    return fuzz.found
  }
}
