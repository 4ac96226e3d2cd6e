// SPDX-License-Identifier: Apache-2.0
//
// The library face: owners instead of ids (MODEL A1, B1, C1).

import IOMMU
import PageTables
import SystemPackage
import Testing

@Suite struct IOASTests {
  let machine = TestMachine()

  @Test("A1: an address space goes with its owner, and a context with its last reference")
  func lifetimes() throws {
    let system = machine.system
    do {
      let context = Context(system: system)
      do {
        let space = try context.makeAddressSpace()
        try space.map(LocalMemory(byteCount: 8192))
        #expect(context.objectCount == 1)
      }
      #expect(context.objectCount == 0)
      #expect(system.contextCount == 1)
      let space = try context.makeAddressSpace()
      let binding = try context.register(machine.device(1))
      try binding.group.attach(to: space)
      try space.map(LocalMemory(byteCount: 8192))
      #expect(system.memory.usedSlots == 1)
    }
    #expect(system.contextCount == 0)
    #expect(system.memory.usedSlots == 0)
  }

  @Test("A1: a device is not attached to another context's space")
  func otherContext() throws {
    let one = Context(system: machine.system)
    let other = Context(system: machine.system)
    let foreign = try other.makeAddressSpace()
    let binding = try one.register(machine.device(2))
    do {
      try binding.group.attach(to: foreign)
      Issue.record("attached across contexts")
    } catch {
      #expect(error.errno == .noSuchFileOrDirectory)
    }
  }

  @Test("B1: unmap by owner checks the range before it forms it")
  func unmapRange() throws {
    let context = Context(system: machine.system)
    let space = try context.makeAddressSpace()
    let iova = try space.map(LocalMemory(byteCount: 8192))
    do {
      try space.unmap(IOVA(.max), length: 2)
      Issue.record("wrapped")
    } catch { #expect(error.errno == .overflow) }
    do {
      try space.unmap(iova, length: 0)
      Issue.record("unmapped nothing")
    } catch { #expect(error.errno == .invalidArgument) }
    #expect(try space.unmap(iova, length: 8192) == 8192)
  }
}
