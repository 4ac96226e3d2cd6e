// SPDX-License-Identifier: Apache-2.0
//
// A first-stage table of VT-d that a user owns (MODEL B2): IOMMU_HWPT_DATA_VTD_S1, and
// IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, include/uapi/linux/iommufd.h. VT-d revision 4.1: 3.8 (nested
// translation), 9.6 (PASID entry), 6.5.2.4 (IOTLB invalidation).

import HardwareTables
import IOMMU
import PageTables

/// What a port keeps of a user's table and its parent: values, no references. Whoever posts it
/// keeps the parent alive until the port has taken a later one; the user's table is reached
/// through the parent only.
struct IntelNestedRoot: Sendable {
  let table: TableRoot<IntelFirstStage>
  let parent: PageTableRoot<IntelSecondStage>
}

/// A user's first-stage table, found through a PASID entry that nests it.
final class IntelNestedDomain: SoftwareNestedDomain {
  /// `IOMMU_HWPT_DATA_VTD_S1`.
  static let dataType: UInt32 = 1
  /// `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`.
  static let invalidateType: UInt32 = 0
  /// `IOMMU_VTD_INV_FLAGS_LEAF`: caches of entries that point to tables may keep them. We have
  /// none of these apart.
  private static let leafFlag: UInt64 = 1

  /// A first-stage table is one PASID's, or that of requests without one.
  let hasPASIDs = false
  private let table: IntelNestedTable
  private let below: IntelSecondStageDomain
  /// Nil for what no device can be attached to.
  private let root: IntelNestedRoot?
  private let refusal: NestedTableError?

  var parent: any SoftwareDomain { below }

  /// - Parameter data: `struct iommu_hwpt_vtd_s1`. As in Linux it is only copied here; what it
  ///   says is looked at when a device is attached.
  /// - Throws: `EOPNOTSUPP` for data of another type, `EINVAL` for a wrong length, `EFAULT`.
  init(
    _ data: UserData, on parent: IntelSecondStageDomain, unit: IntelCapabilities
  ) throws(IOMMUError) {
    guard data.type == Self.dataType else {
      throw IOMMUError(
        .operationNotSupported,
        "\(parent.kind.iommu) nests first-stage tables (IOMMU_HWPT_DATA_VTD_S1, "
          + "\(hex(Self.dataType))), not data of type \(hex(data.type))")
    }
    let bytes = try data.bytes(type: Self.dataType, minimum: 24, known: 24)
    let table = IntelNestedTable(
      decoding: bytes.number(at: 0), bytes.number(at: 8), bytes.number(at: 16))
    var refusal: NestedTableError?
    do throws(NestedTableError) { try table.check(unit) } catch { refusal = error }
    self.table = table
    self.refusal = refusal
    below = parent
    // FSPTPTR has bits 12 and up only; those of the host's width and above are reserved in it,
    // but the address is the guest's: what the parent does not map is not reached.
    let root = TableRoot<IntelFirstStage>(
      address: table.table & 0x000F_FFFF_FFFF_F000, levels: table.addressWidth == 57 ? 5 : 4,
      configuration: X86Switches(
        writeProtects: table.flags.contains([.supervisor, .writeProtect]), noExecute: false,
        extendedAccess: table.flags.contains(.extendedAccessed)))
    self.root =
      refusal == nil ? root.map { IntelNestedRoot(table: $0, parent: parent.table.root) } : nil
  }

  /// What a port goes through: nothing, where `check` refuses.
  var portContext: PortContext { root.map { .intelNested($0) } ?? .blocked }

  func check(attaching device: RequesterID, pasid: PASID?) throws(IOMMUError) {
    guard refusal != nil else { return }
    throw IOMMUError(
      .invalidArgument,
      "\(device) cannot use this first-stage table: \(parent.kind.iommu) has no tables of "
        + "\(table.addressWidth) bits with flags \(hex(table.flags.rawValue)); see cap_reg and "
        + "ecap_reg of GET_HW_INFO")
  }

  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?) {
    guard requests.type == Self.invalidateType else {
      return (
        0,
        IOMMUError(
          .invalidArgument,
          "a first-stage table takes invalidations of type \(hex(Self.invalidateType)) "
            + "(IOMMU_HWPT_INVALIDATE_DATA_VTD_S1), not \(hex(requests.type))")
      )
    }
    for index in 0..<requests.count {
      do throws(IOMMUError) {
        let entry = try requests.bytes(
          index, type: Self.invalidateType, minimum: 24, known: 24)
        if let range = try Self.range(of: entry, index) {
          below.table.forget(.translations(range)) { $0.table == ObjectIdentifier(self) }
        }
      } catch {
        return (index, error)
      }
    }
    return (requests.count, nil)
  }

  /// What one `struct iommu_hwpt_vtd_s1_invalidate` names: {u64 addr, u64 npages, u32 flags,
  /// u32 reserved}, pages of 4 KiB. Address 0 with all ones for the pages is everything; nil for
  /// no pages.
  private static func range(
    of entry: [UInt8], _ index: UInt32
  ) throws(IOMMUError) -> IOVARange? {
    let (address, pages): (UInt64, UInt64) = (entry.number(at: 0), entry.number(at: 8))
    let rest: UInt64 = entry.number(at: 16)
    guard rest & ~leafFlag == 0 else {
      throw IOMMUError(
        .operationNotSupported,
        "entry \(index) has flags \(hex(rest & 0xFFFF_FFFF)) and \(hex(rest >> 32)) in its "
          + "reserved field; only IOMMU_VTD_INV_FLAGS_LEAF (1) is known")
    }
    guard address & 4095 == 0, pages != .max || address == 0 else {
      throw IOMMUError(
        .invalidArgument,
        pages == .max
          ? "entry \(index) is for all pages, but begins at \(hex(address)); that takes address 0"
          : "entry \(index) begins at \(hex(address)), not a multiple of 4 KiB")
    }
    guard pages > 0 else { return nil }
    let (length, isTooLong) = pages.multipliedReportingOverflow(by: 4096)
    let (last, isPastEnd) = address.addingReportingOverflow(length &- 1)
    return IOVARange(first: address, last: isTooLong || isPastEnd ? .max : last)
  }
}
