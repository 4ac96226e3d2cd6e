// SPDX-License-Identifier: Apache-2.0
//
// Walks of the device and the process directory of a RISC-V IOMMU: RISC-V IOMMU Architecture
// 1.0, section 2.3.

import PageTables
import Testing

@testable import HardwareTables

@Suite("B9: directories of RISC-V") struct RISCVDirectoryTests {
  /// Three levels to device ABCDEFh: the root at 100000h, then 201000h and 302000h.
  struct Tree: Sendable {
    var isExtended: Bool
    /// Where the three entries are: DDI[2] = ABh (157h), DDI[1] = 19Bh (137h), DDI[0] = 6Fh
    /// (2Fh) in the base (extended) format.
    var places: [UInt64] {
      isExtended ? [0x100AB8, 0x2019B8, 0x302BC0] : [0x100558, 0x201CD8, 0x302DE0]
    }
    var directory: RISCVDeviceDirectory {
      RISCVDeviceDirectory(
        mode: .threeLevels, root: 0x100000,
        iommu: isExtended
          ? .with(RISCVCapabilities.full) : .fullBut(.flatMessageTable))
    }
    func memory(_ tc: UInt64 = 1) -> FakeMemory {
      var memory = FakeMemory()
      memory.words[places[0]] = 0x80401
      memory.words[places[1]] = 0xC0801
      memory.write(
        Words4(tc, 0x8123_4000_0008_0000, 0, 0x8000_0000_0009_0000), at: places[2])
      return memory
    }
  }

  @Test("B9: ddtp has its mode in bits 3 to 0 and its page in bits 53 to 10 (5.5)")
  func register() {
    let iommu = RISCVCapabilities.with([])
    let directory = RISCVDeviceDirectory(register: 0x40003, iommu: iommu)
    #expect(directory?.mode == .twoLevels && directory?.root == 0x100000)
    #expect(RISCVDeviceDirectory(register: 5, iommu: iommu) == nil)
    let widths: [(RISCVDirectoryMode, Int, Int)] = [
      (.oneLevel, 7, 6), (.twoLevels, 16, 15), (.threeLevels, 24, 24),
    ]
    for (mode, base, extended) in widths {
      #expect(mode.deviceIDWidth(iommu) == base)
      #expect(mode.deviceIDWidth(.with([.flatMessageTable])) == extended)
    }
  }

  @Test("B9: three levels to a context in both formats", arguments: [false, true])
  func walk(isExtended: Bool) throws {
    let tree = Tree(isExtended: isExtended)
    let context = try tree.directory.locate(device: 0xABCDEF, in: tree.memory())
    #expect(context.guestSoftContextID == 0x1234)
  }

  @Test("B9: one level, and what is beyond it", arguments: [false, true])
  func oneLevel(isExtended: Bool) throws {
    var directory = Tree(isExtended: isExtended).directory
    directory.mode = .oneLevel
    var memory = FakeMemory()
    memory.words[isExtended ? 0x100FC0 : 0x1007E0] = 1
    #expect(try directory.locate(device: 0x3F, in: memory).tc == 1)
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try directory.locate(device: isExtended ? 0x40 : 0x80, in: memory)
    }
  }

  @Test(
    "B9: a word of the directory that cannot be read is 257, poisoned 268",
    arguments: [false, true], 0..<3)
  func unreadable(isExtended: Bool, level: Int) {
    let tree = Tree(isExtended: isExtended)
    let causes: [(TableMemoryFault, RISCVCause)] = [
      (.unreachable, .directoryLoadAccessFault),
      (FakeMemory.untranslated, .directoryLoadAccessFault),
      (.corrupted, .directoryDataCorruption),
    ]
    for (reason, cause) in causes {
      var memory = tree.memory()
      memory.faults[tree.places[level] + (level == 2 ? 24 : 0)] = reason
      #expect(throws: RISCVFault(cause)) {
        try tree.directory.locate(device: 0xABCDEF, in: memory)
      }
    }
  }

  @Test("B9: an entry that is not valid is 258", arguments: 0..<3)
  func notValid(level: Int) {
    let tree = Tree(isExtended: true)
    var memory = tree.memory()
    memory.words[tree.places[level], default: 0] &= ~1
    #expect(throws: RISCVFault(.directoryEntryNotValid)) {
      try tree.directory.locate(device: 0xABCDEF, in: memory)
    }
  }

  @Test("B9: reserved bits above the leaf are 259", arguments: [1, 9, 54, 63], [0, 1])
  func reserved(bit: UInt64, level: Int) {
    let tree = Tree(isExtended: true)
    var memory = tree.memory()
    memory.words[tree.places[level], default: 0] |= 1 << bit
    #expect(throws: RISCVFault(.directoryEntryMisconfigured)) {
      try tree.directory.locate(device: 0xABCDEF, in: memory)
    }
  }

  @Test("B9: a misconfigured context is 259")
  func misconfigured() {
    let tree = Tree(isExtended: true)
    #expect(throws: RISCVFault(.directoryEntryMisconfigured)) {
      try tree.directory.locate(device: 0xABCDEF, in: tree.memory(0x1001))
    }
  }

  @Test("B9: a big-endian directory (fctl.BE)")
  func bigEndian() throws {
    let tree = Tree(isExtended: false)
    var directory = tree.directory
    directory.iommu.isBigEndian = true
    var memory = tree.memory(0x401)
    for (address, word) in memory.words { memory.words[address] = word.byteSwapped }
    #expect(try directory.locate(device: 0xABCDEF, in: memory).guestSoftContextID == 0x1234)
  }

  @Test("B9: steps 1 to 7 of 2.3: Off, Bare, and what a context does not allow")
  func transactions() throws {
    let tree = Tree(isExtended: true)
    var directory = tree.directory
    let memory = tree.memory()
    func context(
      _ type: RISCVTransactionType, process: UInt32? = nil, in memory: FakeMemory
    ) throws -> RISCVDeviceContext? {
      try directory.context(
        device: 0xABCDEF, process: process, transaction: type, in: memory)
    }
    directory.mode = .off
    for type in RISCVTransactionType.allCases {
      #expect(throws: RISCVFault(.allInboundTransactionsDisallowed)) {
        try context(type, in: memory)
      }
    }
    directory.mode = .bare
    #expect(try context(.untranslatedRead, in: memory) == nil)
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try context(.translatedRead, in: memory)
    }
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try context(.translationRequest, in: memory)
    }
    directory.mode = .threeLevels
    #expect(try context(.untranslatedWrite, in: memory) != nil)
    // EN_ATS is clear.
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try context(.translationRequest, in: memory)
    }
    #expect(try context(.translationRequest, in: tree.memory(3)) != nil)
    // A process ID without PDTV.
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try context(.untranslatedRead, process: 1, in: memory)
    }
    // PD8, and 9 bits of process ID.
    var withProcesses = tree.memory(0x21)
    withProcesses.words[tree.places[2] + 24] = 1 << 60 | 0x400
    #expect(try context(.untranslatedRead, process: 255, in: withProcesses) != nil)
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try context(.untranslatedRead, process: 256, in: withProcesses)
    }
  }

  // MARK: Processes

  /// PD20 with its root at 400000h, and process ABCDEh: PDI[2] = 5, PDI[1] = BCh, PDI[0] = DEh.
  static let processes: [UInt64] = [0x400028, 0x5015E0, 0x602DE0]
  static let device = RISCVDeviceContext(
    Words4(0x21, 0x8123_4000_0008_0000, 0, 0x3000_0000_0000_0400))

  func processMemory() -> FakeMemory {
    var memory = FakeMemory()
    memory.words[Self.processes[0]] = 0x501 << 10 | 1
    memory.words[Self.processes[1]] = 0x602 << 10 | 1
    memory.write(Words2(0x1_2007, 0x9000_0000_0001_2345), at: Self.processes[2])
    return memory
  }

  func translate(
    _ memory: FakeMemory, _ device: RISCVDeviceContext = Self.device,
    process: UInt32? = 0xABCDE,
    isSupervisor: Bool = false, _ type: RISCVTransactionType = .untranslatedRead
  ) throws(RISCVFault) -> RISCVTranslation {
    try device.translation(
      process: process, isSupervisor: isSupervisor, transaction: type,
      iommu: .with(RISCVCapabilities.full), in: memory)
  }

  @Test("B9: three levels to a process context")
  func process() throws {
    #expect(
      try translate(processMemory())
        == RISCVTranslation(
          firstStageMode: 9, firstStageRoot: 0x1234_5000, processSoftContextID: 0x12,
          supervisorReachesUserPages: true))
  }

  @Test(
    "B9: causes 265, 269 and 21 where the process directory cannot be read", arguments: 0..<3)
  func processUnreadable(level: Int) {
    let place = Self.processes[level]
    let faults: [(TableMemoryFault, RISCVFault)] = [
      (.unreachable, RISCVFault(.processLoadAccessFault)),
      (.corrupted, RISCVFault(.processDataCorruption)),
      (FakeMemory.untranslated, RISCVFault(.readGuestPageFault, iotval2: place | 1)),
      // The second stage's own entries.
      (
        .secondStage(WalkFault(.tableUnreachable, level: 1)),
        RISCVFault(.processLoadAccessFault)
      ),
      (
        .secondStage(WalkFault(.tableCorrupted, level: 1)), RISCVFault(.pageTableDataCorruption)
      ),
    ]
    for (reason, fault) in faults {
      var memory = processMemory()
      memory.faults[place] = reason
      #expect(throws: fault) { try translate(memory) }
    }
  }

  @Test(
    "B9: guest-page faults of the process directory are by the transaction: 20, 21, 23 (2.3.2)",
    arguments: zip(
      [.untranslatedExecute, .untranslatedRead, .untranslatedWrite, .translationRequest]
        as [RISCVTransactionType], [20, 21, 23, 21] as [UInt16]))
  func processUntranslated(type: RISCVTransactionType, cause: UInt16) throws {
    var memory = processMemory()
    memory.faults[Self.processes[1]] = FakeMemory.untranslated
    let fault = try RISCVFault(
      #require(RISCVCause(rawValue: cause)), iotval2: Self.processes[1] | 1)
    #expect(throws: fault) {
      try translate(memory, Self.device, process: 0xABCDE, isSupervisor: false, type)
    }
  }

  @Test("B9: causes 266 and 267 of the process directory", arguments: 0..<3)
  func processEntries(level: Int) {
    var memory = processMemory()
    memory.words[Self.processes[level], default: 0] &= ~1
    #expect(throws: RISCVFault(.processEntryNotValid)) { try translate(memory) }
    for bit: UInt64 in [3, 9, 54, 63] {
      var memory = processMemory()
      memory.words[Self.processes[level], default: 0] |= 1 << bit
      #expect(throws: RISCVFault(.processEntryMisconfigured)) { try translate(memory) }
    }
  }

  @Test("B9: steps 8 to 16 of 2.3: who needs no process, and who is refused")
  func steps() throws {
    let memory = processMemory()
    // ENS lets supervisors in; without it cause 260.
    #expect(try translate(memory, isSupervisor: true).isSupervisor)
    var users = memory
    users.words[Self.processes[2]] = 0x1_2005
    #expect(throws: RISCVFault(.transactionTypeDisallowed)) {
      try translate(users, isSupervisor: true)
    }
    // Without a process ID the first stage is Bare, or process 0's with DPE.
    #expect(try translate(memory, process: nil) == RISCVTranslation())
    var device = Self.device
    device.tc |= 0x200
    #expect(throws: RISCVFault(.processEntryNotValid)) {
      try translate(memory, device, process: nil)
    }
    // pdtp Bare.
    device.fsc = 0
    #expect(try translate(memory, device) == RISCVTranslation())
    // Without PDTV it is iosatp.
    let single = RISCVDeviceContext(Words4(1, 0, 0x4_5000, 0x8000_0000_0000_0777))
    #expect(
      try translate(memory, single, process: nil)
        == RISCVTranslation(
          firstStageMode: 8, firstStageRoot: 0x777000, processSoftContextID: 0x45))
    // Translated transactions are complete, or guest-physical with T2GPA.
    #expect(try translate(memory, .translatedWrite).isComplete)
    device.tc |= 0x8
    #expect(try !translate(memory, device, .translatedWrite).isComplete)
  }

  @Test("B9: a big-endian process directory (SBE)")
  func bigEndianProcesses() throws {
    var memory = processMemory()
    for (address, word) in memory.words { memory.words[address] = word.byteSwapped }
    var device = Self.device
    device.tc |= 0x400
    #expect(try translate(memory, device).firstStageRoot == 0x1234_5000)
  }
}

extension RISCVDirectoryTests {
  func translate(
    _ memory: FakeMemory, _ type: RISCVTransactionType
  ) throws(RISCVFault) -> RISCVTranslation {
    try translate(memory, Self.device, process: nil, isSupervisor: false, type)
  }
}
