// SPDX-License-Identifier: Apache-2.0
//
// A driver of the NVMe controller that knows the layouts and nothing else: random commands, queues,
// doorbells and registers. The controller answers, fails or waits; it never stops the process, and
// after a reset it works.

import FuzzSupport
import SoftDevices
import TestSupport
import Testing
import VFIO

@Suite struct NVMeFuzzTests {
  @Test("J1: whatever a driver programs, a reset makes the NVMe controller work again")
  func garbage() {
    Fuzzing.run("NVMeFuzzTests") { random in
      let rig = try NVMeRig(
        NVMeConfiguration(
          namespaces: [.init(size: 1 << 20), .init(size: 1 << 20, blockSize: 4096)], queues: 3,
          queueEntries: 64, transferLimit: 3), carriesDoorbells: random.below(2) == 0)
      rig.patience = .milliseconds(20)
      for _ in 0..<4 {
        if random.below(4) > 0 { try? rig.enable(entries: 4 + UInt32(random.below(28))) }
        for _ in 0..<60 { step(rig, &random) }
        switch random.below(3) {
        case 0: rig.function.reset()
        case 1: rig.write(0x20, UInt32(0x4E56_4D65))
        default: break
        }
        rig.config(4, UInt16(6))
      }
      rig.patience = .seconds(30)
      try rig.disable()
      try rig.enable()
      try rig.makeQueues()
      let read = NVMeEntry(
        opcode: 2, block: 0, count: 8, pointer: NVMeRig.base + NVMeRig.data)
      #expect(try rig.run(read).status == 0)
    }
  }

  /// An address: in the memory, or of any kind.
  private func address(_ random: inout Random) -> UInt64 {
    switch random.below(8) {
    case 0: random.next()
    case 1: NVMeRig.base + UInt64(random.below(1 << 26))
    case 2: NVMeRig.base + NVMeRig.byteCount - UInt64(random.below(4096))
    default: NVMeRig.base + NVMeRig.data + UInt64(random.below(256)) * 4096
    }
  }

  private func entry(_ random: inout Random, isAdmin: Bool) -> NVMeEntry {
    let admin: [UInt8] = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x80, UInt8(random.below(256))]
    let nvm: [UInt8] = [0, 1, 2, 5, 8, 9, 12, UInt8(random.below(256))]
    var dwords = (0..<6).map { _ -> UInt32 in
      switch random.below(4) {
      case 0: UInt32(truncatingIfNeeded: random.next())
      case 1: UInt32(random.below(64)) << 16 | UInt32(random.below(8))
      default: UInt32(random.below(32))
      }
    }
    if isAdmin, random.below(2) == 0 { dwords[1] |= 1 | UInt32(random.below(4)) << 16 }
    return NVMeEntry(
      opcode: isAdmin ? admin[random.below(admin.count)] : nvm[random.below(nvm.count)],
      flags: random.below(8) == 0 ? UInt8(random.below(256)) : random.below(3) == 0 ? 0x40 : 0,
      namespace: random.below(8) == 0
        ? UInt32(truncatingIfNeeded: random.next()) : UInt32(random.below(4)),
      pointer: address(&random),
      second: random.below(4) == 0
        ? UInt64(random.below(1 << 16)) | UInt64(random.below(6)) << 60 : address(&random),
      dwords: dwords)
  }

  private func step(_ rig: NVMeRig, _ random: inout Random) {
    switch random.below(12) {
    case 0:
      rig.write(UInt64(random.below(0x48 / 4)) * 4, UInt32(truncatingIfNeeded: random.next()))
    case 1: rig.write(UInt64(random.below(0x2000)), UInt8(truncatingIfNeeded: random.next()))
    case 2: rig.ring(random.below(1024), UInt32(random.below(80)))
    case 3: rig.ring(random.below(8), UInt32(random.below(80)))
    case 4: _ = try? rig.makeQueues(UInt16(1 + random.below(3)), entries: 4)
    case 5:
      // Lists and descriptors of garbage.
      let place = NVMeRig.data + UInt64(random.below(256)) * 4096
      for index in 0..<16 {
        rig.put(address(&random), at: place + UInt64(index) * 16)
        rig.put(
          UInt64(random.below(1 << 14)) | UInt64(random.below(6)) << 60,
          at: place + UInt64(index) * 16 + 8)
      }
    default:
      let isAdmin = random.below(2) == 0
      guard let ring = rig.rings[isAdmin ? 0 : UInt16(1 + random.below(3))] else { return }
      _ = try? ring.submit(entry(&random, isAdmin: isAdmin), rings: random.below(4) > 0)
      for _ in 0..<random.below(4) { _ = ring.poll() }
    }
  }
}

extension Random {
  /// A number from 0 on.
  fileprivate mutating func below(_ count: Int) -> Int {
    Int.random(in: 0..<count, using: &self)
  }
}
