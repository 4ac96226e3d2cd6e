// SPDX-License-Identifier: Apache-2.0
//
// Drivers of the NVMe controller that mean harm: queues that are nowhere or vanish, completions that
// nobody takes, registers written at the wrong time and in odd widths. The controller answers as
// hardware does, and what is well programmed goes on.

import Glibc
import IOMMU
import PageTables
import SoftDevices
import TestSupport
import Testing
import VFIO

@Suite(.timeLimit(.minutes(10))) struct NVMeHostileTests {
  private func rig(_ carriesDoorbells: Bool = false) throws -> NVMeRig {
    let rig = try NVMeRig(
      NVMeConfiguration(
        namespaces: [.init(size: 16 << 20), .init(size: 1 << 20, blockSize: 4096)], queues: 4),
      carriesDoorbells: carriesDoorbells)
    try rig.enable()
    return rig
  }

  private var flush: NVMeEntry { NVMeEntry(opcode: 0, namespace: 1) }
  private var feature: NVMeEntry { NVMeEntry(opcode: 10, dwords: [7]) }
  private let nowhere: UInt64 = 1 << 40

  /// Disabled and enabled, it works.
  private func checkRecovery(_ rig: NVMeRig) throws {
    rig.write(0x14, UInt32(0))
    try rig.wait(.max, 0)
    try rig.enable()
    try rig.makeQueues()
    #expect(try rig.run(flush).status == 0)
  }

  // MARK: Queues

  @Test(
    "J1: admin queues that are nowhere are a fatal status at the first ring, until a reset",
    arguments: [(true, false), (false, true), (true, true)])
  func adminQueuesNowhere(submissions: Bool, completions: Bool) throws {
    let rig = try NVMeRig()
    rig.write(0x24, UInt32(31 | 31 << 16))
    rig.write(0x28, submissions ? nowhere : NVMeRig.base)
    rig.write(0x30, completions ? nowhere : NVMeRig.base + 0x1000)
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1))
    try rig.wait(3, 1)
    rig.put(UInt32(10), at: 0)
    rig.put(UInt32(7), at: 40)
    rig.ring(0, 1)
    try rig.wait(2, 2)
    // Rings of a controller that has failed are nobody's.
    rig.ring(0, 2)
    rig.ring(1023, 7)
    #expect(rig.status & 2 == 2)
    try checkRecovery(rig)
  }

  @Test("J1: a queue whose memory is unmapped while it works is a fatal status, until a reset")
  func vanishingQueue() throws {
    let rig = try rig()
    let alias: UInt64 = 0x8000_0000
    try rig.context.map(
      rig.memory, start: NVMeRig.queues, length: 0x2_0000, into: rig.space,
      at: .fixed(IOVA(alias)))
    #expect(
      try rig.admin(
        NVMeEntry(opcode: 5, pointer: alias + 0x4000, dwords: [31 << 16 | 1, 1])
      ).status == 0)
    #expect(
      try rig.admin(
        NVMeEntry(opcode: 1, pointer: alias, dwords: [31 << 16 | 1, 1 << 16 | 1])
      ).status == 0)
    let ring = NVMeRing(
      rig, number: 1, entries: 32, submissions: NVMeRig.queues,
      completions: NVMeRig.queues + 0x4000)
    for _ in 0..<10 {
      try ring.submit(flush)
      #expect(try ring.wait().status == 0)
    }
    try rig.context.unmap(alias...alias + 0x1_FFFF, from: rig.space)
    try ring.submit(flush)
    try rig.wait(2, 2)
    try checkRecovery(rig)
  }

  @Test("J1: an admin queue of one entry is not enabled")
  func tinyAdminQueue() throws {
    for sizes in [0, 31, 31 << 16] as [UInt32] {
      let rig = try NVMeRig()
      rig.write(0x24, sizes)
      rig.write(0x28, NVMeRig.base)
      rig.write(0x30, NVMeRig.base + 0x1000)
      rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1))
      try rig.wait(3, 2)
      try checkRecovery(rig)
    }
  }

  @Test("J1: admin queues as large as they can be work")
  func largeAdminQueue() throws {
    let rig = try NVMeRig()
    // All bits, those that are reserved too.
    rig.write(0x24, UInt32.max)
    #expect(rig.read(0x24, as: UInt32.self) == 0x0FFF_0FFF)
    rig.write(0x28, NVMeRig.base + NVMeRig.data)
    rig.write(0x30, NVMeRig.base + NVMeRig.data + 0x10_0000)
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1))
    try rig.wait(3, 1)
    let ring = NVMeRing(
      rig, number: 0, entries: 4096, submissions: NVMeRig.data,
      completions: NVMeRig.data + 0x10_0000)
    for _ in 0..<4095 { try ring.submit(feature, rings: false) }
    ring.ring()
    for _ in 0..<4095 { #expect(try ring.wait().status == 0) }
    try ring.submit(feature)
    #expect(try ring.wait().status == 0)
  }

  @Test(
    "J1: completions that nobody takes are not overwritten, whoever's they are",
    arguments: [false, true])
  func sharedCompletions(carries: Bool) throws {
    let rig = try rig(carries)
    let place = NVMeRig.queues
    #expect(
      try rig.admin(
        NVMeEntry(
          opcode: 5, pointer: NVMeRig.base + place, dwords: [4 << 16 | 1, 1])
      ).status == 0)
    var rings: [NVMeRing] = []
    for number in 1...2 {
      let submissions = place + UInt64(number) * 0x4000
      #expect(
        try rig.admin(
          NVMeEntry(
            opcode: 1, pointer: NVMeRig.base + submissions,
            dwords: [31 << 16 | UInt32(number), 1 << 16 | 1])
        ).status == 0)
      rings.append(
        NVMeRing(
          rig, number: UInt16(number), entries: 32, completionEntries: 5,
          submissions: submissions, completions: place))
    }
    for ring in rings {
      for _ in 0..<20 { try ring.submit(flush, rings: false) }
      ring.ring()
    }
    var seen: [UInt16: [UInt16]] = [:]
    for round in 0..<10 {
      // Four, and then none: one entry stays free.
      for _ in 0..<4 {
        let completion = try rings[0].wait(releases: false)
        seen[completion.queue, default: []].append(completion.identifier)
      }
      if round < 9 { usleep(2000) }
      #expect(rings[0].poll() == nil)
      rig.ring(3, rings[0].head)
    }
    #expect(seen[1] == Array(0..<20))
    #expect(seen[2] == Array(0..<20))
  }

  @Test("J1: what commands set free to be told waits for room as well")
  func fullAdminQueue() throws {
    let rig = try NVMeRig()
    try rig.enable(entries: 4)
    let admin = try #require(rig.rings[0])
    var waiting: [UInt16] = []
    for _ in 0..<3 {
      waiting.append(try admin.submit(NVMeEntry(opcode: 0x0C)))
      #expect(try rig.admin(feature).status == 0)
    }
    // Each of them completes, and what it aborts: six, where there is room for three.
    var expected = Set(waiting)
    for identifier in waiting {
      expected.insert(
        try admin.submit(
          NVMeEntry(opcode: 8, dwords: [UInt32(identifier) << 16]), rings: false))
    }
    admin.ring()
    // Taken one at a time, so that each of them makes room for one.
    var seen: Set<UInt16> = []
    for _ in 0..<6 {
      seen.insert(try admin.wait().identifier)
      usleep(2000)
    }
    #expect(seen == expected)
    #expect(admin.poll() == nil)
    #expect(try rig.admin(feature).status == 0)
  }

  @Test(
    "J1: a log that lets the next event through completes first, where there is room for one")
  func eventsInTinyQueue() throws {
    let rig = try NVMeRig()
    try rig.enable(entries: 2)
    let admin = try #require(rig.rings[0])
    for round in 0..<5 {
      let waiting = try admin.submit(NVMeEntry(opcode: 0x0C))
      // Out of range, then of no queue: the second is told when the log was read.
      rig.ring(1023, 1)
      rig.ring(0, 9)
      #expect(try admin.wait().identifier == waiting, "\(round)")
      let log = NVMeEntry(
        opcode: 2, namespace: .max, pointer: NVMeRig.base + NVMeRig.data,
        dwords: [15 << 16 | 1])
      #expect(try rig.admin(log).status == 0)
      let second = try admin.submit(NVMeEntry(opcode: 0x0C))
      #expect(try admin.wait().identifier == second)
      #expect(try rig.admin(log).status == 0)
    }
  }

  @Test("J1: a queue pair that is misused does not hold up another")
  func others() throws {
    let rig = try rig(true)
    let bad = try rig.makeQueues(1)
    let good = try rig.makeQueues(2)
    for round in 0..<20 {
      // Out of range, backwards, garbage.
      rig.ring(2, 4000)
      rig.ring(3, 17)
      try bad.submit(
        NVMeEntry(
          opcode: UInt8(truncatingIfNeeded: round * 7), flags: UInt8(round % 4) << 6,
          namespace: UInt32(round % 5), pointer: nowhere, second: 5), rings: round % 2 == 0)
      try good.submit(flush)
      #expect(try good.wait().status == 0, "\(round)")
    }
  }

  // MARK: Doorbells

  @Test(
    "J1: rings before the controller is ready, and after, are nobody's",
    arguments: [false, true])
  func untimelyRings(carries: Bool) throws {
    let rig = try NVMeRig(carriesDoorbells: carries)
    for index in [0, 1, 2, 1023] { rig.write(0x1000 + UInt64(index) * 4, UInt32(1)) }
    try rig.enable()
    try rig.makeQueues()
    #expect(try rig.run(flush).status == 0)
    try rig.disable()
    for index in [0, 1, 2, 1023] { rig.write(0x1000 + UInt64(index) * 4, UInt32(9)) }
    try rig.enable()
    let admin = try #require(rig.rings[0])
    // No event is there to be told.
    try admin.submit(NVMeEntry(opcode: 0x0C))
    #expect(try rig.admin(feature).status == 0)
    #expect(admin.poll() == nil)
  }

  @Test("J1: doorbells read as zero, and take nothing narrower than their word")
  func doorbellWidths() throws {
    let rig = try rig()
    let ring = try rig.makeQueues()
    try ring.submit(flush, rings: false)
    rig.write(0x1008, UInt8(1))
    rig.write(0x1008, UInt16(1))
    usleep(2000)
    #expect(ring.poll() == nil)
    #expect(rig.read(0x1008, as: UInt64.self) == 0)
    // Both doorbells of the pair in one access.
    rig.write(0x1008, UInt64(1))
    #expect(try ring.wait().status == 0)
  }

  // MARK: Registers

  @Test("J1: what CC may not change while it is enabled stays as it was")
  func changedConfiguration() throws {
    let rig = try rig()
    // Another command set, pages of 256 MiB, another arbitration; entries of no size.
    rig.write(0x14, UInt32(1 | 7 << 4 | 0xF << 7 | 7 << 11))
    #expect(rig.read(0x14, as: UInt32.self) == 1)
    #expect(
      try rig.admin(
        NVMeEntry(
          opcode: 5, pointer: NVMeRig.base + NVMeRig.queues, dwords: [31 << 16 | 1, 1])
      ).code == 0x102)
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1))
    try rig.makeQueues()
    #expect(try rig.run(flush).status == 0)
    // It can still be moved.
    let migration = try #require(rig.controller.migration)
    rig.write(0x14, UInt32(0xF << 7))
    try rig.wait(1, 0)
    migration.quiesce()
    try migration.loadState(migration.saveState())
    migration.resume()
    try rig.enable()
    #expect(try rig.admin(feature).status == 0)
  }

  @Test("J1: CC.EN that goes to and fro leaves a controller that can be enabled")
  func flapping() throws {
    let rig = try rig(true)
    for round in 0..<80 {
      let ring = round % 8 == 0 ? try? rig.makeQueues() : rig.rings[0]
      _ = try? ring?.submit(feature)
      for enabled in [0, 1, 0, 1] as [UInt32] {
        rig.write(0x14, UInt32(6 << 16 | 4 << 20) | enabled)
        if round % 3 == 0 { usleep(UInt32(round % 50)) }
      }
      if round % 8 == 7 {
        try rig.disable()
        try rig.enable()
      }
    }
    try checkRecovery(rig)
  }

  @Test("J1: a shutdown in the middle of transfers is done, and what was written is there")
  func shutdown() throws {
    let rig = try rig()
    for round in 0..<4 {
      let ring = try rig.makeQueues()
      let value = UInt8(round + 1)
      rig.put([UInt8](repeating: value, count: 4096), at: NVMeRig.data)
      try ring.submit(
        NVMeEntry(opcode: 1, block: 0, count: 8, pointer: NVMeRig.base + NVMeRig.data))
      #expect(try ring.wait().status == 0)
      for index in 0..<20 {
        try ring.submit(
          NVMeEntry(
            opcode: index % 2 == 0 ? 0x0C : 0, block: 0, count: 32768,
            pointer: NVMeRig.base + NVMeRig.data), rings: false)
      }
      ring.ring()
      // Normal or abrupt.
      rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1) | UInt32(1 + round % 2) << 14)
      try rig.wait(0xC, 0x8)
      // Again changes nothing.
      rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1) | UInt32(1 + round % 2) << 14)
      #expect(rig.status & 0xC == 0x8)
      try rig.disable()
      try rig.enable()
      try rig.makeQueues()
      let target = NVMeRig.data + 0x1_0000
      #expect(
        try rig.run(
          NVMeEntry(opcode: 2, block: 0, count: 8, pointer: NVMeRig.base + target)
        ).status == 0)
      #expect(rig.bytes(target, count: 4096) == [UInt8](repeating: value, count: 4096))
      try rig.disable()
      try rig.enable()
    }
  }

  @Test("J1: registers are read in parts of any width; narrow writes change nothing")
  func widths() throws {
    let rig = try rig()
    let whole = (0..<8).map { rig.read(UInt64($0) * 8, as: UInt64.self) }
    for (index, word) in whole.enumerated() {
      let offset = UInt64(index) * 8
      for part in 0..<8 as Range<UInt64> {
        #expect(
          rig.read(offset + part, as: UInt8.self)
            == UInt8(truncatingIfNeeded: word >> (part * 8)))
      }
      for part in 0..<2 as Range<UInt64> {
        #expect(
          rig.read(offset + part * 4, as: UInt32.self)
            == UInt32(truncatingIfNeeded: word >> (part * 32)))
      }
      for part in 0..<8 as Range<UInt64> {
        rig.write(offset + part, UInt8(0xFF))
        if part % 2 == 0 { rig.write(offset + part, UInt16(0xFFFF)) }
      }
      // Misaligned: in parts, none of which is a word.
      rig.write(offset + 3, UInt16(0xFFFF))
      #expect(rig.read(offset, as: UInt64.self) == word)
    }
    // Between the registers and the doorbells there is nothing.
    for offset in stride(from: UInt64(0x40), to: 0x1000, by: 8) {
      rig.write(offset, UInt64.max)
      #expect(rig.read(offset, as: UInt64.self) == 0)
    }
    #expect(try rig.admin(feature).status == 0)
  }

  @Test("J1: vectors that nobody listens to, and the table rewritten live, hold nothing up")
  func vectors() throws {
    let rig = try rig()
    let signal = CountingSignal()
    try rig.function.interrupts.set(
      .msix, action: .trigger, start: 1, arguments: .events([.signal(signal)]), count: 1)
    let armed = try rig.makeQueues(1, vector: 1)
    let quiet = try rig.makeQueues(2, vector: 4)
    for round in 0..<40 {
      // The table in the BAR is the host's, not the driver's: garbage changes no message.
      rig.write(0x2000 + UInt64(round % 20) * 4, UInt32.max)
      for ring in [armed, quiet] { try ring.submit(flush) }
      for ring in [armed, quiet] { #expect(try ring.wait().status == 0) }
    }
    while signal.count < 40 { sched_yield() }
    #expect(signal.count == 40)
  }
}
