// SPDX-License-Identifier: Apache-2.0
//
// What the first proposal's calls give a child ioasid: a page table (BIND_PGTABLE), and a way for
// its page requests (MODEL H1, H3, K1).

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDBindTests {
  let rig: IOASIDRig
  let iommu: UserTableIOMMU
  let parent: Int32

  init() throws {
    (rig, iommu) = try IOASIDRig.notingTables()
    parent = rig.alloc()
  }

  private var objects: Int { (rig.file as? any ContextFile)?.context.objectCount ?? -1 }

  // MARK: BIND_PGTABLE

  @Test("K1: BIND_PGTABLE moves what is attached to a child to the user's table, UNBIND back")
  func binding() throws {
    rig.caller.put(UInt32(0x55), at: 0x8000)
    #expect(rig.map(parent, 0x1000, to: 0x8000) == 0)
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.attach(child) == 0 && rig.attach(child, pasid: 2) == 0)
    #expect(rig.word(0x1000) == nil, "nothing is mapped in the child")
    #expect(rig.bindTable(child, root: 0x6000) == 0)
    #expect(iommu.table()?.table.root == 0x6000)
    #expect(iommu.table(PASID(rawValue: 2)) === iommu.table(), "both, one table")
    #expect(rig.map(child, 0x1000, to: 0x1000) == -EPERM)
    #expect(rig.bindTable(child) == -EEXIST)
    #expect(rig.alloc(IOASID_ALLOC_PARENT, parent: child) == -EINVAL)
    #expect(rig.free(child) == -EBUSY)
    #expect(rig.unbindTable(child) == 0)
    #expect(iommu.table() == nil && iommu.table(PASID(rawValue: 2)) == nil)
    #expect(rig.map(child, 0x5000, to: 0x1000) == 0)
    #expect(rig.word(0x5000) == 0x55, "the child is the kernel's again")
    #expect(rig.unbindTable(child) == -EINVAL)
    #expect(rig.detach(child, pasid: 2) == 0 && rig.detach(child) == 0)
    #expect(rig.free(child) == 0 && rig.free(parent) == 0)
  }

  @Test("K1: a table that is bound first is there for what is attached later")
  func bindFirst() {
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.bindTable(child) == 0 && iommu.tables.isEmpty)
    #expect(rig.attach(child) == 0 && iommu.table() != nil)
    #expect(rig.detach(child) == 0 && rig.free(child) == 0, "the table goes with the child")
    #expect(objects == 2, "the parent and the device")
  }

  @Test("K1: what BIND_PGTABLE and UNBIND_PGTABLE refuse")
  func badBindings() throws {
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.bindTable(99) == -ENOENT && rig.unbindTable(99) == -ENOENT)
    #expect(rig.bindTable(parent) == -EINVAL, "it has no parent")
    #expect(rig.bindTable(child, width: 47) == -EINVAL)
    #expect(rig.bindTable(child, root: 8) == -EINVAL)
    #expect(rig.bindTable(child, .amdGuest) == -EOPNOTSUPP)
    #expect(rig.unbindTable(child) == -EINVAL, "nothing is bound")
    #expect(rig.map(parent, 0x1000, to: 0x8000) == 0 && rig.map(child, 0, to: 0x1000) == 0)
    #expect(rig.bindTable(child) == -EBUSY, "something is mapped")
    #expect(rig.unmap(child, 0) == 0)
    let grandchild = rig.alloc(IOASID_ALLOC_PARENT, parent: child)
    #expect(rig.bindTable(child) == -EBUSY, "something is nested")
    #expect(rig.bindTable(grandchild) == 0, "on a child that is the kernel's")
    #expect(rig.bindTable(child) == -EBUSY, "a user's table is nested")
    let own = rig.allocTable(parent: parent)
    #expect(rig.bindTable(own) == -EEXIST)
    #expect(rig.unbindTable(own) == -EINVAL, "it was made with its table")
    #expect(rig.unbindTable(grandchild, addr: 1) == -EINVAL)
    var cmd = ioasid_bind_pgtable()
    cmd.argsz = 31
    #expect(rig.caller.ioctl(rig.file, IOASID_BIND_PGTABLE, &cmd) == -EINVAL)
    #expect(rig.caller.ioctl(rig.file, IOASID_UNBIND_PGTABLE, at: 1 << 60) == -EFAULT)
  }

  @Test("K1: a table that one attached device cannot take is bound to none of them")
  func bindingMisfit() throws {
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.attach(child) == 0 && rig.attach(child, pasid: 3) == 0)
    let before = objects
    #expect(rig.bindTable(child, .amdGuestCR3, width: 9) == -EINVAL, "PASID 3 is attached")
    #expect(iommu.table() == nil && iommu.paging() != nil && objects == before)
    #expect(rig.map(child, 0x1000, to: 0x1000) == 0, "and it is open")
  }

  // MARK: Page requests

  private func request(
    _ address: UInt64, group: UInt32 = 1, pasid: UInt32? = nil, isLast: Bool = true
  ) -> PageRequest {
    PageRequest(
      pasid: pasid.map { PASID(rawValue: $0) }, group: group, access: [.read, .write],
      address: IOVA(address), isLast: isLast)
  }

  private func queue(_ descriptor: Int32) throws -> any EventFile {
    try #require(try rig.caller.openFile(descriptor: descriptor) as? any EventFile)
  }

  @Test("H1: page requests of an ioasid are read with its number and the device's cookie")
  func pageFaults() throws {
    let child = rig.allocTable(parent: parent)
    let file = try queue(rig.faultDescriptor(child))
    #expect(rig.attach(child, pasid: 7) == 0)
    #expect(file.pollEvents == [])
    let first = request(0xABC_D000, group: 9, pasid: 7, isLast: false)
    #expect(iommu.report(first) == nil && file.pollEvents == [])
    #expect(iommu.report(request(0xABC_E000, group: 9, pasid: 7)) == nil)
    #expect(file.pollEvents == .readable, "never writable")
    let bytes = try file.read(count: 56 * 4)
    #expect(bytes.count == 112)
    let records = bytes.withUnsafeBytes { Array($0.bindMemory(to: ioasid_page_fault.self)) }
    for (index, record) in records.enumerated() {
      #expect(
        record.fault.flags
          == IOMMU_PGFAULT_FLAGS_PASID_VALID
          | (index == 1 ? IOMMU_PGFAULT_FLAGS_LAST_PAGE : 0))
      #expect(record.fault.pasid == 7 && record.fault.grpid == 9 && record.fault.perm == 3)
      #expect(record.fault.addr == 0xABC_D000 + UInt64(index) * 4096)
      #expect(record.fault.dev_id == 0 && record.fault.cookie == 1)
      #expect(record.dev_cookie == IOASIDRig.cookie && record.ioasid == UInt32(child))
    }
    #expect(rig.respond(child, 1) == 0)
    #expect(
      iommu.responses == [PageResponse(pasid: PASID(rawValue: 7), group: 9, code: .success)])
    #expect(rig.respond(child, 1) == -EINVAL, "answered already")
    #expect(iommu.report(request(0x1000, pasid: 7)) == nil)
    _ = try file.read(count: 56)
    #expect(rig.respond(child, 1, code: 1) == 0 && iommu.responses.last?.code == .invalid)
  }

  @Test("H1: a space that calls map has page requests too, of tables of its own")
  func mappedSpace() throws {
    let other = rig.allocTable(parent: parent)
    let file = try queue(rig.faultDescriptor(parent))
    #expect(rig.attach(other, pasid: 1) == 0)
    #expect(iommu.parents == 1)
    let refused = rig.attach(parent)
    // The software IOMMU behind may or may not have page requests: the table is another one.
    #expect(refused == 0 && iommu.paging() != nil)
    let below = try #require(iommu.table(PASID(rawValue: 1))).parent
    #expect(iommu.paging().map { ObjectIdentifier($0) } != ObjectIdentifier(below))
    #expect(iommu.report(request(0x9000)) == nil)
    #expect(try file.read(count: 56).count == 56)
    #expect(rig.respond(parent, 1) == 0)
  }

  @Test("H1: what PAGE_FAULT_FD, PAGE_RESPONSE and the descriptor refuse")
  func badFaultCalls() throws {
    let child = rig.allocTable(parent: parent)
    #expect(rig.faultDescriptor(99) == -ENOENT && rig.respond(99, 1) == -ENOENT)
    #expect(rig.respond(child, 1) == -ENOENT, "it has no descriptor")
    #expect(rig.attach(child) == 0)
    #expect(rig.faultDescriptor(child) == -EBUSY, "said before the attach")
    #expect(rig.detach(child) == 0)
    let descriptor = rig.faultDescriptor(child)
    let file = try queue(descriptor)
    #expect(rig.faultDescriptor(child) == -EBUSY, "one is open")
    #expect(rig.respond(child, 1) == -EINVAL, "nothing was read")
    #expect(rig.respond(child, 1, code: 2) == -EINVAL)
    #expect(throws: IOMMUError.self) { _ = try file.read(count: 57) }
    #expect(try file.read(count: 56).isEmpty)
    let refusal = #expect(throws: IOMMUError.self) {
      _ = try file.write([1, 0, 0, 0, 0, 0, 0, 0])
    }
    #expect(refusal?.errno == .invalidArgument)
    var cmd = ioasid_page_fault_fd()
    cmd.argsz = 15
    #expect(rig.caller.ioctl(rig.file, IOASID_PAGE_FAULT_FD, &cmd) == -EINVAL)
    var response = ioasid_page_response()
    response.argsz = 19
    #expect(rig.caller.ioctl(rig.file, IOASID_PAGE_RESPONSE, &response) == -EINVAL)
  }

  @Test("H3: detach, close of the descriptor and free each end what waits, and leave nothing")
  func ends() throws {
    let before = objects
    let child = rig.allocTable(parent: parent)
    var file = try queue(rig.faultDescriptor(child))
    #expect(rig.attach(child) == 0)
    #expect(iommu.report(request(0x1000)) == nil && rig.detach(child) == 0)
    #expect(iommu.responses.map(\.code) == [.invalid])
    #expect(rig.attach(child) == 0)
    #expect(iommu.report(request(0x2000)) == nil)
    file.close()
    #expect(iommu.responses.count == 2, "nobody can answer any more")
    #expect(iommu.report(request(0x3000)) == .invalid)
    #expect(rig.detach(child) == 0)
    #expect(objects == before + 1, "the queue went with its last table")
    file = try queue(rig.faultDescriptor(child))
    #expect(rig.free(child) == 0)
    #expect(objects == before + 1, "the queue's descriptor is open")
    file.close()
    #expect(objects == before)
    let bound = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    file = try queue(rig.faultDescriptor(bound))
    #expect(rig.attach(bound) == 0 && rig.bindTable(bound) == 0)
    #expect(iommu.report(request(0x1000)) == nil)
    #expect(rig.unbindTable(bound) == 0)
    #expect(iommu.responses.count == 3, "the table that it came through is left")
    #expect(iommu.report(request(0x2000)) == nil)
    #expect(try file.read(count: 112).count == 56)
    #expect(rig.detach(bound) == 0 && rig.respond(bound, 1) == -EINVAL)
    rig.file.close()
    file.close()
  }
}
