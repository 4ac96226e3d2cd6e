// SPDX-License-Identifier: Apache-2.0
//
// How the four families' queues of events fill, overflow and recover, by their registers.

import PageTables
import Testing

@testable import HardwareTables

/// A ring that expectations can change.
private final class Ring {
  private var ring: EventRing

  init(_ family: HardwareFamily, count: Int) { ring = EventRing(family, count: count) }

  var count: Int { ring.count }
  var lost: UInt64 { ring.lost }
  var hasOverflowed: Bool { ring.hasOverflowed }
  var registers: EventRing.Registers { ring.registers }

  @discardableResult
  func append(_ event: HardwareEvent) -> Bool { ring.append(event) }
  func takeFirst() -> HardwareEvent? { ring.takeFirst() }
  func acknowledgeOverflow() { ring.acknowledgeOverflow() }
}

@Suite("H2: queues of events") struct EventRingTests {
  static func event(_ family: HardwareFamily, _ number: Int) -> HardwareEvent {
    let request = DeviceRequest(
      source: 0x1234, address: UInt64(number) << 12, access: Access(.read))
    let fault = WalkFault(.notPresent, level: 1)
    return HardwareEvent(
      .walk(fault, WalkedTables(firstLevels: 4)), of: request, by: family)!
  }

  @Test(
    "H2: records come out in order, round the ring, over and over",
    arguments: HardwareFamily.allCases)
  func order(family: HardwareFamily) {
    let ring = Ring(family, count: 4)
    for round in 0..<1000 {
      for number in 0..<3 {
        let kept = ring.append(Self.event(family, round * 3 + number))
        #expect(kept)
      }
      #expect(ring.count == 3)
      for number in 0..<3 {
        #expect(ring.takeFirst() == Self.event(family, round * 3 + number))
      }
    }
    #expect(ring.takeFirst() == nil && ring.lost == 0 && !ring.hasOverflowed)
  }

  @Test(
    "H2: a ring of any size holds what its family's does", arguments: HardwareFamily.allCases)
  func capacity(family: HardwareFamily) {
    let expected: [HardwareFamily: [Int]] = [
      .intel: [1, 1, 5, 8, 256], .amd: [255, 255, 255, 255, 32_767],
      .smmuV3: [1, 1, 8, 8, 1 << 19], .riscv: [1, 1, 7, 7, (1 << 19) - 1],
    ]
    #expect(
      [0, 1, 5, 8, .max].map { EventRing(family, count: $0).capacity } == expected[family])
  }

  @Test("H2: VT-d: PFO stops recording until it is cleared; FRI is the oldest (11.4.7.2)")
  func intel() {
    let ring = Ring(.intel, count: 3)
    #expect(ring.registers == .intel(status: 0))
    for number in 0..<3 { ring.append(Self.event(.intel, number)) }
    #expect(ring.registers == .intel(status: 0x002))
    _ = ring.takeFirst()
    #expect(ring.registers == .intel(status: 0x102))
    ring.append(Self.event(.intel, 3))
    #expect(!ring.append(Self.event(.intel, 4)))
    #expect(ring.registers == .intel(status: 0x103))
    // There is room, and nothing is recorded.
    while ring.takeFirst() != nil {}
    #expect(!ring.append(Self.event(.intel, 5)))
    #expect(ring.registers == .intel(status: 0x001) && ring.lost == 2)
    ring.acknowledgeOverflow()
    #expect(ring.append(Self.event(.intel, 6)))
    #expect(ring.registers == .intel(status: 0x102))
    #expect(ring.takeFirst() == Self.event(.intel, 6) && ring.lost == 2)
  }

  @Test("H2: AMD: EventOverflow stops the log until software restarts it (2.5.1, 2020h)")
  func amd() {
    let ring = Ring(.amd, count: 256)
    for number in 0..<255 { #expect(ring.append(Self.event(.amd, number))) }
    #expect(ring.registers == .amd(head: 0, tail: 0xFF0, status: 8))
    #expect(!ring.append(Self.event(.amd, 255)))
    #expect(ring.registers == .amd(head: 0, tail: 0xFF0, status: 1))
    _ = ring.takeFirst()
    #expect(!ring.append(Self.event(.amd, 256)))
    ring.acknowledgeOverflow()
    #expect(ring.append(Self.event(.amd, 257)))
    #expect(ring.registers == .amd(head: 0x10, tail: 0, status: 8) && ring.lost == 2)
  }

  @Test("H2: SMMUv3: OVFLG toggles once until it is acknowledged; room is used at once (7.4)")
  func smmu() {
    let ring = Ring(.smmuV3, count: 2)
    ring.append(Self.event(.smmuV3, 0))
    ring.append(Self.event(.smmuV3, 1))
    // Full: the indices are equal, the wrap bits differ.
    #expect(ring.registers == .smmuV3(producer: 2, consumer: 0))
    #expect(!ring.append(Self.event(.smmuV3, 2)) && !ring.append(Self.event(.smmuV3, 3)))
    #expect(ring.registers == .smmuV3(producer: 0x8000_0002, consumer: 0) && ring.lost == 2)
    _ = ring.takeFirst()
    #expect(ring.append(Self.event(.smmuV3, 4)), "unacknowledged, and there is room")
    #expect(ring.registers == .smmuV3(producer: 0x8000_0003, consumer: 1))
    #expect(!ring.append(Self.event(.smmuV3, 5)))
    #expect(ring.registers == .smmuV3(producer: 0x8000_0003, consumer: 1))
    ring.acknowledgeOverflow()
    #expect(ring.registers == .smmuV3(producer: 0x8000_0003, consumer: 0x8000_0001))
    #expect(!ring.append(Self.event(.smmuV3, 6)))
    #expect(ring.registers == .smmuV3(producer: 3, consumer: 0x8000_0001) && ring.lost == 4)
    #expect(ring.takeFirst() == Self.event(.smmuV3, 1))
    #expect(ring.takeFirst() == Self.event(.smmuV3, 4) && ring.takeFirst() == nil)
    #expect(ring.registers == .smmuV3(producer: 3, consumer: 0x8000_0003))
  }

  @Test("H2: RISC-V: fqof stops records until it is cleared; one entry stays empty (3.2)")
  func riscv() {
    let ring = Ring(.riscv, count: 4)
    for number in 0..<3 { #expect(ring.append(Self.event(.riscv, number))) }
    #expect(ring.registers == .riscv(head: 0, tail: 3, status: 0x1_0001))
    #expect(!ring.append(Self.event(.riscv, 3)))
    #expect(ring.registers == .riscv(head: 0, tail: 3, status: 0x1_0201))
    _ = ring.takeFirst()
    #expect(!ring.append(Self.event(.riscv, 4)), "there is room")
    ring.acknowledgeOverflow()
    #expect(ring.append(Self.event(.riscv, 5)))
    #expect(ring.registers == .riscv(head: 1, tail: 0, status: 0x1_0001) && ring.lost == 2)
  }

  @Test("H2: an event has its family's code, name and bytes")
  func words() {
    let texts = HardwareFamily.allCases.map { "\(Self.event($0, 5))" }
    #expect(
      texts == [
        "VT-d fault 71h, SFS.2", "AMD event 02h, IO_PAGE_FAULT",
        "SMMUv3 event 0x10, F_TRANSLATION", "RISC-V fault 13, read page fault",
      ])
    #expect(
      Self.event(.intel, 5).bytes
        == [0, 0x50, 0, 0, 0, 0, 0, 0, 0x34, 0x12, 0, 0, 0x71, 0, 0, 0xC0])
    #expect(
      Self.event(.amd, 5).bytes
        == [0x34, 0x12, 0, 0, 0, 0, 1, 0x20, 0, 0x50, 0, 0, 0, 0, 0, 0])
    #expect(
      Self.event(.smmuV3, 5).bytes.prefix(20)
        == [0x10, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0x50, 0, 0])
    #expect(
      Self.event(.riscv, 5).bytes.prefix(20)
        == [13, 0, 0, 0, 8, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0])
    #expect(Self.event(.riscv, 5).bytes.count == 32 && Self.event(.amd, 5).bytes.count == 16)
    #expect(HardwareFamily.allCases.map { Self.event($0, 5).code } == [0x71, 2, 0x10, 13])
    #expect(HardwareFamily.allCases.allSatisfy { Self.event($0, 5).family == $0 })
    #expect(Set(AMDEvent.Code.allCases.map(\.name)).count == 8)
    #expect(Set(SMMUEvent.Code.allCases.map(\.name)).count == SMMUEvent.Code.allCases.count)
    #expect(Set(RISCVCause.allCases.map(\.name)).count == RISCVCause.allCases.count)
  }
}

@Suite("H2: lookups in users' tables") struct LookupFaultTests {
  @Test("H2: a lookup's fault is its own family's event, and no other's")
  func families() {
    let request = DeviceRequest(source: 0x77, pasid: 5, address: 0x9000, access: Access(.read))
    let faults: [(HardwareFamily, LookupFault, UInt16)] = [
      (.intel, .intel(IntelFault(.spt2)), 0x59),
      (.amd, .amd(.illegalDeviceTableEntry(reservedBits: true)), 1),
      (.smmuV3, .smmuV3(.badContextDescriptor), 0x0A),
      (.riscv, .riscv(RISCVFault(.processEntryNotValid)), 266),
    ]
    for (family, fault, code) in faults {
      for other in HardwareFamily.allCases {
        #expect(
          HardwareEvent(.lookup(fault), of: request, by: other)?.code
            == (other == family ? code : nil))
      }
    }
    #expect(
      HardwareEvent(
        .lookup(.intel(IntelFault(.spt2, isReported: false))), of: request, by: .intel) == nil)
  }
}
