// SPDX-License-Identifier: Apache-2.0
//
// A device context of a RISC-V IOMMU whose first stage is a user's (MODEL B2, B9): RISC-V IOMMU
// 1.0, sections 2.1.3 (device context), 2.2 (process directory) and 2.3. Linux has no such data:
// it is reached from Swift.

import HardwareTables
import IOMMU
import PageTables

/// The user's part of a device context, as data for a nested page table.
public struct RISCVNestedContext: Hashable, Sendable {
  /// The type of the data, `UserData.type`. Of this library's own: no ioctl takes it.
  public static let dataType: UInt32 = UserData.ownTypes.lowerBound

  /// `DC.tc`: V, EN_ATS, EN_PRI, DTF, PDTV, PRPR, SADE and DPE are the user's.
  public var translationControl: UInt64
  /// `DC.ta`: PSCID.
  public var attributes: UInt64
  /// `DC.fsc`: `iosatp`, or `pdtp` where PDTV is set. Guest-physical.
  public var firstStageContext: UInt64

  public init(translationControl: UInt64, attributes: UInt64 = 0, firstStageContext: UInt64) {
    self.translationControl = translationControl
    self.attributes = attributes
    self.firstStageContext = firstStageContext
  }

  /// For `Context.allocateHWPT`: the three words, little-endian.
  public var userData: UserData {
    UserData(
      type: Self.dataType, words: [translationControl, attributes, firstStageContext])
  }

  fileprivate static let allowedControl: UInt64 = 0b11_0111_0111 & ~(1 << 7)
}

/// What a port goes through: a user's first stage, found by a process directory, over a second.
final class RISCVNestedDevice: Sendable {
  let context: RISCVDeviceContext
  let iommu: RISCVCapabilities
  let parent: PageTableRoot<PageTables.RISCVSecondStage>

  init(
    _ context: RISCVDeviceContext, parent: PageTableRoot<PageTables.RISCVSecondStage>,
    iommu: RISCVCapabilities
  ) {
    self.context = context
    self.iommu = iommu
    self.parent = parent
  }
}

/// What a port keeps of it.
typealias RISCVNestedRoot = Uncounted<RISCVNestedDevice>

extension RISCVNestedRoot {
  @inline(__always)
  var parent: PageTableRoot<PageTables.RISCVSecondStage> { with { $0.parent } }

  /// DTF: what a transaction is ended for is not recorded. Whoever has a context at all is never
  /// ended for what is recorded all the same (3.2, table of causes).
  var hidesFaults: Bool {
    with { $0.context.disablesTranslationFaults }
  }

  /// EN_PRI of the user's device context.
  var allowsPageRequests: Bool { with { $0.context.enablesPRI } }

  /// What becomes of the transactions of a process: reads the user's process directory (2.3).
  func configuration(
    process: UInt32?, transaction: RISCVTransactionType, in memory: PhysicalMemory
  ) throws(RISCVFault) -> CachedConfiguration {
    let (context, iommu) = with { ($0.context, $0.iommu) }
    try context.check(process: process, transaction: transaction)
    let found = try context.translation(
      process: process, isSupervisor: false, transaction: transaction, iommu: iommu,
      in: ParentTables(parent, in: memory))
    guard found.firstStageMode != 0 else { return .bypass }
    guard
      let root = TableRoot<PageTables.RISCVFirstStage>(
        address: found.firstStageRoot, levels: Int(found.firstStageMode) - 5,
        configuration: RISCVSwitches(
          updates: context.updatesFirstStage,
          supervisorUserAccess: found.supervisorReachesUserPages))
    else { throw RISCVFault(.processEntryMisconfigured) }
    return .riscv(root)
  }
}

/// A user's device context.
final class RISCVNestedDomain: SoftwareNestedDomain {
  /// All processes of a device go by its context.
  let hasPASIDs = true
  /// The user's EN_ATS.
  var enablesATS: Bool { device.context.enablesATS }
  let below: RISCVSecondStageDomain
  private let device: RISCVNestedDevice

  var parent: any SoftwareDomain { below }
  var portContext: PortContext { .riscvNested(RISCVNestedRoot(device)) }

  /// - Throws: `EOPNOTSUPP` for data of another type; `EINVAL` for a wrong length, and for a
  ///   context that is not valid, has more than is the user's or breaks a rule of 2.1.4.
  init(
    _ data: UserData, on parent: RISCVSecondStageDomain, iommu: RISCVCapabilities
  ) throws(IOMMUError) {
    guard data.type == RISCVNestedContext.dataType else {
      throw IOMMUError(
        .operationNotSupported,
        "\(parent.kind.iommu) nests device contexts (RISCVNestedContext), not data of type "
          + hex(data.type))
    }
    let bytes = try data.bytes(type: data.type, minimum: 24, known: 24)
    let control: UInt64 = bytes.number(at: 0)
    guard control & 1 != 0, control & ~RISCVNestedContext.allowedControl == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "tc \(hex(control)) of a device context is not a user's: V has to be set, and only EN_ATS, "
          + "EN_PRI, DTF, PDTV, PRPR, SADE and DPE beside it")
    }
    let root = parent.table.root
    let words = Words4(
      control | .bit(7, root.keepsDirty), .field(root.levels + 5, at: 60), bytes.number(at: 8),
      bytes.number(at: 16))
    let context = RISCVDeviceContext(words)
    if let rule = context.misconfiguration(iommu) {
      throw IOMMUError(
        .invalidArgument,
        "the device context breaks rule \(rule) of the RISC-V IOMMU's section 2.1.4")
    }
    device = RISCVNestedDevice(context, parent: root, iommu: iommu)
    below = parent
  }

  func check(attaching requester: RequesterID, pasid: PASID?) throws(IOMMUError) {
    guard pasid != nil else { return }
    throw IOMMUError(
      .operationNotSupported,
      "a user's device context is for all processes of \(requester): attach it without a PASID")
  }

  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?) {
    (
      0,
      IOMMUError(
        .operationNotSupported,
        "a RISC-V guest invalidates by the commands of its IOMMU, not by page table")
    )
  }
}
