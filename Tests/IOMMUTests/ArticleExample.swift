// SPDX-License-Identifier: Apache-2.0
//
// The code of docs/device-and-group.md, compiled and run by ArticleTests. Each block of the
// article is in this file to the letter.

import IOMMU
import SystemPackage

/// One user, and a card with two functions that cannot be isolated from each other.
func attachPair(_ nic: PhysicalDevice, _ dma: PhysicalDevice, _ context: Context) throws {
  let binding = try context.register(nic)  // nic and dma: blocked
  let space = try context.makeAddressSpace()
  try binding.group.attach(to: space)  // nic and dma: in space
  let second = try context.register(dma)  // no change: the context owns the group
  try second.group.attach(to: space)  // no change: it is there already
  binding.group.detach()  // no change: dma is still attached
}  // both unbound: the host's again

/// A user who has only ever seen devices that are alone.
func attachAlone(_ device: PhysicalDevice, _ context: Context) throws {
  let binding = try context.register(device)
  let space = try context.makeAddressSpace()
  try binding.alone().attach(to: space)
}

/// Who moves, for a user who wants to look first.
func whoMoves(_ binding: borrowing Binding) -> [String] {
  binding.group.devices.map(\.name)
}

/// A slice: its own group, though its parent does the DMA.
func attachSlice(_ slice: MediatedDevice, _ context: Context) throws {
  let binding = try context.register(slice)  // the slice's PASID: blocked
  let space = try context.makeAddressSpace()
  try binding.alone().attach(to: space)  // the slice's PASID: in space
}
