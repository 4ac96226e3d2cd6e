// SPDX-License-Identifier: Apache-2.0
//
// MODEL B5 and G2 with threads: a parent changes while a device does DMA through its child, and
// many threads change a tree at once. Run these under the thread sanitizer too.

import Glibc
import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import SystemPackage
import Testing

private let page: UInt64 = 4096

@Suite("B5: nesting with threads", .serialized) struct NestingConcurrencyTests {
  /// What the two threads of the first test share.
  private final class Shared: Sendable {
    let isStopping = Atomic(false)
    /// Times that the device went round, and stores of it that arrived.
    let rounds = Atomic(0)
    let stores = Atomic(0)
  }

  @Test(
    "B5: after an unmap of the parent returned, no DMA through a child reaches the page",
    arguments: [1, 3])
  func unmapUnderDMA(depth: Int) async throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    let device = try system.addDevice(
      name: "device", requester: RequesterID(bus: 0, device: 1, function: 0), driver: iommu,
      group: system.addGroup())
    let context = Context(system: system)
    let root = try context.allocateIOAS()
    var space = root
    for _ in 0..<depth {
      space = try context.allocateIOAS(nestedOn: space, parentChanges: .carriedThrough)
      try context.map(
        parentIOVA: IOVA(0x10000), length: 4 * page, into: space, at: .fixed(IOVA(0x10000)))
    }
    let holder = DeviceHolder(try context.register(device))
    try holder.attach(to: space)
    let memory = try LocalMemory(byteCount: 2 * page)
    let shared = Shared()
    let port = iommu.port(for: device.requester)

    await withTaskGroup(of: Void.self) { tasks in
      tasks.addTask {
        while !shared.isStopping.load(ordering: .acquiring) {
          for slot in 0..<8 {
            do throws(DMAFault) {
              try port.store(UInt64.max, at: IOVA(0x11000 + UInt64(slot) * 1024))
              shared.stores.add(1, ordering: .relaxed)
            } catch {}
          }
          shared.rounds.add(1, ordering: .releasing)
        }
      }
      defer { shared.isStopping.store(true, ordering: .releasing) }
      for round in 0..<300 {
        let before = shared.stores.load(ordering: .acquiring)
        guard
          (try? context.map(
            memory, start: 0, length: 2 * page, into: root, at: .fixed(IOVA(0x11000)))) != nil
        else {
          Issue.record("round \(round): the map was refused")
          break
        }
        if round % 4 == 0 {
          while shared.stores.load(ordering: .acquiring) < before + 4 { sched_yield() }
        }
        guard (try? context.unmap(0x11000...0x12fff, from: root)) == 2 * page else {
          Issue.record("round \(round): the unmap was refused")
          break
        }
        // The memory is ours again: it stays as we leave it.
        let mark = UInt8(truncatingIfNeeded: round & 0x7f)
        memory.withUnsafeMutableBytes { bytes in
          for index in bytes.indices { unsafe bytes[index] = mark }
        }
        let seen = shared.rounds.load(ordering: .acquiring)
        if round % 8 == 0 {
          while shared.rounds.load(ordering: .acquiring) < seen + 2 { sched_yield() }
        }
        let untouched = memory.withUnsafeMutableBytes { bytes in
          bytes.indices.allSatisfy { unsafe bytes[$0] == mark }
        }
        #expect(untouched, "round \(round)")
      }
    }
    #expect(shared.stores.load(ordering: .relaxed) >= 300)
    holder.detach()
    context.close()
  }

  @Test("A4: maps, unmaps, attaches and new children at every level at once; nothing is left")
  func everythingAtOnce() async throws {
    let rig = try NestingRig()
    var spaces = [rig.root]
    for parent in [0, 0, 1, 1, 3] {
      spaces.append(
        try rig.child(of: spaces[parent], spaces.count == 3 ? .refused : .carriedThrough))
    }
    let (tree, context, memory) = (spaces, rig.context, rig.memory)
    let devices = try (1...3).map { try rig.machine.device(UInt8($0)) }
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<4 {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(worker) + 11)
          for _ in 0..<1200 {
            let index = Int(generator.next(below: UInt64(tree.count)))
            let iova = generator.next(below: 64) * page
            let length = (generator.next(below: 8) + 1) * page
            switch generator.next(below: 8) {
            case 0...2 where index == 0:
              _ = try? context.map(
                memory, start: 0, length: length, into: tree[0], at: .fixed(IOVA(iova)))
            case 0...2:
              _ = try? context.map(
                parentIOVA: IOVA(generator.next(below: 64) * page), length: length,
                into: tree[index], at: .fixed(IOVA(iova)))
            case 3...5:
              _ = try? context.unmap(iova...iova + 16 * page - 1, from: tree[index])
            case 6:
              guard
                let child = try? context.allocateIOAS(
                  nestedOn: tree[index], parentChanges: .refused)
              else { break }
              _ = try? context.map(parentIOVA: IOVA(iova), length: page, into: child)
              sched_yield()
              _ = try? context.destroy(child)
            default:
              let accessor = try? Accessor(context: context, pinsMemory: true)
              _ = try? accessor?.attach(to: tree[index])
              _ = try? accessor?.pin(IOVA(iova), length: page, for: .read)
              _ = try? accessor?.write([1, 2, 3], to: IOVA(iova))
              accessor?.close()
            }
          }
        }
      }
      for (index, device) in devices.enumerated() {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(index) + 200)
          for _ in 0..<80 {
            guard let holder = try? DeviceHolder(context.register(device)) else { continue }
            for _ in 0..<4 {
              _ = try? holder.attach(to: tree[Int(generator.next(below: UInt64(tree.count)))])
            }
          }
        }
      }
    }
    rig.expectNothingLeft()
  }
}
