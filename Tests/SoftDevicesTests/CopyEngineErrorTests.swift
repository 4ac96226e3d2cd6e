// SPDX-License-Identifier: Apache-2.0
//
// What the engine does with malformed descriptors and with addresses that its page table does
// not let it reach: CHANERR, a halt, no interrupt (MODEL A3, C2, H2).

import IOMMU
import SoftDevices
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(10))) struct CopyEngineErrorTests {
  let bench: EngineBench
  let signal = CountingSignal()
  /// Not mapped.
  let hole: UInt64 = 0x5000_0000

  init() throws {
    bench = try EngineBench()
    #expect(bench.rig.arm(signal) == 0)
    bench.rig.write(0x03, UInt8(0x09))
  }

  private var faults: UInt64 { bench.rig.iommu.faults.count }

  /// Runs `count` descriptors from `chain` and expects a halt with `errors`.
  private func expectHalt(
    _ errors: UInt32, chain: UInt64? = nil, count: UInt16 = 1, faults: UInt64 = 0,
    _ comment: Comment? = nil
  ) {
    let before = self.faults
    bench.rig.start(chain ?? bench.ring, count: count)
    #expect(bench.rig.wait([1, 3]) & 7 == 3, comment)
    #expect(bench.rig.errors == errors, comment)
    #expect(bench.rig.config(0x180, as: UInt32.self) == errors, comment)
    #expect(self.faults - before == faults, comment)
    bench.rig.write(0xA8, errors)
    #expect(bench.rig.errors == 0, "write-1-to-clear")
    bench.rig.config(0x180, errors)
    #expect(bench.rig.config(0x180, as: UInt32.self) == 0)
    #expect(signal.count == 0, "no completion interrupt")
  }

  @Test("J1: each malformed descriptor sets its bit of CHANERR and halts")
  func malformed() {
    bench.descriptor(size: 0)
    expectHalt(0x800, "length 0")
    bench.descriptor(size: 1 << 20 + 1, control: 1)
    expectHalt(0x800, "past XFERCAP")
    bench.descriptor(control: 2 << 24)
    expectHalt(0x400, "unknown operation")
    bench.descriptor(control: 0x800)
    expectHalt(0x400, "reserved control bit")
    bench.descriptor(next: bench.ring + 8)
    expectHalt(0x8, count: 2, "next not aligned")
    expectHalt(0x10, chain: bench.ring + 4, "chain address not aligned")
    bench.descriptor(control: 0x9)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    bench.rig.write(0x98, bench.status + 4)
    bench.rig.write(0x90, bench.ring)
    bench.rig.write(0x86, UInt16(1))
    #expect(bench.rig.wait([1, 3]) & 7 == 3)
    #expect(bench.rig.errors == 0x1000, "completion address not aligned")
  }

  @Test("H2: DMA to what is not mapped halts, is counted, and names the side in CHANERR")
  func unmapped() {
    bench.descriptor(source: hole)
    expectHalt(0x1, faults: 1, "source")
    bench.descriptor(control: 1, destination: hole)
    expectHalt(0x2, faults: 1, "destination")
    bench.descriptor(next: hole)
    expectHalt(0x4, count: 2, faults: 1, "next descriptor")
    expectHalt(0x10, chain: hole, faults: 1, "chain")
    bench.descriptor(source: UInt64.max - 100)
    expectHalt(0x1, faults: 1, "past the end of the address space")
  }

  @Test("B1: a read-only mapping can be read from and not written to")
  func readOnly() {
    #expect(bench.rig.map(hole, to: 0x100000, length: 0x10000, writable: false) == 0)
    bench.descriptor(source: hole)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 1)
    bench.descriptor(destination: hole)
    expectHalt(0x2, faults: 1)
    #expect(bench.same(8, from: 0x100000, to: bench.source))
  }

  @Test("G2: after the unmap has returned, the same copy faults")
  func afterUnmap() {
    #expect(bench.rig.map(hole, to: 0x100000, length: 0x10000) == 0)
    bench.descriptor(source: hole)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 1)
    #expect(bench.rig.unmap(hole, length: 0x10000) == 0)
    expectHalt(0x1, faults: 1)
  }

  @Test("A3: a device that is not attached reaches nothing and raises no interrupt")
  func detached() {
    bench.descriptor(control: 0x1)
    #expect(bench.rig.detach() == 0)
    expectHalt(0x10, faults: 1)
    #expect(bench.rig.attach(bench.rig.ioas) == 0)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 1)
    while signal.count == 0 {}
  }

  @Test("J1: with bus mastering off there is no DMA and no interrupt")
  func busMaster() {
    bench.rig.config(0x04, UInt16(0x0002))
    expectHalt(0x10)
    bench.rig.config(0x04, UInt16(0x0006))
    bench.descriptor()
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 1)
  }

  @Test("J1: several commands at once, and unknown ones, are a CHANCMD error")
  func command() {
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    for value: UInt8 in [0x40, 0x0C, 0xFF, 0x21] {
      bench.rig.write(0x84, value)
      #expect(bench.rig.errors == 0x20)
      #expect(bench.rig.status & 7 == 3)
      bench.rig.write(0xA8, UInt32(0x20))
    }
    bench.rig.write(0x84, UInt8(0))
    #expect(bench.rig.errors == 0)
  }

  @Test("J1: a doorbell that takes descriptors back is a count error; one without a chain too")
  func count() {
    bench.descriptor(size: 1 << 20)
    bench.rig.start(bench.ring, count: 60000)
    bench.rig.write(0x86, UInt16(59999))
    #expect(bench.rig.wait([3]) & 7 == 3)
    #expect(bench.rig.errors == 0x40000)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    #expect(bench.rig.errors == 0)
    bench.rig.write(0x86, UInt16(1))
    #expect(bench.rig.errors == 0x10, "no chain was written since the reset")
  }

  @Test("J1: error completion writes the halted status to CHANCMP, error interrupt signals")
  func errorReporting() {
    bench.descriptor(source: hole)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    bench.rig.caller.put(UInt64(0xFFFF), at: bench.status)
    bench.rig.write(0x98, bench.status)
    bench.rig.write(0x90, bench.ring)
    bench.rig.write(0x80, UInt16(0x1D))
    bench.rig.write(0x86, UInt16(1))
    while bench.rig.caller.get(UInt64.self, at: bench.status) == 0xFFFF {}
    #expect(bench.rig.caller.get(UInt64.self, at: bench.status) == 3)
    while signal.count == 0 {}
    #expect(signal.count == 1)
    // Fault again, both off: nothing is written, nobody signalled.
    bench.rig.write(0xA8, UInt32.max)
    bench.rig.write(0x80, UInt16(0x09))
    bench.rig.caller.put(UInt64(0xFFFF), at: bench.status)
    bench.rig.write(0x86, UInt16(1))
    #expect(bench.rig.wait([3]) & 7 == 3)
    while bench.rig.errors == 0 {}
    #expect(bench.rig.caller.get(UInt64.self, at: bench.status) == 0xFFFF)
    #expect(signal.count == 1)
  }

  @Test("J1: a masked error is recorded and passed over")
  func masked() {
    bench.descriptor(source: hole, next: bench.ring + 64)
    bench.descriptor(next: bench.ring, at: bench.ring + 64)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    bench.rig.write(0xAC, UInt32(0x1))
    bench.rig.write(0x90, bench.ring)
    bench.rig.write(0x86, UInt16(2))
    #expect(bench.rig.wait([1, 3]) == bench.ring + 64 | 1)
    #expect(bench.rig.errors == 0x1)
    #expect(bench.same(4096))
  }
}
