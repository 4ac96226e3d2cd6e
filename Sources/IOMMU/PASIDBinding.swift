// SPDX-License-Identifier: Apache-2.0
//
// A device in the hands of a second context: its PASIDs and no more (MODEL C7).

/// A device of which this context may attach PASIDs, while another one holds the rest. Unbinds
/// when it goes out of scope. `Binding.share(with:cookie:)` makes it. Thread-safe.
public struct PASIDBinding: ~Copyable, Sendable {
  private let binding: Binding

  init(binding: consuming Binding) { self.binding = binding }

  public var context: Context { binding.context }
  /// Names the device in this context.
  public var id: ObjectID { binding.id }
  public var device: any BindableDevice { binding.device }
  /// This context's user's own name for it; nil where it gave none.
  public var cookie: UInt64? { binding.cookie }

  /// Attaches what the group's devices do under a PASID to a page table of this context.
  /// - Parameter pasid: Not 0, which stands for DMA without one.
  /// - Returns: The page table.
  /// - Throws: As `SecurityContext.attach(_:to:)`; `EPERM` for PASID 0; `EINVAL` where another
  ///   context has attached the PASID.
  @discardableResult
  public func attach(_ pasid: PASID, to target: ObjectID) throws(IOMMUError) -> ObjectID {
    try binding.group.attach(pasid, to: target)
  }

  /// Moves a PASID to another page table in one step. As `SecurityContext.replace(_:with:)`.
  @discardableResult
  public func replace(_ pasid: PASID, with target: ObjectID) throws(IOMMUError) -> ObjectID {
    try binding.group.replace(pasid, with: target)
  }

  /// Blocks DMA with a PASID that this context attached; nothing otherwise.
  public func detach(_ pasid: PASID) { binding.group.detach(pasid) }
}
