// SPDX-License-Identifier: Apache-2.0
//
// The README's example, compiled. All below this comment is the README's block, to the letter.

import IOMMU
import SoftwareIOMMU

func example() throws {
  // A machine: physical space, one IOMMU, one device alone in its group.
  let system = IOMMUSystem()
  let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
  let device = try system.addDevice(
    name: "0000:e0:04.0", requester: RequesterID(bus: 0xe0, device: 4, function: 0),
    driver: iommu, group: system.addGroup(0))

  // Binding takes the device's group from the host: from here its DMA is blocked.
  let context = Context(system: system)
  let binding = try context.register(device)
  let space = try context.makeAddressSpace()
  try binding.group.attach(to: space)

  // Memory of this process, mapped without a copy. The device may read it, not write it.
  let memory = try LocalMemory(byteCount: 4096)
  memory[0] = 42
  let address = try space.map(memory, permissions: .read)

  // What the device does: DMA on its port, through the page table.
  let port = iommu.port(for: device.requester)
  let value: UInt8 = try port.load(address)
  precondition(value == 42)
  do {
    try port.store(UInt8(7), at: address)
    preconditionFailure("a read-only page was written")
  } catch {
    print("refused: \(error)")
  }
  // Leaving the scope unbinds the device and destroys the space, in the right order.
}
