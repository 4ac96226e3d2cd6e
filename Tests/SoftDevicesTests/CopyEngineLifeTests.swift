// SPDX-License-Identifier: Apache-2.0
//
// Reset, close and removal in the middle of transfers: no DMA after they return, nothing left
// behind; and registers under random accesses from several threads: no trap, no hang.

import IOMMU
import SoftDevices
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(10))) struct CopyEngineLifeTests {
  private func busy() throws -> EngineBench {
    let bench = try EngineBench()
    bench.descriptor(size: 1 << 20, control: 0x9)
    bench.rig.write(0x03, UInt8(0x08))
    bench.rig.start(bench.ring, count: 60000)
    return bench
  }

  /// Whether the destination stays as it is while we look.
  private func isQuiet(_ bench: EngineBench) -> Bool {
    for round in UInt64(0)..<200 {
      bench.rig.caller.put(round, at: bench.destination)
      bench.rig.caller.put(round, at: bench.destination + (1 << 20) - 8)
      for _ in 0..<100 {
        guard bench.rig.caller.get(UInt64.self, at: bench.destination) == round,
          bench.rig.caller.get(UInt64.self, at: bench.destination + (1 << 20) - 8) == round
        else { return false }
      }
    }
    return true
  }

  @Test("C4: VFIO_DEVICE_RESET in the middle of a transfer: no DMA after it; it works again")
  func reset() throws {
    let bench = try busy()
    bench.rig.config(0x48, UInt32(7))
    #expect(bench.rig.caller.ioctl(bench.rig.file, 0x3b6f, at: 0) == 0)
    #expect(isQuiet(bench))
    #expect(bench.rig.status == 3)
    #expect(bench.rig.read(0x03, as: UInt8.self) == 0)
    #expect(bench.rig.config(0x48, as: UInt32.self) == 0)
    #expect(bench.rig.config(0x04, as: UInt16.self) == 6, "Linux restores the header")
    bench.descriptor()
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 1)
  }

  @Test("C4: a function-level reset through the PCI Express capability does the same")
  func functionLevelReset() throws {
    let bench = try busy()
    let control = bench.rig.config(0x98, as: UInt16.self) ?? 0
    bench.rig.config(0x98, control | 0x8000)
    #expect(bench.rig.config(0x98, as: UInt16.self) == control, "the bit reads as 0")
    #expect(isQuiet(bench))
    #expect(bench.rig.status == 3)
  }

  @Test("C4: the channel's reset command stops a transfer too")
  func channelReset() throws {
    let bench = try busy()
    bench.rig.write(0x84, UInt8(0x20))
    bench.rig.wait([3])
    while bench.rig.read(0x84, as: UInt8.self) != 0 {}
    #expect(isQuiet(bench))
    #expect(bench.rig.status == 3)
  }

  @Test("C4: close in the middle of a transfer: no DMA, no interrupt, nothing held after it")
  func close() throws {
    let bench = try busy()
    let signal = CountingSignal()
    #expect(bench.rig.arm(signal) == 0)
    bench.rig.write(0x80, UInt16(1))
    bench.rig.caller.close(bench.rig.devicefd)
    let count = signal.count
    #expect(isQuiet(bench))
    #expect(signal.count == count)
    #expect(bench.rig.iommu.interrupts.count == 0)
    bench.rig.caller.close(bench.rig.iommufd)
    #expect(bench.rig.system.contextCount == 0)
    #expect(bench.rig.system.memory.usedSlots == 0)
  }

  @Test("C4: a device that is removed has ended its thread; its registers do nothing")
  func remove() throws {
    let bench = try busy()
    bench.rig.vfio.function.remove()
    #expect(isQuiet(bench))
    bench.rig.config(0x04, UInt16(6))
    bench.rig.write(0x90, bench.ring)
    bench.rig.write(0x86, UInt16(1))
    #expect(isQuiet(bench))
  }

  @Test("C4: a machine that is dropped in the middle of a transfer takes all its objects along")
  func dropped() throws {
    weak var engine: CopyEngine?
    weak var system: IOMMUSystem?
    weak var device: PhysicalDevice?
    do {
      let bench = try busy()
      engine = bench.rig.engine
      system = bench.rig.system
      device = try #require(bench.rig.vfio.function.device?.physical)
      bench.rig.caller.close(bench.rig.iommufd)
    }
    #expect(engine == nil)
    #expect(system == nil)
    #expect(device == nil)
  }

  @Test("G2: unmapping under a running transfer returns, and the transfer faults")
  func unmapUnderTransfer() throws {
    let bench = try busy()
    #expect(bench.rig.unmap(0x10000, length: 0xFF0000) == 0)
    #expect(isQuiet(bench))
    #expect(bench.rig.wait([3]) & 7 == 3)
  }

  @Test(
    "J1: registers under random accesses of all widths, with resets between: no trap, no hang")
  func fuzz() async throws {
    let bench = try EngineBench()
    let rig = bench.rig
    let file = rig.file
    let signal = CountingSignal()
    #expect(rig.arm(signal) == 0)
    bench.descriptor(size: 4096, control: 0x9)
    await withTaskGroup(of: Void.self) { group in
      for seed in UInt64(1)...3 {
        group.addTask {
          var random = SplitMix(seed: seed &* 0x1234_5678_9ABC_DEF1)
          for _ in 0..<4000 {
            let width = 1 << Int(random.next() % 4)
            let space: UInt64 = random.next() % 8 == 0 ? 7 << 40 : 0
            var offset = random.next() % 0x100
            if random.next() % 16 == 0 { offset = random.next() % 0x5000 }
            if space == 0, random.next() % 4 == 0 {
              offset = [0x84, 0x86, 0x90, 0x98, 0xA8, 0x80][Int(random.next() % 6)]
            }
            var value = random.next()
            if random.next() % 2 == 0 {
              value = [0, 1, 4, 8, 0x10, 0x20, 0x10000, 0x20000][Int(random.next() % 8)]
            }
            withUnsafeMutableBytes(of: &value) { bytes in
              let bytes = UnsafeMutableRawBufferPointer(rebasing: bytes[..<width])
              if random.next() % 3 == 0 {
                _ = try? file.read(at: 1 << 45 | space | offset, into: bytes)
              } else {
                _ = try? file.write(
                  at: 1 << 45 | space | offset, from: UnsafeRawBufferPointer(bytes))
              }
            }
          }
        }
      }
    }
    // It still works.
    rig.config(0x04, UInt16(0x0006))
    rig.config(0xE4, UInt16(0))
    #expect(rig.caller.ioctl(rig.file, 0x3b6f, at: 0) == 0)
    bench.descriptor()
    rig.start(bench.ring, count: 1)
    #expect(rig.wait() & 7 == 1)
    #expect(bench.same(4096))
  }
}

struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
    return value ^ value >> 31
  }
}
