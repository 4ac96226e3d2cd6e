// SPDX-License-Identifier: Apache-2.0
//
// Whoever binds, attaches, replaces, detaches, shares and unbinds while others do DMA: of a
// group of two, of a device that is shared by PASID, of slices.

import IOMMU
import SystemPackage

/// A kind of switch.
public enum Switch: String, CaseIterable, Sendable {
  case bind
  case bindNeighbour = "bind of a neighbour"
  case attach, replace, detach
  case detachNeighbour = "detach before the last"
  case unbind
  case unbindNeighbour = "unbind before the last"
  case share, unshare
  case unbindShared = "unbind of what is shared"
  case pasidAttach = "PASID attach"
  case pasidReplace = "PASID replace"
  case pasidDetach = "PASID detach"
  case sliceBind = "slice bind"
  case sliceAttach = "slice attach"
  case sliceReplace = "slice replace"
  case sliceDetach = "slice detach"
  case sliceUnbind = "slice unbind"
}

/// Makes one switch at a time. Used by one thread at a time.
protocol Mover: AnyObject, Sendable {
  func move() throws(IOMMUError) -> Switch?
}

/// What can be attached, by number of the space.
struct SwitchTargets: Sendable {
  /// From the first one on.
  let spaces: [(number: Int, ioas: ObjectID, table: ObjectID)]
}

extension [SwitchLane] {
  /// Changes what all lanes may reach while `body` does it.
  func change(
    to new: Reach, via between: Reach = [], _ body: () throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    for lane in self { lane.model.begin(to: new, via: between) }
    try body()
    for lane in self { lane.model.end(at: new) }
  }
}

/// A group of two devices: where one goes, both go.
final class PairMover: Mover, @unchecked Sendable {
  private let context: Context
  private let devices: [PhysicalDevice]
  private let lanes: [SwitchLane]
  private let targets: SwitchTargets
  private var random: SplitMix
  private var bound: [StressBinding?]
  private var attached: Set<Int> = []
  /// What the group is attached by.
  private var current: ObjectID?

  init(
    context: Context, devices: [PhysicalDevice], lanes: [SwitchLane], targets: SwitchTargets,
    seed: UInt64
  ) {
    self.context = context
    self.devices = devices
    self.lanes = lanes
    self.targets = targets
    bound = devices.map { _ in nil }
    random = SplitMix(seed: seed)
  }

  func move() throws(IOMMUError) -> Switch? {
    let index = random.below(devices.count)
    switch random.below(8) {
    case 0...1: return try bind(index)
    case 2...5: return try attach(index)
    case 6: return try detach(index)
    default: return try unbind(index)
    }
  }

  private func bind(_ index: Int) throws(IOMMUError) -> Switch? {
    guard bound[index] == nil else { return nil }
    let isFirst = bound.allSatisfy { $0 == nil }
    try lanes.change(to: isFirst ? .blocked : lanes[0].model.now) { () throws(IOMMUError) in
      bound[index] = StressBinding(try context.register(devices[index]))
    }
    return isFirst ? .bind : .bindNeighbour
  }

  private func attach(_ index: Int) throws(IOMMUError) -> Switch? {
    guard let binding = bound[index] else { return nil }
    if !attached.contains(index), let current {
      try lanes.change(to: lanes[0].model.now) { () throws(IOMMUError) in
        _ = try binding.attach(nil, to: current)
      }
      attached.insert(index)
      return .attach
    }
    let space = targets.spaces[random.below(targets.spaces.count)]
    let target = random.below(2) == 0 ? space.ioas : space.table
    let isFirst = attached.isEmpty
    try lanes.change(to: .space(space.number)) { () throws(IOMMUError) in
      current = try binding.attach(nil, to: target)
    }
    attached.insert(index)
    return isFirst ? .attach : .replace
  }

  private func detach(_ index: Int) throws(IOMMUError) -> Switch? {
    guard let binding = bound[index], attached.remove(index) != nil else { return nil }
    let isLast = attached.isEmpty
    if isLast { current = nil }
    try lanes.change(to: isLast ? .blocked : lanes[0].model.now) { () throws(IOMMUError) in
      binding.detach(nil)
    }
    return isLast ? .detach : .detachNeighbour
  }

  private func unbind(_ index: Int) throws(IOMMUError) -> Switch? {
    guard bound[index] != nil else { return nil }
    attached.remove(index)
    if attached.isEmpty { current = nil }
    let isLast = bound.count { $0 != nil } == 1
    let next: Reach = isLast ? .host : attached.isEmpty ? .blocked : lanes[0].model.now
    try lanes.change(to: next, via: isLast ? .blocked : []) { () throws(IOMMUError) in
      bound[index] = nil
    }
    return isLast ? .unbind : .unbindNeighbour
  }
}

/// A device whose default one context has, and a PASID another (MODEL C7).
final class SharedMover: Mover, @unchecked Sendable {
  private let contexts: [Context]
  private let device: PhysicalDevice
  private let main: SwitchLane
  private let under: SwitchLane
  private let pasid: PASID
  /// Those of the one context, and of the other.
  private let targets: [SwitchTargets]
  private var random: SplitMix
  private var binding: Binding?
  private var shared: PASIDBinding?
  private var isAttached = false
  private var pasidIsAttached = false

  init(
    contexts: [Context], device: PhysicalDevice, main: SwitchLane, under: SwitchLane,
    pasid: PASID, targets: [SwitchTargets], seed: UInt64
  ) {
    self.contexts = contexts
    self.device = device
    self.main = main
    self.under = under
    self.pasid = pasid
    self.targets = targets
    random = SplitMix(seed: seed)
  }

  func move() throws(IOMMUError) -> Switch? {
    switch random.below(10) {
    case 0...1: try begin()
    case 2...3: try attach()
    case 4: try detach()
    case 5...7: try movePASID()
    case 8: try detachPASID()
    default: try end()
    }
  }

  private func begin() throws(IOMMUError) -> Switch? {
    if binding == nil {
      // Where only the share is left, the main binding is not to be had again.
      guard shared == nil else { return nil }
      try [main].change(to: .blocked) { () throws(IOMMUError) in
        binding = try contexts[0].register(device)
      }
      return .bind
    }
    guard shared == nil else { return nil }
    try [main].change(to: main.model.now) { () throws(IOMMUError) in
      shared = try binding?.share(with: contexts[1])
    }
    return .share
  }

  private func attach() throws(IOMMUError) -> Switch? {
    guard binding != nil else { return nil }
    let space = targets[0].spaces[random.below(targets[0].spaces.count)]
    try [main].change(to: .space(space.number)) { () throws(IOMMUError) in
      try binding?.group.attach(to: space.table)
    }
    defer { isAttached = true }
    return isAttached ? .replace : .attach
  }

  private func detach() throws(IOMMUError) -> Switch? {
    guard isAttached else { return nil }
    isAttached = false
    try [main].change(to: .blocked) { () throws(IOMMUError) in binding?.group.detach() }
    return .detach
  }

  private func movePASID() throws(IOMMUError) -> Switch? {
    guard shared != nil else { return nil }
    let space = targets[1].spaces[random.below(targets[1].spaces.count)]
    try [under].change(to: .space(space.number)) { () throws(IOMMUError) in
      if pasidIsAttached {
        try shared?.replace(pasid, with: space.table)
      } else {
        try shared?.attach(pasid, to: space.table)
      }
    }
    defer { pasidIsAttached = true }
    return pasidIsAttached ? .pasidReplace : .pasidAttach
  }

  private func detachPASID() throws(IOMMUError) -> Switch? {
    guard pasidIsAttached else { return nil }
    pasidIsAttached = false
    try [under].change(to: .blocked) { () throws(IOMMUError) in shared?.detach(pasid) }
    return .pasidDetach
  }

  private func end() throws(IOMMUError) -> Switch? {
    if binding != nil, shared == nil || random.below(2) == 0 {
      isAttached = false
      let isShared = shared != nil
      // Somebody still owns the group: blocked, not the host's.
      try [main].change(to: isShared ? .blocked : .host, via: .blocked) {
        () throws(IOMMUError) in binding = nil
      }
      return isShared ? .unbindShared : .unbind
    }
    guard shared != nil else { return nil }
    pasidIsAttached = false
    let isLast = binding == nil
    under.model.begin(to: .blocked)
    try [main].change(to: isLast ? .host : main.model.now) { () throws(IOMMUError) in
      shared = nil
    }
    under.model.end(at: .blocked)
    return .unshare
  }
}

/// A slice of a device that the host keeps.
final class SliceMover: Mover, @unchecked Sendable {
  private let context: Context
  private let slice: MediatedDevice
  private let lane: SwitchLane
  private let targets: SwitchTargets
  private var random: SplitMix
  private var binding: StressBinding?
  private var isAttached = false

  init(
    context: Context, slice: MediatedDevice, lane: SwitchLane, targets: SwitchTargets,
    seed: UInt64
  ) {
    self.context = context
    self.slice = slice
    self.lane = lane
    self.targets = targets
    random = SplitMix(seed: seed)
  }

  func move() throws(IOMMUError) -> Switch? {
    // Held nowhere else: to let go of it is to unbind.
    guard binding != nil else {
      try [lane].change(to: .blocked) { () throws(IOMMUError) in
        binding = StressBinding(try context.register(slice))
      }
      return .sliceBind
    }
    switch random.below(6) {
    case 0...3:
      let space = targets.spaces[random.below(targets.spaces.count)]
      let target = random.below(2) == 0 ? space.ioas : space.table
      try [lane].change(to: .space(space.number)) { () throws(IOMMUError) in
        _ = try binding?.attach(nil, to: target)
      }
      defer { isAttached = true }
      return isAttached ? .sliceReplace : .sliceAttach
    case 4:
      guard isAttached else { return nil }
      isAttached = false
      try [lane].change(to: .blocked) { () throws(IOMMUError) in binding?.detach(nil) }
      return .sliceDetach
    default:
      isAttached = false
      try [lane].change(to: .blocked) { () throws(IOMMUError) in binding = nil }
      return .sliceUnbind
    }
  }
}
