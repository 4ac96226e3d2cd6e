// SPDX-License-Identifier: Apache-2.0
//
// MODEL A1, A2: what a context is told of another one's objects: nothing, in errors least of all.

import IOMMU
import PageTables
import SystemPackage
import Testing

@Suite("Foreign ids") struct ForeignIDTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))

  /// A context whose ids are all at least 1000: no number of it is in a sentence by chance.
  private func distantContext() throws -> Context {
    let context = Context(system: machine.system)
    for _ in 0..<1000 { _ = try context.allocateIOAS() }
    return context
  }

  /// Whether a sentence has a number that could be an id of `distantContext`.
  private func tellsID(_ error: IOMMUError) -> Bool {
    error.reason.split { !$0.isNumber }.contains { (Int($0) ?? 0) >= 1000 }
  }

  private func refusals(
    _ calls: [(String, () throws(IOMMUError) -> Void)], _ errno: Errno
  ) {
    for (name, call) in calls {
      do throws(IOMMUError) {
        try call()
        Issue.record("\(name) succeeded")
      } catch {
        #expect(error.errno == errno, "\(name): \(error)")
        #expect(!tellsID(error), "\(name) tells an id of another context: \(error)")
      }
    }
  }

  @Test("A1: who is refused a group that another context has learns its devices, not its ids")
  func ownedGroup() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let owner = try distantContext()
    let holder = DeviceHolder(try owner.register(devices[0]))
    try holder.attach(to: owner.allocateIOAS())
    let other = Context(system: machine.system)
    refusals(
      [
        ("bind", { () throws(IOMMUError) in _ = try DeviceHolder(other.register(devices[1])) }),
        (
          "bind of the same",
          { () throws(IOMMUError) in _ = try DeviceHolder(other.register(devices[0])) }
        ),
      ], .notPermitted)
    refusals(
      [
        ("host driver", { () throws(IOMMUError) in try devices[1].bindHostDriver(.dma("x")) }),
        ("removal", { () throws(IOMMUError) in try devices[1].remove() }),
        (
          "removal of its group",
          { () throws(IOMMUError) in
            try machine.system.removeGroup(group)
          }
        ),
      ], .resourceBusy)
    withExtendedLifetime(holder) {}
  }

  @Test("A1, C7: who shares a device is not told what the other context has attached")
  func sharedDevice() throws {
    let owner = try distantContext()
    let other = Context(system: machine.system)
    let binding = try owner.register(machine.device(1))
    let shared = try binding.share(with: other)
    let own = try other.allocateHWPT(
      for: shared.id, from: other.allocateIOAS(), attributes: .pasid)
    let pasid = PASID(rawValue: 9)
    func attach() throws(IOMMUError) { try shared.attach(pasid, to: own) }
    // The owner's table allows no PASIDs; then it has this PASID itself.
    try binding.group.attach(to: owner.allocateIOAS())
    refusal(attach)
    let table = try owner.allocateHWPT(
      for: binding.id, from: owner.allocateIOAS(), attributes: .pasid)
    try binding.group.attach(to: table)
    try binding.group.attach(pasid, to: table)
    refusal(attach)
    binding.group.detach(pasid)
    try attach()
  }

  private func refusal(_ call: () throws(IOMMUError) -> Void) {
    do throws(IOMMUError) {
      try call()
      Issue.record("the attach succeeded")
    } catch {
      #expect(error.errno == .invalidArgument, "\(error)")
      #expect(!tellsID(error), "\(error)")
    }
  }

  @Test("A1: another context's numbers name nothing here, whatever they are used for")
  func numbers() throws {
    let owner = try distantContext()
    let foreign = try owner.allocateIOAS()
    let context = Context(system: machine.system)
    let binding = DeviceHolder(try context.register(machine.device(1)))
    let ioas = try context.allocateIOAS()
    let calls: [(String, () throws -> Void)] = [
      ("attach", { _ = try binding.attach(to: foreign) }),
      ("destroy", { try context.destroy(foreign) }),
      ("table", { _ = try context.allocateHWPT(for: binding.id, from: foreign) }),
      ("table for", { _ = try context.allocateHWPT(for: foreign, from: ioas) }),
      ("ranges", { _ = try context.mappableRanges(of: foreign) }),
      ("unmap", { try context.unmap(0...4095, from: foreign) }),
      (
        "copy",
        {
          try context.copy(
            from: foreign, IOVA(0), length: 4096, into: ioas, at: .fixed(IOVA(0)))
        }
      ),
      ("information", { _ = try context.hardwareInformation(of: foreign) }),
      ("as compatible", { try context.setCompatibilityIOAS(foreign) }),
    ]
    for (name, call) in calls {
      // As on Linux, which says EINVAL of what a table is to be made from.
      let expected: Errno = name == "table" ? .invalidArgument : .noSuchFileOrDirectory
      #expect(errno(of: call) == expected, "\(name)")
    }
    #expect(try owner.mappableRanges(of: foreign).ranges == [0...UInt64.max])
  }
}
