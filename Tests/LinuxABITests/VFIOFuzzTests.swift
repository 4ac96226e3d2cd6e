// SPDX-License-Identifier: Apache-2.0
//
// Any bytes in any structure, any command, any order, several opens at once: no trap, and
// nothing is left after the last close.

import CLinuxABI
import IOMMU
import SoftDevices
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOFuzzTests {
  private struct Random: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state ^ state >> 29
    }
  }

  @Test("Bad input: random ioctls, reads and writes on device, group and container nodes")
  func ioctls() throws {
    var random = Random(state: 0x5EED)
    for _ in 0..<20 {
      let rig = try EngineRig(byteCount: 1 << 20)
      var files = [rig.devicefd, rig.iommufd]
      let numbers: [UInt32] = [0, 1, 2, 7, 8, 12, 16, 20, 24, 32, 64, 0x7FFF_FFFF, .max]
      for step in 0..<400 {
        if step % 40 == 0 {
          let node: any DeviceNode =
            switch random.next() % 3 {
            case 0: rig.node
            case 1: VFIOGroupNode(group: rig.group)
            default: VFIOContainerNode(system: rig.system)
            }
          if let file = try? node.open(flags: 2, by: rig.caller) {
            files.append(rig.caller.add(file))
          }
          files.append(rig.caller.add(CountingSignal()))
        }
        let address: UInt64 = random.next() % 10 == 0 ? (1 << 20) - random.next() % 40 : 0x3000
        for word in UInt64(0)..<12 where address + word * 4 + 4 <= 1 << 20 {
          var value = UInt32(truncatingIfNeeded: random.next())
          if random.next() % 4 != 0 { value = numbers.randomElement(using: &random) ?? 0 }
          if random.next() % 4 == 0 { value = UInt32(files.randomElement(using: &random) ?? 0) }
          if random.next() % 5 == 0 { value = UInt32(random.next() % 0x40) }
          rig.caller.put(value, at: address + word * 4)
        }
        if random.next() % 2 == 0 { rig.caller.put(UInt32(0), at: 0x3004) }
        let fd = files.randomElement(using: &random) ?? 0
        guard let file = (try? rig.caller.openFile(descriptor: fd)) ?? nil else { continue }
        switch random.next() % 20 {
        case 0:
          rig.caller.close(fd)
        case 1...4:
          var bytes = [UInt8](repeating: 0xA5, count: Int(random.next() % 64))
          let offset = 1 << 45 | random.next() % 10 << 40 | random.next() % 0x4010
          _ = bytes.withUnsafeMutableBytes { try? file.read(at: offset, into: $0) }
          _ = bytes.withUnsafeBytes { try? file.write(at: offset, from: $0) }
          _ = bytes.withUnsafeBytes { try? file.write(at: random.next(), from: $0) }
        default:
          let command = random.next() % 8 == 0 ? random.next() % 256 : random.next() % 0x20
          _ = rig.caller.ioctl(
            file, 0x3b00 | UInt32(truncatingIfNeeded: command + 0x64) & 0xFF, at: address)
        }
      }
      for fd in files { rig.caller.close(fd) }
      #expect(!rig.vfio.isBound)
      #expect(!rig.group.group.isOwned)
      #expect(rig.system.contextCount == 0)
      #expect(rig.iommu.interrupts.count == 0)
      #expect(rig.system.memory.usedSlots == 0)
      #expect(throws: Never.self) { try rig.group.open() }
    }
  }
}
