// SPDX-License-Identifier: Apache-2.0
//
// A whole group in the hands of a container: all of its devices are bound to the container's
// context, whether a user can open them or not, and move together (MODEL C2, C6).

import IOMMU
import SystemPackage

/// The devices of a group, bound. They are blocked from the start, and back with the host when
/// this goes. Linux: the DMA owner of a group, and type1's `vfio_iommu_group`. Thread-safe.
final class GroupAttachment: Sendable {
  let group: DeviceGroup
  private let bindings: [BoundDevice]

  /// A binding that an array can hold.
  private final class BoundDevice: Sendable {
    let binding: Binding
    init(_ binding: consuming Binding) { self.binding = binding }
  }

  /// Linux: `iommu_group_claim_dma_owner`.
  /// - Throws: `EPERM` where somebody owns the group or it is not viable; the sentence says who.
  init(_ group: DeviceGroup, context: Context) throws(IOMMUError) {
    self.group = group
    var bindings: [BoundDevice] = []
    for device in group.devices {
      bindings.append(BoundDevice(try context.register(device)))
    }
    self.bindings = bindings
  }

  /// Sends the group's DMA through an address space; where that fails it stays blocked.
  ///
  /// What is mapped already is entered into a page table that the devices can use.
  /// - Throws: `EINVAL` where something is mapped that the devices must not reach, as type1 says
  ///   it; what filling a page table throws.
  func attach(to space: ObjectID) throws(IOMMUError) {
    do throws(IOMMUError) {
      // Each of them once: also of what the neighbours reserve the space keeps clear.
      for bound in bindings { try bound.binding.group.attach(to: space) }
    } catch {
      detach()
      guard error.errno == .addressInUse else { throw error }
      throw IOMMUError(
        .invalidArgument, "group \(group.id) cannot join the container: \(error.reason)")
    }
  }

  /// Back to blocked.
  func detach() {
    for bound in bindings { bound.binding.group.detach() }
  }
}
