// SPDX-License-Identifier: Apache-2.0
//
// The copy engine through the whole stack: its registers by pread and pwrite, its DMA through
// page tables into a caller's memory, its interrupts through the remapper.

import IOMMU
import SoftDevices
import TestSupport
import Testing

/// A rig whose arena is mapped one to one from 0x10000 up, with a pattern at `source`.
struct EngineBench {
  let rig: EngineRig
  let ring: UInt64 = 0x10000
  let status: UInt64 = 0x20000
  let source: UInt64 = 0x100000
  let destination: UInt64 = 0x400000
  let sourceLength: UInt64 = 0x20_0000

  init(_ configuration: CopyEngine.Configuration = .init()) throws {
    rig = try EngineRig(configuration: configuration)
    try rig.connect()
    #expect(rig.map(0x10000, to: 0x10000, length: 0xFF0000) == 0)
    for offset in stride(from: UInt64(0), to: sourceLength, by: 8) {
      rig.caller.put((offset &+ 1) &* 0x9E37_79B9_7F4A_7C15, at: source + offset)
    }
  }

  func same(_ length: UInt64, from: UInt64? = nil, to: UInt64? = nil) -> Bool {
    let from = Int(from ?? source)
    let to = Int(to ?? destination)
    return rig.caller.arena.withUnsafeMutableBytes { bytes in
      bytes[from..<from + Int(length)].elementsEqual(bytes[to..<to + Int(length)])
    }
  }

  /// One descriptor at `ring`, linked to itself.
  func descriptor(
    size: UInt32 = 4096, control: UInt32 = 0, source: UInt64? = nil,
    destination: UInt64? = nil, next: UInt64? = nil, at address: UInt64? = nil
  ) {
    rig.descriptor(
      at: address ?? ring, size: size, control: control, source: source ?? self.source,
      destination: destination ?? self.destination, next: next ?? ring)
  }
}

@Suite(.timeLimit(.minutes(10))) struct CopyEngineTests {
  @Test("J1: a copy of 1 MiB arrives whole, and CHANSTS names its descriptor")
  func copy() throws {
    let bench = try EngineBench()
    bench.descriptor(size: 1 << 20)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() == bench.ring | 1)
    #expect(bench.rig.errors == 0)
    #expect(bench.same(1 << 20))
  }

  @Test("J1: identity, version, capacity and capability are the engine's, in BAR and config")
  func identity() throws {
    let rig = try EngineBench(.init(version: 0x34, transferCapacity: 16, canFill: true)).rig
    #expect(rig.read(0x00, as: UInt8.self) == 1)
    #expect(rig.read(0x01, as: UInt8.self) == 16)
    #expect(rig.read(0x08, as: UInt8.self) == 0x34)
    #expect(rig.read(0x10, as: UInt32.self) == 0x40)
    #expect(rig.read(0x82, as: UInt16.self) == 2)
    #expect(rig.config(0x00, as: UInt32.self) == 0x2021_8086)
    #expect(rig.config(0x08, as: UInt32.self).map { $0 >> 8 } == 0x08_8000)
    rig.config(0x48, UInt32(0x1234_5678))
    #expect(rig.config(0x48, as: UInt32.self) == 0x1234_5678)
  }

  @Test("J1: after a reset CHANSTS is 3, and CHAINADDR makes it exactly 4 and DMACOUNT 0")
  func arming() throws {
    let rig = try EngineBench().rig
    rig.write(0x84, UInt8(0x20))
    rig.wait([3])
    #expect(rig.status == 3)
    #expect(rig.read(0x84, as: UInt8.self) == 0)
    rig.write(0x90, UInt64(0x10000))
    #expect(rig.status == 4)
    #expect(rig.read(0x86, as: UInt16.self) == 0)
    #expect(rig.read(0x90, as: UInt64.self) == 0x10000)
  }

  @Test("J1: partial accesses compose: two halves of CHAINADDR, bytes of CHANCMP, wide reads")
  func partialAccess() throws {
    let rig = try EngineBench().rig
    rig.write(0x90, UInt32(0x9ABC_DEC0))
    rig.write(0x94, UInt32(0x1234_5678))
    #expect(rig.read(0x90, as: UInt64.self) == 0x1234_5678_9ABC_DEC0)
    for byte in UInt64(0)..<8 { rig.write(0x98 + byte, UInt8(0x10 + byte)) }
    #expect(rig.read(0x98, as: UInt64.self) == 0x1716_1514_1312_1110)
    #expect(rig.read(0x9B, as: UInt8.self) == 0x13)
    #expect(rig.read(0x80, as: UInt32.self) == 0x0002_0000)
    #expect(rig.read(0x00, as: UInt64.self) == 0x1401)
    // Unaligned and straddling, cut into pieces as vfio-pci cuts them.
    #expect(rig.read(0x9A, as: UInt32.self) == 0x1514_1312)
    #expect(rig.read(0x95, as: UInt64.self) == 0x1413_1211_1012_3456)
    // Nothing there.
    #expect(rig.read(0x200, as: UInt64.self) == 0)
    rig.write(0x88, UInt64.max)
    #expect(rig.read(0x88, as: UInt8.self) == 4, "CHANSTS is read-only")
  }

  @Test("J1: one self-linked descriptor and a count of N makes N copies; the count wraps")
  func selfLinked() throws {
    let bench = try EngineBench()
    bench.descriptor(size: 8)
    bench.rig.start(bench.ring, count: 40000)
    #expect(bench.rig.wait() == bench.ring | 1)
    bench.rig.write(0x86, UInt16(truncatingIfNeeded: 40000 + 40000))
    #expect(bench.rig.wait() == bench.ring | 1)
    #expect(bench.rig.read(0x86, as: UInt16.self) == 14464)
    #expect(bench.rig.errors == 0)
  }

  @Test("J1: a chain of many runs in order, and more can be announced while it runs")
  func chain() throws {
    let bench = try EngineBench()
    for index in UInt64(0)..<64 {
      bench.rig.descriptor(
        at: bench.ring + index * 64, size: 4096, source: bench.source + index * 4096,
        destination: bench.destination + index * 4096,
        next: bench.ring + (index + 1) % 64 * 64)
    }
    bench.rig.start(bench.ring, count: 1)
    for count in UInt16(2)...64 { bench.rig.write(0x86, count) }
    while bench.rig.status != bench.ring + 63 * 64 | 1 {}
    #expect(bench.same(64 * 4096))
  }

  @Test("J1: CHANCMP gets a copy of CHANSTS where the descriptor asks, before the interrupt")
  func completionWrite() throws {
    let bench = try EngineBench()
    let signal = CountingSignal()
    #expect(bench.rig.arm(signal) == 0)
    bench.rig.write(0x03, UInt8(0x08))
    bench.descriptor(control: 0x9)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    bench.rig.write(0x98, bench.status)
    bench.rig.write(0x90, bench.ring)
    bench.rig.write(0x80, UInt16(0x9))
    bench.rig.write(0x86, UInt16(1))
    while signal.count == 0 {}
    #expect(bench.rig.caller.get(UInt64.self, at: bench.status) == bench.ring | 1)
    #expect(bench.rig.status == bench.ring | 1, "the interrupt comes after the status")
    #expect(bench.same(4096))
  }

  @Test("J1: an interrupt fires once and waits for the re-arm; INTRCTRL off withholds it")
  func interruptRearm() throws {
    let bench = try EngineBench()
    let signal = CountingSignal()
    #expect(bench.rig.arm(signal) == 0)
    bench.rig.write(0x03, UInt8(0x01))
    bench.descriptor(size: 8, control: 1)
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    while signal.count < 1 {}
    #expect(bench.rig.read(0x04, as: UInt32.self) == 1)
    #expect(bench.rig.read(0x03, as: UInt8.self) == 0x07)
    bench.rig.write(0x86, UInt16(5))
    while bench.rig.status != bench.ring | 1 {}
    #expect(signal.count == 1)
    bench.rig.write(0x80, UInt16(0x1))
    #expect(signal.count == 2, "what waited fires at the re-arm, once")
    bench.rig.write(0x80, UInt16(0x1))
    #expect(signal.count == 2)
    #expect(bench.rig.read(0x04, as: UInt32.self) == 0)
    bench.rig.write(0x03, UInt8(0))
    bench.rig.write(0x86, UInt16(6))
    bench.rig.wait()
    bench.rig.write(0x80, UInt16(0x1))
    #expect(signal.count == 2)
  }

  @Test("J1: fill repeats its pattern where the engine can, and is a control error where not")
  func fill() throws {
    let bench = try EngineBench(.init(canFill: true))
    bench.descriptor(size: 100, control: 1 << 24, source: 0x0807_0605_0403_0201)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() == bench.ring | 1)
    #expect(
      bench.rig.caller.get(UInt64.self, at: bench.destination + 88) == 0x0807_0605_0403_0201)
    #expect(bench.rig.caller.get(UInt64.self, at: bench.destination + 96) == 0x0403_0201)
    let plain = try EngineBench()
    plain.descriptor(size: 100, control: 1 << 24)
    plain.rig.start(plain.ring, count: 1)
    #expect(plain.rig.wait() & 7 == 3)
    #expect(plain.rig.errors == 0x400)
  }

  @Test("J1: null and fence descriptors complete without moving a byte")
  func null() throws {
    let bench = try EngineBench()
    for control: UInt32 in [0x20, 0x30] {
      bench.descriptor(size: 1, control: control, source: 0, destination: 0)
      bench.rig.start(bench.ring, count: 1)
      #expect(bench.rig.wait() == bench.ring | 1)
      #expect(bench.rig.errors == 0)
    }
  }

  @Test("J1: suspend stops between descriptors; resume and the doorbell go on")
  func suspend() throws {
    let bench = try EngineBench()
    bench.descriptor(size: 1 << 20)
    bench.rig.start(bench.ring, count: 60)
    bench.rig.write(0x84, UInt8(0x04))
    #expect(bench.rig.wait([1, 2]) & 7 == 2)
    bench.rig.write(0x84, UInt8(0x10))
    #expect([0, 1].contains(bench.rig.status & 7))
    bench.rig.write(0x84, UInt8(0x04))
    bench.rig.wait([1, 2])
    bench.rig.write(0x86, UInt16(60))
    #expect(bench.rig.wait([1]) == bench.ring | 1)
    // Idle, it suspends at once, and a new chain starts from there.
    bench.rig.write(0x84, UInt8(0x04))
    #expect(bench.rig.status & 7 == 2)
    bench.rig.write(0x90, bench.ring)
    #expect(bench.rig.status & 7 == 2)
    bench.rig.write(0x86, UInt16(2))
    #expect(bench.rig.wait([1]) == bench.ring | 1)
  }

  @Test("J1: abort halts in the middle, without an error; the doorbell starts it again")
  func abort() throws {
    let bench = try EngineBench()
    bench.descriptor(size: 1 << 20)
    bench.rig.start(bench.ring, count: 1000)
    bench.rig.write(0x84, UInt8(0x08))
    #expect(bench.rig.status & 7 == 3)
    #expect(bench.rig.errors == 0)
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    #expect(bench.rig.status == 3)
  }

  @Test("J1: the kernel's own VFIO driver for the engine: start, wait, suspend, start again")
  func selfTestDriver() throws {
    let bench = try EngineBench()
    let rig = bench.rig
    let signal = CountingSignal()
    rig.config(0x04, UInt16(0x0406))
    #expect(rig.arm(signal) == 0)
    for (offset, size) in [(UInt64(0x180), 4), (0x148, 4)] as [(UInt64, Int)] {
      #expect(size == 4)
      let errors = rig.config(offset, as: UInt32.self) ?? .max
      rig.config(0x180, errors)
    }
    rig.write(0x84, UInt8(0x20))
    rig.wait([3])
    rig.write(0x03, UInt8(0x08))
    for round in 1...5 {
      let interrupt = round == 3
      bench.descriptor(size: 1 << 20, control: interrupt ? 1 : 0)
      rig.write(0x90, bench.ring)
      rig.write(0x80, UInt16(0x9))
      rig.write(0x86, UInt16(interrupt ? 1 : 7))
      #expect(rig.wait([1, 3]) & 7 == 1)
      rig.write(0x84, UInt8(0x04))
      #expect(rig.wait([2]) & 7 == 2)
    }
    while signal.count == 0 {}
    #expect(signal.count == 1)
  }
}
