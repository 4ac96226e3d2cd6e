// SPDX-License-Identifier: Apache-2.0
//
// A bound device as its user holds it: there is exactly one, and unbinding is its end.

/// A device bound to a context (MODEL C1). Unbinds when it goes out of scope: the device is
/// detached, and the last binding in a group gives the group back to the host.
///
/// Thread-safe.
public struct Binding: ~Copyable, Sendable {
  public let context: Context
  private let object: DeviceObject
  private let keepsContext: Bool

  init(context: Context, object: DeviceObject, keepsContext: Bool) throws(IOMMUError) {
    if keepsContext {
      do throws(IOMMUError) {
        try context.addHolder()
      } catch {
        context.unbind(object, keepsContext: false)
        throw error
      }
    }
    self.context = context
    self.object = object
    self.keepsContext = keepsContext
  }

  deinit { context.unbind(object, keepsContext: keepsContext) }

  /// Names the device in its context. Linux: `dev_id`.
  public var id: ObjectID { object.id }
  public var device: PhysicalDevice { object.device }
  public var cookie: UInt64 { object.cookie }

  /// Attaches the device, or replaces what it is attached to in one step: a DMA on another
  /// thread sees the old table or the new one, nothing else (MODEL D1).
  ///
  /// - Parameter target: A page table, or an address space, for which a table is found or made.
  /// - Returns: The page table.
  /// - Throws: See `Context`; nothing has changed then. A neighbour of the group in another
  ///   space is `EINVAL`, and the sentence names it (MODEL D3).
  @discardableResult
  public func attach(to target: ObjectID) throws(IOMMUError) -> ObjectID {
    try context.attach(object, to: target)
  }

  /// Blocks the device's DMA. Nothing where it is not attached.
  public func detach() { context.detach(object) }
}
