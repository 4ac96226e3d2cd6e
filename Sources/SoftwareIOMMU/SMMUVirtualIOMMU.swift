// SPDX-License-Identifier: Apache-2.0
//
// A slice of an SMMUv3 for a guest: IOMMU_VIOMMU_TYPE_ARM_SMMUV3, with the guest's StreamIDs and
// its invalidation commands (MODEL G1): include/uapi/linux/iommufd.h, struct
// iommu_viommu_arm_smmuv3_invalidate; IHI 0070, sections 4.3 to 4.5.

import HardwareTables
import IOMMU
import PageTables
import SystemPackage

/// Thread-safe.
final class SMMUVirtualIOMMU: NamingVirtualIOMMU {
  /// `IOMMU_VIOMMU_TYPE_ARM_SMMUV3`.
  static let type: UInt32 = 1
  /// `IOMMU_HWPT_DATA_ARM_SMMUV3`.
  static let dataType: UInt32 = 2
  /// `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3`.
  static let invalidateType: UInt32 = 1

  let parent: ArmStage2Domain
  let smmu: SMMUCapabilities
  /// Where the guest is told of faults.
  let events: VirtualEvents

  /// Devices are called by their requester ids, without being given names.
  private let namesAll: Bool
  /// By the guest's StreamIDs.
  let devices = GuestDevices()

  init(
    on parent: ArmStage2Domain, smmu: SMMUCapabilities, events: VirtualEvents,
    namesAll: Bool = false
  ) {
    self.namesAll = namesAll
    self.parent = parent
    self.smmu = smmu
    self.events = events
  }

  /// - Throws: `EOPNOTSUPP` for attributes; `EINVAL` for another type or length; `EIO` for words
  ///   that a user may not give; `EFAULT`.
  func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    guard attributes.isEmpty else {
      throw IOMMUError(
        .operationNotSupported,
        "a user's stream table entry has all PASIDs of its device, and takes no attributes")
    }
    let bytes = try data.bytes(type: Self.dataType, minimum: 16, known: 16)
    let words = Words2(bytes.number(at: 0), bytes.number(at: 8))
    do throws(NestedTableError) {
      return SMMUNestedDomain(try SMMUNestedEntry(decoding: words), in: self)
    } catch {
      throw IOMMUError(
        Errno(rawValue: error.rawValue),
        "the stream table entry \(hex(words[0])) \(hex(words[1])) is not one that a user may "
          + "give: Config 0, 4 or 5, EATS 0 or 1, and of other fields V, S1Fmt, S1ContextPtr, "
          + "S1CDMax, S1DSS, S1CIR, S1COR, S1CSH and S1STALLD only")
    }
  }

  // MARK: The guest's StreamIDs

  /// What the guest calls a device.
  func virtualID(of device: RequesterID) -> UInt64? {
    namesAll ? UInt64(device.rawValue) : devices.virtualID(of: device)
  }

  // MARK: Invalidation

  /// Commands of 16 bytes, of which Linux lets through those that concern the guest's own stage 1.
  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?) {
    var commands: [Words2] = []
    do throws(IOMMUError) {
      guard requests.type == Self.invalidateType else {
        throw IOMMUError(
          .invalidArgument,
          "a virtual SMMUv3 takes commands of type \(hex(Self.invalidateType)) "
            + "(IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3), not \(hex(requests.type))")
      }
      guard requests.count > 0 else {
        throw IOMMUError(.invalidArgument, "there are no commands to carry out")
      }
      // All of them are read before the first is looked at.
      for index in 0..<requests.count {
        let bytes = try requests.bytes(index, type: Self.invalidateType, upTo: 16)
        commands.append(Words2(bytes.number(at: 0), bytes.number(at: 8)))
      }
    } catch {
      return (0, error)
    }
    for (index, command) in commands.enumerated() {
      do throws(IOMMUError) {
        try carryOut(command, UInt32(index))
      } catch {
        return (UInt32(index), error)
      }
    }
    return (requests.count, nil)
  }

  /// The VMID is the parent's: what is forgotten is of all that nest on it, whatever their ASID,
  /// for a global entry has none.
  private func carryOut(_ words: Words2, _ index: UInt32) throws(IOMMUError) {
    switch words[0] & 0xFF {
    // CMD_TLBI_NSNH_ALL, which becomes NH_ALL; NH_ALL, NH_ASID.
    case 0x30, 0x10, 0x11: parent.table.forget(.iotlb(.all))
    // NH_VA, NH_VAA. What devices keep (EATS) is CMD_ATC_INV's.
    case 0x12, 0x13: parent.table.forget(.iotlb(range(of: words)))
    case 0x40:
      let device = try device(words, index)
      let range = IOVARange(
        words[1] & ~0xFFF, shift: 12 + Int(truncatingIfNeeded: words[1] & 0x3F))
      parent.table.forget(.translations(range)) { $0.source.requester == device }
    case 0x05:
      let device = try device(words, index)
      let substream = UInt32(truncatingIfNeeded: words[0] >> 12 & 0xF_FFFF)
      // Without a substream descriptor 0 may be in use (S1DSS, or no table).
      parent.table.forget(.configuration) {
        $0.source.requester == device && ($0.source.pasid?.rawValue ?? 0) == substream
      }
    case 0x06:
      let device = try device(words, index)
      parent.table.forget(.configuration) { $0.source.requester == device }
    default:
      throw IOMMUError(
        .ioError,
        "command \(index) has opcode \(hex(words[0] & 0xFF)); a guest's are CMD_TLBI_NH_VA, _VAA, "
          + "_ALL and _ASID, CMD_TLBI_NSNH_ALL, CMD_ATC_INV, CMD_CFGI_CD and CMD_CFGI_CD_ALL")
    }
  }

  private func device(_ words: Words2, _ index: UInt32) throws(IOMMUError) -> RequesterID {
    let stream = words[0] >> 32
    if namesAll { return RequesterID(rawValue: UInt32(stream)) }
    guard let device = devices[stream] else {
      throw IOMMUError(
        .ioError,
        "command \(index) names stream \(hex(stream)), which is no virtual device's")
    }
    return device
  }

  /// What a command by address drops: at least what it says, and everything where hardware would
  /// refuse it.
  private func range(of words: Words2) -> IOVARange {
    guard case .invalidateTLB(let invalidation)? = try? SMMUCommand(decoding: words, smmu),
      let range = invalidation.range
    else { return .all }
    guard let granule = range.granule else { return IOVARange(range.address, shift: 12) }
    let (length, isTooLong) = range.count.multipliedReportingOverflow(
      by: 1 << UInt64(granule.rawValue))
    let (last, isPastEnd) = range.address.addingReportingOverflow(length &- 1)
    return IOVARange(first: range.address, last: isTooLong || isPastEnd ? .max : last)
  }
}
