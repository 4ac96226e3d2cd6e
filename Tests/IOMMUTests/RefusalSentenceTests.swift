// SPDX-License-Identifier: Apache-2.0
//
// What refusals say: who is in the way by a name that the caller knows, and what to do.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

@Suite struct RefusalSentenceTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))
  let context: Context
  let ioas: ObjectID

  init() throws {
    context = Context(system: machine.system)
    ioas = try context.allocateIOAS()
  }

  private func bind(_ slot: UInt8) throws -> DeviceHolder {
    DeviceHolder(try context.register(machine.device(slot)))
  }

  private func refusal(_ body: () throws -> Void) -> IOMMUError? {
    #expect(throws: IOMMUError.self) { try body() }
  }

  // MARK: PASIDs

  @Test("D1: a PASID on an IOAS is refused by the IOAS's name, and the remedy is said")
  func automaticTables() throws {
    let device = try bind(1)
    let first = refusal { try device.attach(5, to: ioas) }
    #expect(first?.errno == .invalidArgument)
    for words in ["IOAS \(ioas) ", "PASID 5", "IOMMU_HWPT_ALLOC_PASID", "without one"] {
      #expect(first?.reason.contains(words) == true, "\(first?.reason ?? "")")
    }
    #expect(first?.reason.contains("HWPT ") == false, "no id of a table that nobody made")
    // The other way round: first without a PASID, then with one on a table that takes it.
    try device.attach(to: ioas)
    let table = try context.allocateHWPT(for: device.id, from: ioas, attributes: .pasid)
    let second = refusal { try device.attach(5, to: table) }
    #expect(second?.errno == .invalidArgument)
    #expect(second?.reason.contains("attached to IOAS \(ioas) without a PASID") == true)
    #expect(second?.reason.contains("IOMMU_HWPT_ALLOC_PASID first") == true)
    try device.attach(to: table)
    try device.attach(5, to: table)
    let third = refusal { try device.attach(to: ioas) }
    #expect(third?.errno == .invalidArgument)
    #expect(third?.reason.contains("an attach to IOAS \(ioas) makes") == true)
  }

  @Test("E2: what can never take a PASID says so, before the table is blamed")
  func impossible() throws {
    let slice = try machine.system.addMediatedDevice(
      name: "slice", parent: machine.device(1), kind: .mediatedWithoutPASIDs)
    let fixed = DeviceHolder(try context.register(slice))
    let error = refusal { try fixed.attach(5, to: ioas) }
    #expect(error?.errno == .invalidArgument)
    #expect(error?.reason.contains("(kind 3)") == true, "\(error?.reason ?? "")")

    let plain = TestMachine(driver: DictionaryDriver())
    let other = Context(system: plain.system)
    let device = DeviceHolder(try other.register(plain.device(1)))
    let space = try other.allocateIOAS()
    for target in [space, try other.allocateHWPT(for: device.id, from: space)] {
      let error = refusal { try device.attach(5, to: target) }
      #expect(error?.errno == .invalidArgument)
      #expect(error?.reason.contains("has no PASIDs") == true, "\(error?.reason ?? "")")
      #expect(error?.reason.contains("pasid-bits") == true)
    }
  }

  // MARK: Users

  private func busy(_ id: ObjectID) -> String {
    let error = refusal { try context.destroy(id) }
    #expect(error?.errno == .resourceBusy)
    return error?.reason ?? ""
  }

  @Test("A1: who destroys what is in use hears by what: tables, accesses, devices, children")
  func users() throws {
    let device = try bind(1)
    let name = RequesterID(bus: 0, device: 1, function: 0)
    let tables = try (0..<2).map { _ in try context.allocateHWPT(for: device.id, from: ioas) }
    let what = "object \(ioas), an IOAS, is in use by "
    #expect(busy(ioas) == what + "HWPT \(tables[0]) and HWPT \(tables[1])")
    let accessor = try Accessor(context: context, pinsMemory: false)
    try accessor.attach(to: ioas)
    #expect(
      busy(ioas) == what + "HWPT \(tables[0]), HWPT \(tables[1]) and access \(accessor.id)")
    let child = try context.allocateIOAS(nestedOn: ioas, parentChanges: .refused)
    #expect(busy(ioas).hasSuffix("access \(accessor.id) and 1 other"))
    for table in tables { try context.destroy(table) }
    #expect(busy(ioas) == what + "access \(accessor.id) and IOAS \(child)")
    accessor.detach()
    #expect(busy(ioas) == what + "IOAS \(child)")
    try context.destroy(child)
    // The table that an attach makes is not the user's to destroy: the device is named.
    try device.attach(to: ioas)
    #expect(busy(ioas) == what + "device \(device.id) (\(name))")
    #expect(
      busy(device.id)
        == "object \(device.id), a device, is in use by the file that bound it and its "
        + "attachment to IOAS \(ioas)")
    device.detach()
    try context.destroy(ioas)
  }

  @Test("A1: of more users than three the rest is a number")
  func manyUsers() {
    #expect(Context.list(["a", "b", "c", "d", "e"], of: 5) == "a, b, c and 2 others")
    #expect(Context.list(["a", "b", "c"], of: 4) == "a, b, c and 1 other")
    #expect(Context.list([], of: 1) == "1 other")
    #expect(Context.list([], of: 2) == "2 others")
  }

  // MARK: Locked memory

  @Test("B6: a limit is told in KiB, as ulimit counts, and what is locked is not called pinned")
  func limits() throws {
    let user = MemoryAccount(limit: 8192)
    let pinned = refusal { try user.charge(12288) }
    #expect(pinned?.errno == .noMemory)
    #expect(
      pinned?.reason.hasPrefix(
        "pinning 12 KiB more passes RLIMIT_MEMLOCK, 8 KiB: the user has 0 KiB pinned") == true)
    let limit = TestLimit()
    limit.bytes = 8192
    let owner = MemoryOwner(user: PinnedMemory(), process: ProcessMemory(), limit: limit)
    let container = owner.account(.container)
    try container.charge(4096)
    let locked = refusal { try container.charge(8192) }
    #expect(locked?.errno == .noMemory)
    #expect(
      locked?.reason.hasPrefix(
        "locking 8 KiB more passes RLIMIT_MEMLOCK, 8 KiB: the process has 4 KiB locked") == true
    )
    container.uncharge(4096)
  }
}
