// SPDX-License-Identifier: Apache-2.0
//
// The copy engine in process, 1 MiB at a time, beside memcpy over the same memory.

import Benchmark
import Glibc
import IOMMU
import PageTables
import SoftDevices
import VFIO

func copyBenchmarks() {
  Benchmark("copy engine: 1 MiB", configuration: .once) { (benchmark, state: Copying) in
    benchmark.startMeasurement()
    state.run()
    benchmark.stopMeasurement()
  } setup: {
    try Copying()
  }

  Benchmark("memcpy: 1 MiB", configuration: .once) { (benchmark, state: Copying) in
    benchmark.startMeasurement()
    state.copyByHand()
    benchmark.stopMeasurement()
  } setup: {
    try Copying()
  }
}

/// An engine with a ring of copies, each of 1 MiB, over 8 MiB of source and destination.
private final class Copying {
  static let copies = 64
  static let size: UInt64 = 1 << 20

  private let fixture: Fixture
  private let engine = CopyEngine()
  private let function: PCIFunction
  private let source: LocalMemory
  private let destination: LocalMemory
  private let ring: LocalMemory
  private let chain: UInt64

  init() throws {
    fixture = try Fixture()
    function = PCIFunction(
      device: fixture.device, model: engine,
      upstream: SoftwareIOMMUBus(iommu: fixture.iommu, requester: fixture.device.requester))
    source = try LocalMemory(byteCount: 8 * Self.size, alignment: 2 << 20)
    destination = try LocalMemory(byteCount: 8 * Self.size, alignment: 2 << 20)
    ring = try LocalMemory(byteCount: 8192)
    for memory in [source, destination] {
      memory.withUnsafeMutableBytes { bytes in
        for index in stride(from: 0, to: bytes.count, by: 4096) { bytes[index] = 0x5a }
      }
    }
    let space = fixture.space
    let context = fixture.context
    func map(_ memory: LocalMemory) throws -> UInt64 {
      try context.map(memory, start: 0, length: memory.byteCount, into: space).rawValue
    }
    let (from, to) = (try map(source), try map(destination))
    let base = try map(ring)
    chain = base
    ring.withUnsafeMutableBytes { bytes in
      for index in 0..<Self.copies {
        let last = index + 1 == Self.copies
        let fields: [UInt64] = [
          Self.size | (last ? 1 << 35 : 0),
          from + UInt64(index % 8) * Self.size,
          to + UInt64(index % 8) * Self.size,
          base + UInt64((index + 1) % Self.copies * 64),
        ]
        for (place, field) in fields.enumerated() {
          bytes.storeBytes(of: field, toByteOffset: index * 64 + place * 8, as: UInt64.self)
        }
      }
    }
    // Memory decoding and bus mastering on.
    withUnsafeBytes(of: UInt16(6)) { bytes in
      _ = try? function.write(.config, at: 4, from: bytes)
    }
  }

  /// 64 copies, completion by polling memory.
  func run() {
    write(0x84, 0x20, width: 1)
    while engine.readRegister(bar: 0, offset: 0x84, width: 1) & 0x20 != 0 { sched_yield() }
    completion = 0
    write(0x80, 0x08, width: 2)
    write(0x98, chain + 4096, width: 8)
    write(0x90, chain, width: 8)
    write(0x86, UInt64(Self.copies), width: 2)
    while completion == 0 { sched_yield() }
  }

  func copyByHand() {
    source.withUnsafeMutableBytes { from in
      destination.withUnsafeMutableBytes { to in
        for index in 0..<Self.copies {
          let offset = index % 8 * Int(Self.size)
          memcpy(to.baseAddress! + offset, from.baseAddress! + offset, Int(Self.size))
          blackHole(to[offset])
        }
      }
    }
  }

  private func write(_ offset: UInt64, _ value: UInt64, width: Int) {
    engine.writeRegister(bar: 0, offset: offset, width: width, value: value)
  }

  private var completion: UInt64 {
    get { ring.withUnsafeMutableBytes { $0.load(fromByteOffset: 4096, as: UInt64.self) } }
    set {
      ring.withUnsafeMutableBytes {
        $0.storeBytes(of: newValue, toByteOffset: 4096, as: UInt64.self)
      }
    }
  }
}
