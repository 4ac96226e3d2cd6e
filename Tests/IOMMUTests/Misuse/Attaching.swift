// SPDX-License-Identifier: Apache-2.0
//
// MODEL C5, C7: what is not a security context is not attached. Compiled by MisuseTests, which
// expects each error that a comment names in the line below it, and no other.

import IOMMU
import SystemPackage

// A device is not attached: its neighbours would move unseen.
func deviceAlone(_ binding: borrowing Binding, _ space: ObjectID) throws {
  // error: value of type 'Binding' has no member 'attach'
  try binding.attach(to: space)
  // error: value of type 'Binding' has no member 'detach'
  binding.detach()
}

// Nor is a device, or a group, that nobody has bound.
func unbound(_ device: PhysicalDevice, _ slice: MediatedDevice, _ space: ObjectID) throws {
  // error: value of type 'PhysicalDevice' has no member 'attach'
  try device.attach(to: space)
  // error: value of type 'MediatedDevice' has no member 'attach'
  try slice.attach(to: space)
  // error: value of type 'DeviceGroup' has no member 'attach'
  try device.group.attach(to: space)
}

// Who holds PASIDs of a shared device does not decide what it does without one.
func shared(_ shared: borrowing PASIDBinding, _ table: ObjectID) throws {
  // error: missing argument for parameter #1 in call
  try shared.attach(to: table)
  // error: missing argument for parameter #1 in call
  shared.detach()
  // error: value of type 'PASIDBinding' has no member 'group'
  try shared.group.attach(to: table)
  // error: value of type 'PASIDBinding' has no member 'alone'
  _ = try shared.alone()
}

// That the device has no neighbours is a claim that can be wrong.
func unchecked(_ binding: borrowing Binding, _ space: ObjectID) {
  // error: call can throw, but it is not marked with 'try' and the error is not handled
  _ = binding.alone()
}

// A PASID, an address and an object are not one another's numbers.
func numbers(_ group: borrowing SecurityContext, _ pasid: PASID, _ table: ObjectID) throws {
  // error: cannot convert value of type 'PASID' to expected argument type 'ObjectID'
  try group.attach(pasid, to: pasid)
  // error: cannot convert value of type 'Int' to expected argument type 'PASID'
  try group.attach(3, to: table)
}
