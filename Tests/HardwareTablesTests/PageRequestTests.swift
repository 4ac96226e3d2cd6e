// SPDX-License-Identifier: Apache-2.0
//
// Page requests in the records of the four families, against vectors by hand: VT-d revision 4.1,
// 7.4.1.1; AMD 48882, 2.6.1; Arm IHI 0070, 8.1; RISC-V IOMMU 1.0, 3.3.

import Testing

@testable import HardwareTables

@Suite("H1: page request messages") struct PageRequestTests {
  /// A request with a PASID; each family's source has its own width.
  static func full(_ source: UInt32) -> PageRequestMessage {
    PageRequestMessage(
      source: source, pasid: 0xABCDE, isPrivileged: true, wantsExecute: true, wantsRead: true,
      wantsWrite: true, isLast: true, group: 0x155, address: 0xDEAD_B000)
  }

  /// What only a request with a PASID may say is not written.
  static let plain = PageRequestMessage(
    source: 0x1234, isPrivileged: true, wantsExecute: true, wantsRead: true, wantsWrite: false,
    isLast: false, group: 0, address: 0x1FFF)

  /// As `plain`, as it is read back.
  static let plainRead = PageRequestMessage(
    source: 0x1234, wantsRead: true, wantsWrite: false, isLast: false, group: 0,
    address: 0x1000)

  @Test("H1: VT-d's page request descriptor (7.4.1.1)")
  func intel() {
    let request = Self.full(0x1234)
    #expect(request.intelDescriptor == Words4(0x003A_BCDE_1234_0101, 0xDEAD_BAAF, 0, 0))
    #expect(PageRequestMessage(intelDescriptor: request.intelDescriptor) == request)
    #expect(Self.plain.intelDescriptor == Words4(0x1234_0001, 0x1001, 0, 0))
    #expect(PageRequestMessage(intelDescriptor: Self.plain.intelDescriptor) == Self.plainRead)
    #expect(PageRequestMessage(intelDescriptor: Words4(2, 0, 0, 0)) == nil)
  }

  @Test("H1: RISC-V's page-request record (3.3)")
  func riscv() {
    let request = Self.full(0x56_1234)
    #expect(request.riscvRecord == Words2(0x5612_3407_ABCD_E000, 0xDEAD_BAAF))
    #expect(PageRequestMessage(riscvRecord: request.riscvRecord) == request)
    #expect(Self.plain.riscvRecord == Words2(0x0012_3400_0000_0000, 0x1001))
    #expect(PageRequestMessage(riscvRecord: Self.plain.riscvRecord) == Self.plainRead)
  }

  @Test("H1: SMMUv3's PRI queue record (8.1)")
  func smmu() {
    let request = Self.full(0x1234_5678)
    #expect(request.smmuRecord == Words2(0xFC0A_BCDE_1234_5678, 0xDEAD_B155))
    #expect(PageRequestMessage(smmuRecord: request.smmuRecord) == request)
    #expect(Self.plain.smmuRecord == Words2(0x1000_0000_0000_1234, 0x1000))
    #expect(PageRequestMessage(smmuRecord: Self.plain.smmuRecord) == Self.plainRead)
  }

  @Test("H1: AMD's PAGE_SERVICE_REQUEST (2.6.1)")
  func amd() {
    let request = Self.full(0x1234)
    // EX, RD, WR, GN; US is clear, for privilege is asked for.
    #expect(request.amdEntry == Words2(0x1126_2B55_BCDE_1234, 0xDEAD_B000))
    #expect(PageRequestMessage(amdEntry: request.amdEntry) == request)
    var user = request
    user.isPrivileged = false
    user.isLast = false
    #expect(user.amdEntry == Words2(0x1166_2955_BCDE_1234, 0xDEAD_B000))
    #expect(PageRequestMessage(amdEntry: user.amdEntry) == user)
    #expect(Self.plain.amdEntry == Words2(0x1004_0000_0000_1234, 0x1000))
    #expect(PageRequestMessage(amdEntry: Self.plain.amdEntry) == Self.plainRead)
    // Another code; a malformed message.
    #expect(PageRequestMessage(amdEntry: Words2(0x2000_0000_0000_0000, 0)) == nil)
    #expect(PageRequestMessage(amdEntry: Words2(0x1080_0000_0000_0000, 0)) == nil)
  }

  @Test("H1: a Stop Marker asks for nothing, is the last and has a PASID")
  func stopMarker() {
    let stop = PageRequestMessage(
      source: 1, pasid: 2, wantsRead: false, wantsWrite: false, isLast: true, group: 0,
      address: 0)
    #expect(stop.isStopMarker && !Self.full(1).isStopMarker && !Self.plain.isStopMarker)
    var other = stop
    other.pasid = nil
    #expect(!other.isStopMarker)
    other = stop
    other.isLast = false
    #expect(!other.isStopMarker)
    // The same in each record.
    #expect(PageRequestMessage(intelDescriptor: stop.intelDescriptor)?.isStopMarker == true)
    #expect(PageRequestMessage(amdEntry: stop.amdEntry)?.isStopMarker == true)
    #expect(PageRequestMessage(smmuRecord: stop.smmuRecord).isStopMarker)
    #expect(PageRequestMessage(riscvRecord: stop.riscvRecord).isStopMarker)
  }
}
