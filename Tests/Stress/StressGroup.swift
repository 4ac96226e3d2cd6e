// SPDX-License-Identifier: Apache-2.0
//
// Devices that share a security context, and what it must be: the model that DMA is held
// against.

import IOMMU
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// A binding that many threads use. Unbinds with its last reference.
final class StressBinding: Sendable {
  private let binding: Binding
  let id: ObjectID

  init(_ binding: consuming Binding) {
    id = binding.id
    self.binding = binding
  }

  func attach(_ pasid: PASID?, to target: ObjectID) throws(IOMMUError) -> ObjectID {
    if let pasid { return try binding.group.attachOrReplace(pasid, to: target) }
    return try binding.group.attach(to: target)
  }

  func detach(_ pasid: PASID?) {
    if let pasid { binding.group.detach(pasid) } else { binding.group.detach() }
  }
}

/// A port and the number that its writes carry.
struct StressPort: Sendable {
  let lane: Int
  let port: DMAPort
}

/// A group, or one PASID of a group.
final class StressGroup: Sendable {
  let name: String
  let pasid: PASID?
  let bindings: [StressBinding]
  let ports: [StressPort]
  /// Whether it may be attached to an IOAS, whose automatic tables allow no PASIDs.
  let takesAutomatic: Bool

  struct Model: Sendable {
    /// Members that have attached, by index.
    var attached: Set<Int> = []
    /// The index of the space that they are on.
    var space: Int?
    var isAutomatic = false
  }

  /// Held through a change, so that the model and the engine agree.
  let model = Guarded(Model())
  /// What DMA may see: counts up with each change, odd while one is under way. The low byte is
  /// the space plus 1, 0 for blocked.
  private let phase = Atomic<UInt64>(0)

  init(
    name: String, pasid: PASID?, bindings: [StressBinding], ports: [StressPort],
    takesAutomatic: Bool
  ) {
    self.name = name
    self.pasid = pasid
    self.bindings = bindings
    self.ports = ports
    self.takesAutomatic = takesAutomatic
  }

  /// What a DMA can rely on; nil while the group is moving.
  struct Phase: Equatable {
    fileprivate let value: UInt64
    var space: Int? { value & 0xff == 0 ? nil : Int(value & 0xff) - 1 }
  }

  var stablePhase: Phase? {
    let value = phase.load(ordering: .sequentiallyConsistent)
    return value >> 8 & 1 == 0 ? Phase(value: value) : nil
  }

  func beginChange() { phase.add(1 << 8, ordering: .sequentiallyConsistent) }

  /// Ends a change. Called under the model's lock.
  func endChange(space: Int?) {
    let value = phase.load(ordering: .sequentiallyConsistent)
    phase.store(
      (value >> 8 + 1) << 8 | UInt64(space.map { $0 + 1 } ?? 0),
      ordering: .sequentiallyConsistent)
  }
}
