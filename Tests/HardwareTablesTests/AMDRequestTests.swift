// SPDX-License-Identifier: Apache-2.0
//
// What AMD's IOMMU logs of requests that it ended, against vectors by hand: AMD 48882, 2.1.3.2
// and 2.5.2 to 2.5.9.

import PageTables
import Testing

@testable import HardwareTables

@Suite("H2: events of AMD's IOMMU") struct AMDRequestTests {
  static let host = WalkedTables(secondLevels: 4)
  static let nested = WalkedTables(firstLevels: 4, secondLevels: 4)

  static func words(
    _ fault: RequestFault, _ permissions: Permissions = .write, pasid: UInt32? = nil,
    privileged: Bool = false, kind: DeviceRequest.Kind = .untranslated
  ) -> Words2? {
    let request = DeviceRequest(
      source: 0x1234, pasid: pasid, address: 0x5678,
      access: Access(permissions, privileged: privileged), kind: kind)
    return AMDEvent(fault, of: request, domain: 0x77)?.words
  }

  static func walk(_ reason: WalkFault.Reason, level: Int = 1) -> RequestFault {
    .walk(WalkFault(reason, level: level), host)
  }

  @Test("H2: IO_PAGE_FAULT of host tables: PR, PE and RZ (2.5.3)")
  func hostTables() {
    #expect(Self.words(Self.walk(.notPresent)) == Words2(0x2020_0077_0000_1234, 0x5678))
    #expect(Self.words(Self.walk(.notPresent), .read) == Words2(0x2000_0077_0000_1234, 0x5678))
    #expect(
      Self.words(Self.walk(.addressWidth, level: 0)) == Words2(0x2020_0077_0000_1234, 0x5678))
    #expect(Self.words(Self.walk(.permission)) == Words2(0x2070_0077_0000_1234, 0x5678))
    // A level or a size that is not encoded right: present, and RZ is clear.
    #expect(Self.words(Self.walk(.reservedBits)) == Words2(0x2030_0077_0000_1234, 0x5678))
  }

  @Test("H2: IO_PAGE_FAULT of guest tables: GN, US, NX and the PASID (2.5.3)")
  func guestTables() {
    func words(
      _ reason: WalkFault.Reason, _ permissions: Permissions = .write, privileged: Bool = false
    ) -> Words2? {
      Self.words(
        .walk(WalkFault(reason, level: 1), Self.nested), permissions, pasid: 0xABCDE,
        privileged: privileged)
    }
    #expect(words(.notPresent) == Words2(0x2025_BCDE_000A_1234, 0x5678))
    #expect(words(.notPresent, privileged: true) == Words2(0x2021_BCDE_000A_1234, 0x5678))
    #expect(words(.permission) == Words2(0x2075_BCDE_000A_1234, 0x5678))
    #expect(words(.permission, [.read, .execute]) == Words2(0x2057_BCDE_000A_1234, 0x5678))
    #expect(words(.reservedBits) == Words2(0x20B5_BCDE_000A_1234, 0x5678))
    // The host's table below the guest's: the domain, without GN.
    var fault = WalkFault(.notPresent, level: 1)
    fault.stage = .second
    fault.ipa = 0x9000
    #expect(
      Self.words(.walk(fault, Self.nested), pasid: 0xABCDE)
        == Words2(0x2024_0077_0000_1234, 0x5678))
  }

  @Test("H2: PAGE_TAB_HARDWARE_ERROR has the entry's address and its type (2.5.5)")
  func hardwareErrors() {
    var fault = WalkFault(.tableUnreachable, level: 2)
    fault.entry = 0x1_0048
    #expect(
      Self.words(.walk(fault, Self.host)) == Words2(0x4220_0077_0000_1234, 0x1_0048))
    fault.reason = .tableCorrupted
    #expect(
      Self.words(.walk(fault, Self.nested), pasid: 0xABCDE)
        == Words2(0x4621_BCDE_000A_1234, 0x1_0048))
  }

  @Test("H2: unknown and blocked requesters")
  func refusals() {
    #expect(Self.words(.unknownRequester) == Words2(0x1020_0000_0000_1234, 0x5678))
    #expect(Self.words(.blocked) == Words2(0x2020_0077_0000_1234, 0x5678))
    #expect(Self.words(.blocked, pasid: 3) == Words2(0x2025_0003_0000_1234, 0x5678))
  }

  @Test("H2: the interrupt range: INVALID_DEVICE_REQUEST (2.5.9), IO_PAGE_FAULT with I")
  func interrupts() {
    #expect(
      Self.words(.interruptWindow(Self.host), .read) == Words2(0x8000_0000_0000_1234, 0x5678))
    #expect(
      Self.words(.interruptWindow(Self.host), .write) == Words2(0x8C00_0000_0000_1234, 0x5678))
    #expect(
      Self.words(.interrupt(.notPresent(index: 3), Self.host))
        == Words2(0x2028_0077_0000_1234, 0x5678))
  }

  @Test(
    "H2: a translation request that finds no access is answered so, and not logged (2.1.3.2)")
  func translationRequests() {
    for reason: WalkFault.Reason in [.notPresent, .permission, .reservedBits] {
      #expect(Self.words(Self.walk(reason), kind: .translation) == nil)
    }
    #expect(Self.words(.blocked, kind: .translation) == nil)
    #expect(
      Self.words(.unknownRequester, kind: .translation)
        == Words2(0x1120_0000_0000_1234, 0x5678))
  }

  @Test("H2: a translated request of a device without I: INVALID_DEVICE_REQUEST, 001b (2.5.9)")
  func translatedRequests() {
    #expect(
      Self.words(.translatedForbidden, kind: .translated)
        == Words2(0x8200_0000_0000_1234, 0x5678))
    #expect(
      Self.words(.translatedForbidden, pasid: 0x70005, kind: .translated)
        == Words2(0x8201_0005_0007_1234, 0x5678))
  }
}
