// SPDX-License-Identifier: Apache-2.0
//
// J1, C4: resets of all kinds under copy engines at work: what is over when they return, and what
// stays. Two engines are below one port.

import IOMMU
import PageTables
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@Suite(.timeLimit(.minutes(10))) struct CopyEngineResetTests {
  private static let base: UInt64 = 0x100_0000
  private static let byteCount: UInt64 = 16 << 20

  let system = IOMMUSystem()
  let memory: LocalMemory
  let functions: [PCIFunction]
  let sessions: [DeviceSession]

  init() throws {
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    memory = try LocalMemory(byteCount: Self.byteCount)
    let group = system.addGroup()
    let offered = VFIOGroup(group: group)
    let bus = PCIBus(port: RequesterID(bus: 0, device: 5, function: 0))
    let context = Context(system: system)
    let space = try context.allocateIOAS()
    try context.map(
      memory, start: 0, length: Self.byteCount, into: space, at: .fixed(IOVA(Self.base)))
    var functions: [PCIFunction] = []
    var sessions: [DeviceSession] = []
    for number in 0..<2 {
      let requester = RequesterID(bus: 1, device: 0, function: UInt8(number))
      let device = try system.addDevice(
        name: "\(requester)", requester: requester, driver: iommu, group: group)
      let function = PCIFunction(
        device: device, model: CopyEngine(),
        upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester), bus: bus)
      functions.append(function)
      let session = VFIODevice(index: UInt32(number), function: function, group: offered).open()
      try session.bind(findContext: { context }, publish: { _ in })
      sessions.append(session)
    }
    try sessions[0].attach(to: space, publish: { _ in })
    try sessions[1].attach(to: space, publish: { _ in })
    self.functions = functions
    self.sessions = sessions
    for function in functions { put(function, .config, 4, UInt16(6)) }
  }

  private func put<T: FixedWidthInteger>(
    _ function: PCIFunction, _ region: PCIRegion, _ offset: UInt64, _ value: T
  ) {
    withUnsafeBytes(of: value) { _ = try? function.write(region, at: offset, from: $0) }
  }

  private func get<T: FixedWidthInteger>(
    _ function: PCIFunction, _ region: PCIRegion, _ offset: UInt64, as type: T.Type = T.self
  ) -> T {
    var value: T = 0
    withUnsafeMutableBytes(of: &value) { _ = try? function.read(region, at: offset, into: $0) }
    return value
  }

  /// Where an engine's descriptor, source and destination are in the memory.
  private func place(_ number: Int) -> Int { number << 22 }

  /// Starts copies of `length` bytes, one after the other, each with an interrupt.
  private func start(_ number: Int, length: UInt32 = 1 << 20, count: UInt16 = 60000) {
    let function = functions[number]
    let start = Self.base + UInt64(place(number))
    memory.withUnsafeMutableBytes { bytes in
      let words = [
        UInt64(length) | 1 << 32, start + (1 << 20), start + (2 << 20), start,
      ]
      for (index, word) in words.enumerated() {
        bytes.storeBytes(of: word, toByteOffset: place(number) + index * 8, as: UInt64.self)
      }
    }
    put(function, .bar(0), 0x84, UInt8(0x20))
    while get(function, .bar(0), 0x84, as: UInt8.self) != 0 {}
    put(function, .bar(0), 0x03, UInt8(0x09))
    put(function, .bar(0), 0x90, start)
    put(function, .bar(0), 0x80, UInt16(0x9))
    put(function, .bar(0), 0x86, count)
  }

  private func status(_ number: Int) -> UInt64 { get(functions[number], .bar(0), 0x88) }

  /// Whether an engine's destination stays as it is while we look.
  private func isQuiet(_ number: Int) -> Bool {
    memory.withUnsafeMutableBytes { bytes in
      let first = place(number) + (2 << 20)
      let last = place(number) + (3 << 20) - 8
      for round in UInt64(1)...100 {
        bytes.storeBytes(of: round, toByteOffset: first, as: UInt64.self)
        bytes.storeBytes(of: round, toByteOffset: last, as: UInt64.self)
        for _ in 0..<200 {
          guard bytes.load(fromByteOffset: first, as: UInt64.self) == round,
            bytes.load(fromByteOffset: last, as: UInt64.self) == round
          else { return false }
        }
      }
      return true
    }
  }

  @Test(
    "C4: a hot reset in the middle of transfers ends those of every function below the port")
  func hotReset() throws {
    for _ in 0..<3 {
      start(0)
      start(1)
      #expect(status(0) & 7 == 0 && status(1) & 7 == 0)
      try sessions[0].hotReset(by: .context)
      for number in 0..<2 {
        #expect(isQuiet(number))
        #expect(status(number) == 3)
        #expect(get(functions[number], .config, 4, as: UInt16.self) == 6)
      }
    }
    start(1, length: 4096, count: 1)
    while status(1) & 7 == 0 {}
    #expect(status(1) & 7 == 1)
  }

  @Test("C4: a reset of one function leaves the transfers of its neighbour alone")
  func neighbour() throws {
    start(0)
    start(1)
    functions[0].reset()
    #expect(status(1) & 7 == 0)
    #expect(status(0) == 3)
    #expect(isQuiet(0))
  }

  @Test("C4: a suspended channel is reset like any other, and runs again")
  func suspended() throws {
    start(0)
    put(functions[0], .bar(0), 0x84, UInt8(0x04))
    while status(0) & 7 == 0 {}
    #expect(status(0) & 7 == 2)
    functions[0].reset()
    #expect(status(0) == 3)
    put(functions[0], .bar(0), 0x84, UInt8(0x10))
    #expect(status(0) == 3, "there is nothing to resume")
    start(0, length: 64, count: 1)
    while status(0) & 7 == 0 {}
    #expect(status(0) & 7 == 1)
  }

  @Test(
    "C4: no interrupt of before a reset comes after it: by MSI-X, MSI and the line",
    arguments: [InterruptVectors.Index.msix, .msi, .line])
  func interrupts(index: InterruptVectors.Index) throws {
    let function = functions[0]
    let signal = CountingSignal()
    try function.interrupts.set(
      index, action: .trigger, start: 0, arguments: .events([.signal(signal)]), count: 1)
    let heard = signal.count
    for round in 0..<20 {
      start(0, length: 64)
      // Each re-arm lets the next one out.
      for _ in 0..<round * 10 { put(function, .bar(0), 0x80, UInt16(0x9)) }
      if round % 2 == 0 {
        put(function, .config, 0x99, UInt8(0x80))
      } else {
        function.reset()
      }
      if index == .line {
        #expect(get(function, .config, 6, as: UInt16.self) & 8 == 0)
        try function.interrupts.set(
          .line, action: .unmask, start: 0, arguments: .none, count: 1)
      }
      let after = signal.count
      put(function, .bar(0), 0x80, UInt16(0x9))
      #expect(isQuiet(0))
      #expect(signal.count == after)
    }
    // What is set up is set up still.
    start(0, length: 64, count: 1)
    while signal.count == heard {}
    let sum = signal.count
    if index == .line {
      put(function, .bar(0), 0x80, UInt16(0x9))
      try function.interrupts.set(.line, action: .unmask, start: 0, arguments: .none, count: 1)
    }
    start(0, length: 64, count: 1)
    while signal.count == sum {}
  }
}
