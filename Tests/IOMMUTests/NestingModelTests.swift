// SPDX-License-Identifier: Apache-2.0
//
// MODEL B5 against a model that is slow and obvious: who maps what is looked up page by page,
// from the child to the root, after every call.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

/// One space of the model: mappings in pages, by number.
private struct SpaceModel {
  struct Mapping {
    let first: UInt64
    let count: UInt64
    /// The first page of the memory, or of the parent.
    let target: UInt64
    let permissions: Permissions

    var pages: Range<UInt64> { first..<first + count }
    func target(of number: UInt64) -> UInt64 { target + (number - first) }
  }
  let parent: Int?
  let changes: ParentChanges
  var mappings: [Mapping] = []

  func mapping(at number: UInt64) -> Mapping? {
    mappings.first { $0.pages.contains(number) }
  }
}

private struct TreeModel {
  var spaces: [SpaceModel]

  struct Entry: Equatable {
    let memoryPage: UInt64
    let permissions: Permissions
  }

  /// What a page of a space comes to.
  func entry(_ space: Int, _ number: UInt64) -> Entry? {
    guard let mapping = spaces[space].mapping(at: number) else { return nil }
    let target = mapping.target(of: number)
    guard let parent = spaces[space].parent else {
      return Entry(memoryPage: target, permissions: mapping.permissions)
    }
    guard let above = entry(parent, target) else { return nil }
    let permissions = above.permissions.intersection(mapping.permissions)
    guard !permissions.isEmpty else { return nil }
    return Entry(memoryPage: above.memoryPage, permissions: permissions)
  }

  mutating func map(_ space: Int, _ new: SpaceModel.Mapping) -> Errno? {
    if spaces[space].mappings.contains(where: { $0.pages.overlaps(new.pages) }) {
      return .fileExists
    }
    if let parent = spaces[space].parent, spaces[space].changes == .refused {
      for number in new.pages {
        guard let above = entry(parent, new.target(of: number)) else {
          return .noSuchFileOrDirectory
        }
        if above.permissions.isDisjoint(with: new.permissions) { return .notPermitted }
      }
    }
    spaces[space].mappings.append(new)
    return nil
  }

  /// Whether a child, or a child of one, refuses to lose pages.
  private func isHeld(_ space: Int, _ pages: Range<UInt64>) -> Bool {
    spaces.indices.contains { child in
      spaces[child].parent == space
        && spaces[child].mappings.contains { mapping in
          let shared = (mapping.target..<mapping.target + mapping.count).clamped(to: pages)
          guard !shared.isEmpty else { return false }
          let first = mapping.first + (shared.lowerBound - mapping.target)
          return spaces[child].changes == .refused
            || isHeld(child, first..<first + UInt64(shared.count))
        }
    }
  }

  mutating func unmap(_ space: Int, _ pages: Range<UInt64>) -> Errno? {
    if isHeld(space, pages) { return .resourceBusy }
    let touched = spaces[space].mappings.filter { $0.pages.overlaps(pages) }
      .sorted { $0.first < $1.first }
    for mapping in touched {
      guard pages.clamped(to: mapping.pages) == mapping.pages else {
        return .noSuchFileOrDirectory
      }
      spaces[space].mappings.removeAll { $0.first == mapping.first }
    }
    return touched.isEmpty ? .noSuchFileOrDirectory : nil
  }
}

@Suite struct NestingModelTests {
  private static let pageCount: UInt64 = 24

  /// Root, two children of it and two of the first of those; each kind once on each level.
  private static let tree: [(parent: Int?, changes: ParentChanges)] = [
    (nil, .refused), (0, .carriedThrough), (0, .refused), (1, .carriedThrough), (1, .refused),
  ]

  @Test(
    "B5: random maps and unmaps of a tree, some failing in the middle: each page is as it must be",
    arguments: [1, 2, 3, 4] as [UInt64])
  func random(seed: UInt64) throws {
    let rig = try NestingRig()
    let owner = MemoryOwner(
      user: PinnedMemory(), process: ProcessMemory(), limit: TestLimit())
    var ids: [ObjectID] = []
    for (parent, changes) in Self.tree {
      ids.append(try parent.map { try rig.child(of: ids[$0], changes) } ?? rig.root)
    }
    let tables = try ids.indices.map { try rig.attach(UInt8($0 + 1), to: ids[$0]) }
    var model = TreeModel(
      spaces: Self.tree.map { SpaceModel(parent: $0.parent, changes: $0.changes) })
    var generator = SplitMix(seed: seed)
    var seen: [Errno?: Int] = [:]

    for step in 0..<1500 {
      // The root twice as often: what it maps is what there is.
      let space = Int(generator.next(below: 6)) % ids.count
      let first = generator.next(below: Self.pageCount)
      let maps = generator.next(below: 5) < 3
      // Long maps of the root and short ones of its children meet more often.
      let count = generator.next(below: maps && space > 0 ? 2 : 8) + 1
      let failing = tables[Int(generator.next(below: 5))]
      if generator.next(below: 6) == 0 {
        let after = Int(generator.next(below: 3))
        failing.failAfter.withLock { $0 = after }
      }
      var expected = model
      let (result, wanted): (Errno?, Errno?)
      if maps {
        let mapping = SpaceModel.Mapping(
          first: first, count: count, target: generator.next(below: Self.pageCount),
          permissions: [.read, .write, .readWrite][Int(generator.next(below: 3))])
        wanted = expected.map(space, mapping)
        result = errno {
          if space == 0 {
            try rig.map(
              mapping.target, count, at: first * page, permissions: mapping.permissions,
              account: owner.account(.user))
          } else {
            try rig.nest(
              mapping.target * page, count, at: first * page, in: ids[space],
              permissions: mapping.permissions)
          }
        }
      } else {
        // Everything now and then, so that there is room.
        let pages =
          generator.next(below: 8) == 0 ? 0..<Self.pageCount + 8 : first..<first + count
        wanted = expected.unmap(space, pages)
        result = errno {
          try rig.unmap(pages.lowerBound * page, UInt64(pages.count), in: ids[space])
        }
      }
      if result == .noMemory {
        #expect(failing.failAfter.withLock { $0 ?? 0 } < 0, "seed \(seed), step \(step)")
      } else {
        #expect(result == wanted, "seed \(seed), step \(step), space \(space)")
        model = expected
      }
      failing.failAfter.withLock { $0 = nil }
      seen[result, default: 0] += 1
      for index in ids.indices {
        check(rig, tables[index], model, index, "seed \(seed), step \(step)")
      }
      // Each map of the root is pinned once, however many use it.
      let mapped = model.spaces[0].mappings.reduce(0) { $0 + $1.count }
      #expect(owner.user.byteCount == mapped * page, "seed \(seed), step \(step)")
    }
    for errno: Errno? in [
      nil, .noMemory, .fileExists, .noSuchFileOrDirectory, .resourceBusy, .notPermitted,
    ] {
      #expect(seen[errno, default: 0] > 0, "\(String(describing: errno)): \(seen)")
    }
    rig.expectNothingLeft()
    #expect(owner.user.byteCount == 0)
  }

  private func check(
    _ rig: NestingRig, _ table: DictionaryDomain, _ model: TreeModel, _ space: Int,
    _ comment: String
  ) {
    let permissions = table.pages.withLock { $0.mapValues(\.permissions) }
    for number in 0..<Self.pageCount + 8 {
      let entry = permissions[number * page].flatMap { permissions in
        rig.memoryPage(number * page, in: table).map {
          TreeModel.Entry(memoryPage: $0, permissions: permissions)
        }
      }
      #expect(
        entry == model.entry(space, number), "\(comment): page \(number) of space \(space)")
    }
  }
}
