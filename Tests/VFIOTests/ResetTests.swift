// SPDX-License-Identifier: Apache-2.0
//
// J1: what resets a function, and what does not: the bit in the PCI Express capability, the way from
// D3hot to D0, its bus.

import IOMMU
import SystemPackage
import Testing
import VFIO

@Suite struct ResetTests {
  private func bound(_ resets: TestModel.Resets) throws -> TestFunction {
    let device = try TestFunction(msi: MSILayout(vectors: 4), resets: resets)
    try device.bind()
    try device.setConfig(4, 6, 2)
    try device.setConfig(0x48, 0xFFFF)
    try device.setConfig(0x3C, 0x0B, 1)
    return device
  }

  private func count(_ device: TestFunction) -> Int {
    device.model.state.withLock { $0.resets }
  }

  @Test(
    "J1: D3hot and back keeps the device where No_Soft_Reset is set, and resets it where not")
  func power() throws {
    for isReset in [false, true] {
      let device = try bound(isReset ? [.function, .power] : .function)
      let signal = Counter()
      try device.function.interrupts.set(
        .msi, action: .trigger, start: 0, arguments: .events([.signal(signal)]), count: 1)
      #expect(try device.config(0xE4) == (isReset ? 0 : 8))
      let before = count(device)
      try device.setConfig(0xE4, 3)
      #expect(try device.config(0xE4) & 3 == 3)
      #expect(errno { _ = try device.read(.bar(0), 0, 4) } == .ioError)
      device.model.port.raise(vector: 0)
      #expect(signal.count == 0, "it masters no bus there")
      #expect(count(device) == before)
      // Once more to D3hot is no way back.
      try device.setConfig(0xE4, 3)
      try device.setConfig(0xE4, 0)
      #expect(count(device) == before + (isReset ? 1 : 0))
      #expect(try device.config(0x48) == (isReset ? 0xAB : 0xFFAB))
      // Linux restores the rest, and what SET_IRQS set up is there.
      #expect(try device.config(4, 2) == 6)
      #expect(try device.config(0x3C, 1) == 0x0B)
      #expect(try device.read(.bar(0), 0, 4).count == 4)
      device.model.port.raise(vector: 0)
      #expect(signal.count == 1)
      try device.setConfig(0xE4, 0)
      #expect(count(device) == before + (isReset ? 1 : 0))
    }
  }

  @Test("J1: the reset bit is passed over where the capability has no reset; it reads as 0")
  func noFunctionReset() throws {
    let device = try bound(.power)
    #expect(try device.config(0x94) & 1 << 28 == 0)
    let before = count(device)
    try device.setConfig(0x98, 0xA910, 2)
    #expect(count(device) == before)
    #expect(try device.config(0x98, 2) == 0x2910)
    #expect(try device.config(0x48) == 0xFFAB)
    #expect(device.function.canReset, "by way of D3hot")
    let other = try bound([])
    #expect(!other.function.canReset)
    try other.setConfig(0xE4, 3)
    try other.setConfig(0xE4, 0)
    try other.setConfig(0x98, 0xA910, 2)
    #expect(try other.config(0x48) == 0xFFAB)
  }

  @Test("J1: a function without a reset of its own is reset by its bus where it is alone there")
  func byBus() throws {
    let system = IOMMUSystem()
    let group = system.addGroup()
    let bus = PCIBus(port: RequesterID(bus: 0, device: 5, function: 0))
    let functions = try (0..<2).map { number in
      let requester = RequesterID(bus: 1, device: 0, function: UInt8(number))
      let physical = try system.addDevice(
        name: "\(requester)", requester: requester, driver: PlainDriver(), group: group)
      return PCIFunction(
        device: physical, model: TestModel(resets: number == 0 ? [] : .function),
        upstream: TestBus(), bus: bus)
    }
    #expect(!functions[0].canReset)
    #expect(functions[1].canReset)
    bus.remove(functions[1])
    #expect(functions[0].canReset)
  }

  @Test("J1: a reset while vectors are raised and masked keeps what is set up, in every order")
  func whileRaising() async throws {
    let device = try bound(.function)
    let signal = Counter()
    try device.function.interrupts.set(
      .msix, action: .trigger, start: 0, arguments: .events([.signal(signal)]), count: 1)
    let over = Counter()
    await withTaskGroup(of: Void.self) { group in
      group.addTask {
        while over.count == 0 {
          device.model.port.raise(vector: 0)
          device.model.port.raise(vector: 1)
          await Task.yield()
        }
      }
      group.addTask {
        while over.count == 0 {
          _ = try? device.write(.bar(2), 0x10C, [1, 0, 0, 0], isMapped: true)
          _ = try? device.write(.bar(2), 0x10C, [0, 0, 0, 0], isMapped: true)
          await Task.yield()
        }
      }
      group.addTask {
        for number in 0..<300 {
          if number % 3 == 0 {
            try? device.setConfig(0x99, 0x80, 1)
          } else {
            device.function.reset()
          }
        }
        over.signal()
      }
    }
    device.function.reset()
    let before = signal.count
    #expect(
      try device.read(.bar(2), 0x8000, 8, isMapped: true) == [UInt8](repeating: 0, count: 8))
    device.model.port.raise(vector: 0)
    #expect(signal.count == before + 1)
    #expect(try device.config(4, 2) == 6)
  }
}
