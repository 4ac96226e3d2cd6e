// SPDX-License-Identifier: Apache-2.0
//
// Page requests of a device on a page table that a user of /dev/ioasid owns (MODEL H1, K1): the
// proposal's guest SVA, from the miss to the answer.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite(.serialized) struct IOASIDPageFaultTests {
  static let iova: UInt64 = 0x7F12_3456_7000

  let guest: IOASIDGuest
  let rig: IOASIDRig
  let parent: Int32

  init() throws {
    let requester = RequesterID(bus: 0xE0, device: 4, function: 0)
    guest = try IOASIDGuest(
      EngineRig(iommu: .init(pasidBits: 8, pageRequests: true)) {
        $0.setFeatures(.init(pageRequests: true), of: requester)
        return $0
      })
    (rig, parent) = (guest.rig, guest.parent)
    // Three levels of Intel's first stage; the leaf is not there.
    for level in 0..<3 as Range<UInt64> {
      let index = Self.iova >> (39 - 9 * level) & 511
      guest.put(guest.page(level + 2) | 7, at: guest.page(level + 1) + index * 8)
    }
  }

  private func mapLeaf(to target: UInt64) {
    guest.put(target | 7, at: guest.page(4) + (Self.iova >> 12 & 511) * 8)
  }

  /// A device's read, which waits for its page; nil where it is ended.
  private func load(pasid: UInt32?) -> Task<UInt32?, Never> {
    let port = rig.engine.iommu.port(
      for: rig.engine.requester, pasid: pasid.map { PASID(rawValue: $0) })
    port.waits = DeviceWait()
    return Task { await Self.load(through: port) }
  }

  private static func load(through port: DMAPort) async -> UInt32? {
    await withCheckedContinuation { done in
      Thread.detachNewThread {
        var value: UInt32 = 0
        do {
          try withUnsafeMutableBytes(of: &value) { try port.read(IOVA(iova), into: $0) }
          done.resume(returning: value)
        } catch {
          done.resume(returning: nil)
        }
      }
    }
  }

  private func next(_ file: any EventFile) async throws -> ioasid_page_fault {
    while true {
      let bytes = try file.read(count: 56)
      if bytes.count == 56 {
        return bytes.withUnsafeBytes { $0.loadUnaligned(as: ioasid_page_fault.self) }
      }
      try await Task.sleep(for: .milliseconds(1))
    }
  }

  @Test(
    "H1: a device asks the user for a page of its own table, is answered, and goes on",
    arguments: [nil, 5] as [UInt32?])
  func faultIn(pasid: UInt32?) async throws {
    guest.put(0xFA17, at: guest.page(8))
    let child = rig.allocTable(parent: parent, root: guest.page(1))
    let file = try #require(
      try rig.caller.openFile(descriptor: rig.faultDescriptor(child)) as? any EventFile)
    #expect(rig.attach(child, pasid: pasid) == 0)
    let first = load(pasid: pasid)
    let fault = try await next(file)
    #expect(fault.fault.addr & ~0xFFF == Self.iova && fault.ioasid == UInt32(child))
    #expect(fault.dev_cookie == IOASIDRig.cookie)
    #expect(fault.fault.flags & IOMMU_PGFAULT_FLAGS_LAST_PAGE != 0)
    #expect(fault.fault.pasid == pasid ?? 0)
    mapLeaf(to: guest.page(8))
    #expect(rig.respond(child, fault.fault.cookie) == 0)
    #expect(await first.value == 0xFA17)
    // What the user takes away again and will not bring back.
    guest.put(0, at: guest.page(4) + (Self.iova >> 12 & 511) * 8)
    #expect(
      rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, address: Self.iova, size: 4096) == 0)
    #expect(
      rig.invalidate(child, IOASID_INVALIDATE_DEVICE, 3, cookie: IOASIDRig.cookie) == 0)
    let second = load(pasid: pasid)
    let again = try await next(file)
    #expect(rig.respond(child, again.fault.cookie, code: 1) == 0)
    #expect(await second.value == nil)
    // A detach ends what nobody answers.
    let third = load(pasid: pasid)
    _ = try await next(file)
    #expect(rig.detach(child, pasid: pasid) == 0)
    #expect(await third.value == nil)
  }

  @Test(
    "H1: a device that makes no page requests is not attached where they are asked for: ENODEV")
  func incapable() throws {
    let plain = try IOASIDRig(EngineRig())
    #expect(plain.bind() == 0)
    let child = plain.allocTable(parent: plain.alloc())
    #expect(plain.faultDescriptor(child) > 0)
    #expect(plain.attach(child) == -ENODEV)
  }
}
