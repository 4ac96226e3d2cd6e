// SPDX-License-Identifier: Apache-2.0
//
// J1: interrupts of a function with many vectors, as VFIO_DEVICE_SET_IRQS sets them up: ranges,
// removal, failure in the middle, masked and pending, blocked devices.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct InterruptTests {
  let device: TestFunction
  var vectors: InterruptVectors { device.function.interrupts }

  init() throws {
    device = try TestFunction()
    try device.bind()
    try device.write(.config, 4, [6, 0])
  }

  private func arm(_ start: Int, _ events: [InterruptVectors.Event]) throws {
    try vectors.set(
      .msix, action: .trigger, start: start, arguments: .events(events), count: events.count)
  }

  @Test("J1: each vector of a range signals its own event; a second range leaves the first")
  func ranges() throws {
    let counters = (0..<5).map { _ in Counter() }
    try arm(2, counters[..<3].map { .signal($0) })
    try arm(69, [.signal(counters[3])])
    try arm(3, [.remove(descriptor: -1), .signal(counters[4])])
    for vector in 0..<70 { device.model.port.raise(vector: vector) }
    #expect(counters.map(\.count) == [1, 0, 0, 1, 1])
    #expect(device.bus.messageCount == 3)
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 70)
    #expect(counters.map(\.count) == [2, 0, 0, 2, 2])
    try vectors.set(
      .msix, action: .trigger, start: 2,
      arguments: .booleans([false, true, true]), count: 3)
    #expect(counters.map(\.count) == [2, 0, 0, 2, 3])
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    #expect(device.bus.messageCount == 0)
    #expect(throws: IOMMUError.self) {
      try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 1)
    }
  }

  @Test("J1: a bad descriptor in the middle takes its whole call back, and what it replaced")
  func failureInTheMiddle() throws {
    let old = Counter()
    let new = Counter()
    try arm(0, [.signal(old), .signal(old), .signal(old), .signal(old)])
    let bad = IOMMUError(.badFileDescriptor, "not open")
    #expect(throws: bad) { try arm(1, [.signal(new), .invalid(bad), .signal(new)]) }
    for vector in 0..<4 { device.model.port.raise(vector: vector) }
    #expect(new.count == 0)
    #expect(old.count == 2, "vectors 0 and 3 were not reached")
    #expect(device.bus.messageCount == 2)
    // Where the call had switched MSI-X on, it is off again.
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    #expect(throws: bad) { try arm(0, [.signal(new), .invalid(bad)]) }
    #expect(try device.read(.config, 0x83, 1) == [0])
    #expect(device.bus.messageCount == 0)
  }

  @Test(
    "J1: a vector raised while nobody listens is pending and fires when it is given an event")
  func pending() throws {
    let counter = Counter()
    device.model.port.raise(vector: 5)
    try arm(0, [.signal(counter)])
    device.model.port.raise(vector: 5)
    device.model.port.raise(vector: 5)
    try arm(5, [.signal(counter)])
    #expect(counter.count == 1, "once, and not for what came while MSI-X was off")
    device.model.port.raise(vector: 5)
    #expect(counter.count == 2)
  }

  @Test("A3: a blocked device, and one that may not master, cannot raise an interrupt")
  func blocked() throws {
    let counter = Counter()
    try arm(0, [.signal(counter)])
    device.bus.isBlocked = true
    device.model.port.raise(vector: 0)
    #expect(counter.count == 0)
    device.bus.isBlocked = false
    device.model.port.raise(vector: 0)
    #expect(counter.count == 1)
    try device.write(.config, 4, [2, 0])
    device.model.port.raise(vector: 0)
    #expect(counter.count == 1)
    try vectors.set(.msix, action: .trigger, start: 0, arguments: .none, count: 1)
    #expect(counter.count == 2, "the loopback is the kernel's, not the device's")
  }

  @Test("J1: one kind at a time, no more vectors than there are, actions as each kind has them")
  func refusals() throws {
    #expect(vectors.count(of: .msix) == 70)
    #expect(vectors.count(of: .line) == 0)
    #expect(throws: IOMMUError.self) { try vectors.check(index: 2, start: 70, count: 0) }
    #expect(throws: IOMMUError.self) { try vectors.check(index: 2, start: 69, count: 2) }
    #expect(throws: IOMMUError.self) { try vectors.check(index: 2, start: 1, count: .max) }
    #expect(throws: IOMMUError.self) { try vectors.check(index: 2, start: 0, count: .max) }
    #expect(throws: IOMMUError.self) { try vectors.check(index: 5, start: 0, count: 0) }
    #expect(try vectors.check(index: 2, start: 69, count: 1) == .msix)
    try arm(0, [.signal(Counter())])
    #expect(throws: IOMMUError.self) {
      try vectors.set(
        .line, action: .trigger, start: 0, arguments: .events([.signal(Counter())]), count: 1)
    }
    for action in [InterruptVectors.Action.mask, .unmask] {
      do {
        try vectors.set(.msix, action: action, start: 0, arguments: .none, count: 1)
        Issue.record("MSI-X was masked")
      } catch {
        #expect(error.errno == .inappropriateIOCTLForDevice)
      }
    }
  }

  @Test("J1: a reset keeps the set-up of interrupts and forgets what was pending")
  func reset() throws {
    let counter = Counter()
    try arm(0, [.signal(counter)])
    device.model.port.raise(vector: 1)
    device.function.reset()
    try arm(1, [.signal(counter)])
    #expect(counter.count == 0)
    device.model.port.raise(vector: 0)
    device.model.port.raise(vector: 1)
    #expect(counter.count == 2)
  }
}

@Suite struct InterruptLineTests {
  let device: TestFunction
  let counter = Counter()
  var vectors: InterruptVectors { device.function.interrupts }

  init() throws {
    device = try TestFunction(interruptPin: 1)
    try device.bind()
  }

  private func line(
    _ action: InterruptVectors.Action, _ arguments: InterruptVectors.Arguments, count: Int = 1
  ) throws {
    try vectors.set(.line, action: action, start: 0, arguments: arguments, count: count)
  }

  @Test(
    "J1: INTx signals once, masks itself, and signals again at the unmask if still asserted")
  func automask() throws {
    #expect(try device.read(.config, 0x3D, 1) == [1])
    #expect(vectors.count(of: .line) == 1)
    #expect(throws: IOMMUError.self) { try line(.mask, .none) }
    try line(.trigger, .events([.signal(counter)]))
    device.model.port.setLine(asserted: true)
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 1)
    try line(.unmask, .none)
    #expect(counter.count == 2)
    device.model.port.setLine(asserted: false)
    try line(.unmask, .booleans([false]))
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 2, "still masked")
    try line(.unmask, .booleans([true]))
    #expect(counter.count == 3)
    #expect(throws: IOMMUError.self) { try line(.mask, .events([.signal(counter)])) }
    try line(.trigger, .none, count: 0)
    device.model.port.setLine(asserted: false)
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 3)
  }

  @Test("J1: Interrupt Disable in the command register masks INTx, clearing it delivers")
  func interruptDisable() throws {
    try line(.trigger, .events([.signal(counter)]))
    try device.write(.config, 4, [0x02, 0x04])
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 0)
    try line(.unmask, .none)
    #expect(counter.count == 0)
    try device.write(.config, 4, [0x02, 0x00])
    #expect(counter.count == 1)
  }

  @Test(
    "J1: an eventfd unmasks INTx, and what is still asserted is signalled again; one at a time")
  func unmaskByEvent() throws {
    let unmask = Counter()
    let bodies = Bodies()
    func event() -> InterruptVectors.Event {
      .signal(
        WatchedEvent(unmask) { body in
          bodies.withLock { $0.append(body) }
          return { bodies.withLock { $0 = [] } }
        })
    }
    func ring() { for body in bodies.withLock({ $0 }) { body() } }
    #expect(errno { try line(.unmask, .events([event()])) } == .invalidArgument)
    try line(.trigger, .events([.signal(counter)]))
    #expect(
      errno { try line(.unmask, .events([.signal(unmask)])) } == .operationNotSupported)
    try line(.unmask, .events([event()]))
    #expect(errno { try line(.unmask, .events([event()])) } == .resourceBusy)
    let bad = IOMMUError(.badFileDescriptor, "not open")
    #expect(errno { try line(.unmask, .events([.invalid(bad)])) } == .badFileDescriptor)
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 1)
    ring()
    #expect(counter.count == 2)
    device.model.port.setLine(asserted: false)
    ring()
    #expect(counter.count == 2)
    device.model.port.setLine(asserted: true)
    #expect(counter.count == 3, "it is not masked")
    try line(.unmask, .events([.remove(descriptor: -1)]))
    #expect(bodies.withLock { $0.isEmpty })
    try line(.unmask, .events([event()]))
    let late = bodies.withLock { $0 }
    try line(.trigger, .none, count: 0)
    #expect(bodies.withLock { $0.isEmpty }, "INTx takes it along")
    for body in late { body() }
    #expect(counter.count == 3)
  }

  @Test("J1: an eventfd that its user has closed leaves its place as INTx's unmask to the next")
  func abandonedUnmask() throws {
    let isClosed = Guarded(false)
    let (first, second) = (Bodies(), Bodies())
    func event(_ bodies: Bodies) -> InterruptVectors.Event {
      .signal(
        WatchedEvent(
          Counter(),
          watch: { body in
            bodies.withLock { $0.append(body) }
            return { bodies.withLock { $0 = [] } }
          }, isAbandoned: { isClosed.withLock { $0 } }))
    }
    try line(.trigger, .events([.signal(counter)]))
    try line(.unmask, .events([event(first)]))
    #expect(errno { try line(.unmask, .events([event(second)])) } == .resourceBusy)
    #expect(first.withLock { $0.count } == 1 && second.withLock { $0.isEmpty })
    isClosed.withLock { $0 = true }
    try line(.unmask, .events([event(second)]))
    #expect(first.withLock { $0.isEmpty }, "nobody waits for it any more")
    device.model.port.setLine(asserted: true)
    for body in second.withLock({ $0 }) { body() }
    #expect(counter.count == 2)
  }

  @Test("J1: INTx and MSI-X exclude each other; a new event replaces the old one")
  func exclusion() throws {
    let other = Counter()
    try line(.trigger, .events([.signal(counter)]))
    #expect(throws: IOMMUError.self) {
      try vectors.set(
        .msix, action: .trigger, start: 0, arguments: .events([.signal(other)]), count: 1)
    }
    try line(.trigger, .events([.signal(other)]))
    try line(.trigger, .none)
    #expect(counter.count == 0)
    #expect(other.count == 1)
    device.session.close()
    device.model.port.setLine(asserted: true)
    #expect(other.count == 1)
  }
}

/// What is to be called when an event is signalled.
private final class Bodies: Sendable {
  private let list = Guarded<[@Sendable () -> Void]>([])

  func withLock<Result>(_ body: (inout sending [@Sendable () -> Void]) -> sending Result)
    -> Result
  {
    list.withLock(body)
  }
}
