// SPDX-License-Identifier: Apache-2.0
//
// A bound device as its user holds it: there is exactly one, and unbinding is its end. What can
// be attached is its group (SecurityContext), or PASIDs alone (PASIDBinding).

/// A device bound to a context (MODEL C1). Unbinds when it goes out of scope: the device is
/// detached, and the last binding in a group gives the group back to the host.
///
/// Thread-safe.
public struct Binding: ~Copyable, Sendable {
  public let context: Context
  let object: DeviceObject
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
  /// What was bound: a device, or a slice of one.
  public var device: any BindableDevice { object.endpoint }
  /// The user's own name for it; nil where it gave none.
  public var cookie: UInt64? { object.cookie }

  /// What the DMA of the device's group may reach: the thing that is attached (MODEL C5). The
  /// other devices of the group go where this one goes.
  public var group: SecurityContext { SecurityContext(context: context, object: object) }

  /// The same, of a device that shares its group with none.
  /// - Throws: `EINVAL` where it has neighbours, whom the sentence names.
  public func alone() throws(IOMMUError) -> SecurityContext {
    let group = group
    let neighbours = group.devices.filter { $0 !== device }
    guard neighbours.isEmpty else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.name) shares IOMMU group \(device.group.id) with "
          + neighbours.map(\.name).joined(separator: ", ")
          + "; attach its group, which moves all of them")
    }
    return group
  }

  /// Lets another context attach page tables to PASIDs of the device: who has this binding and
  /// that context may connect the two (MODEL A2, C7). What the device does without a PASID stays
  /// this context's.
  /// - Throws: `EINVAL` where it has no PASIDs (MODEL E2: kinds 1 to 3); as `Context.register`.
  public func share(
    with other: Context, cookie: UInt64? = nil
  ) throws(IOMMUError) -> PASIDBinding {
    try PASIDBinding(
      binding: Binding(
        context: other, object: other.share(checkedForSharing(), cookie: cookie),
        keepsContext: true))
  }

  private func checkedForSharing() throws(IOMMUError) -> DeviceObject {
    guard object.endpoint.kind.hasVirtualPASIDs else {
      throw IOMMUError(
        .invalidArgument, "\(device.name) has no PASIDs that another context could have")
    }
    return object
  }
}
