// SPDX-License-Identifier: Apache-2.0
//
// MODEL A4: virtual IOMMUs from many threads at once. Run under the thread sanitizer; in debug
// builds the lock order is checked all the while.

import IOMMU
import PageTables
import SelfTestDriver
import TestSupport
import Testing

@Suite struct VirtualConcurrencyTests {
  let system = IOMMUSystem()
  let driver: MockIOMMU
  let context: Context
  let ioas: ObjectID
  let parent: ObjectID
  let viommu: ObjectID
  /// Keeps the parent's IOMMU busy from the first to the last.
  let keeper: MockDevice.Made

  private static let selfTest: UInt32 = 0xdead_beef
  private static let events: UInt32 = 0xbeef_beef
  private static let rounds = 150

  init() throws {
    driver = MockIOMMU(system: system)
    context = Context(system: system)
    ioas = try context.allocateIOAS()
    keeper = try MockDevice.make([], driver: driver, in: context, attachedTo: ioas)
    parent = try context.allocateHWPT(
      for: keeper.device, from: ioas, attributes: .nestParent)
    viommu = try context.allocateVirtualIOMMU(
      type: Self.selfTest, for: keeper.device, on: parent)
  }

  private func nest() throws(IOMMUError) -> ObjectID {
    let data = UserData(type: 0xdead, length: 8, memory: UserBytes([1, 0, 0, 0, 0, 0, 0, 0]))
    return try context.allocateHWPT(for: keeper.device, from: viommu, data: data)
  }

  /// A device that comes, gets a name, a table, an event, an invalidation, and goes.
  private func visit(_ name: UInt32) throws(IOMMUError) {
    let made = try MockDevice.make([], driver: driver, in: context, attachedTo: ioas)
    guard let device = try context.foreignObject(made.object) as? MockDevice else { return }
    // Where another device has the name at the moment, this one gets none.
    let named = try? context.allocateVirtualDevice(
      made.device, in: viommu, virtualID: UInt64(name))
    let table = try nest()
    if named != nil {
      _ = try device.replace(with: table)
      try? driver.reportEvent(of: context.physicalDevice(made.device).requester)
      let entry: [UInt8] = [1, 0, 0, 0, UInt8(name), 0, 0, 0, 0, 0, 0, 0]
      let requests = UserDataArray(
        type: Self.selfTest, entryLength: 12, count: 1, memory: UserBytes(entry))
      let (handled, failure) = try context.invalidate(viommu, requests)
      #expect(handled == 1 && failure == nil)
      if name == 1 {
        _ = try device.replace(with: ioas)
        try context.destroy(table)
      }
    }
    // The name goes with the device where it is not destroyed before.
    if let named, name == 2 { try context.destroy(named) }
    try context.destroy(made.object)
    // The name's id is not looked at any more: by now it may be another worker's object.
    if named == nil || name != 1 { try context.destroy(table) }
  }

  /// A hardware queue over memory that somebody maps and unmaps.
  private func queue(_ index: UInt32, at iova: IOVA) {
    guard
      let id = try? context.allocateHardwareQueue(
        in: viommu, type: Self.selfTest, index: index, base: iova, length: 64)
    else { return }
    #expect(throws: IOMMUError.self) { try context.unmap(0...UInt64.max, from: ioas) }
    // The one above may need it still.
    while (try? context.destroy(id)) == nil {}
  }

  @Test("A4: devices, names, tables, events and queues come and go, and nothing is left")
  func everythingAtOnce() async throws {
    let memory = try LocalMemory(byteCount: 4096)
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<3 as Range<UInt32> {
        tasks.addTask {
          for _ in 0..<Self.rounds {
            do throws(IOMMUError) {
              try visit(worker % 2 + 1)
            } catch {
              Issue.record("\(error)")
            }
          }
        }
      }
      tasks.addTask {
        for round in 0..<Self.rounds {
          guard
            let events = try? context.makeEventQueue(in: viommu, type: Self.events, depth: 3)
          else { continue }
          for _ in 0..<8 { _ = try? events.read(count: 30) { _ in } }
          context.close(events)
          do throws(IOMMUError) {
            try context.destroy(events.id)
          } catch {
            Issue.record("round \(round): \(error)")
          }
        }
      }
      tasks.addTask {
        let iova = IOVA(0x100_0000)
        for _ in 0..<Self.rounds {
          _ = try? context.map(
            memory, start: 0, length: 4096, into: ioas, at: .fixed(iova))
          queue(0, at: iova)
          _ = try? context.unmap(0...UInt64.max, from: ioas)
        }
      }
    }
    try context.destroy(viommu)
    try context.destroy(parent)
    try context.destroy(keeper.object)
    try context.destroy(ioas)
    #expect(context.objectCount == 0 && driver.deviceCount == 0)
    context.close()
    #expect(system.contextCount == 0 && system.memory.usedSlots == 0)
  }
}
