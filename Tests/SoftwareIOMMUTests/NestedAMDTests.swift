// SPDX-License-Identifier: Apache-2.0
//
// MODEL B2, B9, G1, G2 with the device table entries of an AMD IOMMU's guest, and its command
// buffer.

import Glibc
import HardwareTables
import PageTables
import SystemPackage
import Testing

@testable import IOMMU
@testable import SoftwareIOMMU

extension NestedBench {
  func virtualIOMMU(type: UInt32) throws -> any VirtualIOMMU {
    try bench.iommu.makeVirtualIOMMU(
      type: type, for: Bench.device, parent: parent, data: nil,
      resources: VirtualIOMMUResources(areas: MmapAreas(), events: VirtualEvents()))
  }

  /// `struct iommu_hwpt_amd_guest`: V, TV, GV; GIoV; GLX and the GCR3 table; levels less four.
  static func amdData(
    gcr3: UInt64, glx: UInt64 = 0, guestIO: Bool = true, levels: UInt64 = 0,
    _ change: (inout [UInt64]) -> Void = { _ in }, type: UInt32 = 3, length: Int = 32
  ) -> UserData {
    var words: [UInt64] = [0, 0, 0, 0]
    words[0] = 3 | 1 << 55 | glx << 56 | (guestIO ? 1 << 54 : 0) | (gcr3 >> 12 & 7) << 58
    words[1] = 9 | (gcr3 >> 15 & 0xFFFF) << 16 | (gcr3 >> 31) << 43
    words[2] = levels << 54
    change(&words)
    let all = (words + [0]).littleEndianBytes
    return UserData(
      type: type, length: UInt32(length), memory: UserBytes(Array(all.prefix(length))))
  }

  @discardableResult
  func mapAMD(_ iova: UInt64, to target: UInt64, in root: UInt64) -> UInt64 {
    map(iova, to: target, in: root, levels: 4, as: AMDv2.self, X86Switches())
  }
}

/// What a queue told of.
final class Notices<Notice: Sendable>: Sendable {
  private let all = Guarded<[Notice]>([])
  func add(_ notice: Notice) { all.withLock { $0.append(notice) } }
  func take() -> [Notice] {
    all.withLock { all in
      defer { all = [] }
      return all
    }
  }
}

@Suite("B2, B9: guests of AMD's IOMMU", .serialized)
struct NestedAMDTests {
  typealias Guest = NestedBench

  private struct Rig {
    let guest: Guest
    let virtual: AMDVirtualIOMMU
    let gcr3: UInt64
    let root: UInt64
    let target: UInt64
    let buffer: AMDCommandBuffer
    let ring: UInt64
    let notices = Notices<AMDCommandBuffer.Notice>()
    static let device: UInt64 = 0x0102

    init(far: Bool = false) throws {
      guest = try Guest(.init(architecture: .amd, pasidBits: 16), far: far)
      virtual = try #require(guest.virtualIOMMU(type: 0x77) as? AMDVirtualIOMMU)
      (gcr3, root, target, ring) = (guest.page(), guest.page(), guest.page(), guest.page())
      guest.mapAMD(0x5000, to: target, in: root)
      guest[gcr3] = root | 1
      try virtual.addDevice(Bench.device, virtualID: Self.device)
      let notices = notices
      buffer = AMDCommandBuffer(of: virtual) { notices.add($0) }
      buffer.setBase(ring | 8 << 56)
      buffer.setEnabled(true)
      try guest.attach(try domain(Guest.amdData(gcr3: gcr3)))
    }

    func domain(_ data: UserData) throws -> any NestedDomain {
      try virtual.makeNestedDomain(attributes: [], data: data)
    }

    func pasid(_ number: UInt32) -> DMAPort {
      guest.bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: number))
    }

    /// Puts commands at the head of the ring, and tells of them.
    func run(_ commands: (UInt64, UInt64)...) {
      var tail = buffer.head
      for command in commands {
        (guest[ring + tail], guest[ring + tail + 8]) = command
        tail = (tail + 16) % 4096
      }
      buffer.setTail(tail)
    }
  }

  @Test("B2: AMD_GUEST data in a virtual IOMMU of any type is checked as Linux does")
  func allocation() throws {
    let guest = try Guest(.init(architecture: .amd))
    #expect(guest.bench.iommu.supportsVirtualIOMMU(type: 1, for: Bench.device))
    #expect(guest.bench.iommu.supportsVirtualIOMMU(type: 0xBEEF, for: Bench.device))
    #expect(
      refusal { () throws(IOMMUError) in
        _ = try guest.bench.iommu.makeNestedDomain(
          for: Bench.device, parent: guest.parent, attributes: [],
          data: Guest.amdData(gcr3: 0x1000))
      } == "\(Errno.operationNotSupported)", "not on a page table alone")
    let virtual = try guest.virtualIOMMU(type: 5)
    func refused(_ data: UserData) -> String? {
      refusal { () throws(IOMMUError) in
        _ = try virtual.makeNestedDomain(attributes: .pasid, data: data)
      }
    }
    let (invalid, unsupported) = ("\(Errno.invalidArgument)", "\(Errno.operationNotSupported)")
    #expect(refused(Guest.amdData(gcr3: 0x8_1234_5000)) == nil)
    #expect(refused(Guest.amdData(gcr3: 0x1000, type: 1)) == unsupported)
    #expect(refused(Guest.amdData(gcr3: 0x1000, length: 24)) == invalid)
    #expect(refused(Guest.amdData(gcr3: 0x1000, length: 40)) == invalid)
    #expect(refused(Guest.amdData(gcr3: 0)) == invalid, "V and GV without a GCR3 table")
    #expect(refused(Guest.amdData(gcr3: 0, { $0[0] &= ~1 })) == nil)
    #expect(refused(Guest.amdData(gcr3: 0x1000, { $0[0] |= 1 << 9 })) == invalid, "Mode")
    #expect(refused(Guest.amdData(gcr3: 0x1000, { $0[0] |= 1 << 12 })) == invalid, "host table")
    #expect(refused(Guest.amdData(gcr3: 0x1000, glx: 3)) == invalid)
    #expect(refused(Guest.amdData(gcr3: 0x1000, levels: 2)) == invalid)
    #expect(refused(Guest.amdData(gcr3: 0x1000, levels: 1)) == unsupported, "four levels")
    let domain = try virtual.makeNestedDomain(
      attributes: [], data: Guest.amdData(gcr3: 0x1000))
    #expect(domain.invalidate(Guest.smmuCommands([])).failure?.errno == .operationNotSupported)
    #expect(virtual.invalidate(Guest.smmuCommands([])).failure?.errno == .operationNotSupported)
    #expect(
      refusal { () throws(IOMMUError) in
        try guest.attach(domain, pasid: nil)
      } == nil)
  }

  @Test(
    "B9: a guest CR3 table has all PASIDs of a device, in one to three levels",
    arguments: [0, 1, 2] as [UInt64])
  func pasids(glx: UInt64) throws {
    let rig = try Rig()
    let guest = rig.guest
    let numbers: [UInt64] =
      glx == 0 ? [0, 1, 300] : glx == 1 ? [0, 1, 513, 0xFFFF] : [0, 1, 513]
    let top = guest.page()
    var targets: [UInt64: UInt64] = [:]
    for number in numbers {
      var table = top
      for level in stride(from: glx, to: 0, by: -1) {
        let place = table + (number >> (9 * level) & 511) * 8
        if guest[place] == 0 { guest[place] = guest.page() | 1 }
        table = guest[place] & ~4095
      }
      let (root, target) = (guest.page(), guest.page())
      guest.mapAMD(0x5000, to: target, in: root)
      guest[table + (number & 511) * 8] = root | 1
      targets[number] = target
    }
    let early = rig.pasid(1)
    try guest.attach(try rig.domain(Guest.amdData(gcr3: top, glx: glx)))
    for number in numbers {
      try rig.pasid(UInt32(number)).store(number + 1, at: IOVA(0x5000))
      #expect(guest[try #require(targets[number])] == number + 1)
    }
    #expect(guest[try #require(targets[1])] == 2)
    try early.store(UInt64(0x44), at: IOVA(0x5008))
    #expect(guest[try #require(targets[1]) + 8] == 0x44, "a port from before")
    try rig.guest.bench.port.store(UInt64(0x55), at: IOVA(0x5000))
    #expect(guest[try #require(targets[0])] == 0x55, "GIoV: without a PASID it is 0")
    #expect(
      reason { () throws(DMAFault) in try rig.pasid(2).store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration, "nothing is there")
    try guest.attach(try rig.domain(Guest.amdData(gcr3: top, glx: glx, guestIO: false)))
    let target = try #require(targets[0])
    try guest.bench.port.store(UInt64(0x66), at: IOVA(target))
    #expect(guest[target] == 0x66, "without GIoV the host alone translates")
    try guest.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    #expect(
      reason { () throws(DMAFault) in try early.store(UInt8(1), at: IOVA(0x5000)) } == .blocked)
    #expect(guest.isIntact)
  }

  @Test(
    "B5: a guest's tables and GCR3 table reach only what the parent maps",
    arguments: [false, true])
  func parent(far: Bool) throws {
    let rig = try Rig(far: far)
    let guest = rig.guest
    let port = guest.bench.port
    try port.store(UInt64(7), at: IOVA(0x5000))
    #expect(guest[rig.target] == 7)
    guest.mapAMD(0x6000, to: Guest.base - 4096, in: rig.root)
    guest.mapAMD(0x7000, to: Guest.base + UInt64(guest.pages) * 4096, in: rig.root)
    for iova in [0x6000, 0x7000] as [UInt64] {
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(iova)) }
          == .notPresent)
    }
    try guest.attach(try rig.domain(Guest.amdData(gcr3: Guest.base - 4096)))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
        == .badConfiguration)
    #expect(guest.isIntact)
  }

  @Test("G1: a guest's commands make it forget translations and guest CR3 entries; not before")
  func commands() throws {
    let rig = try Rig()
    let guest = rig.guest
    let (second, other) = (guest.page(), guest.page())
    guest.mapAMD(0x5000, to: other, in: second)
    guest[rig.gcr3 + 8] = rig.root | 1
    let leaf = guest.mapAMD(0x5000, to: rig.target, in: rig.root)
    (guest[rig.target], guest[other]) = (1, 2)
    let ports = [guest.bench.port, rig.pasid(1)]
    func read() throws -> [UInt64] {
      try ports.map { (port) in try port.load(IOVA(0x5000)) }
    }
    let domain: UInt64 = 3 << 60 | 9 << 32
    let device = Rig.device
    // Translations of one page, of all, of a PASID, of what the host translates, of a device's own.
    for (command, found) in [
      ((domain, 0x5004), [2, 1]), ((domain | 1, 0x5004), [1, 2]),
      ((domain | 1, 0x7FFF_FFFF_FFFF_F005), [1, 2]), ((domain, 0x7FFF_FFFF_FFFF_F001), [2, 2]),
      ((domain, 0x9004), [1, 1]), ((8 << 60, 0), [2, 2]), ((2 << 60 | device, 0), [2, 2]),
      ((2 << 60 | 0x99, 0), [1, 1]), ((4 << 60 | device | 1 << 48, 0x5004), [1, 2]),
      ((4 << 60 | device, 0x5000), [2, 2]),
    ] as [((UInt64, UInt64), [UInt64])] {
      guest[leaf] = rig.target | 7
      rig.run((8 << 60, 0))
      #expect(try read() == [1, 1])
      guest[leaf] = other | 7
      #expect(try read() == [1, 1], "stale use before is real")
      rig.run(command)
      #expect(try read() == found, "\(command)")
    }
    // The guest CR3 entries: PDE, or the device's entry.
    for (command, found) in [
      ((domain | 1, 0x7FFF_FFFF_FFFF_F007), [1, 2]), ((domain, 0x7FFF_FFFF_FFFF_F005), [1, 1]),
      ((2 << 60 | device, 0), [2, 2]), ((8 << 60, 0), [2, 2]),
    ] as [((UInt64, UInt64), [UInt64])] {
      guest[leaf] = rig.target | 7
      for index in 0..<2 { guest[rig.gcr3 + UInt64(index) * 8] = rig.root | 1 }
      rig.run((8 << 60, 0))
      #expect(try read() == [1, 1])
      for index in 0..<2 { guest[rig.gcr3 + UInt64(index) * 8] = second | 1 }
      rig.run(command)
      #expect(try read() == found, "\(command)")
    }
    #expect(rig.notices.take().isEmpty)
  }

  @Test(
    "G1: COMPLETION_WAIT stores and interrupts; an illegal command is logged and stops the ring"
  )
  func completion() throws {
    let rig = try Rig()
    let guest = rig.guest
    let place = guest.page()
    rig.run(
      (1 << 60 | place | 1, 0x1234), (1 << 60 | 2, 0), (1 << 60 | (place + 8) | 3, 0x5678))
    #expect(guest[place] == 0x1234 && guest[place + 8] == 0x5678)
    #expect(rig.notices.take() == [.completionWait])
    #expect(rig.buffer.head == 48 && rig.buffer.isRunning)
    func event(_ code: AMDEvent.Code, _ address: UInt64) -> AMDCommandBuffer.Notice {
      let words = AMDEvent(code, type: code == .illegalCommand ? 0 : 1, address: address).words
      return .event(bytes(words[0], words[1]))
    }
    for bad in [(0xF << 60, 0), (0, 0), (1 << 60 | 1 << 52, 0), (3 << 60, 1 << 4)]
      as [(UInt64, UInt64)]
    {
      let head = rig.buffer.head
      guest[place] = 0
      rig.run((1 << 60 | place | 1, 1), bad, (1 << 60 | place | 1, 2))
      #expect(guest[place] == 1, "what is after it is not carried out")
      #expect(!rig.buffer.isRunning)
      #expect(rig.buffer.head == (head + 16) % 4096)
      #expect(rig.notices.take() == [event(.illegalCommand, rig.ring + rig.buffer.head)])
      rig.buffer.setTail(rig.buffer.head)
      #expect(rig.notices.take().isEmpty, "it stays stopped")
      rig.buffer.setEnabled(false)
      rig.buffer.setEnabled(true)
      #expect(rig.buffer.isRunning)
    }
    // A store that the parent does not let through, and a ring that it does not map.
    rig.run((1 << 60 | (Guest.base - 4096) | 1, 1))
    #expect(rig.notices.take() == [event(.commandHardwareError, rig.ring + rig.buffer.head)])
    rig.buffer.setEnabled(false)
    rig.buffer.setBase(Guest.base - 4096 | 8 << 56)
    rig.buffer.setEnabled(true)
    rig.buffer.setTail(16)
    #expect(rig.notices.take() == [event(.commandHardwareError, Guest.base - 4096)])
    // The ring wraps; lengths that are reserved have no commands; gone is gone.
    rig.buffer.setEnabled(false)
    rig.buffer.setBase(rig.ring | 8 << 56)
    rig.buffer.setEnabled(true)
    for index in 0..<256 {
      (guest[rig.ring + UInt64(index) * 16], guest[rig.ring + UInt64(index) * 16 + 8]) =
        (1 << 60 | place | 1, UInt64(index))
    }
    rig.buffer.setTail(255 * 16)
    #expect(guest[place] == 254)
    rig.buffer.setTail(16)
    #expect(guest[place] == 0 && rig.buffer.head == 16)
    rig.buffer.setBase(rig.ring | 7 << 56)
    rig.buffer.setTail(.max)
    #expect(rig.buffer.head == 0)
    rig.buffer.setBase(rig.ring | 8 << 56)
    rig.virtual.destroy()
    rig.buffer.setTail(16)
    #expect(rig.notices.take() == [event(.commandHardwareError, rig.ring)])
    #expect(guest.isIntact)
  }

  /// Two tables change places in a guest CR3 entry behind a device that writes all the time.
  @Test("G2: after COMPLETION_WAIT no DMA on another thread uses an old guest CR3 entry")
  func threads() throws {
    let rig = try Rig()
    let guest = rig.guest
    let (second, place) = (guest.page(), guest.page())
    let targets = [rig.target, guest.page()]
    guest.mapAMD(0x5000, to: targets[1], in: second)
    let roots = [rig.root, second]
    guest[rig.gcr3 + 24] = roots[0] | 1
    guest.movePage(among: targets, behind: rig.pasid(3)) { new, round in
      guest[rig.gcr3 + 24] = roots[new] | 1
      rig.run((3 << 60 | 9 << 32 | 3, 0x7FFF_FFFF_FFFF_F007), (1 << 60 | place | 1, round))
      #expect(guest[place] == round)
    }
  }
}
