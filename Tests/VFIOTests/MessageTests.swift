// SPDX-License-Identifier: Apache-2.0
//
// J1: MSI: its capability as the user sees it, counts that are no power of two, masks and pending
// bits, and what the device's vectors come to.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct MessageTests {
  let device: TestFunction
  var vectors: InterruptVectors { device.function.interrupts }
  /// Where the capability is.
  let base: UInt64 = 0x50

  init() throws {
    device = try TestFunction(interruptPin: 1, msi: MSILayout(vectors: 8, isMaskable: true))
    try device.bind()
    try device.setConfig(4, 6, 2)
  }

  private func set(
    _ start: Int, _ arguments: InterruptVectors.Arguments, count: Int,
    of index: InterruptVectors.Index = .msi
  ) throws {
    try vectors.set(index, action: .trigger, start: start, arguments: arguments, count: count)
  }

  private func arm(_ start: Int, _ counters: [Counter]) throws {
    try set(start, .events(counters.map { .signal($0) }), count: counters.count)
  }

  private func raise(_ vectors: Range<Int>) {
    for vector in vectors { device.model.port.raise(vector: vector) }
  }

  private func counters(_ count: Int) -> [Counter] { (0..<count).map { _ in Counter() } }

  @Test("J1: the MSI capability is last in the list: 64 bits, 8 messages, masks; read-only")
  func capability() throws {
    #expect(try device.config(0xE1, 1) == 0x50)
    #expect(try device.config(base) == 0x0186_0005)
    try device.setConfig(base, .max)
    #expect(try device.config(base) == 0x0186_0005, "not set up: no enable, one message")
    try device.setConfig(base + 4, 0xFEE0_1237)
    try device.setConfig(base + 8, 0x0000_0001)
    try device.setConfig(base + 12, 0xFFFF_4321)
    #expect(try device.config(base + 4) == 0xFEE0_1234)
    #expect(try device.config(base + 8) == 1)
    #expect(try device.config(base + 12) == 0x4321)
    try device.setConfig(base + 0x10, .max)
    try device.setConfig(base + 0x14, .max)
    #expect(try device.config(base + 0x10) == 0xFF)
    #expect(try device.config(base + 0x14) == 0)
    // Nothing of it is there where a model has no MSI.
    let plain = try TestFunction()
    try plain.bind()
    #expect(try plain.config(0xE1, 1) == 0)
    #expect(plain.function.interrupts.count(of: .msi) == 0)
    #expect(
      errno {
        try plain.function.interrupts.set(
          .msi, action: .trigger, start: 0, arguments: .events([.signal(Counter())]), count: 1)
      } == .invalidArgument)
  }

  @Test("J1: enable and the number of messages are what SET_IRQS set up, and no more")
  func control() throws {
    try arm(0, counters(3))
    #expect(try device.config(base + 2, 2) & 0x71 == 0, "the user's copy is the user's")
    #expect(device.function.config.contents[0x52] & 0x71 == 0x21, "the function has four")
    try device.setConfig(base + 2, 0x0071, 2)
    #expect(try device.config(base + 2, 2) == 0x01A7, "four, as three are set up")
    try device.setConfig(base + 2, 0x0011, 1)
    #expect(try device.config(base + 2, 2) == 0x0197)
    try set(0, .none, count: 0)
    #expect(device.function.config.contents[0x52] & 0x71 == 0)
    try device.setConfig(base + 2, 0x0001, 2)
    #expect(try device.config(base + 2, 2) & 1 == 0)
  }

  @Test("J1: three vectors take four messages; the device's vectors go round in them")
  func threeOfFour() throws {
    let heard = counters(3)
    try arm(0, heard)
    #expect(device.bus.messageCount == 3)
    raise(0..<8)
    #expect(heard.map(\.count) == [2, 2, 2], "3 and 7 are a message that is masked")
    // The user takes less.
    try device.setConfig(base + 2, 0x0001, 2)
    raise(0..<8)
    #expect(heard.map(\.count) == [10, 2, 2])
    try device.setConfig(base + 2, 0x0000, 2)
    raise(0..<8)
    #expect(heard.map(\.count) == [10, 2, 2], "it is off in the function")
    try set(0, .none, count: 0)
    #expect(device.bus.messageCount == 0)
    raise(0..<8)
    device.model.port.raise(vector: -1)
    device.model.port.raise(vector: .max)
    #expect(heard.map(\.count) == [10, 2, 2])
  }

  @Test("J1: MSI gets no vectors while it is on; a failing one takes its call back, in order")
  func noResize() throws {
    let heard = counters(2)
    let late = Counter()
    let bad = IOMMUError(.badFileDescriptor, "not open")
    try arm(0, heard)
    #expect(errno { try arm(2, [late]) } == .invalidArgument)
    #expect(errno { try set(2, .events([.invalid(bad)]), count: 1) } == .invalidArgument)
    #expect(errno { try arm(1, [late, late]) } == .invalidArgument)
    raise(0..<2)
    #expect(heard.map(\.count) == [1, 0])
    #expect(late.count == 0)
    try set(7, .events([.remove(descriptor: -1)]), count: 1)
    try arm(1, [late])
    #expect(late.count == 1, "it was pending")
    #expect(errno { try arm(0, counters(9)) } == .invalidArgument)
    try set(0, .none, count: 0)
    #expect(errno { try arm(0, counters(9)) } == .invalidArgument)
    #expect(errno { try set(0, .events([.invalid(bad)]), count: 1) } == .badFileDescriptor)
    #expect(device.bus.messageCount == 0)
    #expect(errno { try set(0, .events([]), count: 0) } == .outOfRange)
    try arm(0, counters(8))
    #expect(device.bus.messageCount == 8)
  }

  @Test("J1: loopback, one kind at a time, and a change of kind goes through a teardown")
  func kinds() throws {
    let heard = counters(3)
    #expect(errno { try set(0, .none, count: 1) } == .invalidArgument)
    try arm(0, heard)
    try set(0, .none, count: 2)
    try set(1, .booleans([false, true]), count: 2)
    #expect(heard.map(\.count) == [1, 1, 1])
    for index in [InterruptVectors.Index.msix, .line] {
      #expect(
        errno { try set(0, .events([.signal(heard[0])]), count: 1, of: index) }
          == .invalidArgument)
      #expect(errno { try set(0, .none, count: 0, of: index) } == .invalidArgument)
    }
    try set(0, .none, count: 0)
    try set(0, .events([.signal(heard[0])]), count: 1, of: .msix)
    #expect(errno { try arm(0, heard) } == .invalidArgument)
    raise(0..<1)
    #expect(heard[0].count == 2)
  }

  @Test("J1: a message that the user has masked is pending, and goes out when it is not")
  func masks() throws {
    let heard = counters(2)
    try arm(0, heard)
    #expect(try device.config(base + 0x10) == 0xFC, "what nobody listens to is masked")
    try device.setConfig(base + 0x10, 0xFE, 1)
    raise(0..<2)
    raise(1..<2)
    #expect(heard.map(\.count) == [1, 0])
    #expect(try device.config(base + 0x14) == 2)
    try device.setConfig(base + 0x10, 0x00, 1)
    #expect(heard.map(\.count) == [1, 1])
    #expect(try device.config(base + 0x14) == 0)
    // One without an event is masked, and heard of once it has one.
    try set(0, .events([.remove(descriptor: -1)]), count: 1)
    raise(0..<1)
    #expect(try device.config(base + 0x14) == 1)
    try arm(0, [heard[0]])
    #expect(heard.map(\.count) == [2, 1])
    try device.setConfig(base + 0x10, 0xFF, 1)
    raise(0..<2)
    device.function.reset()
    #expect(try device.config(base + 0x14) == 0)
    #expect(try device.config(base + 0x10) == 0xFC, "restored")
    raise(0..<2)
    #expect(heard.map(\.count) == [3, 2])
  }

  @Test("J1: messages are DMA: nothing of a function that may not master or is blocked")
  func blocked() throws {
    let heard = counters(1)
    try arm(0, heard)
    device.bus.isBlocked = true
    raise(0..<1)
    device.bus.isBlocked = false
    try device.setConfig(4, 2, 2)
    raise(0..<1)
    #expect(heard[0].count == 0)
    try device.setConfig(4, 6, 2)
    raise(0..<1)
    #expect(heard[0].count == 1)
    device.session.close()
    #expect(device.bus.messageCount == 0)
    raise(0..<1)
    #expect(heard[0].count == 1)
  }

  @Test("J1: Interrupt Status shows the line, disabled or not, and no line beside messages")
  func interruptStatus() throws {
    func status() throws -> Bool { try device.config(6, 2) & 8 != 0 }
    #expect(try !status())
    device.model.port.setLine(asserted: true)
    #expect(try status())
    try device.setConfig(4, 0x0406, 2)
    #expect(try status())
    #expect(try device.config(4, 2) == 0x0406)
    try arm(0, counters(1))
    #expect(try !status())
    try set(0, .none, count: 0)
    #expect(try status())
    device.function.reset()
    #expect(try !status())
    device.model.port.setLine(asserted: true)
    device.session.close()
    let next = device.device.open()
    let context = device.context
    try next.bind(findContext: { context }, publish: { _ in })
    #expect(try !status())
  }
}
