// SPDX-License-Identifier: Apache-2.0
//
// What an SMMUv3 records of transactions that it ended, against vectors by hand: Arm IHI 0070,
// 7.3.2 to 7.3.16; and the records that a guest is told.

import PageTables
import Testing

@testable import HardwareTables

@Suite("H2: events of SMMUv3") struct SMMURequestTests {
  static let stage1 = WalkedTables(firstLevels: 4)
  static let stage2 = WalkedTables(secondLevels: 4)
  static let nested = WalkedTables(firstLevels: 4, secondLevels: 4)

  static func request(
    _ permissions: Permissions = .read, substream: UInt32? = nil, privileged: Bool = false,
    kind: DeviceRequest.Kind = .untranslated
  ) -> DeviceRequest {
    DeviceRequest(
      source: 0x77, pasid: substream, address: 0x7FFF_DEAD_BEEF,
      access: Access(permissions, privileged: privileged), kind: kind)
  }

  static func words(_ fault: RequestFault, _ request: DeviceRequest = request()) -> Words4? {
    SMMUEvent(fault, of: request)?.words
  }

  @Test("H2: translation-related faults of stage 1: CLASS is IN (7.3.13 to 7.3.16)")
  func first() {
    func words(_ reason: WalkFault.Reason) -> Words4? {
      Self.words(.walk(WalkFault(reason, level: 1), Self.stage1))
    }
    let second: UInt64 = 0x0000_0208_0000_0000
    for (reason, code): (WalkFault.Reason, UInt64) in [
      (.notPresent, 0x10), (.addressWidth, 0x10), (.reservedBits, 0x10), (.addressSize, 0x11),
      (.accessFlag, 0x12), (.permission, 0x13),
    ] {
      #expect(words(reason) == Words4(0x77 << 32 | code, second, 0x7FFF_DEAD_BEEF, 0))
    }
  }

  @Test("H2: RnW, InD, PnU and SSV are the transaction's")
  func access() {
    let fault = RequestFault.walk(WalkFault(.notPresent, level: 1), Self.stage1)
    #expect(
      Self.words(fault, Self.request([.read, .execute], substream: 0xABCDE, privileged: true))
        == Words4(0x0000_0077_ABCD_E810, 0x0000_020E_0000_0000, 0x7FFF_DEAD_BEEF, 0))
    #expect(
      Self.words(fault, Self.request(.write))
        == Words4(0x0000_0077_0000_0010, 0x0000_0200_0000_0000, 0x7FFF_DEAD_BEEF, 0))
    // An atomic operation is a write.
    #expect(
      Self.words(fault, Self.request(.readWrite))
        == Words4(0x0000_0077_0000_0010, 0x0000_0200_0000_0000, 0x7FFF_DEAD_BEEF, 0))
  }

  @Test("H2: faults of stage 2: S2, CLASS and IPA; TTRnW of permissions (7.3.13, 7.3.16)")
  func second() {
    let only = WalkFault(.notPresent, level: 1)
    #expect(
      Self.words(.walk(only, Self.stage2))
        == Words4(
          0x0000_0077_0000_0010, 0x0000_0288_0000_0000, 0x7FFF_DEAD_BEEF, 0x7FFF_DEAD_B000))
    var fault = WalkFault(.permission, level: 1)
    fault.stage = .second
    fault.ipa = 0x12_3456_7008
    #expect(
      Self.words(.walk(fault, Self.nested), Self.request(.write))
        == Words4(
          0x0000_0077_0000_0013, 0x0000_0280_0000_0000, 0x7FFF_DEAD_BEEF, 0x12_3456_7000))
    // While a stage 1 entry was fetched: CLASS is TT, and TTRnW says read.
    fault.tableLevel = 3
    #expect(
      Self.words(.walk(fault, Self.nested), Self.request(.write))
        == Words4(
          0x0000_0077_0000_0013, 0x0000_1180_0000_0000, 0x7FFF_DEAD_BEEF, 0x12_3456_7000))
    // While it was marked: TTRnW says write, whatever the transaction is.
    fault.isMarking = true
    #expect(
      Self.words(.walk(fault, Self.nested))
        == Words4(
          0x0000_0077_0000_0013, 0x0000_0188_0000_0000, 0x7FFF_DEAD_BEEF, 0x12_3456_7000))
  }

  @Test("H2: F_WALK_EABT has the entry's address; of stage 1 its CLASS is TT (7.3.12)")
  func externalAborts() {
    var fault = WalkFault(.tableUnreachable, level: 2)
    fault.entry = 0x10_0048
    #expect(
      Self.words(.walk(fault, Self.stage1))
        == Words4(0x0000_0077_0000_000B, 0x0000_0108_0000_0000, 0x7FFF_DEAD_BEEF, 0x10_0048))
    #expect(
      Self.words(.walk(fault, Self.stage2))
        == Words4(0x0000_0077_0000_000B, 0x0000_0288_0000_0000, 0x7FFF_DEAD_BEEF, 0x10_0048))
    fault.stage = .second
    fault.tableLevel = 4
    #expect(
      Self.words(.walk(fault, Self.nested))
        == Words4(0x0000_0077_0000_000B, 0x0000_0188_0000_0000, 0x7FFF_DEAD_BEEF, 0x10_0048))
  }

  @Test("H2: unknown and blocked requesters, the interrupt window")
  func refusals() {
    #expect(
      Self.words(.unknownRequester, Self.request(substream: 1))
        == Words4(0x0000_0077_0000_1802, 0, 0, 0))
    #expect(Self.words(.blocked) == nil, "STE.Config 0b000 aborts without an event")
    #expect(
      Self.words(.blocked, Self.request(substream: 1))
        == Words4(0x0000_0077_0000_180A, 0, 0, 0))
    let unmapped = Words4(
      0x0000_0077_0000_0010, 0x0000_0200_0000_0000, 0x7FFF_DEAD_BEEF, 0)
    #expect(Self.words(.interruptWindow(Self.stage1), Self.request(.write)) == unmapped)
    #expect(
      Self.words(.interrupt(.notRemappable, Self.stage1), Self.request(.write)) == unmapped)
  }

  @Test(
    "H2: an ATS translation request is answered, and its faults record nothing (3.9.1.2)")
  func translationRequests() {
    let request = Self.request(kind: .translation)
    for reason: WalkFault.Reason in [.notPresent, .permission, .accessFlag, .addressSize] {
      #expect(Self.words(.walk(WalkFault(reason, level: 1), Self.stage1), request) == nil)
    }
    // Completer Abort, and no event while REC_CFG_ATS is 0.
    #expect(
      Self.words(.walk(WalkFault(.tableUnreachable, level: 1), Self.stage1), request) == nil)
    #expect(Self.words(.lookup(.smmuV3(.badContextDescriptor)), request) == nil)
    #expect(Self.words(.unknownRequester, request) == nil)
  }

  @Test("H2: a translated transaction of a stream without ATS is F_TRANSL_FORBIDDEN (7.3.8)")
  func translatedTransactions() {
    #expect(
      Self.words(.translatedForbidden, Self.request(.write, substream: 5, kind: .translated))
        == Words4(0x0000_0077_0000_0007, 0, 0x7FFF_DEAD_BEEF, 0))
    #expect(
      Self.words(.translatedForbidden, Self.request(.read, kind: .translated))
        == Words4(0x0000_0077_0000_0007, 0x0000_0008_0000_0000, 0x7FFF_DEAD_BEEF, 0))
    #expect(Self.words(.unknownRequester, Self.request(kind: .translated)) == nil)
  }

  @Test("H2: a guest is told events of its own stage, with its name for the stream")
  func virtualRecords() throws {
    let fault = WalkFault(.notPresent, level: 1)
    let event = try #require(
      SMMUEvent(.walk(fault, Self.nested), of: Self.request(.read, substream: 5)))
    let record = try #require(event.record(virtualStream: 0xCAFE_F00D))
    #expect(
      record == [
        0x10, 0x58, 0, 0, 0x0D, 0xF0, 0xFE, 0xCA, 0, 0, 0, 0, 0x08, 0x02, 0, 0,
        0xEF, 0xBE, 0xAD, 0xDE, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
      ])
    // Stage 2 is the host's; so are the stream table and what lies behind an abort.
    var inner = fault
    inner.stage = .second
    for code in SMMUEvent.Code.allCases {
      let told = SMMUEvent(code, stream: 1).record(virtualStream: 2) != nil
      #expect(
        told
          == [
            .badStreamTableEntry, .streamDisabled, .badSubstreamID, .badContextDescriptor,
            .translation, .addressSize, .access, .permission,
          ].contains(code))
    }
    #expect(
      SMMUEvent(.walk(inner, Self.nested), of: Self.request())?.record(virtualStream: 2)
        == nil)
    #expect(
      SMMUEvent(SMMUFault.badContextDescriptor, of: Self.request(substream: 1))
        .record(virtualStream: 2)?.prefix(8) == [0x0A, 0x18, 0, 0, 2, 0, 0, 0])
  }
}
