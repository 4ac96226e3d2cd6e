// SPDX-License-Identifier: Apache-2.0
//
// What a RISC-V IOMMU records of transactions that it ended, against vectors by hand: RISC-V
// IOMMU Architecture 1.0, 3.2 and 3.6.

import PageTables
import Testing

@testable import HardwareTables

@Suite("H2: fault records of RISC-V") struct RISCVRequestTests {
  static let first = WalkedTables(firstLevels: 3)
  static let second = WalkedTables(secondLevels: 3)
  static let nested = WalkedTables(firstLevels: 3, secondLevels: 3)

  static func request(
    _ permissions: Permissions, process: UInt32? = 0x12345, privileged: Bool = false,
    kind: DeviceRequest.Kind = .untranslated
  ) -> DeviceRequest {
    DeviceRequest(
      source: 0xABCDEF, pasid: process, address: 0x5678,
      access: Access(permissions, privileged: privileged), kind: kind)
  }

  static func record(_ fault: RequestFault, _ request: DeviceRequest) -> RISCVFaultRecord? {
    RISCVFaultRecord(fault, of: request)
  }

  static let accesses: [Permissions] = [[.read, .execute], .read, .write, .readWrite]

  @Test("H2: page faults by the access: 12, 13, 15; TTYP 1 to 3 and 5 to 7 (3.2)")
  func pageFaults() {
    for reason: WalkFault.Reason in [
      .notPresent, .addressWidth, .reservedBits, .misaligned, .addressSize, .accessFlag,
      .dirtyFlag, .permission,
    ] {
      let fault = RequestFault.walk(WalkFault(reason, level: 1), Self.first)
      let records = Self.accesses.map { Self.record(fault, Self.request($0)) }
      #expect(records.map(\.?.cause) == [12, 13, 15, 15])
      #expect(records.map(\.?.transaction) == [1, 2, 3, 3])
      #expect(records.allSatisfy { $0?.iotval == 0x5678 && $0?.iotval2 == 0 })
      #expect(
        Self.accesses.map {
          Self.record(fault, Self.request($0, kind: .translated))?.transaction
        }
          == [5, 6, 7, 7])
    }
    // Reading for execution needs no process ID, but in PCIe, whose devices alone translate.
    let fault = RequestFault.walk(WalkFault(.notPresent, level: 1), Self.first)
    let plain = Self.record(fault, Self.request([.read, .execute], process: nil))
    #expect(plain?.words == Words4(0xABCD_EF04_0000_000C, 0, 0x5678, 0))
    let translated = Self.record(
      fault, Self.request([.read, .execute], process: nil, kind: .translated))
    #expect(translated?.words == Words4(0xABCD_EF18_0000_000D, 0, 0x5678, 0))
  }

  @Test("H2: access faults by the access: 1, 5, 7; wrong data is 274")
  func accessFaults() {
    let fault = RequestFault.walk(WalkFault(.tableUnreachable, level: 1), Self.nested)
    #expect(
      Self.accesses.map { Self.record(fault, Self.request($0))?.cause } == [1, 5, 7, 7])
    #expect(
      Self.record(
        .walk(WalkFault(.tableCorrupted, level: 1), Self.first), Self.request(.read))?.cause
        == 274)
  }

  @Test("H2: guest-page faults by the access: 20, 21, 23; iotval2 has the address asked for")
  func guestPageFaults() {
    // Of one table that is a second stage, the IOVA is the guest-physical address.
    let only = RequestFault.walk(WalkFault(.notPresent, level: 1), Self.second)
    let records = Self.accesses.map { Self.record(only, Self.request($0)) }
    #expect(records.map(\.?.cause) == [20, 21, 23, 23])
    #expect(records.allSatisfy { $0?.iotval2 == 0x5678 })
    var inner = WalkFault(.notPresent, level: 1)
    inner.stage = .second
    inner.ipa = 0x9ABF
    func second(_ fault: WalkFault, _ tables: WalkedTables) -> UInt64? {
      Self.record(.walk(fault, tables), Self.request(.read))?.iotval2
    }
    #expect(second(inner, Self.nested) == 0x9ABC)
    // Implicit: bit 0; to set A or D: bit 1 too. Fetches are reads, with SADE too (3.2, note).
    inner.tableLevel = 2
    #expect(second(inner, Self.nested) == 0x9ABD)
    inner.isMarking = true
    #expect(second(inner, Self.nested) == 0x9ABF)
    #expect(
      Self.record(.walk(inner, Self.nested), Self.request(.read, privileged: true))?.words
        == Words4(0xABCD_EF0B_1234_5015, 0, 0x5678, 0x9ABF))
  }

  @Test("H2: unknown and blocked requesters, interrupts")
  func refusals() {
    func cause(_ fault: RequestFault, _ request: DeviceRequest) -> UInt16? {
      Self.record(fault, request)?.cause
    }
    let plain = Self.request(.write, process: nil)
    #expect(cause(.unknownRequester, plain) == 258)
    #expect(cause(.blocked, plain) == 258)
    #expect(cause(.blocked, Self.request(.write)) == 266)
    #expect(cause(.interruptWindow(Self.second), plain) == 7)
    #expect(cause(.interruptWindow(Self.second), Self.request(.read)) == 5)
    #expect(cause(.interrupt(.notPresent(index: 1), Self.second), plain) == 262)
  }

  @Test("H2: translation requests that are answered with success record nothing (3.6)")
  func translationRequests() {
    func cause(_ reason: WalkFault.Reason, _ tables: WalkedTables) -> UInt16? {
      Self.record(
        .walk(WalkFault(reason, level: 1), tables), Self.request(.readWrite, kind: .translation)
      )?.cause
    }
    #expect(cause(.notPresent, Self.first) == nil)
    #expect(cause(.permission, Self.second) == nil)
    #expect(cause(.tableUnreachable, Self.first) == 5, "translation requests are reads")
    #expect(cause(.tableCorrupted, Self.first) == 274)
    let request = Self.request(.read, kind: .translation)
    #expect(Self.record(.blocked, request) == nil)
    #expect(Self.record(.unknownRequester, request)?.transaction == 8)
  }

  @Test("H2: a translated transaction without EN_ATS is cause 260, TTYP 6 or 7 (2.3, step 6)")
  func translatedTransactions() {
    let records = [Permissions.read, .write].map {
      Self.record(.translatedForbidden, Self.request($0, kind: .translated))
    }
    #expect(records.map(\.?.cause) == [260, 260])
    #expect(records.map(\.?.transaction) == [6, 7])
  }

  @Test("H2: DTF hides what it hides")
  func hidden() {
    let request = Self.request(.read)
    let fault = RequestFault.walk(WalkFault(.notPresent, level: 1), Self.first)
    #expect(RISCVFaultRecord(fault, of: request, disablesTranslationFaults: true) == nil)
    #expect(
      RISCVFaultRecord(
        RISCVFault(.directoryDataCorruption), of: request, disablesTranslationFaults: true)?
        .cause == 268)
  }
}
