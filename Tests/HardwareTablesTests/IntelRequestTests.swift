// SPDX-License-Identifier: Apache-2.0
//
// What VT-d records of requests that it ended, against the conditions of 7.1.3 (revision 4.1) and
// vectors by hand.

import PageTables
import Testing

@testable import HardwareTables

@Suite("H2: fault records of VT-d") struct IntelRequestTests {
  static let legacy = WalkedTables(secondLevels: 4)
  static let first = WalkedTables(firstLevels: 4)
  static let second = WalkedTables(secondLevels: 4)
  static let nested = WalkedTables(firstLevels: 4, secondLevels: 5)

  static func request(
    _ permissions: Permissions = .read, pasid: UInt32? = nil, privileged: Bool = false,
    kind: DeviceRequest.Kind = .untranslated
  ) -> DeviceRequest {
    DeviceRequest(
      source: 0x1234, pasid: pasid, address: 0x7FFF_DEAD_BEEF,
      access: Access(permissions, privileged: privileged), kind: kind)
  }

  /// A fault of the second stage of two.
  static func inner(
    _ reason: WalkFault.Reason, level: Int = 1, tableLevel: UInt8 = 0, marking: Bool = false
  ) -> WalkFault {
    var fault = WalkFault(reason, level: level)
    fault.stage = .second
    fault.tableLevel = tableLevel
    fault.isMarking = marking
    fault.ipa = 0x5008
    return fault
  }

  static func reason(
    _ fault: WalkFault, _ tables: WalkedTables, scalable: Bool = true,
    _ request: DeviceRequest = request()
  ) -> IntelFaultReason? {
    IntelFaultRecord(.walk(fault, tables), of: request, isScalable: scalable)
      .flatMap { IntelFaultReason(rawValue: $0.reason) }
  }

  @Test("H2: the record has the request's fields (11.4.7.6)")
  func record() {
    let fault = RequestFault.walk(WalkFault(.notPresent, level: 1), Self.first)
    #expect(
      IntelFaultRecord(
        fault, of: Self.request([.read, .execute], pasid: 0xABCDE, privileged: true),
        isScalable: true)?.words == Words2(0x7FFF_DEAD_B000, 0xCABC_DE71_E000_1234))
    #expect(
      IntelFaultRecord(fault, of: Self.request(.write), isScalable: true)?.words
        == Words2(0x7FFF_DEAD_B000, 0x8000_0071_0000_1234))
    // AT 10b: translated. T1 and T2: an atomic operation.
    let atomic = IntelFaultRecord(
      fault, of: Self.request(.readWrite, kind: .translated), isScalable: true)
    #expect(atomic?.words == Words2(0x7FFF_DEAD_B000, 0xE000_0071_1000_1234))
    #expect(atomic.flatMap { IntelFaultRecord(decoding: $0.words) }?.isAtomic == true)
  }

  @Test("H2: legacy mode: LSS, LGN, LCT.4")
  func legacyMode() {
    func reason(_ reason: WalkFault.Reason, level: Int = 1, _ permissions: Permissions)
      -> IntelFaultReason?
    {
      Self.reason(
        WalkFault(reason, level: level), Self.legacy, scalable: false,
        Self.request(permissions))
    }
    #expect(reason(.addressWidth, level: 0, .read) == .lgn1)
    // An entry that is not there allows neither.
    #expect(reason(.notPresent, .write) == .lgn2)
    #expect(reason(.notPresent, .read) == .lgn3)
    #expect(reason(.permission, .write) == .lgn2)
    #expect(reason(.permission, .read) == .lgn3)
    #expect(reason(.reservedBits, .read) == .lss2)
    #expect(reason(.tableUnreachable, level: 3, .read) == .lss1)
    #expect(reason(.tableUnreachable, level: 4, .read) == .lct4)
    #expect(
      [IntelFaultReason.lss1, .lss2, .lgn1, .lgn2, .lgn3, .lgn4].map(\.rawValue)
        == [0x07, 0x0C, 0x04, 0x05, 0x06, 0x0E])
  }

  @Test("H2: first stage: SFS.1 to SFS.4, SFS.10, SGN.1 to SGN.3, SGN.6, SGN.7")
  func firstStage() {
    func reason(
      _ reason: WalkFault.Reason, level: Int = 1, rights: Rights = [], marking: Bool = false,
      _ request: DeviceRequest = Self.request()
    ) -> IntelFaultReason? {
      var fault = WalkFault(reason, level: level, rights: rights)
      fault.isMarking = marking
      return Self.reason(fault, Self.first, request)
    }
    #expect(reason(.addressWidth, level: 0) == .sgn1)
    #expect(reason(.notPresent) == .sfs2)
    #expect(reason(.reservedBits) == .sfs3)
    #expect(reason(.tableUnreachable, level: 2) == .sfs1)
    #expect(reason(.tableCorrupted, level: 4) == .sfs4)
    #expect(reason(.tableUnreachable, level: 2, marking: true) == .sfs10)
    let user = Rights.user.subtracting(.userExecute)
    #expect(reason(.permission, rights: .privileged) == .sgn2)
    #expect(
      reason(.permission, rights: user, Self.request([.read, .execute], pasid: 1)) == .sgn3)
    #expect(reason(.permission, rights: .userRead, Self.request(.write)) == .sgn6)
    #expect(reason(.permission, rights: .userRead, Self.request(.readWrite)) == .sgn6)
    #expect(reason(.permission, rights: .userWrite, Self.request(.readWrite)) == .sgn7)
    #expect(reason(.permission, rights: .userWrite) == .sgn7)
    #expect(
      [
        IntelFaultReason.sfs1, .sfs2, .sfs3, .sfs4, .sfs10, .sgn1, .sgn2, .sgn3, .sgn6, .sgn7,
      ].map(\.rawValue) == [0x70, 0x71, 0x72, 0x73, 0x91, 0x80, 0x81, 0x82, 0x85, 0x86])
  }

  @Test("H2: second stage: SSS.1 to SSS.4, SGN.5 to SGN.7")
  func secondStage() {
    func reason(
      _ reason: WalkFault.Reason, level: Int = 1, _ permissions: Permissions = .read
    ) -> IntelFaultReason? {
      Self.reason(WalkFault(reason, level: level), Self.second, Self.request(permissions))
    }
    #expect(reason(.addressWidth, level: 0) == .sgn5)
    #expect(reason(.notPresent) == .sss2)
    #expect(reason(.reservedBits) == .sss3)
    #expect(reason(.tableUnreachable, level: 2) == .sss1)
    #expect(reason(.tableUnreachable, level: 4) == .sss4)
    #expect(reason(.permission, .write) == .sgn6)
    #expect(reason(.permission, .read) == .sgn7)
    #expect(
      [IntelFaultReason.sss1, .sss2, .sss3, .sss4, .sgn5].map(\.rawValue)
        == [0x78, 0x79, 0x7A, 0x7B, 0x84])
  }

  @Test("H2: nested: SFS.5 to SFS.8 where the second stage stops the first one's walk")
  func nested() {
    #expect(Self.reason(WalkFault(.notPresent, level: 2), Self.nested) == .sfs2)
    #expect(
      Self.reason(Self.inner(.addressWidth, level: 0, tableLevel: 3), Self.nested) == .sfs5)
    #expect(Self.reason(Self.inner(.addressWidth, level: 0), Self.nested) == .sgn5)
    #expect(Self.reason(Self.inner(.permission, tableLevel: 4), Self.nested) == .sfs6)
    #expect(Self.reason(Self.inner(.permission, tableLevel: 3), Self.nested) == .sfs7)
    #expect(
      Self.reason(Self.inner(.permission, tableLevel: 4, marking: true), Self.nested) == .sfs8)
    #expect(Self.reason(Self.inner(.permission), Self.nested) == .sgn7)
    #expect(Self.reason(Self.inner(.notPresent, tableLevel: 3), Self.nested) == .sss2)
    #expect(Self.reason(Self.inner(.notPresent), Self.nested) == .sss2)
    #expect(Self.reason(Self.inner(.tableUnreachable, level: 5), Self.nested) == .sss4)
    #expect(
      [IntelFaultReason.sfs5, .sfs6, .sfs7, .sfs8].map(\.rawValue) == [0x74, 0x75, 0x76, 0x77])
  }

  @Test("H2: unknown and blocked requesters, the interrupt range")
  func refusals() {
    func reason(_ fault: RequestFault, scalable: Bool) -> UInt8? {
      IntelFaultRecord(fault, of: Self.request(), isScalable: scalable)?.reason
    }
    #expect(reason(.unknownRequester, scalable: false) == 0x02)
    #expect(reason(.unknownRequester, scalable: true) == 0x41)
    #expect(reason(.blocked, scalable: false) == 0x02)
    #expect(reason(.blocked, scalable: true) == 0x59)
    #expect(reason(.interruptWindow(Self.second), scalable: false) == 0x0E)
    #expect(reason(.interruptWindow(Self.second), scalable: true) == 0x87)
  }

  @Test("H2: interrupts that are refused: 20h to 22h, 25h, 26h, with the index in FI (5.1.4.1)")
  func interrupts() {
    func words(_ refusal: InterruptRefusal) -> Words2? {
      IntelFaultRecord(
        .interrupt(refusal, Self.second), of: Self.request(.write), isScalable: false)?.words
    }
    #expect(words(.notRemappable) == Words2(0, 0x8000_0025_0000_1234))
    #expect(words(.reservedBits) == Words2(0, 0x8000_0020_0000_1234))
    #expect(
      words(.beyondTable(index: 0xBEEF)) == Words2(0xBEEF << 48, 0x8000_0021_0000_1234))
    #expect(words(.notPresent(index: 7)) == Words2(7 << 48, 0x8000_0022_0000_1234))
    #expect(words(.wrongSource(index: 7)) == Words2(7 << 48, 0x8000_0026_0000_1234))
  }

  @Test("H2: a translation request that finds no access is answered so, and not recorded")
  func translationRequests() {
    let request = Self.request(kind: .translation)
    #expect(Self.reason(WalkFault(.notPresent, level: 1), Self.first, request) == nil)
    #expect(Self.reason(WalkFault(.permission, level: 1), Self.first, request) == nil)
    #expect(Self.reason(WalkFault(.reservedBits, level: 1), Self.first, request) == .sfs3)
  }

  @Test("H2: a translated request where DTE is clear: SCT.5; of a legacy unit LCT.5; AT is 10b")
  func translatedRequests() {
    let request = Self.request(.write, kind: .translated)
    for (isScalable, code) in [(true, 0x44), (false, 0x0D)] as [(Bool, UInt64)] {
      let words = IntelFaultRecord(.translatedForbidden, of: request, isScalable: isScalable)?
        .words
      #expect(words == Words2(0x7FFF_DEAD_B000, 0xA000_0000_0000_1234 | code << 32))
    }
  }

  @Test("H2: a lookup's fault is recorded but for FPD; reasons have their names")
  func lookups() {
    let request = Self.request(.write)
    #expect(IntelFaultRecord(IntelFault(.spt2, isReported: false), of: request) == nil)
    #expect(
      IntelFaultRecord(IntelFault(.spt2), of: request)?.words
        == Words2(0x7FFF_DEAD_B000, 0x8000_0059_0000_1234))
    #expect(IntelFaultReason.sfs10.name == "SFS.10")
    #expect(IntelFaultReason.lgn3.name == "LGN.3")
    #expect(IntelFaultReason.interruptSource.name == "interrupt fault")
  }
}
