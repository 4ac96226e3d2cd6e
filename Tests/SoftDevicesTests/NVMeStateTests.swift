// SPDX-License-Identifier: Apache-2.0
//
// J1: the NVMe controller's state: stopped, saved, loaded in another controller; and what is no
// state.

import Glibc
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import SoftDevices

@Suite(.timeLimit(.minutes(10))) struct NVMeStateTests {
  private func rig(_ carriesDoorbells: Bool = false) throws -> NVMeRig {
    try NVMeRig(
      NVMeConfiguration(namespaces: [.init(size: 1 << 20)], queues: 4),
      carriesDoorbells: carriesDoorbells)
  }

  private func migration(_ rig: NVMeRig) throws -> any DeviceMigration {
    try #require(rig.controller.migration)
  }

  /// A state but for the time, which goes on.
  private func parts(_ rig: NVMeRig, _ bytes: [UInt8]) throws -> [String] {
    let core = rig.controller.core
    var state = try NVMeState(bytes, configuration: core.configuration, core.stores)
    state.features.timestamp = (0, false)
    return [
      "\(state.registers)", "\(state.completions)", "\(state.submissions)",
      "\(state.events)", "\(state.health.errors)", "\(state.features.writeAtomicity)",
    ]
  }

  private var flush: NVMeEntry { NVMeEntry(opcode: 0, namespace: 1) }

  @Test(
    "J1: a stopped NVMe controller fetches nothing; loaded elsewhere, it goes on where it was",
    arguments: [false, true])
  func goesOn(carries: Bool) throws {
    let (old, new) = (try rig(carries), try rig(carries))
    try old.enable()
    let ring = try old.makeQueues(entries: 5)
    for _ in 0..<7 {
      try ring.submit(flush)
      _ = try ring.wait()
    }
    #expect(try old.admin(NVMeEntry(opcode: 9, dwords: [0x0A, 1])).status == 0)
    let waiting = try #require(old.rings[0]).submit(NVMeEntry(opcode: 0x0C))
    // Until it has been fetched.
    _ = try ring.submit(flush)
    _ = try ring.wait()
    while old.rings[0].map({ _ in try? migration(old).saveState() })?.flatMap({
      try? NVMeState(
        $0, configuration: old.controller.core.configuration, old.controller.core.stores)
    })?.events.waiting != [waiting] { sched_yield() }

    try migration(old).quiesce()
    let identifier = try ring.submit(flush)
    usleep(5000)
    #expect(ring.poll() == nil, "nothing is done while it stands")
    let state = try migration(old).saveState()
    #expect(state.count <= (try migration(old)).stateLimit)

    // The user moves its memory.
    new.put(old.bytes(0, count: Int(NVMeRig.data)), at: 0)
    try migration(new).quiesce()
    try migration(new).loadState(state)
    #expect(try parts(new, migration(new).saveState()) == parts(old, state))
    #expect(new.status == 1)
    try migration(new).resume()
    let moved = new.take(ring)
    #expect(try moved.wait().identifier == identifier)
    try moved.submit(flush)
    #expect(try moved.wait().status == 0)
    let admin = new.take(try #require(old.rings[0]))
    let feature = try admin.submit(NVMeEntry(opcode: 10, dwords: [0x0A]))
    let answer = try admin.wait()
    #expect(answer.identifier == feature)
    #expect(answer.result == 1)
    // Who waited for events there waits here.
    new.ring(1023, 1)
    let event = try admin.wait()
    #expect(event.identifier == waiting)
    #expect(event.result == 0x01_00_00)

    // And the old one goes on too, if nobody wants it moved after all.
    try migration(old).resume()
    #expect(try ring.wait().identifier == identifier)
  }

  @Test("J1: what is asked of a stopped NVMe controller waits; a reset does not make it go on")
  func standsStill() throws {
    let rig = try rig()
    try migration(rig).quiesce()
    rig.write(0x24, UInt32(31 | 31 << 16))
    rig.write(0x28, NVMeRig.base)
    rig.write(0x30, NVMeRig.base + 0x1000)
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1))
    usleep(2000)
    #expect(rig.status == 0)
    let state = try migration(rig).saveState()
    rig.function.reset()
    rig.config(4, UInt16(6))
    #expect(rig.read(0x28, as: UInt64.self) == 0)
    try migration(rig).loadState(state)
    #expect(rig.read(0x28, as: UInt64.self) == NVMeRig.base)
    #expect(rig.status == 0)
    try migration(rig).resume()
    try rig.wait(3, 1)
    try migration(rig).quiesce()
    rig.function.reset()
    rig.config(4, UInt16(6))
    #expect(rig.status == 0)
    try migration(rig).resume()
    try rig.enable()
    #expect(try rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
  }

  @Test("J1: what is no state of such a controller is refused, and nothing changes")
  func refused() throws {
    let rig = try rig()
    try rig.enable()
    try rig.makeQueues()
    try migration(rig).quiesce()
    let state = try migration(rig).saveState()
    #expect(throws: IOMMUError.self) { try migration(rig).loadState([]) }
    #expect(throws: IOMMUError.self) { try migration(rig).loadState(state + [0]) }
    for count in stride(from: 0, to: state.count, by: 3) {
      #expect(throws: IOMMUError.self) {
        try migration(rig).loadState(Array(state.prefix(count)))
      }
    }
    let other = try NVMeRig(NVMeConfiguration(namespaces: [.init(size: 2 << 20)], queues: 4))
    #expect(throws: IOMMUError.self) { try migration(other).loadState(state) }
    #expect(try parts(rig, migration(rig).saveState()) == parts(rig, state))
    try migration(rig).resume()
    #expect(try rig.run(flush).status == 0)
  }

  @Test("J1: counters of a state that are as large as can be are told, and counted on")
  func largeCounters() throws {
    let rig = try rig()
    try rig.enable()
    let core = rig.controller.core
    try migration(rig).quiesce()
    var state = try NVMeState(
      migration(rig).saveState(), configuration: core.configuration, core.stores)
    state.health.readBytes = .max
    state.health.writtenBytes = .max
    state.health.readCommands = .max
    state.health.errorCount = .max
    state.features.timestamp = (1 << 48 - 1, true)
    try migration(rig).loadState(state.bytes(of: core.configuration, core.stores))
    try migration(rig).resume()
    try rig.makeQueues()
    #expect(
      try rig.run(
        NVMeEntry(opcode: 2, block: 0, count: 8, pointer: NVMeRig.base + NVMeRig.data)
      ).status == 0)
    #expect(try rig.run(NVMeEntry(opcode: 0x7F, namespace: 1)).code == 0x001)
    for (opcode, dwords) in [(2, [127 << 16 | 2]), (10, [0x0E])] as [(UInt8, [UInt32])] {
      #expect(
        try rig.admin(
          NVMeEntry(
            opcode: opcode, namespace: opcode == 2 ? .max : 0,
            pointer: NVMeRig.base + NVMeRig.data, dwords: dwords)
        ).status == 0)
    }
  }

  @Test(
    "J1: a state with any byte changed is taken or refused, and the controller can be reset")
  func garbled() throws {
    let rig = try rig()
    try rig.enable()
    try rig.makeQueues()
    try migration(rig).quiesce()
    let state = try migration(rig).saveState()
    var random = SystemRandomNumberGenerator()
    for index in state.indices {
      var garbled = state
      garbled[index] ^= UInt8.random(in: 1...255, using: &random)
      try? migration(rig).loadState(garbled)
      if index % 16 == 0 {
        try migration(rig).resume()
        try migration(rig).quiesce()
      }
    }
    rig.function.reset()
    try migration(rig).resume()
    rig.config(4, UInt16(6))
    try rig.enable()
    #expect(try rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
  }
}
