// SPDX-License-Identifier: Apache-2.0
//
// J1: configuration space: the header and its masks, BAR sizing, the capability list, and
// accesses of any width and alignment.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct ConfigSpaceTests {
  let device: TestFunction

  init() throws {
    device = try TestFunction()
    try device.bind()
  }

  private func value(_ offset: UInt64, _ width: Int = 4) throws -> UInt32 {
    try device.read(.config, offset, width).reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }

  private func put(_ offset: UInt64, _ value: UInt32, _ width: Int = 4) throws {
    try device.write(
      .config, offset, (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) })
  }

  @Test("J1: ids are read-only; command, cache line and interrupt line take their bits only")
  func header() throws {
    #expect(try value(0x00) == 0x5678_1234)
    #expect(try value(0x08) == 0xFF00_0000)
    #expect(try value(0x2C) == 0x0000_1234)
    for offset in stride(from: UInt64(0), to: 0x40, by: 4) { try put(offset, .max) }
    #expect(try value(0x00) == 0x5678_1234)
    #expect(try value(0x04) == 0x0010_0546)
    #expect(try value(0x08) == 0xFF00_0000)
    #expect(try value(0x0C) == 0x0000_00FF)
    #expect(try value(0x34) == 0x0000_0080)
    #expect(try value(0x3C) == 0x0000_00FF)
  }

  @Test("J1: a BAR of all ones reads back its size and kind; a missing one reads 0")
  func sizing() throws {
    let before = try value(0x10)
    #expect(before & 0xF == 0)
    #expect(before != 0)
    for offset in stride(from: UInt64(0x10), to: 0x28, by: 4) { try put(offset, .max) }
    #expect(try value(0x10) == 0xFFFF_F000)
    #expect(try value(0x14) == 0)
    #expect(try value(0x18) == 0xFFFF_000C)
    #expect(try value(0x1C) == 0xFFFF_FFFF)
    #expect(try value(0x20) == 0)
    #expect(try value(0x30) == 0)
    try put(0x10, 0x1234_5678)
    #expect(try value(0x10) == 0x1234_5000)
    #expect(try device.read(.bar(0), 0, 4).count == 4, "it answers all the same: vfio maps it")
  }

  @Test(
    "J1: the list is MSI-X, PCI Express, power management; the extended one error reporting")
  func capabilities() throws {
    var found: [UInt32] = []
    var next = UInt64(try value(0x34, 1))
    while next != 0, found.count < 48 {
      found.append(try value(next, 1))
      next = UInt64(try value(next + 1, 1))
    }
    #expect(found == [0x11, 0x10, 0x01])
    #expect(try value(0x82, 2) == 69)
    #expect(try value(0x84) == 0x102)
    #expect(try value(0x88) == 0x8002)
    #expect(try value(0x92, 2) & 0xFF == 2, "version 2 endpoint")
    #expect(try value(0x94) & 1 << 28 != 0, "can reset")
    #expect(try value(0x100) == 0x0001_0001)
    try put(0x80, .max)
    #expect(try value(0x82, 2) == 69, "MSI-X is the kernel's to set up")
    try put(0x98, 0x7FFF, 2)
    #expect(try value(0x98, 2) == 0x79FF)
  }

  @Test("J1: every byte can be read and written at any width and alignment, to the last")
  func widths() throws {
    let whole = try device.read(.config, 0, 4096)
    #expect(whole.count == 4096)
    for count in 1...9 {
      for offset in [0, 1, 2, 3, 0x0D, 0x3E, 0x7F, 0xFD, 0xFFC] where offset + count <= 4096 {
        #expect(
          try device.read(.config, UInt64(offset), count)
            == Array(whole[offset..<offset + count])
        )
      }
    }
    try device.write(.config, 0x0B, [9, 8, 7, 6])
    #expect(try value(0x0C) == 8)
    try device.write(.config, 0x47, [1, 2, 3, 4, 5])
    #expect(try value(0x48) == 0x03AB)
  }

  @Test("J1: past the end of config space is EFAULT, and nothing is done")
  func pastTheEnd() throws {
    for (offset, count) in [(4096, 1), (4095, 2), (4000, 97), (1 << 39, 4)] as [(UInt64, Int)] {
      #expect(throws: IOMMUError.self) { try device.read(.config, offset, count) }
      do {
        try device.write(.config, offset, [UInt8](repeating: 0xFF, count: count))
        Issue.record("written")
      } catch let error as IOMMUError {
        #expect(error.errno == .badAddress)
      }
    }
  }

  @Test("J1: status registers of the device's own are cleared by writing ones")
  func clearedByOnes() throws {
    device.model.port.setConfigBits(0xF0F0, at: 0x180)
    #expect(try value(0x180) == 0xF0F0)
    try put(0x180, 0x00F0)
    #expect(try value(0x180) == 0xF000)
    try put(0x181, 0xFF, 1)
    #expect(try value(0x180) == 0)
    device.model.port.setConfigBits(1, at: -4)
    device.model.port.setConfigBits(1, at: 4095)
  }

  @Test("J1: D3hot shuts memory and DMA off, D0 opens them again; D1 and D2 are not taken")
  func powerStates() throws {
    try put(0xE4, 1)
    #expect(try value(0xE4) == 8)
    try put(0xE4, 3)
    #expect(try value(0xE4) == 0xB)
    #expect(throws: IOMMUError.self) { try device.read(.bar(0), 0, 4) }
    try put(0xE4, 2)
    #expect(try value(0xE4) == 0xB)
    try put(0xE4, 0)
    #expect(try device.read(.bar(0), 0, 4).count == 4)
  }

  @Test("J1: the reset bit of PCI Express resets, and reads back 0")
  func functionLevelReset() throws {
    let before = device.model.state.withLock { $0.resets }
    try put(0x48, 0xFFFF)
    try put(0x04, 6, 2)
    try put(0x99, 0x80, 1)
    #expect(device.model.state.withLock { $0.resets } == before + 1)
    #expect(try value(0x99, 1) & 0x80 == 0)
    #expect(try value(0x48) == 0xAB, "the device's own registers start over")
    #expect(try value(0x04, 2) == 6, "the header is restored")
  }

  @Test("C4: the next user finds memory on, bus mastering off, and nothing of the last one")
  func nextUser() throws {
    for offset in stride(from: UInt64(0), to: 4096, by: 4) { try put(offset, .max) }
    device.session.close()
    let next = device.device.open()
    let context = device.context
    try next.bind(findContext: { context }, publish: { _ in })
    #expect(try value(0x04, 2) == 2)
    #expect(try value(0x3C, 1) == 0)
    #expect(try value(0x48) == 0xAB)
    #expect(try value(0xE4) == 8)
    #expect(try value(0x10) & 0xFFFF_F000 != 0xFFFF_F000)
  }
}
