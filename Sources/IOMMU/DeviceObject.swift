// SPDX-License-Identifier: Apache-2.0
//
// The record of a bound device in its context (Linux: `iommufd_device`; the proposal's
// `struct iommu_dev`).

/// A device that is bound to a context. MODEL C1: whose context, the *physical* device, the
/// default PASID of a slice, and the cookie.
final class DeviceObject: Sendable {
  let id: ObjectID
  /// The context, as owner of groups.
  let owner: ObjectIdentifier
  /// What was bound: a device or a slice of one.
  let endpoint: any BindableDevice
  /// The user's own name for it, unique in its context; nil where it gave none.
  let cookie: UInt64?
  /// Another context holds what the device does without a PASID (MODEL C7).
  let hasPASIDsOnly: Bool

  init(
    id: ObjectID, owner: ObjectIdentifier, endpoint: any BindableDevice, cookie: UInt64?,
    hasPASIDsOnly: Bool = false
  ) {
    self.id = id
    self.owner = owner
    self.endpoint = endpoint
    self.cookie = cookie
    self.hasPASIDsOnly = hasPASIDsOnly
  }

  /// Always the physical device: the parent of a slice.
  var device: PhysicalDevice { endpoint.physical }
  var name: String { endpoint.name }
  var group: DeviceGroup { endpoint.group }
  /// Tells slices of one parent apart.
  var endpointID: ObjectIdentifier { ObjectIdentifier(endpoint) }
}
