// SPDX-License-Identifier: Apache-2.0
//
// MODEL B2, B9, G1, G2 with the streams of an SMMUv3's guest: IOMMU_HWPT_DATA_ARM_SMMUV3 in a
// virtual IOMMU, and its commands.

import Glibc
import HardwareTables
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import IOMMU
@testable import SoftwareIOMMU

extension NestedBench {
  func virtualSMMU() throws -> any VirtualIOMMU {
    try bench.iommu.makeVirtualIOMMU(
      type: 1, for: Bench.device, parent: parent, data: nil,
      resources: VirtualIOMMUResources(areas: MmapAreas(), events: VirtualEvents()))
  }

  /// `struct iommu_hwpt_arm_smmuv3`.
  static func streamData(
    _ low: UInt64, _ high: UInt64 = 0, type: UInt32 = 2, length: Int = 16
  ) -> UserData {
    UserData(
      type: type, length: UInt32(length),
      memory: UserBytes(Array((bytes(low, high) + bytes(0)).prefix(length))))
  }

  /// Writes a context descriptor (IHI 0070, 5.4): T0SZ 16, 4 KiB, EPD1, V, IPS 48 bits, AA64, R
  /// and A.
  func writeContext(
    _ place: UInt64, table: UInt64, asid: UInt64 = 1, flags: UInt64 = 1 << 43 | 1 << 42
  ) {
    self[place + 8] = table
    self[place] =
      16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48 | flags
  }

  /// Commands of 16 bytes.
  static func smmuCommands(
    _ commands: [(UInt64, UInt64)], type: UInt32 = 1, length: UInt32 = 16
  ) -> UserDataArray {
    UserDataArray(
      type: type, entryLength: length, count: UInt32(commands.count),
      memory: UserBytes(commands.flatMap { bytes($0.0, $0.1) }))
  }

  @discardableResult
  func mapArm(
    _ iova: UInt64, to target: UInt64, in root: UInt64, leafLevel: Int = 1,
    permissions: Permissions = [.read, .write, .execute]
  ) -> UInt64 {
    map(
      iova, to: target, in: root, levels: 4, as: ArmStage1<Granule4KiB>.self,
      leafLevel: leafLevel, permissions: permissions, ArmStage1Switches())
  }
}

@Suite("B2, B9: streams of SMMUv3 that users own", .serialized)
struct NestedSMMUTests {
  typealias Guest = NestedBench

  private static let configuration = SoftwareIOMMU.Configuration(
    architecture: .smmuV3, pasidBits: 8)
  private static let translate: UInt64 = 1 | 5 << 1
  private static let virtualID: UInt64 = 0x42

  /// A guest whose device has one address space: requests without a substream use descriptor 0.
  private struct Rig {
    let guest: Guest
    let virtual: any VirtualIOMMU
    let descriptors: UInt64
    let root: UInt64
    let target: UInt64
    var port: DMAPort { guest.bench.port }

    /// - Parameter shift: S1CDMax.
    init(shift: UInt64 = 0, format: UInt64 = 0, defaultSubstream: UInt64 = 2) throws {
      guest = try Guest(NestedSMMUTests.configuration)
      virtual = try guest.virtualSMMU()
      (descriptors, root, target) = (guest.page(), guest.page(), guest.page())
      guest.mapArm(0x5000, to: target, in: root)
      guest.writeContext(descriptors, table: root)
      try virtual.addDevice(Bench.device, virtualID: NestedSMMUTests.virtualID)
      try guest.attach(
        try stream(
          NestedSMMUTests.translate | format << 4 | shift << 59, defaultSubstream))
    }

    func stream(_ low: UInt64, _ high: UInt64 = 0) throws -> any NestedDomain {
      try virtual.makeNestedDomain(
        attributes: [], data: Guest.streamData(low | (low & 0xE == 10 ? descriptors : 0), high))
    }

    func command(_ low: UInt64, _ high: UInt64 = 0) -> IOMMUError? {
      virtual.invalidate(Guest.smmuCommands([(low, high)])).failure
    }

    func pasid(_ number: UInt32) -> DMAPort {
      guest.bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: number))
    }
  }

  @Test("B2: a stream table entry is a virtual SMMUv3's; without one Linux has EOPNOTSUPP")
  func allocation() throws {
    let guest = try Guest(Self.configuration)
    #expect(
      refusal { () throws(IOMMUError) in
        _ = try guest.bench.iommu.makeNestedDomain(
          for: Bench.device, parent: guest.parent, attributes: [],
          data: Guest.streamData(Self.translate))
      } == "\(Errno.operationNotSupported)")
    let iommu = guest.bench.iommu
    #expect(iommu.supportsVirtualIOMMU(type: 1, for: Bench.device))
    #expect(!iommu.supportsVirtualIOMMU(type: 2, for: Bench.device))
    #expect(!Bench().iommu.supportsVirtualIOMMU(type: 1, for: Bench.device), "VT-d has none")
    let virtual = try guest.virtualSMMU()
    func refused(_ data: UserData, attributes: PagingAttributes = []) -> String? {
      refusal { () throws(IOMMUError) in
        _ = try virtual.makeNestedDomain(attributes: attributes, data: data)
      }
    }
    #expect(refused(Guest.streamData(Self.translate)) == nil)
    #expect(refused(Guest.streamData(0xFFF0, .max)) == nil, "V is clear: nothing counts")
    #expect(
      refused(Guest.streamData(Self.translate), attributes: .pasid)
        == "\(Errno.operationNotSupported)")
    #expect(refused(Guest.streamData(1, type: 1)) == "\(Errno.invalidArgument)")
    #expect(refused(Guest.streamData(1, length: 8)) == "\(Errno.invalidArgument)")
    #expect(refused(Guest.streamData(1, length: 24)) == "\(Errno.invalidArgument)")
    for words in [
      (1 | 6 << 1, 0), (1 | 7 << 1, 0), (1 | 1 << 1, 0), (1 | 1 << 52, 0), (1, 1 << 30),
      (11, 2 << 28), (11, 3 << 28),
    ] as [(UInt64, UInt64)] {
      #expect(
        refused(Guest.streamData(words.0, words.1)) == "\(Errno.ioError)", "\(words)")
    }
  }

  @Test("B2: a stream that stage 1 translates is attached only under the guest's name for it")
  func attach() throws {
    let guest = try Guest(Self.configuration)
    let virtual = try guest.virtualSMMU()
    func attach(_ low: UInt64, pasid: PASID? = nil) throws -> String? {
      let domain = try virtual.makeNestedDomain(
        attributes: [], data: Guest.streamData(low))
      return refusal { () throws(IOMMUError) in try guest.attach(domain, pasid: pasid) }
    }
    #expect(try attach(Self.translate) == "\(Errno.noSuchFileOrDirectory)")
    #expect(try attach(1) == nil, "abort")
    #expect(try attach(1 | 4 << 1) == nil, "bypass")
    #expect(try attach(0) == nil, "not valid")
    try virtual.addDevice(Bench.device, virtualID: Self.virtualID)
    #expect(try attach(Self.translate) == nil)
    #expect(
      try attach(Self.translate, pasid: PASID(rawValue: 1)) == "\(Errno.operationNotSupported)")
    let other = try guest.bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid)
    func set(_ pasid: PASID?, to context: DMAContext) -> String? {
      refusal { () throws(IOMMUError) in
        try guest.bench.iommu.setContext(of: Bench.device, pasid: pasid, to: context)
      }
    }
    let pasid = PASID(rawValue: 3)
    #expect(
      set(pasid, to: .paging(other)) == "\(Errno.invalidArgument)", "PASIDs are the user's")
    #expect(set(nil, to: .blocked) == nil)
    #expect(set(pasid, to: .paging(other)) == nil)
    #expect(try attach(Self.translate) == "\(Errno.resourceBusy)")
    #expect(set(pasid, to: .blocked) == nil)
    #expect(try attach(Self.translate) == nil)
  }

  @Test("B2: a stream aborts, bypasses stage 1 or goes through the guest's tables, as it says")
  func configurations() throws {
    let rig = try Rig()
    try rig.port.store(UInt64(7), at: IOVA(0x5008))
    #expect(rig.guest[rig.target + 8] == 7)
    let ipa = IOVA(rig.target + 8)
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: ipa) } == .notPresent)
    try rig.guest.attach(try rig.stream(1 | 4 << 1))
    #expect(try rig.port.load(ipa) == UInt64(7), "stage 2 alone")
    try rig.guest.attach(try rig.stream(1))
    #expect(reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: ipa) } == .blocked)
    try rig.guest.attach(try rig.stream(0))
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: ipa) }
        == .badConfiguration, "C_BAD_STE")
    try rig.guest.attach(try rig.stream(Self.translate | 9 << 59))
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration, "S1CDMax is larger than SSIDSIZE")
    #expect(rig.guest.isIntact)
  }

  @Test("B2: both halves, all granules and the switches of a context descriptor count")
  func contexts() throws {
    let rig = try Rig()
    let guest = rig.guest
    func fresh(_ body: () -> Void) {
      body()
      #expect(rig.command(6 | Self.virtualID << 32) == nil)
    }
    // The upper half: T1SZ 16, TG1 4 KiB, no EPD1.
    let upper = guest.page()
    guest.mapArm(0xFFFF_0000_0000_5000, to: rig.target, in: upper)
    fresh {
      guest[rig.descriptors + 16] = upper
      guest[rig.descriptors] = guest[rig.descriptors] & ~(1 << 30) | 16 << 16 | 2 << 22
    }
    try rig.port.store(UInt64(0x21), at: IOVA(0xFFFF_0000_0000_5000))
    #expect(guest[rig.target] == 0x21)
    #expect(
      reason { () throws(DMAFault) in
        try rig.port.store(UInt8(1), at: IOVA(0xFFFE_0000_0000_5000))
      } == .addressWidth)
    #expect(
      reason { () throws(DMAFault) in
        try rig.port.store(UInt8(1), at: IOVA(0x8100_0000_0000_5000))
      } == .addressWidth)
    fresh { guest[rig.descriptors] |= 1 << 38 | 1 << 39 }
    try rig.port.store(UInt64(0x22), at: IOVA(0x8100_0000_0000_5000))
    #expect(guest[rig.target] == 0x22, "TBI")
    // 64 KiB, 42 bits: 2 levels.
    let (wide, block) = (guest.page(count: 16), guest.page(count: 16))
    guest.map(
      0x20_0000, to: block, in: wide, levels: 2, as: ArmStage1<Granule64KiB>.self,
      leafLevel: 2, ArmStage1Switches())
    guest[wide] = 0
    let table = guest.page(count: 16)
    guest[wide] = ArmStage1<Granule64KiB>.tableEntry(table, level: 2)
    guest[table + 8 * 3] = ArmStage1<Granule64KiB>.leafEntry(
      block, shift: 16, level: 1, permissions: .readWrite, attributes: [], ArmStage1Switches())
    fresh {
      guest.writeContext(rig.descriptors, table: wide, flags: 1 << 6 | 6)  // TG0; T0SZ 22
    }
    try rig.port.store(UInt64(0x23), at: IOVA(0x3_4568))
    #expect(guest[block + 0x4568] == 0x23)
    // The access flag: neither set nor ignored.
    fresh {
      guest.writeContext(rig.descriptors, table: rig.root, flags: 0)
      let leaf = guest.mapArm(0x5000, to: rig.target, in: rig.root)
      guest[leaf] &= ~(1 << 10)
    }
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
        == .notPresent)
    fresh { guest.writeContext(rig.descriptors, table: rig.root, flags: 1 << 35) }
    try rig.port.store(UInt64(0x24), at: IOVA(0x5000))
    // HA and HD: the leaf is marked.
    let leaf = guest.mapArm(0x6000, to: rig.target, in: rig.root)
    fresh {
      guest.writeContext(rig.descriptors, table: rig.root)
      guest[leaf] = guest[leaf] & ~(1 << 10) | 1 << 51 | 1 << 7
    }
    #expect(try rig.port.load(IOVA(0x6000)) == UInt64(0x24))
    #expect(guest[leaf] & (1 << 10 | 1 << 7) == 1 << 10 | 1 << 7, "accessed, clean")
    try rig.port.store(UInt64(0x25), at: IOVA(0x6000))
    #expect(guest[leaf] & (1 << 7) == 0, "dirty")
    // V clear, and what is ILLEGAL.
    for change in [1 << 31, 1 << 41, 1 << 46] as [UInt64] {
      fresh {
        guest.writeContext(rig.descriptors, table: rig.root)
        guest[rig.descriptors] ^= change
      }
      #expect(
        reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
          == .badConfiguration)
    }
    // Descriptors that the parent does not map.
    try guest.attach(
      try rig.virtual.makeNestedDomain(
        attributes: [], data: Guest.streamData(Self.translate | 0x4000_0000)))
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration)
    #expect(guest.isIntact)
  }

  @Test(
    "B9: a table of context descriptors has all substreams of a device, linear or in two levels",
    arguments: [0, 1, 2] as [UInt64])
  func substreams(format: UInt64) throws {
    let rig = try Rig(shift: 8, format: format, defaultSubstream: 2)
    let guest = rig.guest
    let split: UInt64 = format == 0 ? 0 : format == 1 ? 6 : 10
    let leaves = [guest.page(count: 16), guest.page(count: 16)]
    func place(_ substream: UInt64) -> UInt64 {
      if split == 0 { return rig.descriptors + substream * 64 }
      return leaves[Int(substream >> split)] + (substream & (1 << split - 1)) * 64
    }
    if split > 0 {
      guest[rig.descriptors] = leaves[0] | 1
      guest[rig.descriptors + 8] = leaves[1] | 1
    }
    let substreams: [UInt64] = split == 0 ? [1, 5, 63] : [1, 5, 100]
    var targets: [UInt64: UInt64] = [:]
    func write(_ substream: UInt64) {
      let root = guest.page()
      let target = guest.page()
      targets[substream] = target
      guest.mapArm(0x5000, to: target, in: root)
      guest.writeContext(place(substream), table: root, asid: substream + 10)
    }
    // A port that was there before its descriptor.
    let early = rig.pasid(1)
    #expect(
      reason { () throws(DMAFault) in try early.store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration)
    write(0)
    for substream in substreams { write(substream) }
    for substream in substreams {
      try rig.pasid(UInt32(substream)).store(substream, at: IOVA(0x5000))
      #expect(guest[try #require(targets[substream])] == substream)
    }
    try rig.port.store(UInt64(0x77), at: IOVA(0x5000))
    #expect(guest[try #require(targets[0])] == 0x77, "without a substream it is 0")
    for (number, why) in [
      (0, "0 stands for no substream (S1DSS)"), (7, "nothing is there"),
    ] as [(UInt32, String)] {
      #expect(
        reason { () throws(DMAFault) in
          try rig.pasid(number).store(UInt8(1), at: IOVA(0x5000))
        } == .badConfiguration, "\(why)")
    }
    // All of them go where the device goes.
    try guest.attach(try rig.stream(1))
    #expect(
      reason { () throws(DMAFault) in try early.store(UInt8(1), at: IOVA(0x5000)) } == .blocked)
    let parent = try guest.bench.domain()
    try guest.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(parent))
    #expect(
      reason { () throws(DMAFault) in try early.store(UInt8(1), at: IOVA(0x5000)) } == .blocked)
    try guest.attach(try rig.stream(Self.translate | format << 4 | 8 << 59, 1))
    try early.store(UInt64(0x99), at: IOVA(0x5000))
    #expect(guest[try #require(targets[1])] == 0x99)
    try rig.port.store(UInt64(0x11), at: IOVA(try #require(targets[0])))
    #expect(guest[try #require(targets[0])] == 0x11, "S1DSS 1 bypasses")
    try guest.attach(try rig.stream(Self.translate | format << 4 | 8 << 59, 0))
    #expect(
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration, "S1DSS 0 terminates")
    #expect(guest.isIntact)
  }

  @Test("G1: translations and descriptors are used until their command comes, and not after")
  func invalidation() throws {
    let rig = try Rig(shift: 8)
    let guest = rig.guest
    let (other, second) = (guest.page(), guest.page())
    guest.writeContext(rig.descriptors + 64, table: rig.root, asid: 2)
    let leaf = guest.mapArm(0x5000, to: rig.target, in: rig.root)
    let tables = [rig.root, second]
    guest.mapArm(0x5000, to: other, in: second)
    (guest[rig.target], guest[other]) = (1, 2)
    let ports = [rig.port, rig.pasid(1)]
    let commands: [(UInt64, UInt64)] = [
      (0x12 | 1 << 48, 0x5000), (0x12 | 1 << 48, 0x5001), (0x13, 0x5000), (0x10, 0),
      (0x11 | 1 << 48, 0), (0x30, 0),
      // By range: 4 KiB granules, NUM 4 from 0x3000 on.
      (0x12 | 4 << 12, 0x3000 | 1 << 10),
    ]
    for command in commands {
      for port in ports { #expect(try port.load(IOVA(0x5000)) == UInt64(1)) }
      guest[leaf] = guest[leaf] ^ rig.target ^ other
      for port in ports {
        #expect(try port.load(IOVA(0x5000)) == UInt64(1), "stale use before is real")
      }
      #expect(rig.command(0x13, 0x9000) == nil)
      for port in ports { #expect(try port.load(IOVA(0x5000)) == UInt64(1), "elsewhere") }
      #expect(rig.command(command.0, command.1) == nil)
      for port in ports { #expect(try port.load(IOVA(0x5000)) == UInt64(2), "\(command)") }
      guest[leaf] = guest[leaf] ^ rig.target ^ other
      #expect(rig.command(0x10) == nil)
    }
    // A device's own translations.
    for (command, hit) in [
      ((0x40 | Self.virtualID << 32, 0x5000), true), ((0x40 | Self.virtualID << 32, 52), true),
      ((0x40 | Self.virtualID << 32, 0x9000), false),
    ] as [((UInt64, UInt64), Bool)] {
      #expect(try rig.port.load(IOVA(0x5000)) == UInt64(1))
      guest[leaf] = guest[leaf] ^ rig.target ^ other
      #expect(rig.command(command.0, command.1) == nil)
      #expect(try rig.port.load(IOVA(0x5000)) == UInt64(hit ? 2 : 1))
      guest[leaf] = guest[leaf] ^ rig.target ^ other
      #expect(rig.command(0x10) == nil)
    }
    // Descriptors: by substream, and all of a stream.
    for (command, hits) in [
      ((5 | Self.virtualID << 32 | 1 << 12, 1), [1, 2]),
      ((5 | Self.virtualID << 32, 0), [2, 1]), ((6 | Self.virtualID << 32, 0), [2, 2]),
      ((5 | Self.virtualID << 32 | 9 << 12, 0), [1, 1]),
    ] as [((UInt64, UInt64), [UInt64])] {
      for index in ports.indices { guest[rig.descriptors + UInt64(index) * 64 + 8] = tables[0] }
      #expect(rig.command(6 | Self.virtualID << 32) == nil)
      for port in ports { #expect(try port.load(IOVA(0x5000)) == UInt64(1)) }
      for index in ports.indices { guest[rig.descriptors + UInt64(index) * 64 + 8] = tables[1] }
      #expect(rig.command(0x10) == nil)
      for port in ports {
        #expect(try port.load(IOVA(0x5000)) == UInt64(1), "a stale descriptor is real")
      }
      #expect(rig.command(command.0, command.1) == nil)
      for (port, hit) in zip(ports, hits) { #expect(try port.load(IOVA(0x5000)) == hit) }
    }
  }

  @Test("G1: any address of a large leaf invalidates all that was found through it")
  func largeLeaves() throws {
    let rig = try Rig()
    let guest = rig.guest
    // 2 MiB over pages of 4 KiB.
    let leaf = guest.mapArm(0x4000_0000, to: 0, in: rig.root, leafLevel: 2)
    let pages = [guest.page(), guest.page()]
    for page in pages { try rig.port.store(page, at: IOVA(0x4000_0000 + page)) }
    guest[leaf] = 0
    for page in pages { #expect(try rig.port.load(IOVA(0x4000_0000 + page)) == page) }
    #expect(rig.command(0x12, 0x4000_0000) == nil)
    for page in pages {
      #expect(
        reason { () throws(DMAFault) in
          try rig.port.store(UInt8(1), at: IOVA(0x4000_0000 + page))
        } == .notPresent)
    }
  }

  @Test("G1: commands that are not a guest's stop an array there: EIO, and the count before it")
  func badCommands() throws {
    let rig = try Rig()
    func outcome(_ requests: UserDataArray) -> String {
      let (handled, failure) = rig.virtual.invalidate(requests)
      return "\(handled) \(failure.map { "\($0.errno)" } ?? "-")"
    }
    let good: (UInt64, UInt64) = (0x10, 0)
    #expect(outcome(Guest.smmuCommands([good, good])) == "2 -")
    #expect(outcome(Guest.smmuCommands([])) == "0 \(Errno.invalidArgument)")
    #expect(outcome(Guest.smmuCommands([good], type: 0)) == "0 \(Errno.invalidArgument)")
    for opcode in [
      0, 1, 2, 3, 4, 7, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2A, 0x41, 0x44, 0x46, 0x50, 0xFF,
    ] as [UInt64] {
      #expect(
        outcome(Guest.smmuCommands([good, (opcode, 0), good])) == "1 \(Errno.ioError)",
        "\(opcode)")
    }
    for opcode in [0x40, 5, 6] as [UInt64] {
      #expect(
        outcome(Guest.smmuCommands([good, good, (opcode | 0x43 << 32, 0)]))
          == "2 \(Errno.ioError)", "no such stream")
    }
    try rig.guest.attach(try rig.stream(1))
    rig.virtual.removeDevice(Bench.device, virtualID: Self.virtualID)
    #expect(
      outcome(Guest.smmuCommands([(6 | Self.virtualID << 32, 0)])) == "0 \(Errno.ioError)")
    // Entries that are longer end in zeros; shorter ones are filled up with zeros.
    let long = UserBytes(bytes(0x10, 0, 0) + bytes(0x10, 0, 1))
    #expect(
      outcome(UserDataArray(type: 1, entryLength: 24, count: 1, memory: long)) == "1 -")
    #expect(
      outcome(UserDataArray(type: 1, entryLength: 24, count: 2, memory: long))
        == "0 \(Errno.argListTooLong)", "nothing was carried out")
    #expect(
      outcome(
        UserDataArray(type: 1, entryLength: 8, count: 2, memory: UserBytes(bytes(16, 16))))
        == "2 -")
    #expect(
      outcome(UserDataArray(type: 1, entryLength: 16, count: 9, memory: long))
        == "0 \(Errno.badAddress)")
    let domain = try rig.stream(1)
    #expect(
      domain.invalidate(Guest.smmuCommands([good])).failure?.errno == .operationNotSupported)
  }

  @Test("B5, G2: after the parent unmaps a page no DMA reaches it, nor tables that lay there")
  func parentChanges() throws {
    let rig = try Rig()
    let guest = rig.guest
    func access() -> DMAFault.Reason? {
      reason { () throws(DMAFault) in try rig.port.store(UInt8(1), at: IOVA(0x5000)) }
    }
    for page in [rig.target, rig.root] {
      #expect(access() == nil)
      guest.parent.unmap(IOVA(page), length: 4096)
      #expect(access() == .notPresent)
      try guest.parent.map(
        IOVA(page), to: PhysicalAddress(guest.first + page - Guest.base), length: 4096,
        permissions: .readWrite)
    }
    #expect(access() == nil)
  }

  @Test("G2: after CMD_CFGI_CD no DMA on another thread uses the old descriptor")
  func threads() throws {
    let rig = try Rig(shift: 8)
    let guest = rig.guest
    let second = guest.page()
    let targets = [rig.target, guest.page()]
    guest.mapArm(0x5000, to: targets[1], in: second)
    let roots = [rig.root, second]
    guest.writeContext(rig.descriptors + 3 * 64, table: roots[0])
    guest.movePage(among: targets, behind: rig.pasid(3)) { new, _ in
      guest[rig.descriptors + 3 * 64 + 8] = roots[new]
      #expect(rig.command(5 | Self.virtualID << 32 | 3 << 12, 1) == nil)
    }
  }
}
