// SPDX-License-Identifier: Apache-2.0
//
// MODEL H3 from many threads: whatever happens to them, page requests have one answer each. Run
// under the thread sanitizer too.

import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@Suite struct FaultConcurrencyTests {
  private static let groups: UInt32 = 3000

  /// How many devices are still at it.
  private final class Countdown: Sendable {
    private let left: Atomic<Int>
    init(_ count: Int) { left = Atomic(count) }
    var isRunning: Bool { left.load(ordering: .sequentiallyConsistent) > 0 }
    func countDown() { left.subtract(1, ordering: .sequentiallyConsistent) }
  }

  @Test("H3: requests, answers, replaces and detaches at once; each group is answered once")
  func everythingAtOnce() async throws {
    let rig = try FaultRig()
    let other = try rig.context.makeFaultQueue()
    let devices = try (1...2).map { try rig.device($0) }
    let holders = try devices.map { DeviceHolder(try rig.context.register($0)) }
    let queues = [rig.queue, rig.queue, other, nil]
    let tables = try holders.map { holder in
      try queues.map { try rig.table(for: holder, queue: $0) }
    }
    let left = Countdown(devices.count)

    await withTaskGroup(of: Void.self) { tasks in
      for device in devices {
        tasks.addTask {
          for group in 1...Self.groups {
            if group % 3 == 0 { rig.request(group, isLast: false, by: device) }
            rig.request(group, by: device)
            if group % 64 == 0 { await Task.yield() }
          }
          left.countDown()
        }
      }
      for queue in [rig.queue, rig.queue, other] {
        tasks.addTask {
          var held: [UInt32] = []
          while left.isRunning {
            _ = try? queue.read(atMost: 4) { (group) throws(IOMMUError) in
              if group.cookie % 7 == 0 { throw IOMMUError(.badAddress, "no room") }
              held.append(group.cookie)
            }
            // Some are never answered.
            if held.count > 8 { try? queue.respond(to: held.removeFirst(), with: .success) }
            await Task.yield()
          }
        }
      }
      for (holder, tables) in zip(holders, tables) {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(holder.id.rawValue))
          while left.isRunning {
            _ = try? holder.attach(to: tables[Int(generator.next(below: 4))])
            if generator.next(below: 4) == 0 { holder.detach() }
            await Task.yield()
          }
        }
      }
    }

    for holder in holders { holder.detach() }
    for device in devices {
      let answers = rig.driver.takeAnswers(to: device).map(\.group).sorted()
      #expect(answers == Array(1...Self.groups))
    }
    for queue in [rig.queue, other] {
      #expect(queue.counts == (0, 0))
      #expect(!queue.readiness.isReadable)
      rig.context.close(queue)
    }
    for table in tables.joined() { try rig.context.destroy(table) }
    for queue in [rig.queue, other] { try rig.context.destroy(queue.id) }
  }

  @Test("H3: a queue that is closed while requests arrive leaves none without an answer")
  func closing() async throws {
    for _ in 0..<50 {
      let rig = try FaultRig()
      let device = try rig.device(1)
      let holder = DeviceHolder(try rig.context.register(device))
      try holder.attach(to: try rig.table(for: holder, queue: rig.queue))
      await withTaskGroup(of: Void.self) { tasks in
        tasks.addTask { for group in 1...200 { rig.request(UInt32(group), by: device) } }
        tasks.addTask {
          _ = try? rig.read()
          rig.context.close(rig.queue)
        }
        tasks.addTask {
          for cookie in 1...50 { try? rig.queue.respond(to: UInt32(cookie), with: .success) }
        }
      }
      #expect(
        rig.driver.takeAnswers(to: device).map(\.group).sorted() == Array(1...200))
    }
  }
}
