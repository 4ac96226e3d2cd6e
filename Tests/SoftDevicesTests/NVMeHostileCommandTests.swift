// SPDX-License-Identifier: Apache-2.0
//
// Drivers of the NVMe controller that mean harm, by commands: lists and segments that lead astray,
// memory that vanishes under a transfer, numbers that nothing has.

import IOMMU
import PageTables
import SoftDevices
import TestSupport
import Testing
import VFIO

@Suite(.timeLimit(.minutes(10))) struct NVMeHostileCommandTests {
  private func rig() throws -> NVMeRig {
    let rig = try NVMeRig(
      NVMeConfiguration(
        namespaces: [.init(size: 16 << 20), .init(size: 1 << 20, blockSize: 4096)], queues: 4))
    try rig.enable()
    return rig
  }

  private var flush: NVMeEntry { NVMeEntry(opcode: 0, namespace: 1) }
  private let nowhere: UInt64 = 1 << 40

  // MARK: Where the data is

  @Test("J1: a PRP list that leads to itself ends with the transfer")
  func cyclicList() throws {
    let rig = try rig()
    try rig.makeQueues()
    // A page of the list, whose last entry is the list.
    let list = NVMeRig.data + 0x10_0000
    let target = NVMeRig.data + 0x20_0000
    for index in 0..<511 as Range<UInt64> {
      rig.put(NVMeRig.base + target, at: list + index * 8)
    }
    rig.put(NVMeRig.base + list, at: list + 511 * 8)
    for count in [1024, 1032] as [UInt32] {
      let completion = try rig.run(
        NVMeEntry(
          opcode: 2, block: 0, count: count, pointer: NVMeRig.base + target + 512,
          second: NVMeRig.base + list))
      // Half a MiB is as long as a transfer may be.
      #expect(completion.code == (count == 1024 ? 0 : 2))
    }
    // From the last entry of the page on: the list itself is what is written over.
    let last = try rig.run(
      NVMeEntry(
        opcode: 2, block: 0, count: 1024, pointer: NVMeRig.base + target,
        second: NVMeRig.base + list + 511 * 8))
    #expect(last.code == 0)
  }

  @Test(
    "J1: an entry of a PRP list that is misaligned or nowhere ends the command",
    arguments: [(NVMeRig.base + NVMeRig.data + 8, 0x013), (1 << 40, 0x004)]
      as [(UInt64, UInt16)]
  )
  func wrongListEntry(entry: UInt64, code: UInt16) throws {
    let rig = try rig()
    try rig.makeQueues()
    let list = NVMeRig.data + 0x10_0000
    let target = NVMeRig.base + NVMeRig.data
    for place in [0, 1, 15] as [UInt64] {
      for index in 0..<16 as Range<UInt64> { rig.put(target, at: list + index * 8) }
      rig.put(entry, at: list + place * 8)
      let read = NVMeEntry(
        opcode: 2, block: 0, count: 136, pointer: target, second: NVMeRig.base + list)
      #expect(try rig.run(read).code == code, "\(place)")
    }
    // Where a list goes on as well.
    rig.put(entry, at: list + 0xFF8)
    let chained = NVMeEntry(
      opcode: 2, block: 0, count: 136, pointer: target, second: NVMeRig.base + list + 0xFF8)
    #expect(try rig.run(chained).code == code)
  }

  @Test(
    "J1: SGLs of empty descriptors and of single bytes are as good as others, up to a limit")
  func oddSegments() throws {
    let rig = try rig()
    try rig.makeQueues()
    let data = (0..<512).map { UInt8(truncatingIfNeeded: $0) }
    rig.put(data, at: NVMeRig.data)
    let list = NVMeRig.data + 0x10_0000
    var descriptors: [(UInt64, UInt32, UInt8)] = []
    for index in 0..<512 as Range<UInt64> {
      descriptors.append((nowhere, 0, 0))
      descriptors.append((NVMeRig.base + NVMeRig.data + index, 1, 0))
    }
    rig.descriptors(descriptors, at: list)
    func transfer(_ opcode: UInt8, _ count: Int) throws -> UInt16 {
      try rig.run(
        NVMeEntry(
          opcode: opcode, block: 0, count: 1, pointer: NVMeRig.base + list,
          second: UInt64(count * 16) | 0x30 << 56, flags: 0x40)
      ).code
    }
    #expect(try transfer(1, 1024) == 0)
    #expect(try transfer(1, 1023) == 0x00F)
    rig.put([UInt8](repeating: 0, count: 512), at: NVMeRig.data)
    #expect(try transfer(2, 1024) == 0)
    #expect(rig.bytes(NVMeRig.data, count: 512) == data)
    // Two segments that lead to each other.
    let other = list + 0x1000
    rig.descriptors([(NVMeRig.base + other, 16, 0x20)], at: list)
    rig.descriptors([(NVMeRig.base + list, 16, 0x20)], at: other)
    let looping = NVMeEntry(
      opcode: 2, block: 0, count: 1, pointer: NVMeRig.base + list, second: 16 | 0x20 << 56,
      flags: 0x40)
    #expect(try rig.run(looping).code == 0x00E)
    // Bit buckets bring no data along.
    rig.descriptors([(0, 512, 0x10)], at: list)
    #expect(try transfer(1, 1) == 0x00F)
    #expect(try transfer(2, 1) == 0)
  }

  @Test("J1: memory that is unmapped in the middle of transfers ends those that need it")
  func vanishingData() throws {
    let rig = try rig()
    let ring = try rig.makeQueues()
    let alias: UInt64 = 0x8000_0000
    for _ in 0..<8 {
      try rig.context.map(
        rig.memory, start: NVMeRig.data, length: 1 << 20, into: rig.space,
        at: .fixed(IOVA(alias)))
      let list = NVMeRig.data + 0x80_0000
      for index in 0..<128 as Range<UInt64> {
        rig.put(alias + index * 4096, at: list + index * 8)
      }
      for index in 0..<16 {
        try ring.submit(
          NVMeEntry(
            opcode: index % 2 == 0 ? 2 : 1, block: UInt64(index) * 1024, count: 1024,
            pointer: alias, second: NVMeRig.base + list + 8), rings: false)
      }
      ring.ring()
      try rig.context.unmap(alias...alias + 0xF_FFFF, from: rig.space)
      // Nothing of it is written any more.
      let pattern = [UInt8](repeating: 0x77, count: 512 << 10)
      rig.put(pattern, at: NVMeRig.data)
      for _ in 0..<16 { #expect([0, 0x004].contains(try ring.wait().code)) }
      #expect(rig.bytes(NVMeRig.data, count: 512 << 10) == pattern)
      try ring.submit(flush)
      #expect(try ring.wait().status == 0)
    }
  }

  // MARK: Commands

  /// Carries commands out, many at a time.
  /// - Returns: Their codes, in order.
  private func codes(_ entries: [NVMeEntry], of rig: NVMeRig, on queue: UInt16) throws
    -> [UInt16]
  {
    let ring = try #require(rig.rings[queue])
    var codes: [UInt16] = []
    while codes.count < entries.count {
      let part = entries[codes.count...].prefix(24)
      for entry in part { try ring.submit(entry, rings: false) }
      ring.ring()
      for _ in part { codes.append(try ring.wait().code) }
    }
    return codes
  }

  @Test("J1: each I/O command is for one namespace that is there; a flush may be for all")
  func namespaces() throws {
    let rig = try rig()
    try rig.makeQueues()
    let numbers: [UInt32] = [0, 3, 0xFFFF_FFFE, .max]
    for opcode in [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C] as [UInt8] {
      let entries = numbers.map { number in
        NVMeEntry(
          opcode: opcode, namespace: number, pointer: NVMeRig.base + NVMeRig.data,
          dwords: [0, 0, 0])
      }
      let last: UInt16 = opcode == 0 ? 0 : 0x00B
      #expect(try codes(entries, of: rig, on: 1) == [0x00B, 0x00B, 0x00B, last], "\(opcode)")
    }
  }

  @Test("J1: opcodes that are not there are refused, all of them, in both kinds of queue")
  func opcodes() throws {
    let rig = try rig()
    try rig.makeQueues()
    let known: [UInt16: Set<UInt8>] = [
      0: [0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x80],
      1: [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C],
    ]
    for (queue, known) in known {
      let entries = (0...255 as ClosedRange<UInt8>).filter { !known.contains($0) }.map {
        NVMeEntry(opcode: $0, namespace: UInt32(queue))
      }
      #expect(try codes(entries, of: rig, on: queue).allSatisfy { $0 == 0x001 })
    }
  }

  @Test("J1: Identify, logs and features answer what there is, and refuse all other numbers")
  func pages() throws {
    let rig = try rig()
    let numbers = 0...255 as ClosedRange<UInt32>
    func ask(_ opcode: UInt8, _ namespace: UInt32, _ word: UInt32) throws -> [UInt16] {
      try codes(
        numbers.map { number in
          NVMeEntry(
            opcode: opcode, namespace: namespace, pointer: NVMeRig.base + NVMeRig.data,
            dwords: [number | word])
        }, of: rig, on: 0)
    }
    #expect(try ask(6, 1, 0) == numbers.map { $0 <= 3 ? 0 : 0x002 })
    #expect(try ask(2, .max, 127 << 16) == numbers.map { 1...5 ~= $0 ? 0 : 0x109 })
    let features: Set<UInt32> = [1, 2, 4, 6, 7, 8, 9, 10, 11, 14]
    #expect(
      try ask(10, 0, 0) == numbers.map { features.contains($0) ? 0 : $0 == 5 ? 0x00B : 0x002 })
    // A log from its end on.
    for (log, size) in [(1, 4096), (2, 512), (3, 512), (4, 4096), (5, 4096)]
      as [(UInt32, UInt32)]
    {
      for (offset, code) in [(size - 4, 0), (size, 2), (.max - 3, 2)] as [(UInt32, UInt16)] {
        rig.put(UInt64.max, at: NVMeRig.data)
        let answer = try rig.admin(
          NVMeEntry(
            opcode: 2, namespace: .max, pointer: NVMeRig.base + NVMeRig.data,
            dwords: [log | 1 << 16, 0, offset, offset > size ? .max : 0]))
        #expect(answer.code == code, "\(log) \(offset)")
        // What is past the end is zero.
        #expect(rig.get(NVMeRig.data + 4, as: UInt32.self) == (code == 0 ? 0 : .max))
      }
    }
  }

  @Test("J1: features take any value, or refuse it, and the controller goes on")
  func features() throws {
    let rig = try rig()
    var random = SystemRandomNumberGenerator()
    var entries: [NVMeEntry] = []
    for number in 0...15 as ClosedRange<UInt32> where number != 7 {
      for value in [0, .max, .random(in: 0 ... .max, using: &random)] as [UInt32] {
        for namespace in [0, .max] as [UInt32] {
          entries.append(
            NVMeEntry(
              opcode: 9, namespace: namespace, pointer: NVMeRig.base + NVMeRig.data,
              dwords: [number, value]))
        }
      }
    }
    #expect(
      try codes(entries, of: rig, on: 0).allSatisfy { [0, 0x002, 0x00B].contains($0) })
    for value in [0xFFFF, 0xFFFF_0000] as [UInt32] {
      #expect(try rig.admin(NVMeEntry(opcode: 9, dwords: [7, value])).code == 0x002)
    }
    // As many as are there, however many are asked for.
    #expect(try rig.admin(NVMeEntry(opcode: 9, dwords: [7, 0xFFFE_FFFE])).result == 0x3_0003)
    try rig.makeQueues()
    #expect(try rig.run(flush).status == 0)
  }
}
