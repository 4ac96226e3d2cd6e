// SPDX-License-Identifier: Apache-2.0
//
// A machine with one NVMe controller behind one IOMMU, and a driver of it that polls: what the
// tests of the controller program it with, rightly and wrongly.

import CProcessMemory
import Glibc
import IOMMU
import PageTables
import SoftDevices
import SoftwareIOMMU
import VFIO

/// A controller with its user bound and attached. Of one thread, `ring` and memory apart.
public final class NVMeRig {
  public let system = IOMMUSystem()
  public let iommu: SoftwareIOMMU
  public let controller: NVMeController
  public let function: PCIFunction
  public let context: Context
  public let session: DeviceSession
  public let space: ObjectID
  public let memory: LocalMemory
  /// Keeps the doorbells; nil where each ring is a write of a register.
  public let backing: LocalBarBacking?
  /// The pages of the present open.
  public var doorbells: LocalDoorbellPages? { backing?.doorbells }

  /// Where `memory` is for the device.
  public static let base: UInt64 = 0x1000_0000
  public static let byteCount: UInt64 = 64 << 20

  // Where things are in the memory.
  public static let adminSubmissions: UInt64 = 0x0
  public static let adminCompletions: UInt64 = 0x1000
  /// Queue n's rings are at n × 0x4000 from here.
  public static let queues: UInt64 = 0x10_0000
  /// Free for data.
  public static let data: UInt64 = 0x80_0000

  public init(
    _ configuration: NVMeConfiguration = NVMeConfiguration(namespaces: [.init(size: 16 << 20)]),
    carriesDoorbells: Bool = false
  ) throws {
    let requester = RequesterID(bus: 0, device: 4, function: 0)
    iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    let group = system.addGroup()
    let device = try system.addDevice(
      name: "\(requester)", requester: requester, driver: iommu, group: group)
    controller = try NVMeController(configuration)
    function = PCIFunction(
      device: device, model: controller,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester))
    let offered = VFIODevice(index: 0, function: function, group: VFIOGroup(group: group))
    backing = carriesDoorbells ? LocalBarBacking() : nil
    context = Context(system: system)
    session = offered.open()
    if let backing { session.keepMemory(in: backing) { UInt64($0) << 40 } }
    let context = context
    try session.bind(findContext: { context }, publish: { _ in })
    space = try context.allocateIOAS()
    memory = try LocalMemory(byteCount: Self.byteCount)
    try context.map(
      memory, start: 0, length: Self.byteCount, into: space, at: .fixed(IOVA(Self.base)))
    try session.attach(to: space, publish: { _ in })
    // Memory decoding and bus mastering on.
    config(4, UInt16(6))
  }

  deinit { session.close() }

  // MARK: Registers

  public func config<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) {
    withUnsafeBytes(of: value) { _ = try? function.write(.config, at: offset, from: $0) }
  }

  public func read<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type = T.self) -> T {
    var value: T = 0
    withUnsafeMutableBytes(of: &value) { _ = try? function.read(.bar(0), at: offset, into: $0) }
    return value
  }

  public func write<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) {
    withUnsafeBytes(of: value) { _ = try? function.write(.bar(0), at: offset, from: $0) }
  }

  public var status: UInt32 { read(0x1C) }

  /// Stores a doorbell, as a mapping of it would: in the page, or by a trap.
  /// - Parameter index: Of the word: twice the queue's number, one more for a completion queue.
  public func ring(_ index: Int, _ value: UInt32) {
    let offset = UInt64(index) * 4
    guard let doorbells else { return write(0x1000 + offset, value) }
    doorbells.ring(offset, value) { write(0x1000 + offset, value) }
  }

  // MARK: Memory: by the kernel's copies, as the controller writes it meanwhile

  private var address: UInt64 {
    memory.withUnsafeMutableBytes { UInt64(UInt(bitPattern: $0.baseAddress)) }
  }

  /// - Parameter offset: In the memory.
  public func get<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type = T.self) -> T {
    var value: T = 0
    withUnsafeMutableBytes(of: &value) { bytes in
      _ = csys_process_vm_readv(getpid(), bytes.baseAddress, address + offset, bytes.count)
    }
    return value
  }

  public func put<T: FixedWidthInteger>(_ value: T, at offset: UInt64) {
    withUnsafeBytes(of: value) { bytes in
      _ = csys_process_vm_writev(getpid(), bytes.baseAddress, address + offset, bytes.count)
    }
  }

  public func bytes(_ offset: UInt64, count: Int) -> [UInt8] {
    var result = [UInt8](repeating: 0, count: count)
    result.withUnsafeMutableBytes { bytes in
      _ = csys_process_vm_readv(getpid(), bytes.baseAddress, address + offset, count)
    }
    return result
  }

  public func put(_ bytes: [UInt8], at offset: UInt64) {
    bytes.withUnsafeBytes { bytes in
      _ = csys_process_vm_writev(getpid(), bytes.baseAddress, address + offset, bytes.count)
    }
  }

  // MARK: The usual steps

  /// How long it waits for anything.
  public var patience = Duration.seconds(30)

  public struct Failure: Error, CustomStringConvertible {
    public let description: String
  }

  /// Waits until CSTS's bits are so, for as long as it is patient.
  public func wait(_ mask: UInt32, _ wanted: UInt32) throws {
    let start = ContinuousClock.now
    while status & mask != wanted {
      guard ContinuousClock.now - start < patience else {
        throw Failure(description: "CSTS stays \(String(status, radix: 16))")
      }
      sched_yield()
    }
  }

  /// The queues of the driver, by number; 0 are the admin queues.
  public var rings: [UInt16: NVMeRing] = [:]

  /// Enables the controller.
  /// - Parameters:
  ///   - entries: Of the admin queues.
  ///   - pageShift: Log2 of the page size.
  /// - Parameter lateAddresses: Tell where the admin queues are only once the controller is ready.
  public func enable(
    entries: UInt32 = 32, pageShift: UInt32 = 12, lateAddresses: Bool = false
  ) throws {
    for offset in stride(from: UInt64(0), to: 0x2000, by: 8) { put(UInt64(0), at: offset) }
    write(0x24, (entries - 1) | (entries - 1) << 16)
    func place() {
      write(0x28, Self.base + Self.adminSubmissions)
      write(0x30, Self.base + Self.adminCompletions)
    }
    if !lateAddresses { place() }
    write(0x14, UInt32(6 << 16 | 4 << 20 | (pageShift - 12) << 7 | 1))
    try wait(3, 1)
    if lateAddresses { place() }
    rings = [
      0: NVMeRing(
        self, number: 0, entries: entries, submissions: Self.adminSubmissions,
        completions: Self.adminCompletions)
    ]
  }

  public func disable() throws {
    write(0x14, UInt32(0))
    try wait(1, 0)
    rings = [:]
  }

  /// Makes a pair of I/O queues with the commands for that.
  @discardableResult
  public func makeQueues(
    _ number: UInt16 = 1, entries: UInt32 = 32, vector: UInt16? = nil
  ) throws -> NVMeRing {
    let submissions = Self.queues + UInt64(number) * 0x8000
    let completions = submissions + 0x4000
    let ring = NVMeRing(
      self, number: number, entries: entries, submissions: submissions, completions: completions
    )
    put([UInt8](repeating: 0, count: 0x8000), at: submissions)
    let make = try admin(
      NVMeEntry(
        opcode: 5, pointer: Self.base + completions,
        dwords: [
          UInt32(number) | (entries - 1) << 16,
          1 | (vector.map { UInt32($0) << 16 | 2 } ?? 0),
        ]))
    let other = try admin(
      NVMeEntry(
        opcode: 1, pointer: Self.base + submissions,
        dwords: [UInt32(number) | (entries - 1) << 16, 1 | UInt32(number) << 16]))
    guard make.code == 0, other.code == 0 else {
      throw Failure(description: "queues: \(make.code) \(other.code)")
    }
    rings[number] = ring
    return ring
  }

  /// Goes on with the queues of another rig, whose memory and controller have moved here.
  public func take(_ ring: NVMeRing) -> NVMeRing {
    let moved = NVMeRing(self, ring)
    rings[ring.number] = moved
    return moved
  }

  /// Carries a command out, and waits for it.
  @discardableResult
  public func run(_ entry: NVMeEntry, on queue: UInt16 = 1) throws -> NVMeCompletion {
    guard let ring = rings[queue] else { throw Failure(description: "no queue \(queue)") }
    try ring.submit(entry)
    return try ring.wait()
  }

  @discardableResult
  public func admin(_ entry: NVMeEntry) throws -> NVMeCompletion { try run(entry, on: 0) }
}

/// A command in the making.
public struct NVMeEntry {
  public var opcode: UInt8
  /// Fuse and data pointer kind: bits 8 to 15.
  public var flags: UInt8
  public var identifier: UInt16?
  public var namespace: UInt32
  public var pointers: (UInt64, UInt64)
  /// From dword 10 on.
  public var dwords: [UInt32]

  public init(
    opcode: UInt8, flags: UInt8 = 0, identifier: UInt16? = nil, namespace: UInt32 = 0,
    pointer: UInt64 = 0, second: UInt64 = 0, dwords: [UInt32] = []
  ) {
    self.opcode = opcode
    self.flags = flags
    self.identifier = identifier
    self.namespace = namespace
    pointers = (pointer, second)
    self.dwords = dwords
  }

  /// Read, write or another command on blocks.
  public init(
    opcode: UInt8, block: UInt64, count: UInt32, pointer: UInt64 = 0, second: UInt64 = 0,
    namespace: UInt32 = 1, flags: UInt8 = 0, control: UInt32 = 0
  ) {
    self.init(
      opcode: opcode, flags: flags, namespace: namespace, pointer: pointer, second: second,
      dwords: [
        UInt32(truncatingIfNeeded: block), UInt32(truncatingIfNeeded: block >> 32),
        (count - 1) | control,
      ])
  }
}

/// How a command ended.
public struct NVMeCompletion: Hashable, Sendable {
  public var result: UInt32
  public var head: UInt16
  public var queue: UInt16
  public var identifier: UInt16
  /// The status field without the phase.
  public var status: UInt16

  /// Type and code.
  public var code: UInt16 { status & 0x7FF }
  public var mayRetry: Bool { status & 1 << 14 == 0 }
}

/// The driver's side of a pair of queues.
public final class NVMeRing {
  private unowned let rig: NVMeRig
  public let number: UInt16
  public let entries: UInt32
  /// Of the completion queue: as many, unless it was made otherwise.
  public let completionEntries: UInt32
  public let submissions: UInt64
  public let completions: UInt64
  public private(set) var tail: UInt32 = 0
  public private(set) var head: UInt32 = 0
  private var phase: UInt16 = 1
  private var nextIdentifier: UInt16 = 0

  public init(
    _ rig: NVMeRig, number: UInt16, entries: UInt32, completionEntries: UInt32? = nil,
    submissions: UInt64, completions: UInt64
  ) {
    self.rig = rig
    self.number = number
    self.entries = entries
    self.completionEntries = completionEntries ?? entries
    self.submissions = submissions
    self.completions = completions
  }

  init(_ rig: NVMeRig, _ other: NVMeRing) {
    self.rig = rig
    (number, entries) = (other.number, other.entries)
    completionEntries = other.completionEntries
    (submissions, completions) = (other.submissions, other.completions)
    (tail, head, phase) = (other.tail, other.head, other.phase)
    nextIdentifier = other.nextIdentifier
  }

  /// Puts a command into the ring and rings for it, unless told not to.
  @discardableResult
  public func submit(_ entry: NVMeEntry, rings: Bool = true) throws -> UInt16 {
    let identifier = entry.identifier ?? nextIdentifier
    nextIdentifier &+= 1
    let place = submissions + UInt64(tail) * 64
    var words = [UInt32](repeating: 0, count: 16)
    words[0] = UInt32(entry.opcode) | UInt32(entry.flags) << 8 | UInt32(identifier) << 16
    words[1] = entry.namespace
    words[6] = UInt32(truncatingIfNeeded: entry.pointers.0)
    words[7] = UInt32(truncatingIfNeeded: entry.pointers.0 >> 32)
    words[8] = UInt32(truncatingIfNeeded: entry.pointers.1)
    words[9] = UInt32(truncatingIfNeeded: entry.pointers.1 >> 32)
    for (index, word) in entry.dwords.enumerated() { words[10 + index] = word }
    rig.put(
      words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } },
      at: place)
    tail = (tail + 1) % entries
    if rings { ring() }
    return identifier
  }

  public func ring() { rig.ring(Int(number) * 2, tail) }

  /// The next completion, where it is there.
  public func poll(releases: Bool = true) -> NVMeCompletion? {
    let place = completions + UInt64(head) * 16
    let last: UInt32 = rig.get(place + 12)
    guard UInt16(last >> 16) & 1 == phase else { return nil }
    let third: UInt32 = rig.get(place + 8)
    let completion = NVMeCompletion(
      result: rig.get(place), head: UInt16(truncatingIfNeeded: third),
      queue: UInt16(third >> 16), identifier: UInt16(truncatingIfNeeded: last),
      status: UInt16(last >> 16) >> 1)
    head += 1
    if head == completionEntries {
      head = 0
      phase ^= 1
    }
    if releases { rig.ring(Int(number) * 2 + 1, head) }
    return completion
  }

  /// Waits for the next completion, for as long as it is patient.
  public func wait(releases: Bool = true) throws -> NVMeCompletion {
    let start = ContinuousClock.now
    while true {
      if let completion = poll(releases: releases) { return completion }
      guard ContinuousClock.now - start < rig.patience else {
        throw NVMeRig.Failure(
          description:
            "queue \(number) completes nothing; CSTS \(String(rig.status, radix: 16))")
      }
      sched_yield()
    }
  }
}
