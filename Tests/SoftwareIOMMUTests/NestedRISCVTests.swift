// SPDX-License-Identifier: Apache-2.0
//
// MODEL B2, B9, G1, G2 with the device contexts of a RISC-V IOMMU's guest, and its command queue.

import Glibc
import HardwareTables
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import IOMMU
@testable import SoftwareIOMMU

extension NestedBench {
  /// Sv48.
  @discardableResult
  func mapRISCV(_ iova: UInt64, to target: UInt64, in root: UInt64) -> UInt64 {
    map(
      iova, to: target, in: root, levels: 4, as: PageTables.RISCVFirstStage.self,
      RISCVSwitches(updates: false))
  }
}

@Suite("B2, B9: guests of a RISC-V IOMMU", .serialized)
struct NestedRISCVTests {
  typealias Guest = NestedBench
  private static let configuration = SoftwareIOMMU.Configuration(
    architecture: .riscv, pasidBits: 20)
  private static let directory: UInt64 = 1 << 5
  private static let updates: UInt64 = 1 << 8
  private static let defaultProcess: UInt64 = 1 << 9

  private struct Rig {
    let guest: Guest
    let virtual: RISCVVirtualIOMMU
    let root: UInt64
    let target: UInt64
    let ring: UInt64
    let queue: RISCVCommandQueue
    let notices = Notices<RISCVCommandQueue.Status>()
    static let device: UInt64 = 0x0102

    init(
      _ configuration: SoftwareIOMMU.Configuration = NestedRISCVTests.configuration,
      hasWiredInterrupts: Bool = true
    ) throws {
      guest = try Guest(configuration)
      virtual = try #require(
        guest.virtualIOMMU(type: RISCVVirtualIOMMU.type) as? RISCVVirtualIOMMU)
      (root, target, ring) = (guest.page(), guest.page(), guest.page())
      guest.mapRISCV(0x5000, to: target, in: root)
      try virtual.addDevice(Bench.device, virtualID: Self.device)
      let notices = notices
      queue = RISCVCommandQueue(of: virtual, hasWiredInterrupts: hasWiredInterrupts) {
        notices.add($0)
      }
      queue.setBase(7 | ring >> 2)
      queue.setEnabled(true)
    }

    func attach(_ control: UInt64, _ context: UInt64) throws {
      try guest.attach(
        try virtual.makeNestedDomain(
          attributes: [],
          data: RISCVNestedContext(
            translationControl: control | 1, firstStageContext: context
          ).userData))
    }

    func process(_ number: UInt32) -> DMAPort {
      guest.bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: number))
    }

    func run(_ commands: (UInt64, UInt64)...) {
      var tail = UInt64(queue.head)
      for command in commands {
        (guest[ring + tail * 16], guest[ring + tail * 16 + 8]) = command
        tail = (tail + 1) % 256
      }
      queue.setTail(UInt32(tail))
    }
  }

  private static func iosatp(_ root: UInt64, mode: UInt64 = 9) -> UInt64 {
    mode << 60 | root >> 12
  }

  @Test("B2: a device context that has more than is the user's, or breaks a rule, is refused")
  func allocation() throws {
    let guest = try Guest(Self.configuration)
    let iommu = guest.bench.iommu
    func refused(_ tc: UInt64, _ fsc: UInt64, ta: UInt64 = 0) -> String? {
      refusal { () throws(IOMMUError) in
        _ = try iommu.makeNestedDomain(
          for: Bench.device, parent: guest.parent, attributes: [],
          data: RISCVNestedContext(
            translationControl: tc, attributes: ta, firstStageContext: fsc
          ).userData)
      }
    }
    let invalid = "\(Errno.invalidArgument)"
    #expect(refused(1, Self.iosatp(0x1000)) == nil)
    #expect(refused(1 | Self.directory | Self.defaultProcess, 3 << 60) == nil)
    #expect(refused(0, Self.iosatp(0x1000)) == invalid, "V")
    for bit in [3, 7, 10, 11, 12, 31, 63] as [UInt64] {
      #expect(refused(1 | 1 << bit, Self.iosatp(0x1000)) == invalid, "\(bit)")
    }
    #expect(refused(1, 7 << 60) == invalid, "rule 9")
    #expect(refused(1 | Self.directory, 4 << 60) == invalid, "rule 8")
    #expect(refused(1 | Self.defaultProcess, 9 << 60) == invalid, "rule 12")
    #expect(refused(1 | 4, 9 << 60) == invalid, "rule 2: no PRI without page requests")
    #expect(refused(1, 9 << 60, ta: 1) == invalid, "rule 1")
    #expect(
      refusal { () throws(IOMMUError) in
        _ = try iommu.makeNestedDomain(
          for: Bench.device, parent: guest.parent, attributes: [], data: Guest.intelData(0))
      } == "\(Errno.operationNotSupported)", "Linux's data")
    #expect(!iommu.supportsVirtualIOMMU(type: 1, for: Bench.device))
    #expect(!iommu.supportsVirtualIOMMU(type: .max, for: Bench.device))
    #expect(UserData.type(ofClient: RISCVVirtualIOMMU.type) == .max, "no ioctl names it")
    #expect(UserData.type(ofClient: 3) == 3)
  }

  @Test("B2: a first stage without a process directory is that of requests without a process")
  func oneTable() throws {
    let rig = try Rig()
    let guest = rig.guest
    try rig.attach(0, Self.iosatp(rig.root))
    try guest.bench.port.store(UInt64(7), at: IOVA(0x5000))
    #expect(guest[rig.target] == 7)
    #expect(
      reason { () throws(DMAFault) in try rig.process(0).store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration, "cause 260")
    // Without SADE a leaf that was not written before faults; with it it is marked.
    let leaf = guest.mapRISCV(0x6000, to: rig.target, in: rig.root)
    guest[leaf] &= ~0xC0
    #expect(
      reason { () throws(DMAFault) in try guest.bench.port.store(UInt8(1), at: IOVA(0x6000)) }
        == .notPresent)
    try rig.attach(Self.updates, Self.iosatp(rig.root))
    #expect(try guest.bench.port.load(IOVA(0x6000)) == UInt64(7))
    #expect(guest[leaf] & 0xC0 == 0x40)
    try guest.bench.port.store(UInt64(8), at: IOVA(0x6000))
    #expect(guest[leaf] & 0xC0 == 0xC0)
    // Bare.
    try rig.attach(0, 0)
    #expect(try guest.bench.port.load(IOVA(rig.target)) == UInt64(8))
    #expect(
      reason { () throws(DMAFault) in
        try guest.bench.port.store(UInt8(1), at: IOVA(Guest.base - 4096))
      } == .notPresent)
    #expect(guest.isIntact)
  }

  @Test(
    "B9: a process directory has all processes of a device: PD8, PD17 and PD20",
    arguments: [1, 2, 3] as [UInt64])
  func processes(mode: UInt64) throws {
    let rig = try Rig()
    let guest = rig.guest
    let top = guest.page()
    let numbers: [UInt64] =
      mode == 1 ? [0, 1, 255] : mode == 2 ? [0, 1, 0x1_FFFF] : [0, 1, 0xF_FFFF]
    var targets: [UInt64: UInt64] = [:]
    for number in numbers {
      var table = top
      for level in stride(from: mode - 1, to: 0, by: -1) {
        let place = table + (number >> (8 + 9 * (level - 1)) & 511) * 8
        if guest[place] == 0 { guest[place] = guest.page() >> 2 | 1 }
        table = (guest[place] >> 10) << 12
      }
      let (root, target) = (guest.page(), guest.page())
      guest.mapRISCV(0x5000, to: target, in: root)
      guest[table + (number & 255) * 16 + 8] = Self.iosatp(root)
      guest[table + (number & 255) * 16] = 1
      targets[number] = target
    }
    let early = rig.process(1)
    try rig.attach(Self.directory | Self.defaultProcess, Self.iosatp(top, mode: mode))
    for number in numbers {
      try rig.process(UInt32(number)).store(number + 1, at: IOVA(0x5000))
      #expect(guest[try #require(targets[number])] == number + 1)
    }
    try early.store(UInt64(0x44), at: IOVA(0x5008))
    #expect(guest[try #require(targets[1]) + 8] == 0x44)
    try guest.bench.port.store(UInt64(0x55), at: IOVA(0x5000))
    #expect(guest[try #require(targets[0])] == 0x55, "DPE: without a process it is 0")
    for number in [2, mode == 1 ? 256 : 77] as [UInt32] {
      #expect(
        reason { () throws(DMAFault) in
          try rig.process(number).store(UInt8(1), at: IOVA(0x5000))
        }
          == .badConfiguration, "\(number)")
    }
    guest[top] |= 1 << 9
    rig.run((3, 0))
    #expect(
      reason { () throws(DMAFault) in try rig.process(0).store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration, "misconfigured")
    try guest.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    #expect(
      reason { () throws(DMAFault) in try early.store(UInt8(1), at: IOVA(0x5000)) } == .blocked)
    #expect(guest.isIntact)
  }

  @Test(
    "G1: a device that does not confirm ATS.INVAL in time: the next IOFENCE.C tells (3.1.2, cmd_to)"
  )
  func unconfirmed() throws {
    var configuration = Self.configuration
    configuration.pageRequests = true
    configuration.invalidationTimeout = .milliseconds(30)
    let rig = try Rig(configuration)
    let guest = rig.guest
    let place = guest.page()
    guest.bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
    try rig.attach(1 << 1, Self.iosatp(rig.root))
    let port = guest.bench.port
    try port.store(UInt64(1), at: IOVA(0x5000))
    func fence(_ data: UInt64) -> (UInt64, UInt64) { (2 | 1 << 10 | data << 32, place >> 2) }
    let invalidation = (4 | Rig.device << 40, 0x5000) as (UInt64, UInt64)
    // By its mail, at once.
    rig.run(invalidation, fence(1))
    #expect(rig.notices.take().isEmpty)
    #expect(guest[place] == 1)
    try port.store(UInt64(2), at: IOVA(0x5000))
    port.confirmsByHand = true
    rig.run(invalidation, (1, 0), fence(2), fence(3))
    #expect(rig.notices.take() == [.timeout])
    #expect(rig.queue.head == 4, "at the fence")
    #expect(guest[place] == 1, "which has not completed")
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(3), at: IOVA(0x5000)) } == .blocked)
    #expect(guest[rig.target] == 2)
    rig.queue.clear(.timeout)
    #expect(rig.notices.take().isEmpty)
    #expect(rig.queue.head == 6)
    #expect(guest[place] == 3)
    // Nobody waits for it again.
    rig.run(invalidation, fence(4))
    #expect(guest[place] == 4)
    #expect(guest.isIntact)
  }

  @Test("H2: DTF of a user's device context: its faults are counted, and not recorded (3.2)")
  func hiddenFaults() throws {
    let rig = try Rig()
    let bench = rig.guest.bench
    let hidesFaults: UInt64 = 1 << 4
    func codes() -> [UInt16] { bench.iommu.eventQueue.drain().events.map(\.code) }
    func touch() {
      _ = reason { () throws(DMAFault) in try bench.port.store(UInt8(1), at: IOVA(0x9000)) }
      _ = reason { () throws(DMAFault) in try rig.process(1).store(UInt8(1), at: IOVA(0x5000)) }
    }
    try rig.attach(0, Self.iosatp(rig.root))
    touch()
    #expect(codes() == [15, 260])
    try rig.attach(hidesFaults, Self.iosatp(rig.root))
    touch()
    #expect(codes() == [])
    #expect(bench.iommu.faults.count == 4)
    try rig.attach(hidesFaults | Self.directory, Self.iosatp(rig.root, mode: 1))
    touch()
    #expect(codes() == [])
  }

  @Test("H2: a process directory out of the parent's reach faults by the access (2.3.2)")
  func unreachableDirectory() throws {
    let rig = try Rig()
    let bench = rig.guest.bench
    try rig.attach(Self.directory, Self.iosatp(Guest.base - 4096, mode: 1))
    _ = reason { () throws(DMAFault) in try rig.process(1).store(UInt8(1), at: IOVA(0x5000)) }
    _ = reason { () throws(DMAFault) in _ = try rig.process(1).load(IOVA(0x5000)) as UInt8 }
    let events = bench.iommu.eventQueue.drain().events
    #expect(events.map(\.code) == [23, 21])
    for event in events {
      guard case .riscv(let record) = event else { continue }
      #expect(record.iotval2 == Guest.base - 4096 + 16 | 1)
    }
  }

  @Test("G1: a guest's commands make it forget translations and process contexts; not before")
  func commands() throws {
    let rig = try Rig()
    let guest = rig.guest
    let (top, second, other) = (guest.page(), guest.page(), guest.page())
    guest.mapRISCV(0x5000, to: other, in: second)
    let leaf = guest.mapRISCV(0x5000, to: rig.target, in: rig.root)
    let (old, new) = (guest[leaf], guest[leaf] ^ rig.target >> 2 ^ other >> 2)
    (guest[rig.target], guest[other]) = (1, 2)
    func point(_ root: UInt64) {
      for index in 0..<2 {
        guest[top + UInt64(index) * 16 + 8] = Self.iosatp(root)
        guest[top + UInt64(index) * 16] = 1
      }
    }
    point(rig.root)
    try rig.attach(Self.directory | Self.defaultProcess, Self.iosatp(top, mode: 1))
    let ports = [guest.bench.port, rig.process(1)]
    func read() throws -> [UInt64] {
      try ports.map { (port) in try port.load(IOVA(0x5000)) }
    }
    let device = Rig.device << 40 | 1 << 33
    let message = Rig.device << 40
    for (command, found) in [
      ((1, 0), [2, 2]), ((1 | 1 << 10, 5 << 10), [2, 2]), ((1 | 1 << 10, 9 << 10), [1, 1]),
      ((1 | 1 << 32, 0), [2, 2]), ((1 | 1 << 7, 0), [2, 2]), ((3, 0), [2, 2]),
      ((3 | device, 0), [2, 2]), ((3 | 1 << 7 | 1 << 12 | device, 0), [1, 2]),
      ((3 | 1 << 7 | device, 0), [2, 1]), ((3 | 0x99 << 40 | 1 << 33, 0), [1, 1]),
    ] as [((UInt64, UInt64), [UInt64])] {
      guest[leaf] = old
      rig.run((3, 0))
      #expect(try read() == [1, 1])
      guest[leaf] = new
      #expect(try read() == [1, 1], "stale use before is real")
      rig.run(command)
      #expect(try read() == found, "\(command)")
    }
    guest[leaf] = old
    for (command, found) in [
      ((1, 0), [1, 1]), ((3 | 1 << 7 | 1 << 12 | device, 0), [1, 2]), ((3, 0), [2, 2]),
    ] as [((UInt64, UInt64), [UInt64])] {
      point(rig.root)
      rig.run((3, 0))
      #expect(try read() == [1, 1])
      point(second)
      rig.run(command)
      #expect(try read() == found, "\(command)")
    }
    // ATS is not there: what is defined and not there is illegal.
    rig.run((4 | message, 0))
    #expect(rig.notices.take() == [.illegal])
  }

  @Test(
    "G1: IOFENCE.C stores and signals; an illegal command stops the queue until it is cleared")
  func fences() throws {
    let rig = try Rig()
    let guest = rig.guest
    let place = guest.page()
    func fence(_ address: UInt64, _ data: UInt64, signals: Bool = false) -> (UInt64, UInt64) {
      (2 | 1 << 10 | (signals ? 1 << 11 : 0) | data << 32, address >> 2)
    }
    rig.run(fence(place, 0x1234), fence(place + 4, 0x5678, signals: true))
    #expect(guest[place] == 0x5678_0000_1234)
    #expect(rig.notices.take() == [.fenceInterrupt])
    #expect(rig.queue.status == .fenceInterrupt)
    rig.run(fence(place, 1, signals: true))
    #expect(rig.notices.take().isEmpty, "it is set already")
    rig.queue.clear(.fenceInterrupt)
    for bad in [(0, 0), (5, 0), (2 | 1 << 7, 0), (1 | 1 << 11, 0), (3, 1)]
      as [(UInt64, UInt64)]
    {
      let head = rig.queue.head
      rig.run(fence(place, 1), bad, fence(place, 2))
      #expect(guest[place] & 0xFFFF_FFFF == 1)
      #expect(rig.queue.head == (head + 1) % 256)
      #expect(rig.notices.take() == [.illegal])
      rig.queue.setTail(rig.queue.head)
      rig.queue.clear(.illegal)
      #expect(rig.queue.status == [])
    }
    // What it stopped before goes on once it is cleared.
    let head = UInt64(rig.queue.head)
    rig.run((0, 0), fence(place, 3))
    #expect(rig.notices.take() == [.illegal])
    (guest[rig.ring + head * 16], guest[rig.ring + head * 16 + 8]) = (1, 0)
    rig.queue.clear(.illegal)
    #expect(guest[place] & 0xFFFF_FFFF == 3)
    // Data that cannot be written, a ring that cannot be read.
    rig.run(fence(Guest.base - 4096, 1))
    #expect(rig.notices.take() == [.memoryFault])
    rig.queue.setEnabled(false)
    #expect(!rig.queue.isOn)
    rig.queue.setBase(7 | (Guest.base - 4096) >> 2)
    rig.queue.setEnabled(true)
    #expect(rig.queue.status == [])
    rig.queue.setTail(1)
    #expect(rig.notices.take() == [.memoryFault])
    let other = try Rig(hasWiredInterrupts: false)
    other.run(fence(place, 1, signals: true))
    #expect(other.notices.take() == [.illegal], "no wire")
    #expect(guest.isIntact)
  }

  @Test("G2: after IODIR.INVAL_PDT no DMA on another thread uses the old process context")
  func threads() throws {
    let rig = try Rig()
    let guest = rig.guest
    let (top, second) = (guest.page(), guest.page())
    let targets = [rig.target, guest.page()]
    guest.mapRISCV(0x5000, to: targets[1], in: second)
    let roots = [rig.root, second]
    guest[top + 48 + 8] = Self.iosatp(roots[0])
    guest[top + 48] = 1
    try rig.attach(Self.directory, Self.iosatp(top, mode: 1))
    guest.movePage(among: targets, behind: rig.process(3)) { new, _ in
      guest[top + 48 + 8] = Self.iosatp(roots[new])
      rig.run((3 | 1 << 7 | 3 << 12 | Rig.device << 40 | 1 << 33, 0), (2, 0))
    }
  }
}
