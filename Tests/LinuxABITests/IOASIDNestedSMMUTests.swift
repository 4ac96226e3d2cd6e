// SPDX-License-Identifier: Apache-2.0
//
// DMA by the context descriptors that a user of /dev/ioasid wrote into its own memory (MODEL B9,
// G1): one ioasid for all PASIDs of a device behind an SMMUv3.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDNestedSMMUTests {
  let guest: IOASIDGuest
  let rig: IOASIDRig
  let parent: Int32
  static let iova: UInt64 = 0x1234_5000

  init() throws {
    guest = try IOASIDGuest(EngineRig(iommu: .init(architecture: .smmuV3, pasidBits: 8)))
    (rig, parent) = (guest.rig, guest.parent)
  }

  /// Four levels from a page on, for one address (VMSAv8-64, granule 4 KiB): tables and pages are
  /// 3; of a page AP[1], SH 3 and AF.
  private func mapTable(from first: UInt64, to target: UInt64) {
    guest.mapTable(Self.iova, from: first, to: target) {
      $0 | 3 | ($1 ? 1 << 6 | 3 << 8 | 1 << 10 : 0)
    }
  }

  /// A context descriptor (IHI 0070, 5.4): T0SZ 16, 4 KiB, EPD1, V, IPS 48 bits, AA64, R, A, ASET.
  private func putDescriptor(_ number: UInt64, table: UInt64) {
    guest.put(table, at: guest.page(1) + number * 64 + 8)
    guest.put(
      16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47 | number << 48,
      at: guest.page(1) + number * 64)
  }

  @Test("B9: a table of context descriptors has a table for each PASID, and one for none")
  func descriptors() {
    for (number, target) in [(0, 0x20), (3, 0x21)] as [(UInt64, UInt64)] {
      mapTable(from: 8 + number * 4, to: guest.page(target))
      guest.mark(target)
      putDescriptor(number, table: guest.page(8 + number * 4))
    }
    let child = rig.allocTable(
      .armContextDescriptors, width: 5, parent: parent, root: guest.page(1))
    #expect(child > 0)
    #expect(rig.attach(child, pasid: 3) == -EINVAL && rig.attach(child) == 0)
    #expect(rig.word(Self.iova) == 0x20 && rig.word(Self.iova, pasid: 3) == 0x21)
    #expect(rig.word(Self.iova, pasid: 4) == nil, "no valid descriptor")
    #expect(rig.word(Self.iova, pasid: 40) == nil, "past the table")
    #expect(rig.word(guest.page(0x20)) == nil)
    #expect(rig.detach(child) == 0 && rig.word(Self.iova, pasid: 3) == nil)
    #expect(
      rig.allocTable(.armContextDescriptors, width: 9, parent: parent) == -EOPNOTSUPP,
      "the SMMU has 8 bits")
    #expect(rig.allocTable(parent: parent) == -EOPNOTSUPP, "it is not Intel's")
  }

  @Test(
    "G1, B9: a changed descriptor holds once the PASID cache and the IOTLB were invalidated")
  func invalidation() throws {
    for number in 0..<2 as Range<UInt64> {
      mapTable(from: 8 + number * 4, to: guest.page(0x20 + number))
      guest.put(number, at: guest.page(0x20 + number))
    }
    putDescriptor(2, table: guest.page(8))
    let child = rig.allocTable(
      .armContextDescriptors, width: 2, parent: parent, root: guest.page(1))
    #expect(rig.attach(child) == 0)
    #expect(rig.word(Self.iova, pasid: 2) == 0)
    putDescriptor(2, table: guest.page(12))
    #expect(rig.word(Self.iova, pasid: 2) == 0, "cached")
    let caches = IOASID_CACHE_PASID | IOASID_CACHE_IOTLB
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_PASID, caches, pasid: 2, cookie: IOASIDRig.cookie) == 0)
    #expect(rig.word(Self.iova, pasid: 2) == 1)
    putDescriptor(2, table: guest.page(8))
    #expect(
      rig.invalidate(child, IOASID_INVALIDATE_DEVICE, caches, cookie: IOASIDRig.cookie) == 0)
    #expect(rig.word(Self.iova, pasid: 2) == 0)
    mapTable(from: 8, to: guest.page(0x21))
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_RANGE, IOASID_CACHE_IOTLB, pasid: 2, address: Self.iova,
        size: 0x1000) == 0)
    #expect(rig.word(Self.iova, pasid: 2) == 1)
  }
}
