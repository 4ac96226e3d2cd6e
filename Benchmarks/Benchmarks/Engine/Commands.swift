// SPDX-License-Identifier: Apache-2.0
//
// Mapping and unmapping through the command table of /dev/iommu, in this process: copy-in, the
// checks of each field, the engine, copy-out.

import Benchmark
import CLinuxABI
import IOMMU
import LinuxABI
import PageTables
import SoftwareIOMMU
import SystemPackage

func commandBenchmarks() {
  commands("IOAS_MAP + IOAS_UNMAP 4 KiB, no table", length: 4096, .repeated, attached: false)
  commands("IOAS_MAP + IOAS_UNMAP 4 KiB, one table", length: 4096, .repeated)
  // Memory that lies a page off its IOVA modulo 2 MiB: no leaf can be larger than 4 KiB.
  commands("IOAS_MAP + IOAS_UNMAP 64 MiB in 4 KiB leaves", length: 64 << 20, .once)
}

private func commands(
  _ name: String, length: UInt64, _ configuration: Benchmark.Configuration,
  attached: Bool = true
) {
  Benchmark(name, configuration: configuration) { (benchmark, state: Commands) in
    for _ in benchmark.scaledIterations { try state.mapAndUnmap(length) }
  } setup: {
    try Commands(size: length + 4096, attached: attached)
  }
}

/// An open /dev/iommu with one address space.
private final class Commands: Sendable {
  private let file: any OpenFile
  private let caller: InProcessCaller
  private let ioas: UInt32
  private let binding: Binding

  init(size: UInt64, attached: Bool) throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    let device = try system.addDevice(
      name: "0000:e0:04.0", requester: RequesterID(bus: 0xE0, device: 4, function: 0),
      driver: iommu, group: system.addGroup(0))
    caller = InProcessCaller(mapped: try LocalMemory(byteCount: size, alignment: 2 << 20))
    guard
      let file = try IOMMUNode(system: system).open(flags: 2, by: caller) as? any ContextFile
    else { throw IOMMUError(.invalidArgument, "an open /dev/iommu is no context") }
    var alloc = iommu_ioas_alloc()
    alloc.size = UInt32(MemoryLayout<iommu_ioas_alloc>.size)
    try file.ioctl(IOMMU_IOAS_ALLOC, &alloc, by: caller)
    ioas = alloc.out_ioas_id
    binding = try file.context.register(device)
    if attached { try binding.group.attach(to: ObjectID(ioas)) }
    self.file = file
  }

  func mapAndUnmap(_ length: UInt64) throws {
    var map = iommu_ioas_map()
    map.size = UInt32(MemoryLayout<iommu_ioas_map>.size)
    map.flags =
      IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE
    map.ioas_id = ioas
    map.user_va = 4096
    map.length = length
    map.iova = 1 << 40
    try file.ioctl(IOMMU_IOAS_MAP, &map, by: caller)
    var unmap = iommu_ioas_unmap(
      size: UInt32(MemoryLayout<iommu_ioas_unmap>.size), ioas_id: ioas, iova: 1 << 40,
      length: length)
    try file.ioctl(IOMMU_IOAS_UNMAP, &unmap, by: caller)
  }
}
