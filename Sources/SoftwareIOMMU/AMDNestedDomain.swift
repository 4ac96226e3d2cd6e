// SPDX-License-Identifier: Apache-2.0
//
// A device table entry of AMD's IOMMU whose guest translation is a user's (MODEL B2, B9):
// include/uapi/linux/iommufd.h, struct iommu_hwpt_amd_guest; AMD 48882, sections 2.2.2.1 (device
// table entry), 2.2.2.3 (guest CR3 table) and 2.2.6 (guest translation).

import HardwareTables
import IOMMU
import PageTables
import SystemPackage

/// What a port goes through: a user's guest tables, found by a guest CR3 table, over a host's.
final class AMDNestedDevice: Sendable {
  let entry: AMDDeviceTableEntry
  let iommu: AMDCapabilities
  let parent: PageTableRoot<AMDv1>

  init(_ user: AMDNestedEntry, parent: PageTableRoot<AMDv1>, iommu: AMDCapabilities) {
    // The host's half: V, TV, HAD, Mode, IR and IW. Where its table is in host memory nobody
    // reads here.
    var host: UInt64 = 3 | .field(parent.levels, at: 9) | .bit(61) | .bit(62)
    host |= .field(parent.keepsDirty ? 3 : 0, at: 7)
    entry = user.entry(
      parent: AMDDeviceTableEntry(Words4(host, 0, 0, 0)), domain: user.guestDomain)
    self.iommu = iommu
    self.parent = parent
  }
}

/// What a port keeps of it.
typealias AMDNestedRoot = Uncounted<AMDNestedDevice>

extension AMDNestedRoot {
  @inline(__always)
  var parent: PageTableRoot<AMDv1> { with { $0.parent } }

  /// PPR of the user's entry.
  var allowsPageRequests: Bool { with { $0.entry.allowsPageRequests } }

  /// What becomes of the requests of a PASID: reads the user's guest CR3 table.
  func configuration(
    pasid: UInt32?, in memory: PhysicalMemory
  ) throws(AMDFault) -> CachedConfiguration {
    let (entry, iommu) = with { ($0.entry, $0.iommu) }
    try entry.check(iommu)
    let found = try entry.translation(
      pasid: pasid, iommu, in: ParentTables(parent, in: memory))
    guard let table = found.guestTable else { return .bypass }
    // Addresses of requests without a PASID are not canonical: they are zero-extended (2.2.6).
    guard
      let root = TableRoot<AMDv2>(
        address: table, levels: found.guestLevels, extending: pasid == nil ? .zero : .sign,
        configuration: X86Switches())
    else { throw .illegalDeviceTableEntry(reservedBits: false) }
    return .amd(root)
  }
}

/// A user's device table entry, of one virtual IOMMU.
final class AMDNestedDomain: SoftwareNestedDomain {
  /// `IOMMU_HWPT_DATA_AMD_GUEST`.
  static let dataType: UInt32 = 3

  /// The guest CR3 table has all PASIDs.
  let hasPASIDs = true
  let below: AMDv1Domain
  private let device: AMDNestedDevice

  var parent: any SoftwareDomain { below }
  var portContext: PortContext { .amdNested(AMDNestedRoot(device)) }

  /// - Throws: `EOPNOTSUPP` for data of another type and for five levels where there are four;
  ///   `EINVAL` for a wrong length and for what a user may not give; `EFAULT`.
  init(
    _ data: UserData, on parent: AMDv1Domain, iommu: AMDCapabilities
  ) throws(IOMMUError) {
    guard data.type == Self.dataType else {
      throw IOMMUError(
        .operationNotSupported,
        "\(parent.kind.iommu) nests guest tables (IOMMU_HWPT_DATA_AMD_GUEST, "
          + "\(hex(Self.dataType))), not data of type \(hex(data.type))")
    }
    let bytes = try data.bytes(type: Self.dataType, minimum: 32, known: 32)
    let words = Words4(
      bytes.number(at: 0), bytes.number(at: 8), bytes.number(at: 16), bytes.number(at: 24))
    do throws(NestedTableError) {
      device = AMDNestedDevice(
        try AMDNestedEntry(decoding: words, iommu), parent: parent.table.root, iommu: iommu)
    } catch {
      throw IOMMUError(
        Errno(rawValue: error.rawValue),
        error == .notSupported
          ? "\(parent.kind.iommu) has no guest tables of five levels; see efr of GET_HW_INFO"
          : "the device table entry \(hex(words[0])) \(hex(words[1])) \(hex(words[2])) is not "
            + "one that a user may give: no host table and no Mode, a GCR3 table where V and GV "
            + "are set, GLX 0 to 2, GuestPagingMode 0 or 1")
    }
    below = parent
  }

  func check(attaching requester: RequesterID, pasid: PASID?) throws(IOMMUError) {
    guard pasid != nil else { return }
    throw IOMMUError(
      .operationNotSupported,
      "a user's device table entry is for all PASIDs of \(requester): attach it without one")
  }

  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?) {
    (
      0,
      IOMMUError(
        .operationNotSupported,
        "AMD's guests invalidate by the commands of their IOMMU, which Linux takes by no call: "
          + "attach the changed table anew")
    )
  }
}
