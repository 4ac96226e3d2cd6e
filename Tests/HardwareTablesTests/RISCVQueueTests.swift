// SPDX-License-Identifier: Apache-2.0
//
// Commands and records of a RISC-V IOMMU: RISC-V IOMMU Architecture 1.0, sections 3.1 to 3.3.

import Testing

@testable import HardwareTables

@Suite("B9: queues of RISC-V") struct RISCVQueueTests {
  static func decode(
    _ low: UInt64, _ high: UInt64 = 0,
    iommu: RISCVCapabilities = .with(RISCVCapabilities.full),
    mode: RISCVDirectoryMode = .threeLevels
  ) throws(RISCVCommandError) -> RISCVCommand {
    try RISCVCommand(
      decoding: Words2(low, high),
      directory: RISCVDeviceDirectory(mode: mode, root: 0, iommu: iommu))
  }

  @Test("B9: commands are where 3.1 has them")
  func commands() throws {
    #expect(
      try Self.decode(0x0123_4003_ABCD_E401, 0x1FFF_F7AB_6C00)
        == .invalidateFirstStage(
          guest: 0x1234, process: 0xABCDE, address: 0x7FFF_DEAD_B000))
    #expect(
      try Self.decode(0x0123_4000_ABCD_E001, 0x1FFF_F7AB_6C00)
        == .invalidateFirstStage(guest: nil, process: nil, address: nil))
    #expect(
      try Self.decode(0x0123_4002_0000_0481, 0x1FFF_F7AB_6C00)
        == .invalidateSecondStage(guest: 0x1234, address: 0x7FFF_DEAD_B000))
    #expect(try Self.decode(0x81) == .invalidateSecondStage(guest: nil, address: nil))
    #expect(
      try Self.decode(0xCAFE_F00D_0000_3402, 0x400)
        == .fence(
          .init(
            address: 0x1000, data: 0xCAFE_F00D, signals: false, ordersReads: true,
            ordersWrites: true)))
    #expect(
      try Self.decode(0x2)
        == .fence(
          .init(address: nil, data: 0, signals: false, ordersReads: false, ordersWrites: false))
    )
    #expect(try Self.decode(0xABCD_EF02_0000_0003) == .invalidateDevice(0xABCDEF))
    #expect(try Self.decode(0x3) == .invalidateDevice(nil))
    #expect(
      try Self.decode(0xABCD_EF02_ABCD_E083)
        == .invalidateProcess(device: 0xABCDEF, process: 0xABCDE))
    let destination = RISCVCommand.Destination(
      requester: 0x1234, segment: 0x5A, process: 0xABCDE)
    #expect(
      try Self.decode(0x5A12_3403_ABCD_E004, 0x1234_5678_9ABC_DEF0)
        == .invalidateDeviceTLB(destination, payload: 0x1234_5678_9ABC_DEF0))
    #expect(
      try Self.decode(0x5A12_3400_ABCD_E084, 7)
        == .pageGroupResponse(.init(requester: 0x1234), payload: 7))
    var wired = RISCVCapabilities.with([])
    wired.hasWiredInterrupts = true
    #expect(
      try Self.decode(0x802, iommu: wired)
        == .fence(
          .init(address: nil, data: 0, signals: true, ordersReads: false, ordersWrites: false)))
  }

  @Test("B9: reserved opcodes and functions are illegal")
  func encodings() {
    for opcode: UInt64 in 0...127 {
      for function: UInt64 in 0...7 {
        let isDefined =
          switch opcode {
          case 1, 3, 4: function < 2
          case 2: function == 0
          default: false
          }
        if isDefined { continue }
        #expect(throws: RISCVCommandError.reservedEncoding) {
          try Self.decode(function << 7 | opcode)
        }
      }
    }
  }

  struct Reserved: Sendable {
    var command: UInt64
    var low: [Int] = []
    var high: [Int] = []
  }

  @Test(
    "B9: reserved bits of commands are illegal",
    arguments: [
      Reserved(command: 0x1, low: [11, 34, 43, 60, 63], high: [0, 9, 62, 63]),
      Reserved(command: 0x81, low: [11, 34, 43, 60, 63], high: [0, 9, 62, 63]),
      Reserved(command: 0x2, low: [11, 14, 31], high: [62, 63]),
      Reserved(command: 0x3, low: [10, 11, 12, 31, 32, 34, 39], high: [0, 63]),
      Reserved(command: 0x2_0000_0083, low: [10, 11, 32, 34, 39], high: [0, 63]),
      Reserved(command: 0x4, low: [10, 11, 34, 39]),
      Reserved(command: 0x84, low: [10, 11, 34, 39]),
    ])
  func reserved(example: Reserved) throws {
    _ = try Self.decode(example.command)
    for bit in example.low {
      #expect(throws: RISCVCommandError.reservedBits) {
        try Self.decode(example.command | 1 << UInt64(bit))
      }
    }
    for bit in example.high {
      #expect(throws: RISCVCommandError.reservedBits) {
        try Self.decode(example.command, 1 << UInt64(bit))
      }
    }
  }

  @Test("B9: operands that a command does not allow, and commands that are not there")
  func operands() {
    // PSCV of IOTINVAL.GVMA; INVAL_PDT without DV.
    #expect(throws: RISCVCommandError.operand) { try Self.decode(0x1_0000_0081) }
    #expect(throws: RISCVCommandError.operand) { try Self.decode(0x83) }
    // A device ID wider than the directory; a process ID wider than the widest mode.
    #expect(throws: RISCVCommandError.operand) {
      try Self.decode(0x0080_0002_0000_0003, mode: .twoLevels)
    }
    #expect(throws: RISCVCommandError.operand) {
      try Self.decode(0x2_2000_0083, iommu: .with([.pd8, .pd17]))
    }
    #expect(throws: RISCVCommandError.unsupported) {
      try Self.decode(0x4, iommu: .fullBut(.ats))
    }
    #expect(throws: RISCVCommandError.unsupported) {
      try Self.decode(0x84, iommu: .fullBut(.ats))
    }
  }

  @Test("B9: fault records are where 3.2 has them")
  func faultRecord() {
    let record = RISCVFaultRecord(
      cause: .readGuestPageFault, transaction: .untranslatedRead, deviceID: 0xABCDEF,
      processID: 0x12345, isSupervisor: true, iotval: 0x1000, iotval2: 0x2001)
    #expect(record.words == Words4(0xABCD_EF0B_1234_5015, 0, 0x1000, 0x2001))
    #expect(RISCVFaultRecord(decoding: record.words) == record)
    // Without a process ID, PRIV too is 0; without a transaction, DID.
    let plain = RISCVFaultRecord(
      cause: .directoryEntryNotValid, transaction: .translatedWrite, deviceID: 0x10,
      isSupervisor: true, iotval: 0)
    #expect(plain.words == Words4(0x0000_101C_0000_0102, 0, 0, 0))
    let internalFault = RISCVFaultRecord(
      cause: .messageWriteAccessFault, transaction: .none, deviceID: 0x10, processID: 3,
      iotval: 0x4000)
    #expect(internalFault.words == Words4(0x111, 0, 0x4000, 0))
  }

  @Test("B9: causes that DTF does not hide (3.2)")
  func hidden() {
    let reported: Set<UInt16> = [256, 257, 258, 259, 268, 272, 273]
    for cause in RISCVCause.allCases {
      #expect(cause.isReportedDespiteDTF == reported.contains(cause.rawValue))
    }
  }
}
