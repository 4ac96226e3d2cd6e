// SPDX-License-Identifier: Apache-2.0
//
// Every status that a command of the NVMe controller can end with, by what causes it.

import SoftDevices
import TestSupport
import Testing
import VFIO

/// A command, and the status code (type and code) that it has to end with.
struct NVMeCase: Sendable, CustomTestStringConvertible {
  var testDescription: String
  var opcode: UInt8
  var flags: UInt8 = 0
  var namespace: UInt32 = 0
  /// From the start of the memory; as it is where `isRaw`.
  var pointer: UInt64 = NVMeRig.data
  var second: UInt64 = 0
  var dwords: [UInt32] = []
  var code: UInt16

  var entry: NVMeEntry {
    NVMeEntry(
      opcode: opcode, flags: flags, namespace: namespace, pointer: NVMeRig.base + pointer,
      second: second, dwords: dwords)
  }
}

/// Past all that is mapped.
private let nowhere = NVMeRig.byteCount + (1 << 30)

@Suite struct NVMeStatusTests {
  @Test(
    "J1: an admin command that cannot be ends with the status that says why",
    arguments: [
      NVMeCase(testDescription: "no such opcode", opcode: 0x7F, code: 0x001),
      NVMeCase(testDescription: "namespace management", opcode: 0x0D, code: 0x001),
      NVMeCase(testDescription: "keep alive", opcode: 0x18, code: 0x001),
      NVMeCase(testDescription: "firmware commit", opcode: 0x10, code: 0x001),
      NVMeCase(
        testDescription: "a fused command", opcode: 6, flags: 1, dwords: [1], code: 0x002),
      NVMeCase(testDescription: "an SGL", opcode: 6, flags: 0x40, dwords: [1], code: 0x002),
      NVMeCase(
        testDescription: "identify what is not there", opcode: 6, dwords: [0x7E], code: 0x002),
      NVMeCase(testDescription: "identify no namespace", opcode: 6, dwords: [0], code: 0x00B),
      NVMeCase(
        testDescription: "identify a namespace too many", opcode: 6, namespace: 4, dwords: [0],
        code: 0x00B),
      NVMeCase(
        testDescription: "namespaces after the last number", opcode: 6, namespace: .max,
        dwords: [2], code: 0x00B),
      NVMeCase(
        testDescription: "identify to a misaligned place", opcode: 6, pointer: NVMeRig.data + 2,
        dwords: [1], code: 0x013),
      NVMeCase(
        testDescription: "identify to nowhere", opcode: 6, pointer: nowhere, dwords: [1],
        code: 0x004),
      NVMeCase(
        testDescription: "identify across pages, the second misaligned", opcode: 6,
        pointer: NVMeRig.data + 2048, second: NVMeRig.base + 4, dwords: [1], code: 0x013),
      // Completion queues.
      NVMeCase(
        testDescription: "completion queue 0", opcode: 5, dwords: [31 << 16, 1], code: 0x101),
      NVMeCase(
        testDescription: "completion queue past the last", opcode: 5,
        dwords: [31 << 16 | 17, 1],
        code: 0x101),
      NVMeCase(
        testDescription: "completion queue again", opcode: 5, dwords: [31 << 16 | 1, 1],
        code: 0x101),
      NVMeCase(
        testDescription: "completion queue of one", opcode: 5, dwords: [2, 1], code: 0x102),
      NVMeCase(
        testDescription: "completion queue of too many", opcode: 5,
        dwords: [2048 << 16 | 2, 1],
        code: 0x102),
      NVMeCase(
        testDescription: "completion queue in pieces", opcode: 5, dwords: [31 << 16 | 2, 0],
        code: 0x002),
      NVMeCase(
        testDescription: "completion queue, no such vector", opcode: 5,
        dwords: [31 << 16 | 2, 17 << 16 | 3], code: 0x108),
      NVMeCase(
        testDescription: "completion queue, misaligned", opcode: 5, pointer: NVMeRig.data + 512,
        dwords: [31 << 16 | 2, 1], code: 0x013),
      NVMeCase(
        testDescription: "delete the admin completion queue", opcode: 4, dwords: [0],
        code: 0x101),
      NVMeCase(
        testDescription: "delete no completion queue", opcode: 4, dwords: [9], code: 0x101),
      NVMeCase(
        testDescription: "delete a completion queue in use", opcode: 4, dwords: [1], code: 0x10C
      ),
      // Submission queues.
      NVMeCase(
        testDescription: "submission queue 0", opcode: 1, dwords: [31 << 16, 1 << 16 | 1],
        code: 0x101),
      NVMeCase(
        testDescription: "submission queue again", opcode: 1,
        dwords: [31 << 16 | 1, 1 << 16 | 1], code: 0x101),
      NVMeCase(
        testDescription: "submission queue for the admin completions", opcode: 1,
        dwords: [31 << 16 | 2, 1], code: 0x101),
      NVMeCase(
        testDescription: "submission queue for no completion queue", opcode: 1,
        dwords: [31 << 16 | 2, 5 << 16 | 1], code: 0x100),
      NVMeCase(
        testDescription: "submission queue of one", opcode: 1, dwords: [2, 1 << 16 | 1],
        code: 0x102),
      NVMeCase(
        testDescription: "submission queue of too many", opcode: 1,
        dwords: [2048 << 16 | 2, 1 << 16 | 1], code: 0x102),
      NVMeCase(
        testDescription: "submission queue past the last", opcode: 1,
        dwords: [31 << 16 | 17, 1 << 16 | 1], code: 0x101),
      NVMeCase(
        testDescription: "submission queue for completions past the last", opcode: 1,
        dwords: [31 << 16 | 2, 17 << 16 | 1], code: 0x101),
      NVMeCase(
        testDescription: "submission queue in pieces", opcode: 1,
        dwords: [31 << 16 | 2, 1 << 16], code: 0x002),
      NVMeCase(
        testDescription: "submission queue, misaligned", opcode: 1,
        pointer: NVMeRig.data + 512, dwords: [31 << 16 | 2, 1 << 16 | 1], code: 0x013),
      NVMeCase(
        testDescription: "delete no submission queue", opcode: 0, dwords: [7], code: 0x101),
      NVMeCase(
        testDescription: "delete the admin submission queue", opcode: 0, dwords: [0],
        code: 0x101),
      // Logs and features.
      NVMeCase(testDescription: "no such log", opcode: 2, dwords: [0x7F], code: 0x109),
      NVMeCase(
        testDescription: "a log past its end", opcode: 2, namespace: .max,
        dwords: [127 << 16 | 2, 0, 4096], code: 0x002),
      NVMeCase(
        testDescription: "a log from a misaligned place", opcode: 2, namespace: .max,
        dwords: [127 << 16 | 2, 0, 2], code: 0x002),
      NVMeCase(
        testDescription: "a log longer than a transfer", opcode: 2, namespace: .max,
        dwords: [0xFFFF << 16 | 2, 0xFFFF], code: 0x002),
      NVMeCase(
        testDescription: "the health of a namespace", opcode: 2, namespace: 1,
        dwords: [127 << 16 | 2], code: 0x002),
      NVMeCase(testDescription: "no such feature", opcode: 10, dwords: [0x7F], code: 0x002),
      NVMeCase(testDescription: "set no such feature", opcode: 9, dwords: [0xC0], code: 0x002),
      NVMeCase(
        testDescription: "a feature that is to be saved", opcode: 9, dwords: [1 << 31 | 6, 1],
        code: 0x10D),
      NVMeCase(
        testDescription: "a selection that is none", opcode: 10, dwords: [4 << 8 | 6],
        code: 0x002),
      NVMeCase(
        testDescription: "number of queues when there are some", opcode: 9,
        dwords: [7, 3 << 16 | 3], code: 0x00C),
      NVMeCase(
        testDescription: "a power state too many", opcode: 9, dwords: [2, 1], code: 0x002),
      NVMeCase(
        testDescription: "a vector too many", opcode: 9, dwords: [9, 17], code: 0x002),
      NVMeCase(
        testDescription: "errors for deallocated blocks", opcode: 9, namespace: 1,
        dwords: [5, 1 << 16], code: 0x002),
      NVMeCase(
        testDescription: "error recovery of no namespace", opcode: 9, namespace: 9,
        dwords: [5, 1], code: 0x00B),
      NVMeCase(
        testDescription: "the controller's feature, of a namespace", opcode: 9, namespace: 1,
        dwords: [6, 1], code: 0x10F),
      NVMeCase(
        testDescription: "the controller's feature, of no namespace", opcode: 9, namespace: 9,
        dwords: [6, 1], code: 0x00B),
      NVMeCase(
        testDescription: "the threshold of a sensor that is not there", opcode: 9,
        dwords: [4, 1 << 16 | 300], code: 0x002),
      NVMeCase(
        testDescription: "a threshold of no kind", opcode: 9, dwords: [4, 2 << 20 | 300],
        code: 0x002),
      NVMeCase(
        testDescription: "a time from nowhere", opcode: 9, pointer: nowhere, dwords: [0x0E],
        code: 0x004),
      NVMeCase(
        testDescription: "format all, one of them read-only", opcode: 0x80, namespace: .max,
        dwords: [0], code: 0x020),
      NVMeCase(
        testDescription: "format no namespace", opcode: 0x80, dwords: [0], code: 0x00B),
      NVMeCase(
        testDescription: "format with protection", opcode: 0x80, namespace: 1,
        dwords: [1 << 5], code: 0x10A),
      NVMeCase(
        testDescription: "format to what is not there", opcode: 0x80, namespace: 1, dwords: [1],
        code: 0x10A),
      NVMeCase(
        testDescription: "format a read-only namespace", opcode: 0x80, namespace: 3,
        dwords: [0],
        code: 0x020),
    ])
  func admin(_ one: NVMeCase) throws {
    let rig = try rig()
    let completion = try rig.admin(one.entry)
    #expect(completion.code == one.code, "\(String(completion.code, radix: 16))")
    #expect(completion.mayRetry == (one.code == 0x004))
    // Nothing has stopped.
    #expect(try rig.admin(NVMeEntry(opcode: 10, dwords: [7])).status == 0)
  }

  @Test(
    "J1: an I/O command that cannot be ends with the status that says why",
    arguments: [
      NVMeCase(testDescription: "no such opcode", opcode: 0x7F, namespace: 1, code: 0x001),
      NVMeCase(testDescription: "no namespace", opcode: 2, code: 0x00B),
      NVMeCase(testDescription: "a namespace too many", opcode: 2, namespace: 4, code: 0x00B),
      NVMeCase(testDescription: "flush of no namespace", opcode: 0, code: 0x00B),
      NVMeCase(
        testDescription: "a fused command", opcode: 5, flags: 1, namespace: 1, code: 0x002),
      NVMeCase(
        testDescription: "a data pointer of no kind", opcode: 2, flags: 0xC0, namespace: 1,
        code: 0x002),
      NVMeCase(
        testDescription: "the block after the last", opcode: 2, namespace: 1,
        dwords: [2048, 0, 0], code: 0x080),
      NVMeCase(
        testDescription: "blocks across the end", opcode: 1, namespace: 1,
        dwords: [2047, 0, 1],
        code: 0x080),
      NVMeCase(
        testDescription: "a block that overflows", opcode: 8, namespace: 1,
        dwords: [.max, .max, 7], code: 0x080),
      NVMeCase(
        testDescription: "verify past the end", opcode: 0x0C, namespace: 1,
        dwords: [2048, 0, 0],
        code: 0x080),
      NVMeCase(
        testDescription: "a transfer too long", opcode: 2, namespace: 1, dwords: [0, 0, 16],
        code: 0x002),
      NVMeCase(
        testDescription: "PRP 1 misaligned", opcode: 2, namespace: 1, pointer: NVMeRig.data + 1,
        dwords: [0, 0, 0], code: 0x013),
      NVMeCase(
        testDescription: "PRP 2 misaligned", opcode: 2, namespace: 1,
        pointer: NVMeRig.data + 512,
        second: NVMeRig.base + 8, dwords: [0, 0, 7], code: 0x013),
      NVMeCase(
        testDescription: "the PRP list misaligned", opcode: 2, namespace: 2,
        pointer: NVMeRig.data + 512, second: NVMeRig.base + NVMeRig.data + 4,
        dwords: [0, 0, 1], code: 0x013),
      NVMeCase(
        testDescription: "the PRP list nowhere", opcode: 2, namespace: 2,
        pointer: NVMeRig.data + 512, second: NVMeRig.base + nowhere, dwords: [0, 0, 1],
        code: 0x004),
      NVMeCase(
        testDescription: "the PRP list at the end of all addresses", opcode: 2, namespace: 2,
        pointer: NVMeRig.data + 512, second: .max - 7, dwords: [0, 0, 1], code: 0x004),
      NVMeCase(
        testDescription: "read to the end of all addresses", opcode: 2, namespace: 1,
        pointer: UInt64.max &- NVMeRig.base - 4091, dwords: [0, 0, 7], code: 0x004),
      NVMeCase(
        testDescription: "two pages past the end of what is mapped", opcode: 2, namespace: 1,
        pointer: NVMeRig.byteCount - 512, second: NVMeRig.base + NVMeRig.byteCount,
        dwords: [0, 0, 7], code: 0x004),
      NVMeCase(
        testDescription: "a second fused command", opcode: 1, flags: 2, namespace: 1,
        code: 0x002),
      NVMeCase(
        testDescription: "ranges from nowhere", opcode: 9, namespace: 1, pointer: nowhere,
        dwords: [255, 4], code: 0x004),
      NVMeCase(
        testDescription: "read to nowhere", opcode: 2, namespace: 1, pointer: nowhere,
        dwords: [0, 0, 0], code: 0x004),
      NVMeCase(
        testDescription: "write from nowhere", opcode: 1, namespace: 1, pointer: nowhere,
        dwords: [0, 0, 0], code: 0x004),
      NVMeCase(
        testDescription: "write to a read-only namespace", opcode: 1, namespace: 3,
        dwords: [0, 0, 0], code: 0x020),
      NVMeCase(
        testDescription: "zeroes to a read-only namespace", opcode: 8, namespace: 3,
        dwords: [0, 0, 0], code: 0x020),
      NVMeCase(
        testDescription: "deallocate in a read-only namespace", opcode: 9, namespace: 3,
        dwords: [0, 4], code: 0x020),
      NVMeCase(
        testDescription: "compare with what is not there", opcode: 5, namespace: 1,
        dwords: [0, 0, 0], code: 0x285),
      NVMeCase(
        testDescription: "compare from nowhere", opcode: 5, namespace: 1, pointer: nowhere,
        dwords: [0, 0, 0], code: 0x004),
    ])
  func transfer(_ one: NVMeCase) throws {
    let rig = try rig()
    // What is compared is not zero.
    rig.put([UInt8](repeating: 0xA5, count: 8192), at: NVMeRig.data)
    let completion = try rig.run(one.entry)
    #expect(completion.code == one.code, "\(String(completion.code, radix: 16))")
    #expect(completion.mayRetry == (one.code == 0x004))
    let good = NVMeEntry(opcode: 2, block: 0, count: 1, pointer: NVMeRig.base + NVMeRig.data)
    #expect(try rig.run(good).status == 0)
    // The error is in the log, the newest first.
    let log = try rig.admin(
      NVMeEntry(
        opcode: 2, namespace: .max, pointer: NVMeRig.base + NVMeRig.data,
        dwords: [15 << 16 | 1]))
    #expect(log.status == 0)
    #expect(rig.get(NVMeRig.data, as: UInt64.self) == 1)
    #expect(rig.get(NVMeRig.data + 8, as: UInt16.self) == 1)
    #expect(rig.get(NVMeRig.data + 12, as: UInt16.self) >> 1 & 0x7FF == one.code)
  }

  /// Three namespaces: of 512 bytes, of 4096, and one that is read-only; the longest transfer is
  /// 8 KiB. A pair of I/O queues.
  private func rig() throws -> NVMeRig {
    let rig = try NVMeRig(
      NVMeConfiguration(
        namespaces: [
          .init(size: 1 << 20), .init(size: 1 << 20, blockSize: 4096),
          .init(size: 1 << 20, isReadOnly: true),
        ], transferLimit: 1))
    try rig.enable()
    try rig.makeQueues()
    return rig
  }

  @Test("J1: SGLs: blocks, segments that lead on, and bit buckets")
  func segments() throws {
    let rig = try NVMeRig()
    try rig.enable()
    try rig.makeQueues()
    let data = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
    rig.put(data, at: NVMeRig.data)
    #expect(
      try rig.run(
        NVMeEntry(
          opcode: 1, block: 0, count: 8, pointer: NVMeRig.base + NVMeRig.data, second: 4096,
          flags: 0x40)
      ).status == 0)
    // 1000 bytes, 1048 that nobody wants, then by another segment the rest, misaligned.
    let first = NVMeRig.data + 0x10_0000
    let second = NVMeRig.data + 0x11_0010
    let target = NVMeRig.data + 0x20_0001
    rig.descriptors(
      [
        (NVMeRig.base + target, 1000, 0x00), (0, 1048, 0x10),
        (NVMeRig.base + second, 32, 0x30),
      ], at: first)
    rig.descriptors(
      [(NVMeRig.base + target + 1000, 48, 0x00), (NVMeRig.base + target + 1048, 5000, 0x00)],
      at: second)
    let completion = try rig.run(
      NVMeEntry(
        opcode: 2, block: 0, count: 8, pointer: NVMeRig.base + first,
        second: 48 | 0x20 << 56, flags: 0x40))
    #expect(completion.status == 0)
    #expect(rig.bytes(target, count: 1000) == Array(data[..<1000]))
    #expect(rig.bytes(target + 1000, count: 2048) == Array(data[2048...]))
    #expect(rig.bytes(target + 3048, count: 100) == [UInt8](repeating: 0, count: 100))
  }

  /// Descriptors of a segment, the inline descriptor that leads to it, and what comes of them.
  struct Segment: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var type: UInt8 = 0x30
    var length: UInt32?
    var address: UInt64 = NVMeRig.base + NVMeRig.data + 0x10_0000
    var descriptors: [(UInt64, UInt32, UInt8)] = []
    var code: UInt16
  }

  @Test(
    "J1: an SGL that is wrong ends with the status that says how",
    arguments: [
      Segment(testDescription: "too short", type: 0, length: 511, code: 0x00F),
      Segment(testDescription: "of no type", type: 0x40, length: 512, code: 0x011),
      Segment(testDescription: "of a subtype", type: 0x01, length: 512, code: 0x011),
      Segment(testDescription: "a segment of nothing", length: 0, code: 0x00D),
      Segment(testDescription: "a segment of half a descriptor", length: 24, code: 0x00D),
      Segment(testDescription: "a segment nowhere", length: 16, address: 8, code: 0x004),
      Segment(
        testDescription: "a segment at the end of all addresses", length: 0x8000,
        address: .max - 15, code: 0x004),
      Segment(
        testDescription: "a last segment that leads on",
        descriptors: [(NVMeRig.base, 16, 0x20)], code: 0x00D),
      Segment(
        testDescription: "a segment that leads nowhere", type: 0x20,
        descriptors: [(NVMeRig.base, 512, 0)], code: 0x00D),
      Segment(
        testDescription: "a segment that leads on in its middle", type: 0x20,
        descriptors: [(NVMeRig.base, 16, 0x30), (NVMeRig.base, 512, 0)], code: 0x00E),
      Segment(
        testDescription: "a segment that leads to itself", type: 0x20,
        descriptors: [(NVMeRig.base + NVMeRig.data + 0x10_0000, 16, 0x20)], code: 0x00E),
      Segment(
        testDescription: "more descriptors than there may be", length: 1 << 20, code: 0x00E),
      Segment(
        testDescription: "a keyed descriptor in a segment",
        descriptors: [(NVMeRig.base, 512, 0x40)], code: 0x011),
    ])
  func wrongSegments(_ one: Segment) throws {
    let rig = try rig()
    rig.descriptors(one.descriptors, at: NVMeRig.data + 0x10_0000)
    let length = one.length ?? UInt32(one.descriptors.count * 16)
    let completion = try rig.run(
      NVMeEntry(
        opcode: 2, block: 0, count: 1, pointer: one.address,
        second: UInt64(length) | UInt64(one.type) << 56, flags: 0x40))
    #expect(completion.code == one.code, "\(String(completion.code, radix: 16))")
  }

  @Test("J1: a write whose data cannot all be read stores none of it")
  func tornWrite() throws {
    let rig = try rig()
    // The second of two pages is nowhere: the first is not written either.
    rig.put([UInt8](repeating: 0xFF, count: 4096), at: NVMeRig.data)
    let torn = try rig.run(
      NVMeEntry(
        opcode: 1, block: 0, count: 2, pointer: NVMeRig.base + NVMeRig.data,
        second: NVMeRig.base + nowhere, namespace: 2))
    #expect(torn.code == 0x004)
    #expect(
      try rig.run(
        NVMeEntry(
          opcode: 2, block: 0, count: 1, pointer: NVMeRig.base + NVMeRig.data, namespace: 2)
      ).status == 0)
    #expect(rig.bytes(NVMeRig.data, count: 4096) == [UInt8](repeating: 0, count: 4096))
  }

  @Test("J1: compare, write zeroes, deallocate and verify do what they say")
  func blocks() throws {
    let rig = try rig()
    let ones = [UInt8](repeating: 1, count: 4096)
    rig.put(ones, at: NVMeRig.data)
    func run(_ opcode: UInt8, _ block: UInt64, _ count: UInt32) throws -> UInt16 {
      try rig.run(
        NVMeEntry(
          opcode: opcode, block: block, count: count, pointer: NVMeRig.base + NVMeRig.data)
      ).code
    }
    func read(_ block: UInt64) throws -> UInt8 {
      #expect(
        try rig.run(
          NVMeEntry(
            opcode: 2, block: block, count: 1, pointer: NVMeRig.base + NVMeRig.data + 0x1_0000)
        ).status == 0)
      return rig.get(NVMeRig.data + 0x1_0000)
    }
    #expect(try run(1, 8, 8) == 0)
    #expect(try run(5, 8, 8) == 0)
    #expect(try run(5, 9, 8) == 0x285)
    // Zeroes are not bound to the longest transfer.
    #expect(try run(8, 10, 1024) == 0)
    #expect(try [read(9), read(10), read(15)] == [1, 0, 0])
    #expect(try run(0x0C, 0, 2048) == 0)
    // Two ranges; of a third past the end none is done.
    rig.put(UInt64(1) << 32, at: NVMeRig.data)
    rig.put(UInt64(8), at: NVMeRig.data + 8)
    rig.put(UInt64(1) << 32, at: NVMeRig.data + 16)
    rig.put(UInt64(2048), at: NVMeRig.data + 24)
    let manage = NVMeEntry(
      opcode: 9, namespace: 1, pointer: NVMeRig.base + NVMeRig.data, dwords: [1, 4])
    #expect(try rig.run(manage).code == 0x080)
    #expect(try read(8) == 1)
    rig.put(UInt64(2047), at: NVMeRig.data + 24)
    #expect(try rig.run(manage).code == 0)
    #expect(try [read(8), read(9)] == [0, 1])
    // Format clears all.
    #expect(try rig.admin(NVMeEntry(opcode: 0x80, namespace: 1, dwords: [0])).status == 0)
    #expect(try read(9) == 0)
  }
}

extension NVMeRig {
  /// Puts SGL descriptors into the memory: address, length, type.
  func descriptors(_ descriptors: [(UInt64, UInt32, UInt8)], at offset: UInt64) {
    for (index, descriptor) in descriptors.enumerated() {
      put(descriptor.0, at: offset + UInt64(index) * 16)
      put(
        UInt64(descriptor.1) | UInt64(descriptor.2) << 56, at: offset + UInt64(index) * 16 + 8)
    }
  }
}
