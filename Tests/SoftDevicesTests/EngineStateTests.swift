// SPDX-License-Identifier: Apache-2.0
//
// J1: the copy engine's state: stopped, saved, loaded in another engine; and what is no state.

import IOMMU
import TestSupport
import Testing
import VFIO

@testable import SoftDevices

@Suite(.timeLimit(.minutes(10))) struct EngineStateTests {
  private func rig(_ configuration: CopyEngine.Configuration = .init()) throws -> EngineRig {
    let rig = try EngineRig(configuration: configuration)
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x40_0000) == 0)
    rig.write(0x03, UInt8(1))
    return rig
  }

  /// A ring of descriptors that each copy one word from 0x20_0000 up to 0x30_0000 up.
  private func ring(_ rig: EngineRig, count: UInt64) {
    for index in 0..<count {
      rig.caller.put(0x1111 * (index + 1), at: 0x20_0000 + index * 8)
      rig.descriptor(
        at: 0x10_0000 + index * 64, size: 8, control: 0, source: 0x20_0000 + index * 8,
        destination: 0x30_0000 + index * 8, next: 0x10_0000 + (index + 1) % count * 64)
    }
  }

  private func migration(_ rig: EngineRig) throws -> any DeviceMigration {
    try #require(rig.engine.migration)
  }

  @Test("J1: a stopped engine takes no descriptor; loaded elsewhere, it goes on where it was")
  func goesOn() throws {
    let (old, new) = (try rig(), try rig())
    ring(old, count: 8)
    ring(new, count: 8)
    old.start(0x10_0000, count: 3)
    #expect(old.wait() == 0x10_0080 | 1)
    try migration(old).quiesce()
    old.write(0x86, UInt16(8))
    #expect(
      old.caller.get(UInt64.self, at: 0x30_0018) == 0, "nothing is copied while it stands")
    let state = try migration(old).saveState()
    try migration(new).quiesce()
    try migration(new).loadState(state)
    #expect(new.caller.get(UInt64.self, at: 0x30_0018) == 0)
    try migration(new).resume()
    #expect(new.wait() == 0x10_01C0 | 1)
    for index in UInt64(0)..<8 {
      let wanted = index < 3 ? 0 : 0x1111 * (index + 1)
      #expect(new.caller.get(UInt64.self, at: 0x30_0000 + index * 8) == wanted, "\(index)")
    }
    // And the old one goes on too, if nobody wants it moved after all.
    try migration(old).resume()
    #expect(old.wait() == 0x10_01C0 | 1)
  }

  @Test("J1: an interrupt that comes due while the engine stands is raised when it goes on")
  func interrupt() throws {
    let old = try rig()
    let signal = CountingSignal()
    #expect(old.arm(signal) == 0)
    ring(old, count: 2)
    old.caller.put(UInt32(0x1), at: 0x10_0004)
    old.caller.put(UInt32(0x1), at: 0x10_0044)
    old.start(0x10_0000, count: 2)
    old.wait()
    #expect(signal.count == 1, "the second waits until it is armed again")
    try migration(old).quiesce()
    old.write(0x80, UInt16(0x9))
    #expect(signal.count == 1)
    try migration(old).resume()
    #expect(signal.count == 2)
  }

  @Test("J1: a reset of a stopped engine is done at once, and the engine stays stopped")
  func reset() throws {
    let old = try rig()
    ring(old, count: 2)
    try migration(old).quiesce()
    old.engine.reset()
    old.write(0x90, UInt64(0x10_0000))
    old.write(0x86, UInt16(2))
    #expect(old.status & 7 == 0)
    #expect(old.caller.get(UInt64.self, at: 0x30_0000) == 0)
    try migration(old).resume()
    #expect(old.wait() == 0x10_0040 | 1)
  }

  @Test(
    "J1: what is no state is EINVAL and changes nothing: short, long, flipped, another engine's"
  )
  func refusals() throws {
    let old = try rig()
    ring(old, count: 4)
    old.start(0x10_0000, count: 4)
    old.wait()
    try migration(old).quiesce()
    let state = try migration(old).saveState()
    let engine = try migration(old)
    func result(_ bytes: [UInt8]) -> IOMMUError? {
      do throws(IOMMUError) {
        try engine.loadState(bytes)
        return nil
      } catch {
        #expect(engine.saveState() == state)
        return error
      }
    }
    for count in 0..<state.count {
      #expect(result(Array(state[..<count]))?.errno == .invalidArgument, "\(count)")
    }
    #expect(result(state + [0])?.errno == .invalidArgument)
    var refused = 0
    for bit in 0..<state.count * 8 {
      var bytes = state
      bytes[bit / 8] ^= 1 << UInt8(bit % 8)
      if result(bytes) != nil { refused += 1 }
      try migration(old).loadState(state)
    }
    #expect(refused > 60, "flags, the status, what identifies the engine")
    let other = try rig(.init(canFill: true))
    try migration(other).quiesce()
    #expect(throws: IOMMUError.self) { try migration(other).loadState(state) }
  }
}
