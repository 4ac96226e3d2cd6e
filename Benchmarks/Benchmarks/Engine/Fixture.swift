// SPDX-License-Identifier: Apache-2.0
//
// A machine with one device, bound and attached, for benchmarks to map memory into.

import IOMMU
import PageTables
import SoftwareIOMMU

/// One device on one address space, through one page table.
final class Fixture {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let device: PhysicalDevice
  let context: Context
  let space: ObjectID
  private let binding: Binding

  init(number: UInt8 = 0) throws {
    iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    device = try system.addDevice(
      name: "0000:e0:04.0", requester: RequesterID(bus: number, device: 4, function: 0),
      driver: iommu, group: system.addGroup(0))
    context = Context(system: system)
    space = try context.allocateIOAS()
    binding = try context.register(device)
    try binding.group.attach(to: space)
  }

  var port: DMAPort { iommu.port(for: device.requester) }

  /// Maps the same piece of memory `count` times, one behind the other.
  /// - Returns: The first IOVA.
  func map(_ memory: LocalMemory, count: Int) throws -> UInt64 {
    let base: UInt64 = 1 << 40
    for index in 0..<UInt64(count) {
      try context.map(
        memory, start: 0, length: memory.byteCount, into: space,
        at: .fixed(IOVA(base + index * memory.byteCount)))
    }
    return base
  }
}

/// A small generator, so that every run visits the same addresses.
struct Sequence64 {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }

  /// `count` page-aligned addresses in mappings of `size` bytes from `base` on.
  static func addresses(
    _ count: Int, base: UInt64, mappings: Int, size: UInt64
  ) -> [UInt64] {
    var sequence = Sequence64(seed: 0x9e37_79b9_7f4a_7c15)
    return (0..<count).map { _ in
      let value = sequence.next()
      return base + value % UInt64(mappings) * size + (value >> 40) % size & ~7
    }
  }
}
