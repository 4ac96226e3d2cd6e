// SPDX-License-Identifier: Apache-2.0
//
// Long maps whose caller is gone meanwhile.

import Glibc
import PageTables
import Synchronization
import Testing

@testable import IOMMU
@testable import SoftwareIOMMU

@Suite("B1: maps that nobody waits for any more", .serialized)
struct InterruptionTests {
  private let bench = Bench()
  private let space: AddressSpace
  private let domain: any PagingDomain
  private static let size: UInt64 = 1 << 30

  init() throws {
    space = AddressSpace(id: ObjectID(1), memory: bench.memory, events: bench.events)
    domain = try bench.attachedDomain()
    try space.add(domain)
  }

  /// Maps 1 GiB at an IOVA; the caller is found gone at the n-th question, 0 is never.
  /// - Returns: How often was asked.
  private func map(at iova: UInt64, goneAt nth: Int) throws -> Int {
    let questions = Atomic(0)
    let here = pthread_self()
    try withExtendedLifetime(Counter()) { counter in
      Interruption.ask {
        guard pthread_equal(here, pthread_self()) != 0 else { return false }
        counter.signal()
        return counter.count == nth
      }
      defer {
        Interruption.ask(nil)
        questions.store(counter.count, ordering: .relaxed)
      }
      _ = try space.map(
        LocalMemory(byteCount: Self.size), start: 0, length: Self.size, permissions: .readWrite,
        placement: .fixed(IOVA(iova)))
    }
    return questions.load(ordering: .relaxed)
  }

  @Test("B1: a map whose caller is killed ends soon with EINTR, and nothing of it stays")
  func killed() throws {
    let error = #expect(throws: IOMMUError.self) {
      _ = try map(at: Self.size + 0x1000, goneAt: 3)
    }
    #expect(error?.errno == .interrupted)
    #expect(bench.memory.usedSlots == 0)
    #expect(space.state.withLock { $0.areas.firstEnding(atOrAfter: 0) == nil })
    #expect(domain.translate(IOVA(Self.size + 0x1000)) == nil)
    // What was in the way is not any more.
    _ = try map(at: Self.size + 0x1000, goneAt: 0)
    #expect(domain.translate(IOVA(2 * Self.size)) != nil)
  }

  @Test("B1: the steps of a long map cut no leaf", arguments: [0, 1 << 21, 0x1000])
  func leaves(shift: UInt64) throws {
    // The memory lies at the beginning of a GiB.
    let asked = try map(at: 2 * Self.size + shift, goneAt: 0)
    #expect(asked == (shift == 0 ? 1 : 17))
    let whole = try bench.domain()
    try whole.map(
      IOVA(2 * Self.size + shift), to: PhysicalAddress(5 * Self.size), length: Self.size,
      permissions: .readWrite)
    let steps = try #require(domain as? any SoftwareDomain)
    #expect(steps.footprint.pages == (whole as? any SoftwareDomain)?.footprint.pages)
  }

  @Test("B1: small maps ask nobody")
  func small() throws {
    let memory = try LocalMemory(byteCount: 64 << 20)
    let counter = Counter()
    let here = pthread_self()
    Interruption.ask {
      if pthread_equal(here, pthread_self()) != 0 { counter.signal() }
      return true
    }
    defer { Interruption.ask(nil) }
    _ = try space.map(
      memory, start: 0, length: 64 << 20, permissions: .readWrite,
      placement: .fixed(IOVA(0x1000)))
    #expect(counter.count == 0)
  }
}
