// SPDX-License-Identifier: Apache-2.0
//
// Physical PASIDs: one space per requester and one for the whole machine, and who has which
// (MODEL E1).

import SystemPackage

/// The physical PASIDs of a machine. Thread-safe; calls nothing but the driver's capabilities.
///
/// What is allocated for one requester is never one of the global space, and the other way
/// round, so that a global PASID can be put into the space of every requester. Numbers are given
/// in turn: one that came free is the last to be given again.
final class PASIDSpaces: Sendable {
  /// Names a global PASID: the same for all devices of a context.
  struct SharedKey: Hashable, Sendable {
    let owner: ObjectIdentifier
    let virtual: PASID
  }

  fileprivate struct Entry: Sendable {
    let holder: String
    /// Uses of a global PASID by this requester; 1 for all others.
    var uses = 1
    let isGlobal: Bool
    /// The user chose it and may have all: it keeps no number from the global space.
    let isIdentity: Bool
  }

  fileprivate struct State: Sendable {
    var requesters: [ObjectIdentifier: [PASID: Entry]] = [:]
    /// Allocated or given to slices, by how many requesters.
    var allocated: [PASID: Int] = [:]
    /// And how many devices are attached by it.
    var shared: [SharedKey: (physical: PASID, uses: Int)] = [:]
    /// Global PASIDs that are taken, and how often: once for all devices of a context, and once
    /// for each CPU that translates to it.
    var global: [PASID: Int] = [:]
    /// Where to look next, by requester; of the global space, `globalCursor`.
    var cursors: [ObjectIdentifier: UInt32] = [:]
    var globalCursor: UInt32 = 1
  }

  /// Who has which, by the names of users: for what is reported of DMA.
  let sources: DMASources
  private let state = Guarded(State())

  init(sources: DMASources) { self.sources = sources }

  // MARK: The space of one requester

  /// Takes a PASID of a requester's space.
  /// - Parameter isIdentity: A user chose it, for a device that has the whole space.
  /// - Throws: `EINVAL` for one that its IOMMU cannot tell apart; `EBUSY` where it is taken.
  func claim(
    _ pasid: PASID, on device: PhysicalDevice, for holder: String, isIdentity: Bool = false
  ) throws(IOMMUError) {
    try check(pasid, on: device)
    let other = state.withLock { state -> String? in
      if let entry = state.requesters[device.key]?[pasid] { return entry.holder }
      state.insert(
        pasid, device.key, Entry(holder: holder, isGlobal: false, isIdentity: isIdentity))
      return nil
    }
    if let other {
      throw IOMMUError(
        .resourceBusy, "PASID \(pasid.rawValue) of \(device.name) belongs to \(other)")
    }
  }

  /// Takes a free PASID of a requester's space.
  /// - Throws: `ENOSPC`.
  func allocate(on device: PhysicalDevice, for holder: String) throws(IOMMUError) -> PASID {
    let bits = device.capabilities.pasidBits
    let pasid = state.withLock { state -> PASID? in
      let key = device.key
      let found = Self.firstFree(from: state.cursors[key] ?? 1, bits: bits) {
        state.requesters[key]?[$0] == nil && state.global[$0] == nil
      }
      guard let found else { return nil }
      state.cursors[key] = found.rawValue &+ 1
      state.insert(found, key, Entry(holder: holder, isGlobal: false, isIdentity: false))
      return found
    }
    guard let pasid else { throw exhausted(device, bits, "of \(device.name)", for: holder) }
    return pasid
  }

  /// Gives back what `claim` or `allocate` took.
  func free(_ pasid: PASID, on device: PhysicalDevice) {
    state.withLock { $0.remove(pasid, device.key) }
  }

  // MARK: The global space

  /// Takes the PASID that all devices of a context share for a virtual one, for one more device.
  /// - Throws: `ENOSPC`; `EBUSY` where it is somebody else's in this requester's space; `EINVAL`
  ///   where it is too wide for the device's IOMMU.
  func allocateShared(
    _ key: SharedKey, on device: PhysicalDevice, for holder: String
  ) throws(IOMMUError) -> PASID {
    let bits = device.capabilities.pasidBits
    enum Outcome {
      case pasid(PASID)
      case taken(by: String)
      case tooWide, exhausted
    }
    let outcome = state.withLock { state -> Outcome in
      let physical: PASID
      if let shared = state.shared[key] {
        guard shared.physical.rawValue >> UInt32(bits) == 0 else { return .tooWide }
        if let entry = state.requesters[device.key]?[shared.physical], !entry.isGlobal {
          return .taken(by: entry.holder)
        }
        physical = shared.physical
      } else {
        let found = Self.firstFree(from: state.globalCursor, bits: bits) { pasid in
          state.global[pasid] == nil && state.allocated[pasid] == nil
            && state.requesters[device.key]?[pasid] == nil
        }
        guard let found else { return .exhausted }
        state.globalCursor = found.rawValue &+ 1
        state.global[found] = 1
        state.shared[key] = (found, 0)
        physical = found
      }
      state.shared[key]?.uses += 1
      if state.requesters[device.key]?[physical] == nil {
        state.insert(
          physical, device.key, Entry(holder: holder, isGlobal: true, isIdentity: false))
      } else {
        state.requesters[device.key]?[physical]?.uses += 1
      }
      return .pasid(physical)
    }
    let what = "virtual PASID \(key.virtual.rawValue) on \(holder)"
    switch outcome {
    case .pasid(let pasid): return pasid
    case .taken(let other):
      throw IOMMUError(
        .resourceBusy,
        "\(other) has the PASID of \(device.name) that the context's other devices share for "
          + "\(what); detach it from all of them first")
    case .tooWide:
      throw IOMMUError(
        .invalidArgument,
        "\(device.driver.name), the IOMMU of \(device.name), takes PASIDs of \(bits) bits, too "
          + "few for what the context's other devices share for \(what); attach \(holder) first"
      )
    case .exhausted: throw exhausted(device, bits, "of the machine", for: holder)
    }
  }

  /// Gives back one `allocateShared`.
  func freeShared(_ key: SharedKey, on device: PhysicalDevice) {
    state.withLock { state in
      guard let shared = state.shared[key] else { return }
      let uses = state.requesters[device.key]?[shared.physical]?.uses ?? 1
      if uses > 1 {
        state.requesters[device.key]?[shared.physical]?.uses = uses - 1
      } else {
        state.remove(shared.physical, device.key)
      }
      state.release(key)
    }
  }

  /// Keeps a global PASID from being given to anybody else, for a CPU's translation table.
  /// - Returns: False where no device has it.
  func hold(_ physical: PASID) -> Bool {
    state.withLock { state in
      guard let count = state.global[physical] else { return false }
      state.global[physical] = count + 1
      return true
    }
  }

  /// Undoes one `hold`.
  func letGo(_ physical: PASID) { state.withLock { $0.letGo(physical) } }

  // MARK: Numbers

  /// From `start` round to before it.
  private static func firstFree(
    from start: UInt32, bits: UInt8, where isFree: (PASID) -> Bool
  ) -> PASID? {
    let end: UInt32 = 1 << UInt32(min(bits, 20))
    let start = (1..<end).contains(start) ? start : 1
    for range in [start..<end, 1..<start] {
      for number in range where isFree(PASID(rawValue: number)) {
        return PASID(rawValue: number)
      }
    }
    return nil
  }

  private func check(_ pasid: PASID, on device: PhysicalDevice) throws(IOMMUError) {
    let bits = device.capabilities.pasidBits
    guard pasid.rawValue != 0, bits > 0, pasid.rawValue >> UInt32(bits) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.driver.name), the IOMMU of \(device.name), takes PASIDs of \(bits) bits from "
          + "1 up, not \(pasid.rawValue)")
    }
  }

  private func exhausted(
    _ device: PhysicalDevice, _ bits: UInt8, _ whose: String, for holder: String
  ) -> IOMMUError {
    IOMMUError(
      .noSpace,
      "all PASIDs \(whose) that \(device.driver.name) tells apart by \(bits) bits are taken; "
        + "none is left for \(holder): detach one, or take a slice away")
  }

  /// PASIDs that are taken of one requester's space, and of the global one: none once all is
  /// detached and all slices are gone.
  func counts(of device: PhysicalDevice) -> (requester: Int, global: Int) {
    state.withLock { ($0.requesters[device.key]?.count ?? 0, $0.global.count) }
  }
}

extension PASIDSpaces.State {
  fileprivate mutating func insert(
    _ pasid: PASID, _ device: ObjectIdentifier, _ entry: PASIDSpaces.Entry
  ) {
    requesters[device, default: [:]][pasid] = entry
    if !entry.isGlobal, !entry.isIdentity { allocated[pasid, default: 0] += 1 }
  }

  fileprivate mutating func remove(_ pasid: PASID, _ device: ObjectIdentifier) {
    guard let entry = requesters[device]?.removeValue(forKey: pasid) else { return }
    if requesters[device]?.isEmpty == true { requesters[device] = nil }
    guard !entry.isGlobal, !entry.isIdentity, let count = allocated[pasid] else { return }
    allocated[pasid] = count > 1 ? count - 1 : nil
  }

  fileprivate mutating func release(_ key: PASIDSpaces.SharedKey) {
    guard let shared = shared[key] else { return }
    if shared.uses > 1 {
      self.shared[key]?.uses = shared.uses - 1
    } else {
      self.shared[key] = nil
      letGo(shared.physical)
    }
  }

  fileprivate mutating func letGo(_ physical: PASID) {
    guard let count = global[physical] else { return }
    global[physical] = count > 1 ? count - 1 : nil
  }
}

extension PhysicalDevice {
  fileprivate var key: ObjectIdentifier { ObjectIdentifier(self) }
}
