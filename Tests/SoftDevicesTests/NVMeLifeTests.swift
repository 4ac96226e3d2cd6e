// SPDX-License-Identifier: Apache-2.0
//
// The NVMe controller at its edges: queues that are full, misplaced or deleted while busy,
// doorbells that say nonsense, events, interrupts, resets at any time, and rest.

import Glibc
import SoftDevices
import Synchronization
import TestSupport
import Testing
import VFIO

@Suite struct NVMeLifeTests {
  private func rig(_ carriesDoorbells: Bool = false) throws -> NVMeRig {
    let rig = try NVMeRig(
      NVMeConfiguration(namespaces: [.init(size: 16 << 20)], queues: 4),
      carriesDoorbells: carriesDoorbells)
    try rig.enable()
    return rig
  }

  private var flush: NVMeEntry { NVMeEntry(opcode: 0, namespace: 1) }

  @Test(
    "J1: a full completion queue holds commands up until there is room",
    arguments: [false, true])
  func fullQueue(carries: Bool) throws {
    let rig = try rig(carries)
    let ring = try rig.makeQueues(entries: 3)
    for _ in 0..<2 { try ring.submit(flush) }
    _ = try ring.wait(releases: false)
    // One taken and not released, one there: no room for a third.
    try ring.submit(flush)
    try ring.submit(flush)
    usleep(20_000)
    _ = try ring.wait(releases: false)
    #expect(ring.poll() == nil)
    rig.ring(3, ring.head)
    _ = try ring.wait()
    _ = try ring.wait()
    #expect(ring.poll() == nil)
  }

  @Test(
    "J1: queues of odd sizes wrap, and their phases turn",
    arguments: [2, 3, 7, 255] as [UInt32])
  func oddSizes(entries: UInt32) throws {
    let rig = try rig()
    let ring = try rig.makeQueues(entries: entries)
    for round in 0..<UInt16(entries * 3) {
      let identifier = try ring.submit(flush)
      let completion = try ring.wait()
      #expect(completion.identifier == identifier)
      #expect(completion.status == 0)
      #expect(UInt32(completion.head) == UInt32(round + 1) % entries)
    }
  }

  @Test("J1: a queue whose memory is nowhere is a fatal error, and a reset ends it")
  func fatal() throws {
    let rig = try rig()
    let make = try rig.admin(
      NVMeEntry(opcode: 5, pointer: 1 << 40, dwords: [31 << 16 | 1, 1]))
    #expect(make.status == 0)
    let submissions = try rig.admin(
      NVMeEntry(
        opcode: 1, pointer: NVMeRig.base + NVMeRig.queues, dwords: [31 << 16 | 1, 1 << 16 | 1]))
    #expect(submissions.status == 0)
    // The command is carried out; that it is done cannot be said.
    rig.ring(2, 1)
    try rig.wait(2, 2)
    try rig.disable()
    #expect(rig.status == 0)
    try rig.enable()
    #expect(try rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
  }

  @Test(
    "J1: a controller that is enabled wrongly says so, and does nothing",
    arguments: [(0x0000_0001, 0), (0, 0x10), (0, 0x800), (0, 0x280)] as [(UInt64, UInt32)])
  func wrongEnable(misplaced: UInt64, configuration: UInt32) throws {
    let rig = try NVMeRig()
    rig.write(0x24, misplaced == 0 ? UInt32(31 | 31 << 16) : 0)
    rig.write(0x28, NVMeRig.base)
    rig.write(0x30, NVMeRig.base + 0x1000)
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1) | configuration)
    try rig.wait(3, 2)
    rig.write(0x14, UInt32(0))
    try rig.wait(2, 0)
    try rig.enable()
  }

  @Test("J1: with bus mastering off a controller that fetches has failed")
  func notMaster() throws {
    let rig = try rig()
    rig.config(4, UInt16(2))
    rig.ring(0, 1)
    try rig.wait(2, 2)
    rig.config(4, UInt16(6))
    try rig.disable()
    try rig.enable()
    #expect(try rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
  }

  @Test(
    "J1: doorbells that say nonsense are events, and change nothing", arguments: [false, true])
  func wrongDoorbells(carries: Bool) throws {
    let rig = try rig(carries)
    let ring = try rig.makeQueues()
    func event(_ wait: Bool = true) throws -> UInt32 {
      let identifier = try #require(rig.rings[0]).submit(NVMeEntry(opcode: 0x0C))
      let completion = try #require(rig.rings[0]).wait()
      #expect(completion.identifier == identifier)
      // Until the log is read, errors are not told of again.
      _ = try rig.admin(
        NVMeEntry(
          opcode: 2, namespace: .max, pointer: NVMeRig.base + NVMeRig.data,
          dwords: [15 << 16 | 1]))
      return completion.result
    }
    rig.ring(2, 32)
    #expect(try event() == 0x01_01_00)
    rig.ring(3, 5)
    #expect(try event() == 0x01_01_00)
    rig.ring(2 * 4, 1)
    #expect(try event() == 0x01_00_00)
    rig.ring(1023, 1)
    #expect(try event() == 0x01_00_00)
    // The queue goes on.
    try ring.submit(flush)
    #expect(try ring.wait().status == 0)
  }

  @Test("J1: requests for events have a limit, and can be aborted")
  func events() throws {
    let rig = try rig()
    let admin = try #require(rig.rings[0])
    let waiting = try (0..<4).map { _ in try admin.submit(NVMeEntry(opcode: 0x0C)) }
    #expect(try rig.admin(NVMeEntry(opcode: 0x0C)).code == 0x105)
    let abort = NVMeEntry(opcode: 8, dwords: [UInt32(waiting[2]) << 16])
    let identifier = try admin.submit(abort)
    let first = try admin.wait()
    let second = try admin.wait()
    let byIdentifier = [first.identifier: first, second.identifier: second]
    #expect(byIdentifier[waiting[2]]?.code == 0x007)
    #expect(byIdentifier[identifier]?.result == 0)
    #expect(try rig.admin(abort).result == 1)
  }

  @Test("J1: busy queues can be deleted; what was not fetched is dropped")
  func deletion() throws {
    let rig = try rig()
    for round in 0..<20 {
      let ring = try rig.makeQueues(entries: 64)
      for _ in 0..<40 { try ring.submit(flush, rings: false) }
      ring.ring()
      #expect(try rig.admin(NVMeEntry(opcode: 0, dwords: [1])).status == 0, "\(round)")
      #expect(try rig.admin(NVMeEntry(opcode: 4, dwords: [1])).status == 0)
      #expect(try rig.admin(NVMeEntry(opcode: 4, dwords: [1])).code == 0x101)
      // Doorbells of a queue that is gone are an event, no more.
      ring.ring()
    }
    let ring = try rig.makeQueues()
    try ring.submit(flush)
    #expect(try ring.wait().status == 0)
  }

  @Test("J1: a reset in the middle of transfers ends them", arguments: [0, 1, 2])
  func reset(kind: Int) throws {
    let rig = try rig(kind == 1)
    for _ in 0..<20 {
      let ring = try rig.makeQueues()
      for index in 0..<16 {
        let data = NVMeRig.data + UInt64(index) * 0x10_0000
        let list = rig.pages(data, count: 512 << 10, lists: NVMeRig.data + 0x180_0000)
        try ring.submit(
          NVMeEntry(
            opcode: 2, block: 0, count: 1024, pointer: NVMeRig.base + data, second: list),
          rings: false)
      }
      ring.ring()
      switch kind {
      case 0: try rig.disable()
      case 1: rig.function.reset()
      default: rig.write(0x20, UInt32(0x4E56_4D65))
      }
      if kind == 2 {
        try rig.wait(0x11, 0x10)
      }
      if kind == 1 { rig.config(4, UInt16(6)) }
      // Nothing comes after.
      let pattern = [UInt8](repeating: 0x77, count: 512 << 10)
      rig.put(pattern, at: NVMeRig.data)
      usleep(500)
      #expect(rig.bytes(NVMeRig.data, count: 512 << 10) == pattern)
      #expect(rig.status & 1 == 0)
      try rig.enable()
    }
  }

  @Test("J1: completions raise their queue's MSI-X vector, and none without one")
  func messages() throws {
    let rig = try rig()
    let signals = (0..<3).map { _ in CountingSignal() }
    try rig.function.interrupts.set(
      .msix, action: .trigger, start: 0, arguments: .events(signals.map { .signal($0) }),
      count: 3)
    let ring = try rig.makeQueues(vector: 2)
    #expect(signals[0].count > 0)
    let before = signals[0].count
    try ring.submit(flush)
    _ = try ring.wait()
    while signals[2].count == 0 { sched_yield() }
    #expect(signals[0].count == before)
    #expect(signals[1].count == 0)
    let quiet = try rig.makeQueues(2)
    let sum = signals[2].count
    try quiet.submit(flush)
    _ = try quiet.wait()
    #expect(signals[2].count == sum)
  }

  @Test("J1: without messages the line is asserted until completions are taken, or masked")
  func line() throws {
    let rig = try rig()
    let signal = CountingSignal()
    try rig.function.interrupts.set(
      .line, action: .trigger, start: 0, arguments: .events([.signal(signal)]), count: 1)
    func unmask() throws {
      try rig.function.interrupts.set(
        .line, action: .unmask, start: 0, arguments: .none, count: 1)
    }
    let admin = try #require(rig.rings[0])
    try admin.submit(NVMeEntry(opcode: 10, dwords: [7]))
    while signal.count == 0 { sched_yield() }
    // Not taken: it comes again.
    try unmask()
    #expect(signal.count == 2)
    rig.write(0x0C, UInt32(1))
    try unmask()
    #expect(signal.count == 2)
    #expect(rig.read(0x0C, as: UInt32.self) == 1)
    rig.write(0x10, UInt32(1))
    #expect(signal.count == 3)
    _ = try admin.wait()
    // The controller sees the doorbell a little later.
    _ = try rig.admin(NVMeEntry(opcode: 10, dwords: [7]))
    while rig.isLineAsserted { sched_yield() }
    let sum = signal.count
    try unmask()
    #expect(signal.count == sum)
  }

  @Test("J1: an idle controller rests: its doorbell page is closed, and a ring wakes it")
  func rest() throws {
    let rig = try rig(true)
    let pages = try #require(rig.doorbells)
    let ring = try rig.makeQueues()
    for _ in 0..<5 {
      // Counted before it is seen closed: a rest that finds the last doorbell unread opens again.
      var openings = pages.openings
      while pages.isOpen {
        usleep(100)
        openings = pages.openings
      }
      try ring.submit(flush)
      #expect(try ring.wait().status == 0)
      #expect(pages.openings > openings)
    }
  }

  @Test("J1: no ring is lost between the doorbell page and the trap")
  func race() throws {
    var configuration = NVMeConfiguration(namespaces: [.init(size: 1 << 20)])
    // It rests as soon as it finds nothing: about when the next ring comes.
    configuration.idlePolling = .zero
    let rig = try NVMeRig(configuration, carriesDoorbells: true)
    try rig.enable()
    let ring = try rig.makeQueues(entries: 4)
    var random = SystemRandomNumberGenerator()
    var openings: Int { rig.doorbells?.openings ?? 0 }
    // How often it rests is the scheduler's to say: a busy machine takes more rounds.
    for round in 0..<100_000 where round < 3000 || openings <= 100 {
      try ring.submit(flush)
      #expect(try ring.wait().status == 0)
      for _ in 0..<Int.random(in: 0...400, using: &random) { _ = rig.doorbells?.isOpen }
    }
    #expect(openings > 100)
  }
}

extension NVMeRig {
  /// Whether the line would signal if it were unmasked now.
  var isLineAsserted: Bool {
    let signal = CountingSignal()
    try? function.interrupts.set(.line, action: .trigger, start: 0, arguments: .none, count: 0)
    try? function.interrupts.set(
      .line, action: .trigger, start: 0, arguments: .events([.signal(signal)]), count: 1)
    return signal.count > 0
  }
}
