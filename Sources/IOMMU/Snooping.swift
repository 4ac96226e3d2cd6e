// SPDX-License-Identifier: Apache-2.0
//
// DMA that bypasses the CPU's caches: what a space asks for, what a device's user promises, and
// whether any is possible (MODEL F1, F2).

/// Whether the page tables of an address space force DMA to snoop the CPU's caches. Chosen when
/// the space is made (MODEL B7, F1).
public enum SnoopPolicy: Hashable, Sendable, CaseIterable {
  /// Wherever the IOMMU can. Linux's way.
  case automatic
  /// Always: a device that may bypass the caches and cannot be forced is refused.
  case enforced
  /// Never: a device that sets the no-snoop attribute has its way. Any device fits.
  case notEnforced
}

/// What is known of a device's DMA beyond what its hardware could do (MODEL F2).
public enum SnoopHint: Hashable, Sendable, CaseIterable {
  /// It may use no-snoop if it can.
  case none
  /// It will not, whatever it could: its driver says so.
  case alwaysSnoops
}

/// Tells a context's user whether an attached device may do DMA that does not snoop, and when
/// that changes: what a VMM has to know before it lets a guest's WBINVD do nothing (MODEL F2).
///
/// Thread-safe. A change is there to be read before the attach or detach that made it returns.
public final class NoSnoopWatch: Sendable {
  /// Readable from a change until it is read.
  public let readiness = Readiness()

  private struct State: Sendable {
    var current = false
    var read = false
  }

  private let state = RankedMutex(.noSnoop, State())

  /// The answer at the last attach or detach, without taking notice of it.
  public var isPossible: Bool { state.withLock { $0.current } }

  /// The answer; the change to it, if there was one, is taken notice of.
  public func read() -> Bool {
    state.withLock { state in
      state.read = state.current
      readiness.emptied()
      return state.current
    }
  }

  func update(_ isPossible: Bool) {
    state.withLock { state in
      guard state.current != isPossible else { return }
      state.current = isPossible
      // There and back again between two reads is no change.
      if isPossible == state.read { readiness.emptied() } else { readiness.recordAdded() }
    }
  }
}

extension DeviceGroup.Attachment {
  /// Whether all who attached it promise that their devices snoop.
  private var promisesSnooping: Bool {
    devices.allSatisfy { promises.contains(ObjectIdentifier($0)) }
  }

  mutating func note(_ hint: SnoopHint, by object: DeviceObject) {
    switch hint {
    case .none: promises.remove(ObjectIdentifier(object))
    case .alwaysSnoops: promises.insert(ObjectIdentifier(object))
    }
  }

  /// Refuses devices that the table does not hold to what its space promises (MODEL F1).
  func checkSnooping(of members: [any BindableDevice]) throws(IOMMUError) {
    if table.enforcesSnoop,
      let misfit = members.first(where: { !$0.physical.capabilities.snoopControl })
    {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(table.id) enforces snooping, to which \(misfit.name) cannot be forced")
    }
    guard table.addressSpace.attributes.snoop == .enforced,
      let misfit = unsnooped(among: members)
    else { return }
    throw IOMMUError(
      .invalidArgument,
      "IOAS \(table.addressSpace.id) was made to enforce snooping; \(misfit.name) can bypass the "
        + "caches, and \(misfit.physical.driver.name), its IOMMU, cannot keep it from that")
  }

  /// A device that may do no-snoop DMA through the table.
  func unsnooped(among members: [any BindableDevice]) -> (any BindableDevice)? {
    guard !table.enforcesSnoop, !promisesSnooping else { return nil }
    return members.first { $0.physical.canSkipSnoop }
  }
}

extension DeviceGroup {
  /// Whether a bound device, or one that goes where it goes, may do no-snoop DMA now.
  func maySkipSnoop(_ object: DeviceObject) -> Bool {
    state.withLock { state in
      state.attachments.contains { slot, attachment in
        attachment.devices.contains { $0 === object }
          && attachment.unsnooped(among: state.devices(of: slot.subgroup)) != nil
      }
    }
  }
}

extension Context {
  /// Whether a device that is attached may do no-snoop DMA. MODEL F2.
  ///
  /// As `noSnoop`, and exact too where a device has joined the group of an attached one since.
  public var mayHaveNoSnoopDMA: Bool {
    boundDevices.contains { $0.group.maySkipSnoop($0) }
  }

  /// After each change of what is attached, with `configuration` held.
  func updateNoSnoop() { noSnoop.update(mayHaveNoSnoopDMA) }
}
