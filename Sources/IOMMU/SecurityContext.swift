// SPDX-License-Identifier: Apache-2.0
//
// What is attached and detached: not a device, but the security context that its group shares
// (MODEL C5). So a reader of a call sees who moves with it.

/// What the DMA of a group's devices may reach, in the hands of whoever bound one of them.
///
/// Of a group whose devices the IOMMU tells apart it is that of the device's sub-group (MODEL
/// D3). Thread-safe; it does nothing any more once the device is unbound (`EBADF`).
public struct SecurityContext: ~Copyable, Sendable {
  let context: Context
  let object: DeviceObject

  init(context: Context, object: DeviceObject) {
    self.context = context
    self.object = object
  }

  /// All that go where an attach sends them, bound or not.
  public var devices: [any BindableDevice] { object.group.companions(of: object.endpoint) }

  /// Attaches the group, or replaces what it is attached to in one step: a DMA on another
  /// thread sees the old table or the new one, nothing else (MODEL D1).
  ///
  /// - Parameters:
  ///   - target: A page table, or an address space, for which a table is found or made.
  ///   - hint: What is promised of the group's DMA (MODEL F2).
  /// - Returns: The page table.
  /// - Throws: See `Context`; nothing has changed then. A neighbour of the group in another
  ///   space is `EINVAL`, and the sentence names it (MODEL D3).
  @discardableResult
  public func attach(
    to target: ObjectID, snoop hint: SnoopHint = .none
  ) throws(IOMMUError) -> ObjectID {
    try context.attach(object, to: target, snoop: hint)
  }

  /// Blocks the device's DMA. Nothing where it is not attached.
  public func detach() { context.detach(object) }

  // MARK: DMA with a PASID; PASID 0 stands for DMA without one

  /// Attaches what the device does under a PASID to a page table of its own (MODEL D1).
  ///
  /// Linux: `iommufd_device_attach`. The table, and the one that the device uses without a
  /// PASID, must have been made for it (`PagingAttributes.pasid`).
  /// - Parameter target: A page table.
  /// - Returns: The page table.
  /// - Throws: `EBUSY` where the PASID is attached already, `EINVAL` where the table or the
  ///   PASID does not fit, and as `attach(to:)`.
  @discardableResult
  public func attach(
    _ pasid: PASID, to target: ObjectID, snoop hint: SnoopHint = .none
  ) throws(IOMMUError) -> ObjectID {
    try context.attach(
      object, pasid: pasid.nonzero, to: target, mode: .attach, snoop: hint)
  }

  /// Moves a PASID to another page table in one step.
  ///
  /// Linux: `iommufd_device_replace`.
  /// - Returns: The page table.
  /// - Throws: `EINVAL` where the PASID is not attached; as `attach(_:to:)`.
  @discardableResult
  public func replace(_ pasid: PASID, with target: ObjectID) throws(IOMMUError) -> ObjectID {
    try context.attach(object, pasid: pasid.nonzero, to: target, mode: .replace)
  }

  /// Attaches a PASID or moves it to another page table in one step, as `attach(to:)` does
  /// for DMA without one.
  /// - Returns: The page table.
  /// - Throws: As `attach(_:to:)`, but for `EBUSY`.
  @discardableResult
  public func attachOrReplace(
    _ pasid: PASID, to target: ObjectID
  ) throws(IOMMUError) -> ObjectID {
    try context.attach(object, pasid: pasid.nonzero, to: target)
  }

  /// Blocks DMA with a PASID. Nothing where it is not attached.
  public func detach(_ pasid: PASID) { context.detach(object, pasid: pasid.nonzero) }
}
