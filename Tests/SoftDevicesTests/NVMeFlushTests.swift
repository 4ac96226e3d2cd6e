// SPDX-License-Identifier: Apache-2.0
//
// J1: flushes of an NVMe controller whose medium takes its time: other queues go on, commands
// complete when what they wrote is on the medium, and deletion, reset, shutdown and migration find
// them where they are.

import Foundation
import Glibc
import IOMMU
import Synchronization
import TestSupport
import Testing
import VFIO

@testable import SoftDevices

/// A medium that flushes when it is told to.
private final class Gate: Sendable {
  private let isOpen = Atomic(false)
  private let begun = Atomic(0)

  func pass() {
    begun.add(1, ordering: .sequentiallyConsistent)
    while !isOpen.load(ordering: .acquiring) { usleep(100) }
  }

  func open() { isOpen.store(true, ordering: .releasing) }
  var count: Int { begun.load(ordering: .sequentiallyConsistent) }
}

@Suite(.timeLimit(.minutes(10))) struct NVMeFlushTests {
  /// A controller with two namespaces in files; the first is slow.
  private final class Slow {
    let rig: NVMeRig
    let gate = Gate()
    private let directory: URL

    init() throws {
      let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
        "nvme-\(UUID().uuidString)")
      self.directory = directory
      try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
      rig = try NVMeRig(
        NVMeConfiguration(
          namespaces: ["a", "b"].map {
            .init(file: directory.appendingPathComponent($0).path, size: 1 << 20)
          }, queues: 4))
      let gate = self.gate
      rig.controller.core.stores[0].beforeFlush.withLock { $0 = { gate.pass() } }
      try rig.enable()
      for number in 1...3 as ClosedRange<UInt16> { try rig.makeQueues(number) }
    }

    deinit {
      gate.open()
      try? FileManager.default.removeItem(at: directory)
    }

    func ring(_ number: UInt16) throws -> NVMeRing { try #require(rig.rings[number]) }

    func awaitFlush(_ count: Int = 1) { while gate.count < count { usleep(100) } }
  }

  private func write(_ control: UInt32 = 0) -> NVMeEntry {
    NVMeEntry(
      opcode: 1, block: 0, count: 1, pointer: NVMeRig.base + NVMeRig.data, control: control)
  }

  private let flush = NVMeEntry(opcode: 0, namespace: 1)

  @Test("J1: a flush that takes long holds up nothing but itself")
  func othersGoOn() throws {
    let slow = try Slow()
    let identifier = try slow.ring(1).submit(flush)
    slow.awaitFlush()
    for _ in 0..<10 {
      // The same queue's too.
      for number in 1...2 as ClosedRange<UInt16> {
        #expect(try slow.rig.run(write(), on: number).status == 0)
      }
      #expect(try slow.rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
    }
    slow.gate.open()
    #expect(try slow.ring(1).wait().identifier == identifier)
    #expect(slow.gate.count == 1)
  }

  @Test("J1: writes with FUA, and all without a volatile cache, complete when they last")
  func forcedWrites() throws {
    let slow = try Slow()
    try slow.ring(1).submit(write(1 << 30))
    slow.awaitFlush()
    #expect(try slow.ring(1).poll() == nil)
    slow.gate.open()
    #expect(try slow.ring(1).wait().status == 0)
    #expect(try slow.rig.admin(NVMeEntry(opcode: 9, dwords: [6, 0])).status == 0)
    let count = slow.gate.count
    #expect(try slow.rig.run(write()).status == 0)
    #expect(
      try slow.rig.run(NVMeEntry(opcode: 8, block: 0, count: 1)).status == 0)
    #expect(slow.gate.count == count + 2)
  }

  @Test("J1: flushes that come together are one, and there is room for each completion")
  func together() throws {
    let slow = try Slow()
    for number in 1...3 as ClosedRange<UInt16> {
      for _ in 0..<31 { try slow.ring(number).submit(flush, rings: false) }
      try slow.ring(number).ring()
    }
    slow.awaitFlush()
    slow.gate.open()
    for number in 1...3 as ClosedRange<UInt16> {
      var seen: Set<UInt16> = []
      for _ in 0..<31 {
        let completion = try slow.ring(number).wait()
        #expect(completion.status == 0)
        seen.insert(completion.identifier)
      }
      #expect(seen.count == 31)
    }
    #expect(slow.gate.count < 93)
  }

  @Test("J1: commands that are being flushed complete nowhere once their queue is deleted")
  func deletion() throws {
    let slow = try Slow()
    for _ in 0..<5 { try slow.ring(1).submit(flush) }
    slow.awaitFlush()
    #expect(try slow.rig.admin(NVMeEntry(opcode: 0, dwords: [1])).status == 0)
    #expect(try slow.rig.admin(NVMeEntry(opcode: 4, dwords: [1])).status == 0)
    let ring = try slow.rig.makeQueues(1, entries: 4)
    slow.gate.open()
    // The flush that went on is done; then all the room of the new queue is there.
    for _ in 0..<12 {
      let identifier = try ring.submit(flush)
      #expect(try ring.wait().identifier == identifier)
    }
    #expect(ring.poll() == nil)
  }

  @Test(
    "J1: a reset does not wait for the medium, and nothing completes after it",
    arguments: [false, true])
  func reset(function: Bool) throws {
    let slow = try Slow()
    try slow.ring(1).submit(flush)
    slow.awaitFlush()
    if function {
      slow.rig.function.reset()
      slow.rig.config(4, UInt16(6))
    } else {
      try slow.rig.disable()
    }
    try slow.rig.enable()
    let ring = try slow.rig.makeQueues()
    slow.gate.open()
    #expect(try slow.rig.run(flush).status == 0)
    #expect(ring.poll() == nil)
  }

  @Test("J1: a shutdown, and a controller that is stopped, wait for the medium")
  func settled() throws {
    let slow = try Slow()
    let identifier = try slow.ring(1).submit(flush)
    slow.awaitFlush()
    let migration = try #require(slow.rig.controller.migration)
    let gate = slow.gate
    let opener = Thread {
      usleep(20_000)
      gate.open()
    }
    opener.start()
    migration.quiesce()
    // Before it stands still.
    #expect(try slow.ring(1).poll()?.identifier == identifier)
    migration.resume()
    try slow.ring(1).submit(flush)
    #expect(try slow.ring(1).wait().status == 0)
    slow.rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1 << 14 | 1))
    try slow.rig.wait(0xC, 0x8)
  }

  @Test("J1: a shutdown ends with CC.EN: what is enabled after it is shut down anew")
  func again() throws {
    let slow = try Slow()
    let rig = slow.rig
    slow.gate.open()
    let sizes = UInt32(6 << 16 | 4 << 20)
    // Disabled and shut down by one write, and shut down while it is disabled.
    rig.write(0x14, sizes | 1 << 14)
    try rig.wait(0xD, 0x8)
    rig.write(0x14, sizes)
    rig.write(0x14, sizes | 1 << 14)
    try rig.wait(0xD, 0x8)
    try rig.enable()
    #expect(rig.status == 1)
    let count = slow.gate.count
    rig.write(0x14, sizes | 1 << 14 | 1)
    try rig.wait(0xC, 0x8)
    #expect(slow.gate.count == count + 1)
  }
}
