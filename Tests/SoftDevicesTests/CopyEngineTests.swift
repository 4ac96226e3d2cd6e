// SPDX-License-Identifier: Apache-2.0
//
// The copy engine through the whole stack: its registers by pread and pwrite, its DMA through
// page tables into a caller's memory.

import IOMMU
import SoftDevices
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(2))) struct CopyEngineTests {
  /// Descriptors at IOVA 0x10000, source at 0x100000, destination at 0x400000; the arena is
  /// mapped one to one from 0x10000 up.
  let rig: EngineRig
  let ring: UInt64 = 0x10000
  let source: UInt64 = 0x100000
  let destination: UInt64 = 0x400000

  init() throws {
    rig = try EngineRig()
    try rig.connect()
    #expect(rig.map(0x10000, to: 0x10000, length: 0xFF0000) == 0)
    for offset in stride(from: UInt64(0), to: 0x20_0000, by: 8) {
      rig.caller.put(offset &* 0x9E37_79B9_7F4A_7C15, at: source + offset)
    }
  }

  private func same(_ length: UInt64, from: UInt64? = nil, to: UInt64? = nil) -> Bool {
    stride(from: UInt64(0), to: length, by: 1).allSatisfy {
      rig.caller.get(UInt8.self, at: (from ?? source) + $0)
        == rig.caller.get(UInt8.self, at: (to ?? destination) + $0)
    }
  }

  @Test("J1: a copy of 1 MiB arrives whole, and CHANSTS names its descriptor")
  func copy() {
    rig.descriptor(
      at: ring, size: 1 << 20, source: source, destination: destination, next: ring)
    rig.start(ring, count: 1)
    #expect(rig.wait() == ring | 1)
    #expect(rig.errors == 0)
    #expect(same(1 << 20))
  }

  @Test("J1: after a reset CHANSTS is 3, and CHAINADDR makes it exactly 4")
  func arming() {
    rig.write(0x84, UInt8(0x20))
    rig.wait([3])
    #expect(rig.status == 3)
    #expect(rig.read(0x84, as: UInt8.self) == 0)
    rig.write(0x90, ring)
    #expect(rig.status == 4)
    #expect(rig.read(0x86, as: UInt16.self) == 0)
  }
}
