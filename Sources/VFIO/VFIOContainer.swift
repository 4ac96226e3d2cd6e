// SPDX-License-Identifier: Apache-2.0
//
// A container (/dev/vfio/vfio): groups that share one set of mappings (MODEL C6, J1). It is a
// context with one address space, made when the first group comes and gone with the last.
// Facts: Linux 6.12, drivers/vfio/container.c. The mappings are in Type1+….swift.

import IOMMU
import SystemPackage

/// Linux: `struct vfio_container`. Thread-safe. It lives as long as its file or a group in it.
public final class VFIOContainer: Sendable {
  private let system: IOMMUSystem

  struct State: Sendable {
    /// Nil while there is no group.
    var context: Context?
    var groups: [GroupAttachment] = []
    /// Nil until an IOMMU model is set.
    var type1: Type1?
  }

  /// Held over each call, mapping and pinning included: as Linux holds `vfio_iommu.lock`.
  let state = RankedMutex(.vfioContainer, State())

  public init(system: IOMMUSystem) { self.system = system }

  /// What `VFIO_SET_IOMMU` chooses from.
  public enum Model: UInt64, Sendable {
    /// Unmaps are not exact: one that begins with a mapping takes all of it, one that begins
    /// inside takes nothing.
    case type1 = 1
    /// Unmaps never split a mapping.
    case type1v2 = 3
  }

  // MARK: Groups

  /// Takes a group in: it is the container's, blocked, and attached once there is a model; what
  /// is mapped by then is there for it too.
  ///
  /// Linux: `vfio_container_attach_group`.
  /// - Throws: `EPERM` where the group is owned or not viable; `EINVAL` where something is mapped
  ///   that its devices must not reach; what filling a page table throws.
  func add(_ group: DeviceGroup) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let context = state.context ?? Context(system: system)
      do throws(IOMMUError) {
        let attachment = try GroupAttachment(group, context: context)
        if let type1 = state.type1 { try attachment.attach(to: type1.space.id) }
        state.groups.append(attachment)
      } catch {
        if state.context == nil { context.close() }
        throw error
      }
      state.context = context
    }
  }

  /// Lets a group go. The last one takes the model and all mappings along.
  ///
  /// Linux: `vfio_group_detach_container`.
  func remove(_ group: DeviceGroup) {
    state.withLock { state in
      state.groups.removeAll { $0.group === group }
      guard state.groups.isEmpty else { return }
      state.type1 = nil
      state.context?.close()
      state.context = nil
    }
  }

  /// Gives a function that no IOMMU routes an accessor to what is mapped here (MODEL D2, kind 3).
  ///
  /// Linux: what `vfio_pin_pages` and `vfio_dma_rw` find of a container.
  /// - Throws: `EINVAL` before a model is set; what making an accessor throws.
  func connect(_ function: PCIFunction) throws(IOMMUError) -> FunctionBinding {
    try state.withLock { (state) throws(IOMMUError) in
      let type1 = try Self.type1(of: state)
      let binding = try FunctionBinding(function, to: type1.context)
      _ = try binding.attach(nil, to: type1.space.id)
      return binding
    }
  }

  // MARK: The model

  /// Chooses how memory is mapped, and attaches the groups.
  ///
  /// Linux: `VFIO_SET_IOMMU`.
  /// - Parameter number: A `Model`.
  /// - Throws: `EINVAL` without a group, or where it was chosen; `ENODEV` for another number;
  ///   what attaching throws.
  public func setIOMMU(_ number: UInt64) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard let context = state.context else {
        throw IOMMUError(
          .invalidArgument,
          "the container has no group; VFIO_GROUP_SET_CONTAINER puts one into it first")
      }
      guard state.type1 == nil else {
        throw IOMMUError(
          .invalidArgument, "the container's IOMMU is set already, and stays until it is empty")
      }
      guard let model = Model(rawValue: number) else {
        throw IOMMUError(
          .noSuchDevice, "there is no IOMMU model \(number); type1 is 1, type1v2 is 3")
      }
      let id = try context.allocateIOAS()
      do throws(IOMMUError) {
        for group in state.groups { try group.attach(to: id) }
        state.type1 = Type1(
          context: context, space: try context.reference(to: id), model: model)
      } catch {
        for group in state.groups { group.detach() }
        // Nothing is attached to it any more.
        try? context.destroy(id)
        throw error
      }
    }
  }

  /// The model that was set.
  /// - Throws: `EINVAL` before it is.
  @discardableResult
  public func requireModel() throws(IOMMUError) -> Model {
    try state.withLock { (state) throws(IOMMUError) in try Self.type1(of: state).model }
  }

  static func type1(of state: borrowing State) throws(IOMMUError) -> Type1 {
    guard let type1 = state.type1 else {
      throw IOMMUError(
        .invalidArgument,
        "the container has no IOMMU; VFIO_SET_IOMMU sets it, with a group in it"
      )
    }
    return type1
  }

  /// Something that programs ask for. Linux: `VFIO_CHECK_EXTENSION`.
  public enum Extension: UInt64, Sendable {
    case type1 = 1
    case type1v2 = 3
    /// Whether DMA cannot bypass the CPU's caches: of the devices in the container, so not
    /// before a model is set.
    case coherentDMA = 4
    case unmapAll = 9
  }

  /// Whether the container has an extension. New addresses for mappings, nesting and no IOMMU at
  /// all are not offered.
  public func has(_ extension: Extension) -> Bool {
    switch `extension` {
    case .type1, .type1v2, .unmapAll: true
    case .coherentDMA:
      state.withLock { state in
        guard let type1 = state.type1 else { return false }
        return (try? type1.context.enforcesSnoop(in: type1.space.id)) ?? false
      }
    }
  }
}
