// SPDX-License-Identifier: Apache-2.0
//
// The NVMe controller as a driver uses it: enable, identify, queues, data, shutdown.

import Foundation
import SoftDevices
import TestSupport
import Testing
import VFIO

@Suite struct NVMeTests {
  @Test("J1: an NVMe controller says what it is: class, capabilities, version")
  func identity() throws {
    let rig = try NVMeRig()
    #expect(rig.controller.identity.classCode == 0x010802)
    let capabilities: UInt64 = rig.read(0)
    #expect(capabilities & 0xFFFF == 2047)
    #expect(capabilities >> 16 & 1 == 1)
    #expect(capabilities >> 32 & 0xF == 0)
    #expect(capabilities >> 37 & 0xFF == 1)
    #expect(rig.read(8, as: UInt32.self) == 0x10400)
    #expect(rig.status == 0)
  }

  @Test(
    "J1: queue addresses that a driver's compiler has moved past CC.EN count until the first ring"
  )
  func lateAddresses() throws {
    let rig = try NVMeRig()
    // The rig's own, but elsewhere first: as QEMU 11 is compiled.
    for turn in 0..<3 {
      rig.write(0x28, UInt64(0))
      rig.write(0x30, UInt64(0))
      try rig.enable(lateAddresses: true)
      try rig.makeQueues()
      #expect(try rig.run(NVMeEntry(opcode: 0, namespace: 1)).status == 0, "\(turn)")
      try rig.disable()
    }
  }

  @Test("J1: what is written to a namespace is read back, by PRP of every shape")
  func data() throws {
    let rig = try NVMeRig()
    try rig.enable()
    try rig.makeQueues()
    var random = SystemRandomNumberGenerator()
    // In place, across two pages, by a list, by a list that crosses a page, misaligned.
    for (offset, blocks) in [
      (0, 1), (0, 8), (512, 8), (0, 16), (0x200, 64), (0, 1024), (4, 1024), (4092, 9),
    ] as [(UInt64, UInt32)] {
      let count = Int(blocks) * 512
      let data = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
      let source = NVMeRig.data + offset
      let target = NVMeRig.data + 0x100_0000 + offset
      rig.put(data, at: source)
      let list = rig.pages(source, count: count, lists: NVMeRig.data + 0x200_0FF0)
      #expect(
        try rig.run(
          NVMeEntry(
            opcode: 1, block: 5, count: blocks, pointer: NVMeRig.base + source, second: list)
        ).status == 0)
      let other = rig.pages(target, count: count, lists: NVMeRig.data + 0x210_0FF0)
      let completion = try rig.run(
        NVMeEntry(
          opcode: 2, block: 5, count: blocks, pointer: NVMeRig.base + target, second: other))
      #expect(completion.status == 0)
      #expect(completion.queue == 1)
      #expect(rig.bytes(target, count: count) == data, "\(offset) \(blocks)")
    }
  }

  @Test("J1: Identify tells of controller and namespaces")
  func identify() throws {
    let rig = try NVMeRig(
      NVMeConfiguration(
        namespaces: [.init(size: 1 << 20), .init(size: 8 << 20, blockSize: 4096)],
        serial: "S1", modelName: "Model", transferLimit: 5))
    try rig.enable()
    func ask(_ structure: UInt32, namespace: UInt32 = 0) throws -> [UInt8] {
      let completion = try rig.admin(
        NVMeEntry(
          opcode: 6, namespace: namespace, pointer: NVMeRig.base + NVMeRig.data,
          dwords: [structure]))
      #expect(completion.status == 0)
      return rig.bytes(NVMeRig.data, count: 4096)
    }
    let controller = try ask(1)
    #expect(
      String(decoding: controller[4..<24], as: UTF8.self) == "S1"
        + String(repeating: " ", count: 18))
    #expect(String(decoding: controller[24..<29], as: UTF8.self) == "Model")
    #expect(controller[77] == 5)
    #expect(controller[516] == 2)
    #expect(controller[111] == 1)
    let first = try ask(0, namespace: 1)
    #expect(first[0..<8] == [0, 8, 0, 0, 0, 0, 0, 0])
    #expect(first[130] == 9)
    let second = try ask(0, namespace: 2)
    #expect(second[0..<8] == [0, 8, 0, 0, 0, 0, 0, 0])
    #expect(second[130] == 12)
    #expect(try ask(2)[0..<12] == [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
    #expect(try ask(2, namespace: 1)[0..<8] == [2, 0, 0, 0, 0, 0, 0, 0])
    #expect(try ask(3, namespace: 1) != ask(3, namespace: 2))
    #expect(try ask(3, namespace: 1)[0..<2] == [3, 16])
  }

  @Test("J1: two controllers share a namespace, say so, and never mix what they write")
  func shared() throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString).img")
    defer { try? FileManager.default.removeItem(at: file) }
    let rigs = try (0..<2).map { number in
      var configuration = NVMeConfiguration(
        namespaces: [.init(file: file.path, size: 1 << 20, isShared: true)])
      configuration.controllerID = UInt16(0x20 + number)
      let rig = try NVMeRig(configuration)
      try rig.enable()
      try rig.makeQueues()
      return rig
    }
    for (number, rig) in rigs.enumerated() {
      func ask(_ structure: UInt32, _ namespace: UInt32) throws -> [UInt8] {
        let pointer = NVMeRig.base + NVMeRig.data
        try rig.admin(
          NVMeEntry(opcode: 6, namespace: namespace, pointer: pointer, dwords: [structure]))
        return rig.bytes(NVMeRig.data, count: 4096)
      }
      #expect(try ask(0, 1)[30] == 1)
      let controller = try ask(1, 0)
      #expect(controller[76] == 2 && controller[78] == 0x20 + UInt8(number))
    }
    // 32 KiB each; what is read is all of one write.
    let count = 32 << 10
    let lists = rigs.map {
      $0.pages(NVMeRig.data, count: count, lists: NVMeRig.data + 0x200_0000)
    }
    func entry(_ opcode: UInt8, _ rig: Int) -> NVMeEntry {
      NVMeEntry(
        opcode: opcode, block: 8, count: 64, pointer: NVMeRig.base + NVMeRig.data,
        second: lists[rig])
    }
    // What Identify said is there still.
    rigs[0].put([UInt8](repeating: 0, count: count), at: NVMeRig.data)
    #expect(try rigs[0].run(entry(1, 0)).status == 0)
    for round in 1...200 {
      let byte = UInt8(truncatingIfNeeded: round)
      rigs[0].put([UInt8](repeating: byte, count: count), at: NVMeRig.data)
      try rigs[0].rings[1]?.submit(entry(1, 0))
      #expect(try rigs[1].run(entry(2, 1)).status == 0)
      let read = rigs[1].bytes(NVMeRig.data, count: count)
      #expect(Set(read).count == 1 && [byte, byte &- 1].contains(read[0]), "round \(round)")
      #expect(try rigs[0].rings[1]?.wait().status == 0)
    }
  }

  @Test("J1: shutdown writes what is cached, and a reset makes the controller ready anew")
  func shutdown() throws {
    let rig = try NVMeRig()
    try rig.enable()
    rig.write(0x14, UInt32(6 << 16 | 4 << 20 | 1 << 14 | 1))
    try rig.wait(0xC, 0x8)
    try rig.disable()
    #expect(rig.status == 0)
    try rig.enable()
    try rig.makeQueues()
    #expect(try rig.run(NVMeEntry(opcode: 0, namespace: 1)).status == 0)
  }

  @Test("J1: that the subsystem was reset stands in CSTS until it is cleared there")
  func subsystemReset() throws {
    let rig = try NVMeRig()
    try rig.enable()
    rig.write(0x20, UInt32(0x4E56_4D65))
    try rig.wait(0x11, 0x10)
    try rig.enable()
    // The other bits are not for writing.
    rig.write(0x1C, UInt32(0x0F))
    #expect(rig.status == 0x11)
    rig.write(0x1C, UInt32(0x10))
    #expect(rig.status == 1)
  }
}

extension NVMeRig {
  /// Makes the PRP lists of a transfer.
  /// - Parameter lists: Where in the memory they go.
  /// - Returns: PRP entry 2.
  func pages(_ offset: UInt64, count: Int, lists: UInt64) -> UInt64 {
    let page: UInt64 = 4096
    let end = offset + UInt64(count)
    var next = (offset + page) & ~(page - 1)
    var entries: [UInt64] = []
    while next < end {
      entries.append(NVMeRig.base + next)
      next += page
    }
    if entries.count <= 1 { return entries.first ?? 0 }
    var place = lists
    for (index, entry) in entries.enumerated() {
      if place % page == page - 8, index < entries.count - 1 {
        put(NVMeRig.base + place + 8, at: place)
        place += 8
      }
      put(entry, at: place)
      place += 8
    }
    return NVMeRig.base + lists
  }
}
