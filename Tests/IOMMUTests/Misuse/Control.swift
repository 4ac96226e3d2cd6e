// SPDX-License-Identifier: Apache-2.0
//
// What the other files of this directory get wrong, done right. Compiled by MisuseTests, which
// expects no error: so that theirs are not those of a broken set-up.

import IOMMU

func unbind(_ binding: consuming Binding) {}

func attach(_ device: PhysicalDevice, _ context: Context, _ other: Context) throws {
  let binding = try context.register(device, cookie: 1)
  let space = try context.allocateIOAS()
  try binding.group.attach(to: space)
  let table = try context.allocateHWPT(for: binding.id, from: space, attributes: .pasid)
  try binding.alone().attach(PASID(rawValue: 3), to: table)
  binding.group.detach(PASID(rawValue: 3))
  binding.group.detach()
  let shared = try binding.share(with: other)
  let foreign = try other.allocateHWPT(
    for: shared.id, from: other.allocateIOAS(), attributes: .pasid)
  try shared.attach(PASID(rawValue: 4), to: foreign)
  unbind(binding)
}

final class Keeper {
  var binding: Binding?

  func keep(_ binding: consuming Binding) { self.binding = consume binding }
}
