// SPDX-License-Identifier: Apache-2.0
//
// J1: the MSI-X table of a program that has mapped the BAR: what SET_IRQS put there, masks and
// pending bits, messages of the program's own, and writes of all kinds at all times.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct VectorTableTests {
  let device: TestFunction
  let heard = (0..<3).map { _ in Counter() }
  var vectors: InterruptVectors { device.function.interrupts }

  init() throws {
    device = try TestFunction(interruptPin: 1, msi: MSILayout(vectors: 8, isMaskable: true))
    try device.bind()
    try device.setConfig(4, 6, 2)
    try arm()
  }

  private func arm(_ start: Int = 0) throws {
    try vectors.set(
      .msix, action: .trigger, start: start, arguments: .events(heard.map { .signal($0) }),
      count: 3)
  }

  /// The table is at 0x100 of BAR 2, the pending bits are at 0x8000.
  private func load(_ vector: Int, _ offset: UInt64, _ width: Int = 4) throws -> UInt64 {
    try device.read(.bar(2), 0x100 + UInt64(vector) * 16 + offset, width, isMapped: true)
      .reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  private func store(_ vector: Int, _ offset: UInt64, _ value: UInt64, _ width: Int = 4) throws
  {
    try device.write(
      .bar(2), 0x100 + UInt64(vector) * 16 + offset,
      (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }, isMapped: true)
  }

  private func pending() throws -> UInt8 { try device.read(.bar(2), 0x8000, 1)[0] }

  private func raise(_ vectors: Range<Int>) {
    for vector in vectors { device.model.port.raise(vector: vector) }
  }

  @Test("J1: a mapped table has the messages that SET_IRQS put there; calls see ones")
  func contents() throws {
    for vector in 0..<3 {
      #expect(try load(vector, 0, 8) == 0xFEE0_0000)
      #expect(try load(vector, 8) == UInt64(vector + 1))
      #expect(try load(vector, 12) == 0, "not masked")
      #expect(try load(vector, 8, 8) == UInt64(vector + 1))
      #expect(try load(vector, 2, 2) == 0xFEE0)
    }
    #expect(try load(3, 0, 8) == 0)
    #expect(try load(3, 12) == 1, "masked")
    #expect(try load(69, 12) == 1)
    #expect(try device.read(.bar(2), 0x100, 4) == [255, 255, 255, 255])
    // Across both of its ends the model has the rest.
    #expect(
      try device.read(.bar(2), 0xFC, 8, isMapped: true)
        == [0x55, 0x55, 0x55, 0x55, 0x00, 0x00, 0xE0, 0xFE])
    #expect(
      try device.read(.bar(2), 0x100 + 70 * 16 - 4, 8, isMapped: true)
        == [1, 0, 0, 0, 0x55, 0x55, 0x55, 0x55])
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    #expect(try load(0, 0, 8) == 0)
    #expect(try load(0, 12) == 1)
  }

  @Test("J1: a vector that the program masks is pending, and fires when it is not")
  func masks() throws {
    try store(1, 12, 1)
    raise(0..<3)
    raise(1..<2)
    #expect(heard.map(\.count) == [1, 0, 1])
    #expect(try pending() == 2)
    // Its message can change meanwhile; the mask counts when it is written.
    try store(1, 8, 3)
    #expect(try load(1, 12) == 1)
    try store(1, 12, 0xFFFF_FFFE)
    #expect(try load(1, 12) == 0, "there is but the mask bit")
    #expect(heard.map(\.count) == [1, 0, 2])
    #expect(try pending() == 0)
    // By 8 bytes, and by one.
    try store(0, 8, 1 << 32 | 1, 8)
    raise(0..<1)
    #expect(heard[0].count == 1)
    try store(0, 12, 0, 1)
    #expect(heard[0].count == 2)
    // By a call it is not to be reached.
    try device.write(.bar(2), 0x10C, [1, 0, 0, 0])
    raise(0..<1)
    #expect(heard[0].count == 3)
  }

  @Test(
    "J1: a message of the program's own goes out as that write, and where it is blocked not")
  func ownMessage() throws {
    try store(0, 0, 0x1_2345_6003, 8)
    try store(0, 8, 0xCAFE_F00D)
    raise(0..<1)
    let wanted = InterruptMessage(address: 0x1_2345_6000, data: 0xCAFE_F00D)
    #expect(device.bus.writes == [wanted])
    #expect(heard[0].count == 0)
    try device.setConfig(4, 2, 2)
    raise(0..<1)
    #expect(device.bus.writes.count == 1)
    try device.setConfig(4, 6, 2)
    // Another of its own messages, and one that is nobody's.
    try store(0, 0, 0xFEE0_0000, 8)
    try store(0, 8, 2)
    raise(0..<1)
    try store(0, 8, 0x777)
    raise(0..<1)
    #expect(heard.map(\.count) == [0, 1, 0])
    // SET_IRQS writes it again, and so does a reset.
    try arm()
    raise(0..<1)
    try store(0, 8, 0x777)
    try store(1, 12, 1)
    device.function.reset()
    raise(0..<2)
    #expect(heard.map(\.count) == [2, 2, 0])
  }

  @Test("J1: what the program unmasks without an event, or with MSI-X off, signals nobody")
  func unheard() throws {
    try store(5, 12, 0)
    raise(5..<6)
    #expect(device.bus.writes == [InterruptMessage(address: 0, data: 0)])
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    try store(0, 0, 0xFEE0_0000, 8)
    try store(0, 8, 1, 8)
    raise(0..<1)
    #expect(heard[0].count == 0)
    #expect(try pending() == 0)
    // Nor does MSI go by it.
    try vectors.set(
      .msi, action: .trigger, start: 0, arguments: .events([.signal(heard[0])]), count: 1)
    raise(0..<1)
    #expect(heard[0].count == 1)
    #expect(device.bus.writes.count == 1)
    device.session.close()
    let next = device.device.open()
    let context = device.context
    try next.bind(findContext: { context }, publish: { _ in })
    #expect(try load(0, 0, 8) == 0, "the next user finds nothing of it")
    #expect(try load(0, 12) == 1)
  }

  @Test("J1: with memory decoding off a mapped table is not there")
  func memoryOff() throws {
    try device.setConfig(4, 4, 2)
    #expect(errno { _ = try load(0, 0) } == .ioError)
    #expect(errno { try store(0, 0, 1) } == .ioError)
    try device.setConfig(4, 6, 2)
    #expect(try load(0, 8) == 1)
  }

  @Test("J1: random writes of the table while vectors are raised and set up harm nobody")
  func hostile() async throws {
    let device = device
    let vectors = vectors
    let heard = heard
    await withTaskGroup(of: Void.self) { group in
      for seed in 1...2 as ClosedRange<UInt64> {
        group.addTask {
          var state = seed
          func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state >> 33
          }
          for _ in 0..<2000 {
            let count = Int(1 + next() % 19)
            let bytes = (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
            let offset = next() % (0x100 + 71 * 16)
            _ = try? device.write(.bar(2), offset, bytes, isMapped: true)
            _ = try? device.read(.bar(2), offset, count, isMapped: true)
          }
        }
      }
      group.addTask {
        for number in 0..<3000 { device.model.port.raise(vector: number % 72 - 1) }
      }
      group.addTask {
        for number in 0..<300 {
          try? vectors.set(
            .msix, action: .trigger, start: number % 60,
            arguments: .events(heard.map { .signal($0) }), count: 3)
          if number % 7 == 0 {
            try? vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
          }
          if number % 50 == 0 { device.function.reset() }
        }
      }
    }
    // It is in order after a new set-up.
    try? vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    let last = Counter()
    try vectors.set(
      .msix, action: .trigger, start: 9, arguments: .events([.signal(last)]), count: 1)
    device.model.port.raise(vector: 9)
    #expect(last.count == 1)
    #expect(device.bus.messageCount == 1)
  }
}
