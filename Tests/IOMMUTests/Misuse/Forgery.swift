// SPDX-License-Identifier: Apache-2.0
//
// MODEL A2, A3, C1: only the engine makes what grants access. Compiled by MisuseTests, which
// expects each error that a comment names in the line below it, and no other.

import IOMMU

func forged(_ context: Context, _ device: PhysicalDevice, _ other: borrowing Binding) throws {
  // Copies in a collection would be bindings that nobody unbinds.
  // error: type 'Binding' does not conform to protocol 'Copyable'
  let all: [Binding] = []
  _ = all
  // A slice comes from the machine, which gives its PASID to nobody else.
  // error: 'MediatedDevice' initializer is inaccessible due to 'internal' protection level
  _ = MediatedDevice(
    name: "slice", parent: device, defaultPASID: PASID(rawValue: 1), kind: .mediated,
    group: device.group)
  // What a device may use as a PASID is not set from outside.
  // error: 'assign' is inaccessible due to 'internal' protection level
  try device.pasids.assign(
    PASID(rawValue: 1), on: device, owner: ObjectIdentifier(context))
  // A group is not owned by saying so.
  // error: 'claim' is inaccessible due to 'internal' protection level
  try device.group.claim(for: ObjectIdentifier(context), device: device)
  // The record of a bound device, as the engine has it.
  // error: 'object' is inaccessible due to 'internal' protection level
  _ = other.object
}
