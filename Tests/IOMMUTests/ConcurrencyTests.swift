// SPDX-License-Identifier: Apache-2.0
//
// MODEL A4: many threads on one context. Run under the thread sanitizer, this is also the
// test of the locks; in debug builds the lock order is checked all the while.

import IOMMU
import PageTables
import SystemPackage
import Testing

@Suite struct ConcurrencyTests {
  @Test("A4: maps, copies, attaches and destroys from many threads end with nothing left")
  func everythingAtOnce() async throws {
    let machine = TestMachine()
    let context = Context(system: machine.system)
    let spaces = try (0..<3).map { _ in try context.allocateIOAS() }
    let devices = try (1...3).map { try machine.device($0) }
    let memory = try LocalMemory(byteCount: 64 * 4096)

    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<4 {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(worker) + 1)
          for _ in 0..<1500 {
            let space = spaces[Int(generator.next(below: 3))]
            let iova = generator.next(below: 256) * 4096
            switch generator.next(below: 5) {
            case 0, 1:
              _ = try? context.map(
                memory, start: 0, length: (generator.next(below: 8) + 1) * 4096, into: space,
                at: .fixed(IOVA(iova)))
            case 2:
              _ = try? context.unmap(iova...iova + 32 * 4096 - 1, from: space)
            case 3:
              _ = try? context.copy(
                from: space, IOVA(iova), length: 4096, into: spaces[0], permissions: .read)
            default:
              if let extra = try? context.allocateIOAS() {
                _ = try? context.map(memory, start: 0, length: 4096, into: extra)
                _ = try? context.destroy(extra)
              }
            }
          }
        }
      }
      for (index, device) in devices.enumerated() {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(index) + 100)
          for _ in 0..<150 {
            guard let holder = try? DeviceHolder(context.register(device)) else { continue }
            for _ in 0..<4 {
              _ = try? holder.attach(to: spaces[Int(generator.next(below: 3))])
              if generator.next(below: 3) == 0 { holder.detach() }
            }
          }
        }
      }
    }

    // Every table that is left belongs to nobody.
    context.close()
    #expect(context.objectCount == 0)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(machine.system.contextCount == 0)
    #expect(machine.driver.domains.withLock { $0.allSatisfy { $0.count == 0 } })
    for device in devices { #expect(machine.driver.history(of: device).last == .host) }
  }
}
