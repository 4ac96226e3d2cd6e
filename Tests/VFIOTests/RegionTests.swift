// SPDX-License-Identifier: Apache-2.0
//
// J1: BARs by read and write: how an access is cut into aligned pieces, what the MSI-X table
// and the pending bits answer, and what is refused.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct RegionTests {
  let device: TestFunction

  init() throws {
    device = try TestFunction()
    try device.bind()
  }

  @Test("J1: an access is cut into the widest aligned pieces, in order")
  func pieces() throws {
    _ = try device.write(.bar(0), 1, Array(0..<22))
    typealias Access = TestModel.Access
    #expect(
      device.model.state.withLock { $0.writes } == [
        Access(offset: 1, width: 1), Access(offset: 2, width: 2), Access(offset: 4, width: 4),
        Access(offset: 8, width: 8), Access(offset: 16, width: 4), Access(offset: 20, width: 2),
        Access(offset: 22, width: 1),
      ])
    #expect(try device.read(.bar(0), 1, 22) == Array(0..<22))
    #expect(try device.read(.bar(0), 3, 5) == [2, 3, 4, 5, 6])
  }

  @Test("J1: a BAR ends short; at its end, without one, and elsewhere it is EINVAL")
  func ends() throws {
    #expect(try device.read(.bar(0), 4090, 100).count == 6)
    #expect(try device.write(.bar(0), 4095, [1, 2, 3]) == 1)
    #expect(try device.read(.bar(0), 0, 0).isEmpty)
    #expect(errno { _ = try device.read(.bar(0), 4096, 1) } == .invalidArgument)
    #expect(errno { _ = try device.read(.bar(0), .max, 8) } == .invalidArgument)
    for region in [PCIRegion.bar(1), .bar(3), .bar(5), .rom, .vga] {
      #expect(errno { _ = try device.read(region, 0, 4) } == .invalidArgument)
      #expect(errno { try device.write(region, 0, [1]) } == .invalidArgument)
      #expect(device.function.size(of: region) == 0)
    }
  }

  @Test("J1: with memory decoding off a BAR is EIO; the MSI-X table answers all the same")
  func memoryOff() throws {
    try device.write(.config, 4, [0, 0])
    #expect(errno { _ = try device.read(.bar(0), 0, 4) } == .ioError)
    #expect(errno { try device.write(.bar(0), 0, [1]) } == .ioError)
    #expect(try device.read(.bar(2), 0x100, 4) == [255, 255, 255, 255])
    try device.write(.config, 4, [2, 0])
    #expect(try device.read(.bar(0), 0, 4) == [0, 0, 0, 0])
  }

  @Test("J1: the MSI-X table reads as ones and drops writes, also in the middle of an access")
  func table() throws {
    try device.write(.bar(2), 0x100, [UInt8](repeating: 0, count: 70 * 16))
    #expect(device.model.state.withLock { $0.writes.isEmpty })
    #expect(
      try device.read(.bar(2), 0x100 + 70 * 16 - 3, 8) == [255, 255, 255] + [
        0x55, 0x55, 0x55, 0x55, 0x55,
      ])
    #expect(try device.read(.bar(2), 0xFE, 4) == [0x55, 0x55, 255, 255])
    let all = try device.read(.bar(2), 0, 0x1000)
    #expect(all[0x100..<0x100 + 70 * 16].allSatisfy { $0 == 255 })
    #expect(all[..<0x100].allSatisfy { $0 == 0x55 })
    #expect(all[(0x100 + 70 * 16)...].allSatisfy { $0 == 0x55 })
  }

  @Test("J1: pending bits show the vectors that were raised unheard, and cannot be written")
  func pendingBits() throws {
    let counter = Counter()
    try device.write(.config, 4, [6, 0])
    try device.function.interrupts.set(
      .msix, action: .trigger, start: 0, arguments: .events([.signal(counter)]), count: 1)
    device.model.port.raise(vector: 0)
    #expect(counter.count == 1)
    for vector in [1, 8, 65, 69, 70, -1, .max] { device.model.port.raise(vector: vector) }
    #expect(
      try device.read(.bar(2), 0x8000, 16) == [2, 1, 0, 0, 0, 0, 0, 0, 0x22] + [
        0, 0, 0, 0, 0, 0, 0,
      ])
    #expect(try device.read(.bar(2), 0x8008, 1) == [0x22])
    try device.write(.bar(2), 0x8000, [0, 0, 0, 0])
    #expect(try device.read(.bar(2), 0x8000, 2) == [2, 1])
  }
}
