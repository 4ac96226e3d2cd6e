// SPDX-License-Identifier: Apache-2.0
//
// A stream table entry of SMMUv3 whose stage 1 is a user's (MODEL B2, B9): include/uapi/linux/
// iommufd.h, struct iommu_hwpt_arm_smmuv3; IHI 0070, sections 3.3.2 (context descriptors), 5.2
// (stream table entry) and 5.4.

import HardwareTables
import IOMMU
import PageTables
import SystemPackage

/// What a port goes through: a user's stage 1, found by its context descriptors, over a stage 2.
final class SMMUNestedStream: Sendable {
  /// As hardware has it: the user's words over the host's.
  let entry: SMMUStreamTableEntry
  /// Whether hardware records C_BAD_STE for each transaction.
  let isBad: Bool
  let smmu: SMMUCapabilities
  let parent: PageTableRoot<ArmStage2<Granule4KiB>>
  /// What the guest calls its streams, and where it is told of their faults.
  private let devices: GuestDevices
  private let events: VirtualEvents

  init(_ user: SMMUNestedEntry, of owner: SMMUVirtualIOMMU) {
    let (parent, smmu) = (owner.parent.table.root, owner.smmu)
    devices = owner.devices
    events = owner.events
    entry = user.entry(parent: Self.hostEntry(parent, smmu, hasATS: user.enablesATS))
    isBad = !user.isValid || entry.illegality(smmu) != nil
    self.smmu = smmu
    self.parent = parent
  }

  /// Tells the guest of a fault that is its own to know, where it has a queue and a name for the
  /// stream (MODEL H2). As in Linux a queue that is full loses it, and says so.
  func tell(_ fault: DMAFault) {
    guard let stream = devices.virtualID(of: fault.requester),
      let record = fault.virtualSMMUEvent(stream: UInt32(truncatingIfNeeded: stream))
    else { return }
    // Refused where there is no queue: then nobody wants to know.
    try? events.report(record, type: Self.eventType)
  }

  /// `IOMMU_VEVENTQ_TYPE_ARM_SMMUV3`.
  private static let eventType: UInt32 = 1

  /// The host's entry of stage 2 alone. Where its table is in host memory nobody reads here.
  private static func hostEntry(
    _ parent: PageTableRoot<ArmStage2<Granule4KiB>>, _ smmu: SMMUCapabilities, hasATS: Bool
  ) -> SMMUStreamTableEntry {
    let bits = 64 - parent.last.leadingZeroBitCount
    let sizes = [32, 36, 40, 42, 44]
    let output = sizes.firstIndex { $0 >= smmu.outputAddressWidth } ?? sizes.count
    // S2SL0 of the granule of 4 KiB: 2 begins at level 0, which has 4 of ours.
    var stage2: UInt64 = .field(64 - bits, at: 32) | .field(parent.levels - 2, at: 38)
    stage2 |= .field(output, at: 48)
    stage2 |= .bit(51)  // S2AA64
    stage2 |= .bit(55, parent.keepsDirty) | .bit(56, parent.keepsDirty)  // S2HD, S2HA
    stage2 |= .bit(58)  // S2R
    // V, Config 6; EATS.
    return SMMUStreamTableEntry(
      Words8(1 | 6 << 1, .bit(28, hasATS && smmu.hasATS), stage2, 0, 0, 0, 0, 0))
  }
}

/// What a port keeps of it.
typealias SMMUNestedRoot = Uncounted<SMMUNestedStream>

extension SMMUNestedRoot {
  @inline(__always)
  var parent: PageTableRoot<ArmStage2<Granule4KiB>> { with { $0.parent } }

  /// Inside a transaction: as `SMMUNestedStream.tell`.
  func tell(_ fault: DMAFault) { with { $0.tell(fault) } }

  /// What becomes of the transactions of a substream: reads the user's tables.
  /// - Throws: Why they are ended; nil for an abort without an event.
  func configuration(
    substream: UInt32?, in memory: PhysicalMemory
  ) throws(SMMUStreamFault) -> CachedConfiguration {
    let (entry, isBad, smmu) = with { ($0.entry, $0.isBad, $0.smmu) }
    guard !isBad else { throw .recorded(.badStreamTableEntry) }
    do throws(SMMUFault) {
      switch try entry.outcome(substream: substream, smmu) {
      case .abort: break
      case .bypassStage1: return .bypass
      case .context(let index):
        return .smmu(
          SMMUContext(
            try entry.context(index, smmu, in: ParentTables(parent, in: memory)), smmu))
      }
    } catch {
      throw .recorded(error)
    }
    throw .aborted
  }
}

/// Why a stream's transactions are ended before anything is walked.
enum SMMUStreamFault: Error, Hashable, Sendable {
  /// The user's entry says so.
  case aborted
  case recorded(SMMUFault)
}

/// A user's stream table entry, of one virtual IOMMU.
final class SMMUNestedDomain: SoftwareNestedDomain {
  /// The table of context descriptors has all substreams; without one there are none to have.
  let hasPASIDs = true
  /// The user's EATS.
  var enablesATS: Bool { user.enablesATS }
  let owner: SMMUVirtualIOMMU
  private let user: SMMUNestedEntry
  private let stream: SMMUNestedStream

  var parent: any SoftwareDomain { owner.parent }
  var portContext: PortContext { .smmuNested(SMMUNestedRoot(stream)) }

  init(_ user: SMMUNestedEntry, in owner: SMMUVirtualIOMMU) {
    self.user = user
    self.owner = owner
    stream = SMMUNestedStream(user, of: owner)
  }

  /// A stream that stage 1 translates has a name of the guest's, so that its caches can be
  /// invalidated and its events be told. As Linux has it.
  func check(attaching device: RequesterID, pasid: PASID?) throws(IOMMUError) {
    guard pasid == nil else {
      throw IOMMUError(
        .operationNotSupported,
        "a user's stream table entry is for all substreams of \(device): attach it without a "
          + "PASID")
    }
    guard user.isValid, user.configuration == .stage1, owner.virtualID(of: device) == nil else {
      return
    }
    throw IOMMUError(
      .noSuchFileOrDirectory,
      "the guest has no name for \(device), by which it would invalidate what is cached: make a "
        + "virtual device (IOMMU_VDEVICE_ALLOC) first")
  }

  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?) {
    (
      0,
      IOMMUError(
        .operationNotSupported,
        "the caches of an SMMUv3's guest are invalidated by its virtual IOMMU, not by page table"
      )
    )
  }
}
