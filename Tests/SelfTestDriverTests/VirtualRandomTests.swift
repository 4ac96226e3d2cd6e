// SPDX-License-Identifier: Apache-2.0
//
// Any order of calls on virtual IOMMUs and what belongs to them: nothing crashes, nothing is
// left after the last close.

import CLinuxABI
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VirtualRandomTests {
  /// Objects that were made, by kind; most of them still are what they were.
  private struct Made {
    var mocks: [UInt32] = []
    var devices: [UInt32] = []
    var tables: [UInt32] = []
    var viommus: [UInt32] = []
    var others: [UInt32] = []

    /// One of the last of a kind, now and then one of any.
    func pick(_ kind: KeyPath<Made, [UInt32]>, _ random: inout SplitMix64) -> UInt32 {
      let all = [mocks, devices, tables, viommus, others].map { $0.suffix(6) }
      let pool = random.next() % 8 == 0 ? Array(all.joined()) : self[keyPath: kind].suffix(6)
      return pool.randomElement(using: &random) ?? UInt32(random.next() % 8)
    }
  }

  @Test(
    "L: random calls on virtual IOMMUs crash nothing, and nothing is left after the last close",
    arguments: [1, 2, 3, 4] as [UInt64])
  func sequence(seed: UInt64) throws {
    var random = SplitMix64(state: seed)
    let door = try BackDoor()
    var made = Made()
    var successes = [Int](repeating: 0, count: 12)
    for _ in 0..<5000 {
      let kind = Int(random.next() % 12)
      if call(kind, door, &made, &random) == 0 { successes[kind] += 1 }
    }
    #expect(successes[..<8].allSatisfy { $0 > 5 }, "each call must succeed: \(successes)")
    for descriptor in 0..<5000 as Range<UInt32> { door.close(descriptor) }
    door.closeFile()
    #expect(door.system.contextCount == 0)
    #expect(door.system.memory.usedSlots == 0)
    #expect(door.driver.deviceCount == 0 && door.system.groups.isEmpty)
  }

  private func call(
    _ kind: Int, _ door: BackDoor, _ made: inout Made, _ random: inout SplitMix64
  ) -> Int32 {
    let iova = 0x100_0000 + random.next() % 16 * 4096
    func keep(
      _ call: (result: Int32, id: UInt32), _ kind: WritableKeyPath<Made, [UInt32]>
    ) -> Int32 {
      if call.result == 0 { made[keyPath: kind].append(call.id) }
      return call.result
    }
    func table() -> UInt32 { made.pick(\.tables, &random) }
    func device() -> UInt32 { made.pick(\.devices, &random) }
    func viommu() -> UInt32 { made.pick(\.viommus, &random) }
    switch kind {
    case 0:
      let device = door.makeDevice(on: random.next() % 2 == 0 ? door.ioas : table())
      if device.result == 0 { made.devices.append(device.device) }
      return keep((device.result, device.object), \.mocks)
    case 1:
      return keep(
        door.makeTable(for: device(), flags: IOMMU_HWPT_ALLOC_NEST_PARENT), \.tables)
    case 2: return keep(door.makeVIOMMU(for: device(), on: table()), \.viommus)
    case 3:
      let parent = random.next() % 4 == 0 ? table() : viommu()
      return keep(
        door.makeTable(
          for: device(), on: parent, type: IOMMU_HWPT_DATA_SELFTEST, length: 4, data: 0x8000),
        \.tables)
    case 4:
      return keep(door.makeVDevice(device(), in: viommu(), as: random.next() % 4), \.others)
    case 5:
      let queue = door.makeEventQueue(in: viommu(), depth: UInt32(random.next() % 3))
      return keep((queue.result, queue.id), \.others)
    case 6:
      return keep(
        door.makeHardwareQueue(
          in: viommu(), UInt32(random.next() % 3), at: iova, 1 + random.next() % 4096),
        \.others)
    case 7: return door.replace(made.pick(\.mocks, &random), with: table()).result
    case 8: return made.devices.suffix(20).map { door.triggerEvent($0) }.max() ?? -1
    case 9: return door.map(4096, 8192, at: iova)
    case 10: return door.unmap(iova, 8192)
    default:
      if random.next() % 2 == 0 { door.close(3 + UInt32(random.next() % 64)) }
      let id = made.pick(\.others, &random)
      return id == door.ioas ? -1 : door.destroy(id)
    }
  }
}
