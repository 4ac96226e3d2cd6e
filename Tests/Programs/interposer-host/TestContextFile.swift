// SPDX-License-Identifier: Apache-2.0
//
// The test machine's /dev/iommu: beside the commands of every test file, it gives out queues of
// records and pages to map. Both are known by index, from any file.

import Glibc
import IOMMU
import LinuxABI
import TestSupport

final class TestContextFile: TestFile, MmapFile, @unchecked Sendable {
  // Unchecked, as its superclass is: everything is constant or guarded.
  let areas = MmapAreas()
  private let pages = Guarded<[MmapArea?]>([])
  private static let queues = Guarded<[TestEventQueue]>([])

  override func perform(
    _ command: UInt32, _ request: inout Request, _ caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    // 20: give out a queue, which takes responses where `a` is not 0: `d`, and its index `b`.
    case 20:
      let queue = TestEventQueue(isWritable: request.a != 0)
      request.b = UInt64(
        Self.queues.withLock {
          $0.append(queue)
          return $0.count - 1
        })
      request.d = try caller.install(queue, closeOnExec: request.c != 0)
    case 21:  // Add the records from `a`, `c` of them, to queue `b`.
      let queue = try queue(request.b)
      for record in 0..<min(request.c, 1 << 20) { queue.add(request.a &+ record) }
    case 22:  // Take all records of queue `b` back.
      try queue(request.b).removeAll()
    case 23:  // Of queue `b`: how many responses `a`, the last `c`, whether it was closed `d`.
      let queue = try queue(request.b)
      request.a = UInt64(queue.responses.count)
      request.c = queue.responses.last ?? 0
      request.d = queue.isClosed ? 1 : 0
    case 24:  // Make pages of `a` bytes: their offset `b`, their index `c`.
      let area = try areas.make(length: request.a)
      request.b = area.offset
      request.c = UInt64(
        pages.withLock {
          $0.append(area)
          return $0.count - 1
        })
    case 25:  // Read the word at `a` of pages `c` into `b`.
      request.b = UInt64(try area(request.c)[word: try word(request.a, request.c)])
    case 26:  // Write `b` there.
      try area(request.c)[word: try word(request.a, request.c)] = UInt32(
        truncatingIfNeeded: request.b)
    case 27:  // Free pages `c`, if nobody has them mapped.
      let area = try area(request.c)
      guard !area.isMapped else {
        throw IOMMUError(.init(rawValue: EBUSY), "the pages are mapped")
      }
      areas.remove(area)
      pages.withLock { $0[Int(request.c)] = nil }
    default:
      return try super.perform(command, &request, caller)
    }
    return 0
  }

  override func checkMap(_ request: MapRequest) throws(IOMMUError) {
    try areas.check(
      offset: request.offset, length: request.length, isShared: request.isShared,
      isExecutable: request.isExecutable)
  }

  private func queue(_ index: UInt64) throws(IOMMUError) -> TestEventQueue {
    let queue = Self.queues.withLock { index < $0.count ? $0[Int(index)] : nil }
    guard let queue else { throw IOMMUError(.init(rawValue: ENOENT), "no queue \(index)") }
    return queue
  }

  private func area(_ index: UInt64) throws(IOMMUError) -> MmapArea {
    let area = pages.withLock { index < $0.count ? $0[Int(index)] : nil }
    guard let area else { throw IOMMUError(.init(rawValue: ENOENT), "no pages \(index)") }
    return area
  }

  private func word(_ byte: UInt64, _ index: UInt64) throws(IOMMUError) -> Int {
    guard byte & 3 == 0, byte < (try area(index)).length else {
      throw IOMMUError(.init(rawValue: EINVAL), "no word at \(byte)")
    }
    return Int(byte)
  }
}
