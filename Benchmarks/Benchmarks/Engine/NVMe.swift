// SPDX-License-Identifier: Apache-2.0
//
// The NVMe controller in process: 4 KiB reads at random from a namespace in memory, 32 at a time, by
// a driver that polls.

import Benchmark
import Glibc
import IOMMU
import PageTables
import SoftDevices
import Synchronization
import VFIO

func nvmeBenchmarks() {
  Benchmark("NVMe: 4 KiB random reads", configuration: .once) { (benchmark, state: Reading) in
    benchmark.startMeasurement()
    state.run(count: 100_000)
    benchmark.stopMeasurement()
  } setup: {
    try Reading()
  }
}

/// A controller with one pair of I/O queues, and its driver.
private final class Reading {
  private static let entries = 64
  private static let depth = 32
  private static let size: UInt64 = 256 << 20
  /// Where things are in the memory.
  private static let data = 0x10000

  private let fixture: Fixture
  private let controller: NVMeController
  private let function: PCIFunction
  private let memory: LocalMemory
  private let address: UInt64
  private let bytes: UnsafeMutableRawBufferPointer
  private var random = Sequence64(seed: 7)

  /// A ring of commands and one of completions.
  private struct Queue {
    var number: UInt64
    var commands: Int
    var completions: Int
    var tail = 0
    var head = 0
    var phase: UInt32 = 1
  }
  private var admin = Queue(number: 0, commands: 0, completions: 0x1000)
  private var queue = Queue(number: 1, commands: 0x2000, completions: 0x3000)

  init() throws {
    fixture = try Fixture()
    controller = try NVMeController(NVMeConfiguration(namespaces: [.init(size: Self.size)]))
    function = PCIFunction(
      device: fixture.device, model: controller,
      upstream: SoftwareIOMMUBus(iommu: fixture.iommu, requester: fixture.device.requester))
    memory = try LocalMemory(byteCount: 1 << 20)
    address = try fixture.context.map(
      memory, start: 0, length: memory.byteCount, into: fixture.space
    ).rawValue
    // The memory lives as long as this object.
    bytes = memory.withUnsafeMutableBytes { $0 }
    // Memory decoding and bus mastering on.
    withUnsafeBytes(of: UInt16(6)) { bytes in
      _ = try? function.write(.config, at: 4, from: bytes)
    }
    write(0x24, UInt32(Self.entries - 1) * 0x1_0001)
    write(0x28, UInt32(truncatingIfNeeded: address))
    write(0x2C, UInt32(truncatingIfNeeded: address >> 32))
    write(0x30, UInt32(truncatingIfNeeded: address + 0x1000))
    write(0x34, UInt32(truncatingIfNeeded: (address + 0x1000) >> 32))
    write(0x14, 6 << 16 | 4 << 20 | 1)
    while controller.readRegister(bar: 0, offset: 0x1C, width: 4) & 1 == 0 { sched_yield() }
    let size = UInt64(Self.entries - 1) << 16
    put(&admin, 5, address + 0x3000, size | 1 | 1 << 32)
    put(&admin, 1, address + 0x2000, size | 1 | 1 << 32 | 1 << 48)
    ring(admin)
    var made = 0
    while made < 2 { made += take(&admin).map { _ in 1 } ?? 0 }
    // The blocks are there: a hole would be read faster. A page at a time, all of them.
    for block in 0..<Self.size / 4096 {
      put(&queue, 1, address + UInt64(Self.data), block * 8, third: 7)
      ring(queue)
      while take(&queue) == nil {}
      release(queue)
    }
  }

  /// Reads so often.
  func run(count: Int) {
    var begun = 0
    var done = 0
    for slot in 0..<Self.depth {
      read(into: slot)
      begun += 1
    }
    ring(queue)
    while done < count {
      var taken = 0
      while taken < Self.depth / 4, let slot = take(&queue) {
        taken += 1
        if begun < count {
          read(into: slot)
          begun += 1
        }
      }
      guard taken > 0 else { continue }
      done += taken
      release(queue)
      ring(queue)
    }
  }

  private func read(into slot: Int) {
    let block = random.next() % (Self.size / 4096) * 8
    put(
      &queue, 2, address + UInt64(Self.data + slot * 4096), block, third: 7, identifier: slot)
  }

  /// - Parameters:
  ///   - words: Dwords 10 and 11.
  ///   - third: Dword 12.
  private func put(
    _ queue: inout Queue, _ opcode: UInt32, _ pointer: UInt64, _ words: UInt64,
    third: UInt32 = 0, identifier: Int = 0
  ) {
    let place = queue.commands + queue.tail * 64
    bytes.storeBytes(
      of: opcode | UInt32(identifier) << 16, toByteOffset: place, as: UInt32.self)
    bytes.storeBytes(of: 1, toByteOffset: place + 4, as: UInt32.self)
    bytes.storeBytes(of: pointer, toByteOffset: place + 24, as: UInt64.self)
    bytes.storeBytes(of: words, toByteOffset: place + 40, as: UInt64.self)
    bytes.storeBytes(of: third, toByteOffset: place + 48, as: UInt32.self)
    queue.tail = (queue.tail + 1) % Self.entries
  }

  /// The next completion's command, if it is there.
  private func take(_ queue: inout Queue) -> Int? {
    // Another thread writes it: a plain load would be taken out of the loop that waits for it.
    let last = (bytes.baseAddress! + queue.completions + queue.head * 16 + 12)
      .assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(ordering: .acquiring)
    guard last >> 16 & 1 == queue.phase else { return nil }
    precondition(last >> 17 == 0, "a command failed")
    queue.head += 1
    if queue.head == Self.entries {
      queue.head = 0
      queue.phase ^= 1
    }
    return Int(last & 0xFFFF)
  }

  private func ring(_ queue: Queue) { write(0x1000 + queue.number * 8, UInt32(queue.tail)) }
  private func release(_ queue: Queue) { write(0x1004 + queue.number * 8, UInt32(queue.head)) }

  private func write(_ offset: UInt64, _ value: UInt32) {
    controller.writeRegister(bar: 0, offset: offset, width: 4, value: UInt64(value))
  }
}
