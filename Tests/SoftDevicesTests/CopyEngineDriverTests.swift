// SPDX-License-Identifier: Apache-2.0
//
// J1: what Linux's and DPDK's copy drivers do to the engine, in their order: the accesses are
// theirs, the values facts of their sources.

import Glibc
import IOMMU
import TestSupport
import Testing

@testable import SoftDevices

@Suite(.timeLimit(.minutes(10))) struct CopyEngineDriverTests {
  @Test("J1: the registers that drivers only set up read as they were written, until a reset")
  func hints() throws {
    let rig = try EngineBench(.init(version: 0x34)).rig
    // DCACTRL, DRSCTL, LTR_ACTIVE, LTR_IDLE, LTR_SWSEL, PREFETCH_LIMIT.
    rig.write(0xB0, UInt32(0xFFFE))
    rig.write(0xB6, UInt16(0x0109))
    rig.write(0xC0, UInt32(0x8800))
    rig.write(0xC4, UInt32(0x8A58))
    rig.write(0xBC, UInt8(1))
    rig.write(0x4C, UInt8(8))
    #expect(rig.read(0xB0, as: UInt32.self) == 0xFFFE)
    #expect(rig.read(0xB6, as: UInt16.self) == 0x0109)
    #expect(rig.read(0xC0, as: UInt64.self) == 0x8A58_0000_8800)
    #expect(rig.read(0xBC, as: UInt32.self) == 1)
    #expect(rig.read(0x4C, as: UInt8.self) == 8)
    #expect(rig.read(0x0E, as: UInt16.self) == 0, "neither degraded nor restricted")
    #expect(rig.read(0x14, as: UInt16.self) == 0, "no direct cache access")
    // A channel's reset leaves them, a function's does not.
    rig.write(0x84, UInt8(0x20))
    #expect(rig.read(0xB0, as: UInt32.self) == 0xFFFE)
    #expect(rig.caller.ioctl(rig.file, 0x3b6f, at: 0) == 0)
    #expect(rig.read(0xB0, as: UInt32.self) == 0)
    #expect(rig.read(0xC4, as: UInt32.self) == 0)
  }

  @Test("J1: CDAR names the next descriptor")
  func current() throws {
    let bench = try EngineBench()
    bench.descriptor(next: bench.ring + 0x40)
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    #expect(bench.rig.read(0xA0, as: UInt64.self) == bench.ring + 0x40)
  }

  @Test(
    "J1: Linux: quiesce, clear errors in BAR and config space, reset, start a null descriptor")
  func linuxReset() throws {
    let bench = try EngineBench(.init(version: 0x32))
    let rig = bench.rig
    // A transfer that fails leaves errors in both places.
    bench.descriptor(source: 0x8000_0000)
    rig.start(bench.ring, count: 1)
    #expect(rig.wait() & 7 == 3)
    #expect(rig.errors == 1)
    let inConfig = try #require(rig.config(0x180, as: UInt32.self))
    #expect(inConfig == 1)
    // A halted channel is neither active nor idle: no suspend.
    rig.write(0xA8, rig.errors)
    rig.config(0x180, inConfig)
    rig.config(0x148, UInt32(0x10))
    rig.write(0x84, UInt8(0x20))
    #expect(rig.read(0x84, as: UInt8.self) == 0, "it is done at once where nothing is in hand")
    #expect(rig.errors == 0)
    #expect(rig.config(0x180, as: UInt32.self) == 0)
    // The ring starts with a null descriptor; its addresses come in halves.
    rig.write(0x98, UInt32(truncatingIfNeeded: bench.status))
    rig.write(0x9C, UInt32(0))
    bench.rig.descriptor(
      at: bench.ring, size: 1, control: 0x29, source: 0, destination: 0, next: bench.ring + 0x40
    )
    rig.write(0x90, UInt32(truncatingIfNeeded: bench.ring))
    rig.write(0x94, UInt32(0))
    rig.write(0x80, UInt16(0x1D))
    rig.write(0x86, UInt16(1))
    #expect(rig.wait() == bench.ring | 1)
    #expect(rig.caller.get(UInt64.self, at: bench.status) == bench.ring | 1)
    #expect(rig.read(0x80, as: UInt16.self) == 0x1C, "the re-arm is an action")
    // Quiesce of an idle channel: suspended, then reset.
    rig.write(0x84, UInt8(0x04))
    #expect(rig.status & 7 == 2)
    rig.write(0x84, UInt8(0x20))
    #expect(rig.status == 3)
  }

  @Test("J1: Linux: a channel that is restarted after an error goes on behind the failed one")
  func linuxRestart() throws {
    let bench = try EngineBench()
    let rig = bench.rig
    for index in UInt64(0)..<4 {
      bench.descriptor(
        control: 0x8, source: index == 1 ? 0x8000_0000 : nil,
        destination: bench.destination + index * 4096, next: bench.ring + (index + 1) * 64,
        at: bench.ring + index * 64)
    }
    rig.begin(bench.ring, status: bench.status, count: 4, control: 0x1D)
    #expect(rig.wait([3]) == bench.ring | 3)
    rig.write(0xA8, rig.errors)
    // A new chain begins with the next one; what is left is counted again.
    rig.write(0x90, bench.ring + 128)
    rig.write(0x86, UInt16(2))
    #expect(rig.wait() == (bench.ring + 192) | 1)
    #expect(bench.same(4096, to: bench.destination + 3 * 4096))
  }

  @Test("J1: DPDK: suspend, reset, start, stop and start again, with the status in memory")
  func dpdkLife() throws {
    let bench = try EngineBench(.init(version: 0x34, canFill: true))
    let rig = bench.rig
    let count: UInt64 = 32
    for index in 0..<count {
      bench.descriptor(
        size: 64, control: 0x8, destination: bench.destination + index * 64,
        next: bench.ring + (index + 1) % count * 64, at: bench.ring + index * 64)
    }
    rig.write(0x84, UInt8(0x04))
    rig.write(0x84, UInt8(0x20))
    #expect(rig.read(0x84, as: UInt8.self) == 0)
    for round in UInt64(0)..<2 {
      rig.write(0x90, bench.ring)
      rig.write(0x98, bench.status)
      rig.write(0x80, UInt16(0x0C))
      #expect(rig.status & 7 != 3, "round \(round): not halted")
      rig.caller.put(bench.ring + (count - 1) * 64, at: bench.status)
      rig.write(0x86, UInt16(8))
      #expect(rig.wait() == (bench.ring + 7 * 64) | 1)
      rig.wait(word: (bench.ring + 7 * 64) | 1, at: bench.status)
      rig.write(0x84, UInt8(0x04))
      #expect(rig.wait([2, 3]) & 7 == 2)
    }
    #expect(bench.same(64, to: bench.destination + 7 * 64))
  }

  @Test("J1: DPDK: the error of one descriptor is reported in memory, and the ring goes on")
  func dpdkRecovery() throws {
    let bench = try EngineBench(.init(version: 0x34))
    let rig = bench.rig
    let count: UInt64 = 32
    for failing in [UInt64(0), 1, 15, 31] {
      for index in 0..<count {
        bench.descriptor(
          size: 64, control: 0x8, source: index == failing ? 0 : nil,
          destination: bench.destination + index * 64,
          next: bench.ring + (index + 1) % count * 64, at: bench.ring + index * 64)
      }
      rig.caller.put(UInt64(0), at: bench.status)
      rig.begin(bench.ring, status: bench.status, count: UInt16(count), control: 0x0C)
      #expect(rig.wait([3]) & 7 == 3)
      let last = failing == 0 ? 0 : bench.ring + (failing - 1) * 64
      rig.wait(word: last | 3, at: bench.status)
      #expect(rig.errors == 1)
      // Recovery: the channel is exactly armed soon, and the rest of the ring is announced.
      rig.write(0xA8, rig.errors)
      rig.write(0x84, UInt8(0x20))
      rig.write(0x90, bench.ring + (failing + 1) % count * 64)
      rig.write(0x80, UInt16(0x0C))
      rig.write(0x98, bench.status)
      rig.wait([4])
      #expect(rig.status == 4)
      let rest = count - failing - 1
      rig.write(0x86, UInt16(rest))
      if rest > 0 { #expect(rig.wait() == (bench.ring + (count - 1) * 64) | 1) }
    }
  }

  @Test(
    "J1: a channel that an error has stopped waits once before it begins, and no other does")
  func pause() {
    var channel = CopyChannel()
    func pauses() -> Bool { channel.takePause() }
    _ = channel.writeChainAddress(0x1000)
    _ = channel.writeDoorbell(2)
    #expect(!pauses())
    _ = channel.fail(.source)
    #expect(!pauses(), "it stands")
    _ = channel.writeCommand(CopyChannel.Command.reset)
    _ = channel.writeChainAddress(0x1040)
    #expect(!pauses(), "nothing is announced")
    _ = channel.writeDoorbell(1)
    #expect(pauses())
    #expect(!pauses(), "once")
    _ = channel.fail(.source)
    channel.powerOn()
    _ = channel.writeChainAddress(0x1000)
    _ = channel.writeDoorbell(1)
    #expect(!pauses(), "a reset of the function forgets")
  }

  @Test("J1: a ring of 65536 descriptors is gone through, and the count comes round")
  func largestRing() throws {
    let rig = try EngineRig(byteCount: 32 << 20)
    try rig.connect()
    #expect(rig.map(0x10000, to: 0x10000, length: 0x1FF_0000) == 0)
    let ring: UInt64 = 0x10_0000
    let count: UInt64 = 65536
    for index in 0..<count {
      rig.caller.put(index | 1 << 32, at: 0x80_0000 + index * 8)
      rig.descriptor(
        at: ring + index * 64, size: 8, control: 0, source: 0x80_0000 + index * 8,
        destination: 0x100_0000 + index * 8, next: ring + (index + 1) % count * 64)
    }
    // At most 65535 may be open; the last one of the ring comes with the next round.
    rig.start(ring, count: 65535)
    #expect(rig.wait() == (ring + 65534 * 64) | 1)
    rig.write(0x86, UInt16(0))
    rig.wait(status: (ring + 65535 * 64) | 1)
    rig.write(0x86, UInt16(1))
    rig.wait(status: ring | 1)
    for index in 0..<count {
      guard rig.caller.get(UInt64.self, at: 0x100_0000 + index * 8) != index | 1 << 32 else {
        continue
      }
      Issue.record("word \(index)")
      break
    }
  }
}

extension EngineRig {
  /// Resets the channel, and starts a chain with its status in memory.
  fileprivate func begin(_ chain: UInt64, status: UInt64, count: UInt16, control: UInt16) {
    write(0x84, UInt8(0x20))
    wait([3])
    write(0x90, chain)
    write(0x98, status)
    write(0x80, control)
    write(0x86, count)
  }

  /// Waits until CHANSTS is `wanted`.
  fileprivate func wait(status wanted: UInt64) { poll(wanted, "CHANSTS") { status } }

  fileprivate func wait(word wanted: UInt64, at address: UInt64) {
    poll(wanted, "the word at \(address)") { caller.get(UInt64.self, at: address) }
  }

  /// Asks again and again, for 30 seconds.
  private func poll(_ wanted: UInt64, _ what: String, _ value: () -> UInt64) {
    let start = ContinuousClock.now
    while true {
      let found = value()
      if found == wanted { return }
      guard ContinuousClock.now - start < .seconds(30) else {
        Issue.record("\(what) stays \(found), not \(wanted)")
        return
      }
      sched_yield()
    }
  }
}
