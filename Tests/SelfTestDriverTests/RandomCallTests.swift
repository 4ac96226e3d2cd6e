// SPDX-License-Identifier: Apache-2.0
//
// Any order of calls with any fields: nothing crashes, nothing is left after the last close.
// The mock devices and accessors of the back door make more of the engine reachable than the
// commands alone.

import CLinuxABI
import IOMMU
import PageTables
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

/// A small generator whose runs can be repeated.
struct SplitMix64: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

@Suite struct RandomCallTests {
  /// Values that reach far into the handlers, and values that should not.
  private static func word(_ random: inout SplitMix64) -> UInt64 {
    let page: UInt64 = 4096
    switch random.next() % 12 {
    case 0...3: return random.next() % 12
    case 4...5: return 0x100_0000 + random.next() % 16 * 2048
    case 6: return page * (random.next() % 260)
    case 7: return 2048 * (random.next() % 16)
    case 8: return UInt64.max - random.next() % 5000
    case 9: return 1 << (random.next() % 64)
    case 10: return random.next() & 0xffff_ffff
    default: return random.next()
    }
  }

  /// A call with fields that can be right: it makes what the wild ones then hit.
  private static func sensibleCall(_ door: BackDoor, _ random: inout SplitMix64) -> Int32 {
    let id = UInt32(random.next() % 12)
    let descriptor = UInt32(3 + random.next() % 8)
    let iova = 0x100_0000 + random.next() % 16 * 2048
    let length = (1 + random.next() % 4) * 2048
    let address = 4096 + random.next() % 16 * 2048
    switch random.next() % 10 {
    case 0: return door.makeIOAS() == 0 ? -1 : 0
    case 1...2: return door.map(address, length, at: iova, in: id)
    case 3: return door.unmap(iova, length)
    case 4: return door.makeDevice(on: id, flags: UInt32(random.next() % 8)).result
    case 5: return door.replace(id, with: UInt32(random.next() % 12)).result
    case 6: return door.makeAccessor(on: id, pins: random.next() % 2 == 0).result
    case 7: return door.pin(descriptor, iova, length, writes: random.next() % 2 == 0).result
    case 8:
      return door.access(
        descriptor, iova, length, buffer: 0x8_0000, writes: random.next() % 2 == 0)
    default: return random.next() % 4 == 0 ? door.destroy(id) : -1
    }
  }

  @Test(
    "L: random calls crash nothing, and nothing is left after the last close",
    arguments: [1, 2, 3, 4, 5, 6, 7, 8] as [UInt64])
  func sequence(seed: UInt64) throws {
    var random = SplitMix64(state: seed)
    let door = try BackDoor()
    let address: UInt64 = 0x2000
    var successes = 0
    for _ in 0..<4000 {
      if random.next() % 2 == 0 {
        if Self.sensibleCall(door, &random) == 0 { successes += 1 }
        continue
      }
      let isBackDoor = random.next() % 2 == 0
      let row = isBackDoor ? nil : Command.iommufd.randomElement(using: &random)
      let command = row?.number ?? IOMMU_TEST_CMD
      let size = UInt32(row?.minimumSize ?? 72) + UInt32(random.next() % 3) * 8
      for offset in stride(from: UInt64(0), to: 104, by: 8) {
        door.caller.put(UInt64(0), at: address + offset)
      }
      // Few of the fields: a command with all of them wild fails at its first check.
      for offset in stride(from: UInt64(8), to: UInt64(min(size, 72)), by: 4) {
        if random.next() % 3 == 0 {
          door.caller.put(UInt32(truncatingIfNeeded: Self.word(&random)), at: address + offset)
        } else if offset % 8 == 0, random.next() % 2 == 0 {
          door.caller.put(Self.word(&random), at: address + offset)
        }
      }
      door.caller.put(size, at: address)
      door.caller.put(
        isBackDoor ? UInt32(random.next() % 19) : UInt32(random.next() % 8), at: address + 4)
      if door.caller.ioctl(door.file, command, at: address) == 0 { successes += 1 }
      if random.next() % 200 == 0 { door.close(3 + UInt32(random.next() % 8)) }
    }
    #expect(successes > 300, "the calls must reach something")
    for descriptor in 0..<4000 { door.close(UInt32(descriptor)) }
    door.closeFile()
    #expect(door.system.contextCount == 0)
    #expect(door.system.memory.usedSlots == 0)
    #expect(door.driver.deviceCount == 0 && door.system.groups.isEmpty)
  }

  @Test("A1, G2: many threads make, map, pin and destroy at once, and nothing is left")
  func threads() async throws {
    let door = try BackDoor()
    let context = door.context
    let driver = door.driver
    let source = try LocalMemory(byteCount: 1 << 20)
    let ioas = ObjectID(door.ioas)
    await withTaskGroup { group in
      for task in 0..<4 {
        group.addTask {
          var random = SplitMix64(state: UInt64(task))
          let accessor = try? Accessor(context: context, pinsMemory: true)
          try? accessor?.attach(to: ioas)
          for _ in 0..<300 {
            let iova = 0x100_0000 + random.next() % 8 * 4096
            switch random.next() % 5 {
            case 0:
              _ = try? context.map(
                source, start: 4096 * (random.next() % 8), length: 8192, into: ioas,
                at: .fixed(IOVA(iova)))
            case 1: _ = try? context.unmap(iova...iova + 8191, from: ioas)
            case 2:
              if let pin = try? accessor?.pin(IOVA(iova), length: 4096, for: .write) {
                try? accessor?.unpin(pin.id)
              }
            case 3: _ = try? accessor?.read(IOVA(iova), count: 5000)
            default:
              if let made = try? MockDevice.make(
                [], driver: driver, in: context, attachedTo: ioas)
              {
                try? context.destroy(made.object)
              }
            }
          }
          accessor?.close()
        }
      }
    }
    #expect(context.objectCount == 1)
    #expect(driver.deviceCount == 0)
    door.closeFile()
    #expect(door.system.contextCount == 0 && door.system.memory.usedSlots == 0)
  }
}
