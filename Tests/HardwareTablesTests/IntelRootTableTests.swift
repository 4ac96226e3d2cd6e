// SPDX-License-Identifier: Apache-2.0
//
// Lookups in VT-d's tables: Intel Virtualization Technology for Directed I/O, revision 4.1,
// sections 3.4 and 7.1.3.

import PageTables
import Testing

@testable import HardwareTables

@Suite("B9: lookups in VT-d's tables") struct IntelRootTableTests {
  /// Bus 12h, device 13h, function 4: the upper half, entry 1Ch of its table.
  static let requester: UInt16 = 0x129C
  /// PASID 12345h: entry 48Dh of the directory and 5 of the table.
  static let pasid: UInt32 = 0x12345
  static let rootPlace: UInt64 = 0x10_0128
  static let contextPlace: UInt64 = 0x20_0380
  static let directoryPlace: UInt64 = 0x30_2468
  static let pasidPlace: UInt64 = 0x40_0140

  static let table = IntelRootTable(mode: .scalable, address: 0x10_0000, unit: .all)

  static func memory() -> FakeMemory {
    var memory = FakeMemory()
    memory.words[rootPlace] = 0x20_0001
    // P, DTE, PASIDE, PRE, PDTS 7; RID_PASID is the same.
    memory.write(Words4(0x30_0E1D, 0x12345, 0, 0), at: contextPlace)
    memory.words[directoryPlace] = 0x40_0001
    memory.write(Words8(0x50_0089, 0x77, 0, 0, 0, 0, 0, 0), at: pasidPlace)
    return memory
  }

  func look(
    _ memory: FakeMemory, _ table: IntelRootTable = Self.table, pasid: UInt32? = Self.pasid,
    request: IntelRequest = .untranslated, wantsExecute: Bool = false,
    isSupervisor: Bool = false
  ) throws(IntelFault) -> IntelRootTable.Entry {
    try table.entry(
      requester: Self.requester, pasid: pasid, request: request, wantsExecute: wantsExecute,
      isSupervisor: isSupervisor, in: memory)
  }

  @Test("B9: RTADDR_REG has TTM in bits 11 and 10 (11.4.6)")
  func register() {
    for (mode, raw) in [
      (IntelRootTable.Mode.legacy, UInt64(0)), (.scalable, 1), (.reserved, 2), (.abort, 3),
    ] {
      let table = IntelRootTable(register: 0x1234_5000 | raw << 10 | 0x3FF, unit: .all)
      #expect(table.mode == mode && table.address == 0x1234_5000)
    }
  }

  @Test("B9: from requester and PASID to the entry, and by RID_PASID without one")
  func walk() throws {
    for pasid in [Self.pasid, nil] {
      guard
        case .scalable(let context, let used, let entry) = try look(
          Self.memory(), pasid: pasid)
      else {
        Issue.record("not scalable")
        return
      }
      #expect(used == Self.pasid && context.directorySize == 7)
      #expect(entry.translation == .secondStage && entry.secondStageTable == 0x50_0000)
      #expect(entry.domain == 0x77)
    }
  }

  @Test("B9: words that cannot be read: SRT.1, SCT.1, SPD.1, SPT.1")
  func unreadable() {
    let places: [(UInt64, IntelFaultReason)] = [
      (Self.rootPlace, .srt1), (Self.contextPlace + 24, .sct1), (Self.directoryPlace, .spd1),
      (Self.pasidPlace + 56, .spt1),
    ]
    for (place, reason) in places {
      for kind: TableMemoryFault in [
        .unreachable, .corrupted, FakeMemory.untranslated,
      ] {
        var memory = Self.memory()
        memory.faults[place] = kind
        #expect(throws: IntelFault(reason)) { try look(memory) }
      }
    }
  }

  @Test("B9: entries that are not present: SRT.2, SCT.2, SPD.2, SPT.2")
  func notPresent() {
    let places: [(UInt64, IntelFaultReason)] = [
      (Self.rootPlace, .srt2), (Self.contextPlace, .sct2), (Self.directoryPlace, .spd2),
      (Self.pasidPlace, .spt2),
    ]
    for (place, reason) in places {
      var memory = Self.memory()
      memory.words[place, default: 0] &= ~1
      #expect(throws: IntelFault(reason)) { try look(memory) }
    }
  }

  @Test("B9: FPD of any entry on the way hides what is qualified (7.1.1)")
  func faultProcessingDisable() {
    for place in [Self.contextPlace, Self.directoryPlace, Self.pasidPlace] {
      var memory = Self.memory()
      memory.words[place, default: 0] |= 2
      memory.words[Self.pasidPlace, default: 0] &= ~1
      #expect(throws: IntelFault(.spt2, isReported: false)) { try look(memory) }
      memory.words[Self.rootPlace] = 0
      #expect(throws: IntelFault(.srt2)) { try look(memory) }
    }
    for reason in IntelFaultReason.allCases {
      let hasNoEntry = [
        .lrt1, .lrt2, .lrt3, .rta1, .rta2, .rta3, .rta4, .srt1, .srt2, .srt3,
        .interruptReserved, .interruptIndex, .interruptTable, .interruptCompatibility,
      ].contains(reason)
      #expect(reason.isQualified == !hasNoEntry)
    }
  }

  @Test("B9: what the entries do not let a request ask: SCT.5 to SCT.8, SPT.5, SPT.6")
  func refused() throws {
    var memory = Self.memory()
    memory.words[Self.contextPlace] = 0x30_0E01
    #expect(throws: IntelFault(.sct5)) { try look(memory, request: .translation) }
    #expect(throws: IntelFault(.sct6)) { try look(memory) }
    #expect(throws: IntelFault(.sct8)) { try look(memory, request: .page) }
    memory.words[Self.contextPlace] = 0x30_001D
    #expect(throws: IntelFault(.sct7)) { try look(memory) }
    #expect(throws: IntelFault(.sct9)) { try look(memory, pasid: nil) }
    memory = Self.memory()
    #expect(throws: IntelFault(.spt5)) { try look(memory, wantsExecute: true) }
    #expect(throws: IntelFault(.spt6)) { try look(memory, isSupervisor: true) }
    // Without a PASID the privilege is RID_PRIV's.
    _ = try look(memory, pasid: nil, isSupervisor: true)
    memory.words[Self.contextPlace + 8] = 0x11_2345
    #expect(throws: IntelFault(.spt6)) { try look(memory, pasid: nil) }
  }

  @Test("B9: modes that refuse everything: RTA.1 and RTA.4")
  func modes() {
    var table = Self.table
    table.mode = .abort
    #expect(throws: IntelFault(.rta4)) { try look(Self.memory(), table) }
    table.mode = .reserved
    #expect(throws: IntelFault(.rta1)) { try look(Self.memory(), table) }
    table.mode = .scalable
    table.unit = .fullBut(.scalableMode)
    #expect(throws: IntelFault(.rta1)) { try look(Self.memory(), table) }
  }

  @Test("B9: legacy mode: RTA.2, RTA.3, LRT and LCT")
  func legacy() throws {
    let table = IntelRootTable(mode: .legacy, address: 0x10_0000, unit: .all)
    var memory = FakeMemory()
    memory.words[0x10_0120] = 0x20_0001
    // Entry 9Ch of 16 bytes.
    memory.write(Words2(0x60_0001, 0x55_02), at: 0x20_09C0)
    #expect(throws: IntelFault(.rta2)) { try look(memory, table) }
    #expect(throws: IntelFault(.rta3)) { try look(memory, table, pasid: nil, request: .page) }
    guard case .legacy(let entry) = try look(memory, table, pasid: nil) else {
      Issue.record("not legacy")
      return
    }
    #expect(entry.secondStageTable == 0x60_0000 && entry.domain == 0x55)
    #expect(throws: IntelFault(.lct5)) {
      try look(memory, table, pasid: nil, request: .translation)
    }
    var broken = memory
    broken.words[0x20_09C0] = 0x60_0012
    #expect(throws: IntelFault(.lct2, isReported: false)) {
      try look(broken, table, pasid: nil)
    }
    broken.words[0x20_09C0] = 0x60_0011
    #expect(throws: IntelFault(.lct3)) { try look(broken, table, pasid: nil) }
    broken.faults[0x20_09C8] = .unreachable
    #expect(throws: IntelFault(.lct1)) { try look(broken, table, pasid: nil) }
    broken.words[0x10_0128] = 1
    #expect(throws: IntelFault(.lrt3)) { try look(broken, table, pasid: nil) }
    broken.words[0x10_0120] = 0
    #expect(throws: IntelFault(.lrt2)) { try look(broken, table, pasid: nil) }
    broken.faults[0x10_0120] = .corrupted
    #expect(throws: IntelFault(.lrt1)) { try look(broken, table, pasid: nil) }
  }
}
