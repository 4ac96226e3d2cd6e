// SPDX-License-Identifier: Apache-2.0
//
// MODEL E3, E4, E5: a VM's devices, its CPU's table of PASIDs, work portals, and what is saved.

import IOMMU
import SystemPackage
import Testing

/// A portal that remembers what came, up to a depth.
private final class TestPortal: WorkPortal {
  let device: any BindableDevice
  private let depth: Int
  private let queue = Guarded<[PASID]>([])

  init(_ device: any BindableDevice, depth: Int = 8) {
    self.device = device
    self.depth = depth
  }

  func receive(_ command: WorkCommand) -> DeferrableWrite {
    queue.withLock { queue in
      guard queue.count < depth else { return .retry }
      queue.append(command.pasid)
      return .accepted
    }
  }

  var received: [PASID] { queue.withLock { $0 } }
}

@Suite struct WorkPortalTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))
  let vm = VirtualMachine(name: "VM 1")
  let context: Context
  let ioas: ObjectID

  init() throws {
    context = Context(system: machine.system)
    ioas = try context.allocateIOAS()
    // So that physical PASIDs are no user's by chance.
    let other = try machine.device(30)
    for number in 0..<20 {
      _ = try machine.system.addMediatedDevice(name: "\(number)", parent: other)
    }
  }

  private func pasid(_ number: UInt32) -> PASID { PASID(rawValue: number) }

  private func command(_ number: UInt32) -> WorkCommand {
    var command = WorkCommand(words: InlineArray(repeating: 0))
    command.pasid = pasid(number)
    return command
  }

  private func physical(_ slot: UInt8) throws -> PhysicalDevice {
    let requester = RequesterID(bus: 0, device: slot, function: 0)
    return try machine.system.addDevice(
      name: "\(requester)", requester: requester, driver: machine.driver,
      group: machine.system.addGroup(), kind: .physicalWithWorkQueue)
  }

  private func slice(_ name: String, slot: UInt8) throws -> MediatedDevice {
    try machine.system.addMediatedDevice(
      name: name, parent: machine.device(slot), kind: .mediatedWithWorkQueue)
  }

  private func table(_ holder: DeviceHolder) throws -> ObjectID {
    try context.allocateHWPT(for: holder.id, from: ioas, attributes: .pasid)
  }

  private func bind(_ device: any BindableDevice, at pasids: UInt32...) throws -> DeviceHolder {
    let holder = DeviceHolder(try context.register(device))
    for pasid in pasids { try holder.attach(pasid, to: try table(holder)) }
    return holder
  }

  private func failure(_ body: () throws -> Void) -> IOMMUError? {
    do {
      try body()
      return nil
    } catch {
      return error as? IOMMUError
    }
  }

  // MARK: E3

  @Test(
    "E3: kinds 7 and 8 do not meet in one VM, and both are named", arguments: [true, false])
  func mixture(physicalFirst: Bool) throws {
    let devices: [any BindableDevice] = [try physical(1), try slice("slice", slot: 2)]
    let ordered = physicalFirst ? devices : devices.reversed()
    try vm.add(ordered[0])
    let error = failure { try vm.add(ordered[1]) }
    #expect(error?.errno == .invalidArgument)
    #expect(devices.allSatisfy { error?.reason.contains($0.name) == true })
    try vm.add(try machine.device(3))
    try vm.add(ordered[0])
    vm.remove(ordered[0])
    #expect(errno { try vm.add(ordered[1]) } == .invalidArgument, "it was given twice")
    vm.remove(ordered[0])
    try vm.add(ordered[1])
    try VirtualMachine(name: "VM 2").add(ordered[0])
  }

  @Test("E3: a VM does not translate PASIDs for a device of kind 7")
  func translationAndKind7() throws {
    let device = try physical(1)
    try vm.add(device)
    let error = failure { try vm.setTranslatesPASIDs(true) }
    #expect(error?.errno == .invalidArgument && error?.reason.contains(device.name) == true)
    vm.remove(device)
    try vm.setTranslatesPASIDs(true)
    #expect(errno { try vm.add(device) } == .invalidArgument)
    try vm.setTranslatesPASIDs(false)
    try vm.add(device)
  }

  // MARK: E4

  @Test("E4: KVM's table maps a PASID once, to what a kind-8 device is attached to by it")
  func table() throws {
    let holder = try bind(slice("slice", slot: 1), at: 5)
    let tables = try context.attachedHWPT(of: holder.id, pasid: pasid(5))
    let hwpt = try #require(tables)
    #expect(errno { try vm.map(pasid(6), to: ioas, of: context) } == .noSuchFileOrDirectory)
    let other = try context.allocateIOAS()
    #expect(errno { try vm.map(pasid(5), to: other, of: context) } == .noSuchFileOrDirectory)
    #expect(errno { try vm.unmap(pasid(5)) } == .noSuchFileOrDirectory)
    try vm.map(pasid(5), to: ioas, of: context)
    #expect(errno { try vm.map(pasid(5), to: hwpt, of: context) } == .fileExists)
    #expect(vm.translatedPASIDs == [pasid(5)])
    try vm.unmap(pasid(5))
    try vm.map(pasid(5), to: hwpt, of: context)
    let stranger = Context(system: machine.system)
    #expect(errno { try vm.map(pasid(7), to: ioas, of: stranger) } == .noSuchFileOrDirectory)
    vm.close()
    #expect(vm.translatedPASIDs == [])
    #expect(errno { try vm.map(pasid(5), to: ioas, of: context) } == .badFileDescriptor)
    #expect(errno { try vm.setTranslatesPASIDs(true) } == .badFileDescriptor)
  }

  @Test("E4: PASIDs of devices of kind 5, 6 and 7 are not for a CPU's table")
  func otherKinds() throws {
    let kind5 = try bind(machine.device(1), at: 5)
    let kind6 = try bind(
      machine.system.addMediatedDevice(name: "six", parent: machine.device(2)), at: 6)
    let kind7 = try bind(physical(3), at: 7)
    for number: UInt32 in 5...7 {
      #expect(
        errno { try vm.map(pasid(number), to: ioas, of: context) } == .noSuchFileOrDirectory)
    }
    withExtendedLifetime((kind5, kind6, kind7)) {}
  }

  @Test("E4: a kind-8 portal is closed until translation is on, and then takes mapped PASIDs")
  func portal() throws {
    let slice = try slice("slice", slot: 1)
    let portal = TestPortal(slice)
    let holder = try bind(slice, at: 5, 6)
    let closed = failure { _ = try portal.enqueue(command(5), from: nil) }
    #expect(closed?.errno == .notPermitted && closed?.reason.contains("closed") == true)
    #expect(closed?.reason.contains("virtual-machines: true") == true, "where VMs come from")
    #expect(errno { _ = try vm.enqueue(command(5), to: portal) } == .notPermitted)
    try vm.add(slice)
    try vm.map(pasid(5), to: ioas, of: context)
    let off = failure { _ = try vm.enqueue(command(5), to: portal) }
    #expect(off?.errno == .notPermitted && off?.reason.contains("translat") == true)
    try vm.setTranslatesPASIDs(true)
    #expect(try vm.enqueue(command(5), to: portal) == .accepted)
    #expect(portal.received == [slice.physicalPASID(for: pasid(5))])
    #expect(portal.received != [pasid(5)])
    #expect(errno { _ = try vm.enqueue(command(6), to: portal) } == .badAddress)
    #expect(errno { _ = try vm.enqueue(command(0), to: portal) } == .badAddress)
    try vm.unmap(pasid(5))
    #expect(errno { _ = try vm.enqueue(command(5), to: portal) } == .badAddress)
    try vm.setTranslatesPASIDs(false)
    #expect(errno { _ = try vm.enqueue(command(5), to: portal) } == .notPermitted)
    #expect(portal.received.count == 1, "what was refused did not reach the device")
    withExtendedLifetime(holder) {}
  }

  @Test("E4, A3: a translated PASID of another device of the VM is not loaded")
  func siblings() throws {
    let slices = try [slice("one", slot: 1), slice("two", slot: 2)]
    let portals = slices.map { TestPortal($0) }
    let one = try bind(slices[0], at: 5)
    let two = try bind(slices[1], at: 6)
    for slice in slices { try vm.add(slice) }
    try vm.setTranslatesPASIDs(true)
    for number: UInt32 in 5...6 { try vm.map(pasid(number), to: ioas, of: context) }
    #expect(try vm.enqueue(command(5), to: portals[0]) == .accepted)
    let refused = failure { _ = try vm.enqueue(command(5), to: portals[1]) }
    #expect(refused?.errno == .notPermitted && refused?.reason.contains("PASID 5 ") == true)
    #expect(portals[1].received == [])
    try two.attach(5, to: try table(two))
    #expect(try vm.enqueue(command(5), to: portals[1]) == .accepted)
    #expect(portals[1].received == portals[0].received)
    withExtendedLifetime(one) {}
  }

  @Test("E4: what is translated to stays taken after a detach, and reaches nothing")
  func staleTranslation() throws {
    let slice = try slice("slice", slot: 1)
    let portal = TestPortal(slice)
    let holder = try bind(slice, at: 5)
    try vm.add(slice)
    try vm.setTranslatesPASIDs(true)
    try vm.map(pasid(5), to: ioas, of: context)
    let old = slice.physicalPASID(for: pasid(5))
    holder.detach(5)
    #expect(errno { _ = try vm.enqueue(command(5), to: portal) } == .notPermitted)
    try holder.attach(5, to: try table(holder))
    #expect(slice.physicalPASID(for: pasid(5)) != old)
    #expect(errno { _ = try vm.enqueue(command(5), to: portal) } == .notPermitted)
    try vm.unmap(pasid(5))
    try vm.map(pasid(5), to: ioas, of: context)
    #expect(try vm.enqueue(command(5), to: portal) == .accepted)
  }

  @Test("E4: a kind-7 portal takes attached PASIDs as they are, and no others")
  func kind7() throws {
    let device = try physical(1)
    let portal = TestPortal(device)
    let holder = try bind(device)
    let refused = failure { _ = try portal.enqueue(command(5), from: nil) }
    #expect(refused?.errno == .notPermitted && refused?.reason.contains("PASID 5 ") == true)
    try holder.attach(to: try table(holder))
    try holder.attach(5, to: try table(holder))
    #expect(try portal.enqueue(command(5), from: nil) == .accepted)
    try vm.add(device)
    #expect(try vm.enqueue(command(5), to: portal) == .accepted)
    #expect(portal.received == [pasid(5), pasid(5)])
    holder.detach(5)
    #expect(errno { _ = try portal.enqueue(command(5), from: nil) } == .notPermitted)
  }

  @Test("E4: a full queue answers retry; a device without work queues has no portal")
  func full() throws {
    let device = try physical(1)
    let portal = TestPortal(device, depth: 1)
    let holder = try bind(device, at: 5)
    #expect(try portal.enqueue(command(5), from: nil) == .accepted)
    #expect(try portal.enqueue(command(5), from: nil) == .retry)
    let plain = TestPortal(try machine.device(2))
    #expect(errno { _ = try plain.enqueue(command(5), from: nil) } == .invalidArgument)
    withExtendedLifetime(holder) {}
  }

  @Test("E4: the supervisor's bit of a command does not come through")
  func supervisorBit() throws {
    final class Recorder: WorkPortal {
      let device: any BindableDevice
      let word = Guarded<UInt64>(0)
      init(_ device: any BindableDevice) { self.device = device }
      func receive(_ command: WorkCommand) -> DeferrableWrite {
        word.withLock { $0 = command.words[0] }
        return .accepted
      }
    }
    let device = try physical(1)
    let portal = Recorder(device)
    let holder = try bind(device, at: 5)
    var command = WorkCommand(words: InlineArray(repeating: .max))
    command.pasid = pasid(5)
    #expect(try portal.enqueue(command, from: nil) == .accepted)
    #expect(portal.word.withLock { $0 } == 0xFFFF_FFFF_7FF0_0005)
    withExtendedLifetime(holder) {}
  }

  // MARK: E5

  @Test("E5: virtual PASIDs are saved and restored with new physical ones", arguments: [6, 8])
  func restore(kind: UInt8) throws {
    let kind = try #require(DeviceKind(rawValue: kind))
    let slices = try ["source", "destination"].map {
      try machine.system.addMediatedDevice(
        name: $0, parent: machine.device($0 == "source" ? 1 : 2), kind: kind)
    }
    let before = try context.register(slices[0])
    let tables = try (0..<2).map { _ in
      try context.allocateHWPT(for: before.id, from: ioas, attributes: .pasid)
    }
    try before.group.attach(pasid(5), to: tables[0])
    try before.group.attach(pasid(9), to: tables[1])
    let saved = before.group.savedPASIDs
    #expect(saved.entries.map(\.pasid) == [5, 9])
    #expect(saved.entries.map(\.target) == tables.map(\.rawValue))

    let fresh = Context(system: machine.system)
    let after = try fresh.register(slices[1])
    let space = try fresh.allocateIOAS()
    let table = try fresh.allocateHWPT(for: after.id, from: space, attributes: .pasid)
    #expect(
      errno { try after.group.restore(saved) { $0 == tables[0] ? table : nil } }
        == .noSuchFileOrDirectory)
    #expect(slices[1].pasids.all == [], "all or nothing")
    try after.group.restore(saved) { _ in table }
    #expect(after.group.savedPASIDs.entries.map(\.pasid) == [5, 9])
    for number: UInt32 in [5, 9] {
      let (old, new) = (
        slices[0].physicalPASID(for: pasid(number)), slices[1].physicalPASID(for: pasid(number))
      )
      #expect(new != nil && (kind == .mediated || old != new))
    }
    guard kind == .mediatedWithWorkQueue else { return }
    try vm.map(pasid(5), to: ioas, of: context)
    try vm.map(pasid(9), to: tables[1], of: context)
    try vm.setTranslatesPASIDs(true)
    let translation = vm.savedTranslation
    #expect(translation.isEnabled && translation.pasids.entries.map(\.pasid) == [5, 9])
    let destination = VirtualMachine(name: "VM 2")
    #expect(
      errno { try destination.restore(translation) { $0 == ioas ? (fresh, space) : nil } }
        == .noSuchFileOrDirectory)
    #expect(destination.translatedPASIDs == [])
    try destination.add(slices[1])
    try destination.restore(translation) { $0 == ioas ? (fresh, space) : (fresh, table) }
    let portal = TestPortal(slices[1])
    #expect(try destination.enqueue(command(9), to: portal) == .accepted)
    #expect(portal.received == [slices[1].physicalPASID(for: pasid(9))])
  }

  @Test("E5: what is restored has to be a PASID, and one that the device can have")
  func restoreNonsense() throws {
    let binding = try context.register(machine.device(1))
    let table = try context.allocateHWPT(for: binding.id, from: ioas, attributes: .pasid)
    for number: UInt32 in [0, 256, .max] {
      let saved = SavedPASIDs(entries: [
        SavedPASIDs.Entry(pasid: 3, target: 1), SavedPASIDs.Entry(pasid: number, target: 1),
      ])
      #expect(
        errno { try binding.group.restore(saved) { _ in table } } == .invalidArgument)
      #expect(binding.group.savedPASIDs.entries == [])
    }
  }
}
