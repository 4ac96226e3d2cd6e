// SPDX-License-Identifier: Apache-2.0
//
// Device table entries and guest CR3 tables of AMD's IOMMU: AMD I/O Virtualization Technology
// (48882), sections 2.2.2 and 2.2.6.3.

import PageTables
import Testing

@testable import HardwareTables

extension AMDCapabilities {
  /// All features; 6 levels of host tables, 5 of guest ones, 3 of CR3 tables, 20 bits of PASID.
  static let full = AMDCapabilities(rawValue: 0x0017_0013_0000_9853)

  static func fullBut(_ feature: Feature) -> AMDCapabilities {
    AMDCapabilities(rawValue: full.rawValue & ~(1 << UInt64(feature.rawValue)))
  }
}

@Suite("B9: tables of AMD's IOMMU") struct AMDEntryTests {
  @Test("B9: a device table entry has its fields where 2.2.2.1 puts them")
  func fields() {
    let entry = AMDDeviceTableEntry(
      Words4(
        0x7EF0_0000_1234_5983, 0x8000_19F7_0001_4321, 0x2040_0000_0000_6573,
        0x0000_5678_1234_8000))
    #expect(entry.isValid && entry.hasTranslation && entry.hostAccessedDirty == 3)
    #expect(entry.hostLevels == 4 && entry.hostTable == 0x1234_5000)
    #expect(entry.allowsPageRequests && entry.responsesHavePASID)
    #expect(entry.translatesWithoutPASID && entry.hasGuestTranslation)
    #expect(entry.guestCR3Levels == 3 && entry.guestCR3Table == 0x0008_0001_8000_F000)
    #expect(entry.allowsRead && entry.allowsWrite && entry.domain == 0x4321)
    #expect(entry.allowsIOTLB && entry.suppressesRepeatedFaults && entry.suppressesAllFaults)
    #expect(entry.portIOControl == 2 && entry.hintsNoCaching && entry.disablesSnoop)
    #expect(entry.allowsExclusion && entry.systemManagement == 1)
    #expect(entry.hasInterruptMap && entry.interruptTableLength == 9)
    #expect(entry.ignoresUnmappedInterrupts && entry.interruptTable == 0x6540)
    #expect(entry.guestLevels == 5 && entry.interruptControl == 2)
    #expect(entry.hasVirtualIOMMU && entry.guestID == 0x1234 && entry.guestDevice == 0x5678)
  }

  struct Bad: Sendable {
    var hasReservedBits: Bool
    var iommu = AMDCapabilities.full
    var low: UInt64 = 0
    var high: UInt64 = 0
    var third: UInt64 = 0
  }

  @Test(
    "B9: what a device table entry must not have: ILLEGAL_DEV_TABLE_ENTRY",
    arguments: [
      Bad(hasReservedBits: true, low: 1 << 2), Bad(hasReservedBits: true, low: 1 << 6),
      Bad(hasReservedBits: true, low: 1 << 63), Bad(hasReservedBits: true, high: 1 << 42),
      Bad(hasReservedBits: true, high: 3 << 35),
      Bad(hasReservedBits: true, iommu: .fullBut(.hostAccessed), low: 1 << 7),
      Bad(hasReservedBits: true, iommu: .fullBut(.hostDirty), low: 1 << 8),
      Bad(hasReservedBits: true, iommu: .fullBut(.pageRequests), low: 1 << 52),
      Bad(hasReservedBits: true, iommu: .fullBut(.pageRequests), low: 1 << 53),
      Bad(hasReservedBits: true, iommu: .fullBut(.guestIO), low: 1 << 54),
      Bad(hasReservedBits: true, iommu: .fullBut(.guestTranslation), low: 1 << 55),
      Bad(hasReservedBits: true, iommu: .fullBut(.guestTranslation), low: 1 << 60),
      Bad(hasReservedBits: true, iommu: .fullBut(.guestTranslation), high: 1 << 16),
      Bad(hasReservedBits: true, iommu: .fullBut(.guestTranslation), high: 1 << 63),
      // Mode 7, and 5 where HATS is 4 levels; GLX 3, and 2 where GLXSup is 0; GuestPagingMode
      // 2, and 1 where GATS is 4 levels.
      Bad(hasReservedBits: false, low: 7 << 9),
      Bad(hasReservedBits: false, iommu: AMDCapabilities(rawValue: 0x10), low: 5 << 9),
      Bad(hasReservedBits: false, low: 1 << 55 | 3 << 56),
      Bad(hasReservedBits: false, iommu: AMDCapabilities(rawValue: 0x10), low: 0x280 << 48),
      Bad(hasReservedBits: false, low: 1 << 55, third: 2 << 54),
      Bad(
        hasReservedBits: false, iommu: AMDCapabilities(rawValue: 0x10), low: 1 << 55,
        third: 1 << 54),
    ])
  func illegal(bad: Bad) throws {
    let words = Words4(0x1000 | bad.low | 3, bad.high, bad.third, 0)
    #expect(throws: AMDFault.illegalDeviceTableEntry(reservedBits: bad.hasReservedBits)) {
      try AMDDeviceTableEntry(words).check(bad.iommu)
    }
    // Without V nothing counts; without TV reserved bits still do.
    try AMDDeviceTableEntry(Words4(words[0] & ~1, words[1], words[2], 0)).check(bad.iommu)
    let untranslated = AMDDeviceTableEntry(Words4(words[0] & ~2, words[1], words[2], 0))
    let fault =
      bad.hasReservedBits
      ? AMDFault.illegalDeviceTableEntry(reservedBits: true)
      : .pageFault(.init(isGuest: false, isPresent: false, hasReservedBits: false))
    #expect(throws: fault) { try untranslated.check(bad.iommu) }
  }

  @Test("B9: what the interrupt half of a device table entry must not have")
  func interrupts() throws {
    for bits: UInt64 in [1 << 52, 1 << 53, 1 << 59, 3 << 60, 2 << 60 | 12 << 1] {
      #expect(throws: AMDFault.illegalDeviceTableEntry(reservedBits: true)) {
        try AMDDeviceTableEntry(Words4(0, 0, bits | 1, 0)).checkInterrupts()
      }
      try AMDDeviceTableEntry(Words4(0, 0, bits, 0)).checkInterrupts()
    }
    try AMDDeviceTableEntry(Words4(0, 0, 0x2000_0000_0000_6577, 0)).checkInterrupts()
  }

  @Test("B9: the device table's register, its size, and what cannot be read of it")
  func table() throws {
    let table = AMDDeviceTable(register: 0x1234_5001, iommu: .full)
    #expect(table.address == 0x1234_5000 && table.count == 256)
    var memory = FakeMemory()
    // Device 80h: entry at 1000h of the table.
    memory.write(Words4(0x603, 0x7, 0, 0), at: 0x1234_6000)
    #expect(try table.entry(device: 0x80, in: memory)?.domain == 7)
    #expect(try table.entry(device: 0x81, in: memory) == nil)
    #expect(throws: AMDFault.illegalDeviceTableEntry(reservedBits: false)) {
      try table.entry(device: 256, in: memory)
    }
    let reasons: [(TableMemoryFault, AMDHardwareErrorType)] = [
      (.unreachable, .masterAbort), (.corrupted, .dataError),
    ]
    for (reason, type) in reasons {
      memory.faults[0x1234_6010] = reason
      #expect(throws: AMDFault.deviceTableHardwareError(address: 0x1234_6000, type)) {
        try table.entry(device: 0x80, in: memory)
      }
    }
  }

  // MARK: Guest CR3 tables

  /// GV, GLX 2 (three levels), the root at 8000h; host table 5000h of 4 levels, domain 9.
  static let nested = AMDDeviceTableEntry(
    Words4(0x0280_0000_0000_5803, 0x0001_0009, 0x0040_0000_0000_0000, 0))
  /// PASID ABCDEh: indexes 2, 15Eh, 0DEh.
  static let places: [UInt64] = [0x8010, 0x11AF0, 0x226F0]

  static func memory() -> FakeMemory {
    var memory = FakeMemory()
    memory.words[places[0]] = 0x11001
    memory.words[places[1]] = 0x22001
    memory.words[places[2]] = 0x000F_FFFF_FFFF_F001
    return memory
  }

  @Test("B9: three levels from a PASID to the guest's table")
  func guestCR3() throws {
    #expect(
      try Self.nested.translation(pasid: 0xABCDE, .full, in: Self.memory())
        == AMDTranslation(
          guestTable: 0x000F_FFFF_FFFF_F000, guestLevels: 5, hostTable: 0x5000, hostLevels: 4,
          domain: 9))
    // One level has 512 PASIDs.
    var single = Self.nested
    single.words[0] &= ~(3 << 56)
    var memory = FakeMemory()
    memory.words[0x8FF8] = 0x3001
    #expect(try single.translation(pasid: 511, .full, in: memory).guestTable == 0x3000)
    #expect(throws: Self.guest(isPresent: false)) {
      try single.translation(pasid: 512, .full, in: memory)
    }
  }

  static func guest(isPresent: Bool, hasReservedBits: Bool = false) -> AMDFault {
    .pageFault(.init(isGuest: true, isPresent: isPresent, hasReservedBits: hasReservedBits))
  }

  @Test("B9: guest CR3 entries that are not there, wrong, or unreadable", arguments: 0..<3)
  func badGuestCR3(level: Int) {
    let place = Self.places[level]
    func expect(_ fault: AMDFault, _ change: (inout FakeMemory) -> Void) {
      var memory = Self.memory()
      change(&memory)
      #expect(throws: fault) {
        try Self.nested.translation(pasid: 0xABCDE, .full, in: memory)
      }
    }
    expect(Self.guest(isPresent: false)) { $0.words[place, default: 0] &= ~1 }
    for bit: UInt64 in [52, 63] {
      expect(Self.guest(isPresent: true, hasReservedBits: true)) {
        $0.words[place, default: 0] |= 1 << bit
      }
    }
    expect(.pageTableHardwareError(address: place, .masterAbort)) {
      $0.faults[place] = .unreachable
    }
    expect(.pageTableHardwareError(address: place, .dataError)) {
      $0.faults[place] = .corrupted
    }
    expect(.pageFault(.init(isGuest: false, isPresent: false, hasReservedBits: false))) {
      $0.faults[place] = FakeMemory.untranslated
    }
  }

  @Test("B9: who uses the guest's tables: PASIDs, and with GIoV those without")
  func users() throws {
    var entry = Self.nested
    #expect(try entry.translation(pasid: nil, .full, in: Self.memory()).guestTable == nil)
    entry.words[0] |= 1 << 54
    #expect(throws: Self.guest(isPresent: false)) {
      try entry.translation(pasid: nil, .full, in: Self.memory())
    }
    entry.words[0] &= ~(1 << 55)
    #expect(try entry.translation(pasid: nil, .full, in: Self.memory()).hostLevels == 4)
    #expect(throws: Self.guest(isPresent: false)) {
      try entry.translation(pasid: 1, .full, in: Self.memory())
    }
  }
}
