// SPDX-License-Identifier: Apache-2.0
//
// MODEL F1, F2: which devices fit which spaces, and whether a context may see DMA that does not
// snoop.

import IOMMU
import SystemPackage
import Testing

@Suite struct SnoopingTests {
  struct Combination: CustomTestStringConvertible {
    var deviceCanSkip: Bool
    var iommuEnforces: Bool
    var policy: SnoopPolicy
    var hint: SnoopHint

    var testDescription: String {
      "device \(deviceCanSkip ? "can" : "cannot") skip, IOMMU \(iommuEnforces ? "forces" : "cannot"), "
        + "\(policy), hint \(hint)"
    }

    /// MODEL F1 as a table: what comes of an attach.
    enum Outcome: Equatable {
      case refused
      /// Whether the table forces snooping, and whether no-snoop DMA is possible after it.
      case fits(enforces: Bool, noSnoop: Bool)
    }

    var expected: Outcome {
      switch (deviceCanSkip, iommuEnforces, policy, hint) {
      // What the IOMMU can force, it does unless it was asked not to.
      case (_, true, .automatic, _), (_, true, .enforced, _):
        .fits(enforces: true, noSnoop: false)
      // Nothing forces it, and nothing has to: it never skips.
      case (false, _, _, _), (true, _, _, .alwaysSnoops):
        .fits(enforces: false, noSnoop: false)
      // It may skip, cannot be forced, and the space insists.
      case (true, false, .enforced, .none): .refused
      case (true, _, .notEnforced, .none), (true, false, .automatic, .none):
        .fits(enforces: false, noSnoop: true)
      }
    }

    static let all = [false, true].flatMap { device in
      [false, true].flatMap { iommu in
        SnoopPolicy.allCases.flatMap { policy in
          SnoopHint.allCases.map {
            Combination(
              deviceCanSkip: device, iommuEnforces: iommu, policy: policy, hint: $0)
          }
        }
      }
    }
  }

  @Test("F1: the matrix of device, IOMMU, space and hint", arguments: Combination.all)
  func matrix(_ combination: Combination) throws {
    let machine = TestMachine(
      driver: DictionaryDriver(
        capabilities: IOMMUCapabilities(snoopControl: combination.iommuEnforces)))
    let device = try machine.device(1, canSkipSnoop: combination.deviceCanSkip)
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS(.init(snoop: combination.policy))
    let binding = try context.register(device)
    let before = context.snapshot
    #expect(!context.mayHaveNoSnoopDMA, "what is blocked does no DMA")
    do {
      try binding.group.attach(to: ioas, snoop: combination.hint)
      #expect(
        combination.expected
          == .fits(
            enforces: try context.enforcesSnoop(in: ioas), noSnoop: context.mayHaveNoSnoopDMA))
      #expect(context.noSnoop.isPossible == context.mayHaveNoSnoopDMA)
    } catch {
      #expect(combination.expected == .refused && error.errno == .invalidArgument)
      #expect(error.reason.contains(device.name) && error.reason.contains("snoop"))
      #expect(context.snapshot == before && !context.noSnoop.isPossible)
    }
    binding.group.detach()
    #expect(!context.mayHaveNoSnoopDMA && !context.noSnoop.isPossible)
  }

  @Test("F1: a device that cannot be forced is not moved to an enforcing space")
  func replace() throws {
    let machine = unforced
    let context = Context(system: machine.system)
    let loose = try context.allocateIOAS()
    let strict = try context.allocateIOAS(.init(snoop: .enforced))
    let binding = try context.register(machine.device(1, canSkipSnoop: true))
    try binding.group.attach(to: loose)
    #expect(errno { try binding.group.attach(to: strict) } == .invalidArgument)
    #expect(context.mayHaveNoSnoopDMA)
    try binding.group.attach(to: strict, snoop: .alwaysSnoops)
    #expect(!context.mayHaveNoSnoopDMA)
    #expect(
      errno { try binding.group.attach(to: strict) } == .invalidArgument, "a promise kept")
  }

  @Test("F1: a promise holds for a group when all who attached it give it")
  func neighbours() throws {
    let machine = unforced
    let group = machine.system.addGroup()
    let devices = try (1...2).map {
      try machine.device($0, group: group, canSkipSnoop: $0 == 2)
    }
    let context = Context(system: machine.system)
    let strict = try context.allocateIOAS(.init(snoop: .enforced))
    let first = DeviceHolder(try context.register(devices[0]))
    let second = DeviceHolder(try context.register(devices[1]))
    #expect(
      errno { try first.attach(to: strict) } == .invalidArgument, "its neighbour may skip")
    try first.attach(to: strict, snoop: .alwaysSnoops)
    #expect(errno { try second.attach(to: strict) } == .invalidArgument)
    try second.attach(to: strict, snoop: .alwaysSnoops)
    #expect(!context.mayHaveNoSnoopDMA)
  }

  @Test("F2: a change is noticed once, and a change that was taken back not at all")
  func notice() throws {
    let machine = unforced
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let devices = try (1...2).map {
      DeviceHolder(try context.register(machine.device($0, canSkipSnoop: true)))
    }
    let watch = context.noSnoop
    #expect(!watch.readiness.isReadable && !watch.read())
    try devices[0].attach(to: ioas)
    #expect(watch.readiness.isReadable && watch.read() && !watch.readiness.isReadable)
    try devices[1].attach(to: ioas)
    devices[0].detach()
    #expect(!watch.readiness.isReadable, "still possible, by the second one")
    devices[1].detach()
    #expect(watch.readiness.isReadable)
    try devices[0].attach(to: ioas)
    #expect(!watch.readiness.isReadable && watch.isPossible)
  }

  @Test("F2: the answer is its context's own, and goes with the binding")
  func contexts() throws {
    let machine = unforced
    let one = Context(system: machine.system)
    let other = Context(system: machine.system)
    do {
      let binding = try one.register(machine.device(1, canSkipSnoop: true))
      try binding.group.attach(to: one.allocateIOAS())
      #expect(one.noSnoop.isPossible && !other.noSnoop.isPossible)
    }
    #expect(!one.noSnoop.isPossible)
  }

  private var unforced: TestMachine {
    TestMachine(
      driver: DictionaryDriver(capabilities: IOMMUCapabilities(snoopControl: false)))
  }
}
