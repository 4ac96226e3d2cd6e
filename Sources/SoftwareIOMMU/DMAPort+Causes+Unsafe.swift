// SPDX-License-Identifier: Apache-2.0
//
// Why an access was ended, for the hardware's record of it. Off the path of accesses that succeed:
// what a walk found is looked for after it has failed.

import HardwareTables
import IOMMU
import PageTables

extension DMAPort {
  /// Keeps why a walk found nothing until it is reported.
  @inline(never)
  func reason(of fault: WalkFault) -> DMAFault.Reason {
    // SAFETY: the state is the port thread's own and lives as long as the port.
    unsafe state.pointee.walkFault = fault
    return DMAFault.Reason(fault)
  }

  /// Keeps why a lookup in a user's tables found nothing until it is reported.
  @inline(never)
  func reason(of fault: LookupFault) -> DMAFault.Reason {
    // SAFETY: as above.
    unsafe state.pointee.lookupFault = fault
    return .badConfiguration
  }

  /// The tables that the port's requests go through at present.
  private var walkedTables: WalkedTables? {
    // SAFETY: as above.
    guard var tables = unsafe state.pointee.context.walkedTables else { return nil }
    switch unsafe state.pointee.configuration {
    case .bypass: tables.firstLevels = nil
    case .amd(let table): tables.firstLevels = table.levels
    case .riscv(let table): tables.firstLevels = table.levels
    case .none, .smmu: break
    }
    return tables
  }

  /// What the hardware would report, with what the latest walk left, which is used up.
  func takeCause(of reason: DMAFault.Reason, _ refusal: InterruptRefusal?) -> RequestFault? {
    // SAFETY: as above.
    let found = unsafe state.pointee.walkFault
    let lookup = unsafe state.pointee.lookupFault
    unsafe state.pointee.walkFault = nil
    unsafe state.pointee.lookupFault = nil
    let context = unsafe state.pointee.context
    if case .riscvNested(let root) = context, root.hidesFaults { return nil }
    switch reason {
    case .unknownRequester: return .unknownRequester
    case .blocked:
      // Where a user's own entry blocks, it says that nothing is to be recorded.
      switch context {
      case .smmuNested: return nil
      case .cutOff: return .translatedForbidden
      default: return .blocked
      }
    case .hostMemory: return nil
    case .badConfiguration: return lookup.map { .lookup($0) }
    case .interruptWindow: return .interruptWindow(walkedTables ?? WalkedTables())
    case .interruptRefused:
      let tables = walkedTables ?? WalkedTables()
      // A request with a PASID is no interrupt at all.
      return refusal.map { .interrupt($0, tables) } ?? .interruptWindow(tables)
    case .memoryGone:
      // A process that is gone has nothing mapped any more. Elsewhere the walk found an address.
      if case .process = context { return cause(WalkFault(.notPresent, level: 1)) }
      return found.flatMap { cause($0) }
    case .addressWidth: return cause(found ?? WalkFault(.addressWidth))
    case .notPresent: return cause(found ?? WalkFault(.notPresent, level: 1))
    case .reservedBits: return cause(found ?? WalkFault(.reservedBits, level: 1))
    case .permission: return cause(found ?? WalkFault(.permission, level: 1))
    }
  }

  /// What the device made of a request that was ended for a cause: a device with ATS asks for a
  /// translation, and goes on with one that it keeps. Interrupts, and whatever comes while ATS is
  /// off, are not translated.
  func kind(of cause: RequestFault?) -> DeviceRequest.Kind {
    switch cause {
    case .translatedForbidden?: .translated
    case .pageRequestForbidden?: .page
    case .walk?, .lookup?: unsafe state.pointee.hasATS ? .translation : .untranslated
    case .unknownRequester?, .blocked?, .interruptWindow?, .interrupt?, nil: .untranslated
    }
  }

  /// Of a walk that may not have got to the tables.
  private func cause(_ fault: WalkFault) -> RequestFault? {
    // SAFETY: as above.
    switch unsafe state.pointee.context {
    case .unknown: .unknownRequester
    case .blocked, .cutOff: .blocked
    default: walkedTables.map { .walk(fault, $0) }
    }
  }
}

extension PortContext {
  /// Whether a user's own entry keeps its device from asking for pages: PPR of AMD's, EN_PRI of
  /// RISC-V's is clear. An SMMUv3 looks at no entry (IHI 0070, 8.1), and VT-d's is the host's.
  var refusesPageRequests: Bool {
    switch self {
    case .amdNested(let root): !root.allowsPageRequests
    case .riscvNested(let root): !root.allowsPageRequests
    default: false
    }
  }

  /// The tables that a request goes through; nil where there are none.
  var walkedTables: WalkedTables? {
    switch self {
    case .unknown, .blocked, .cutOff, .host: nil
    case .intelFirstStage(let root): WalkedTables(firstLevels: root.levels)
    case .intelSecondStage(let root): WalkedTables(secondLevels: root.levels)
    case .amdV1(let root): WalkedTables(secondLevels: root.levels)
    case .amdV2(let root): WalkedTables(firstLevels: root.levels)
    case .armStage1(let root): WalkedTables(firstLevels: root.levels)
    case .armStage2(let root): WalkedTables(secondLevels: root.levels)
    case .riscvFirstStage(let root): WalkedTables(firstLevels: root.levels)
    case .riscvSecondStage(let root): WalkedTables(secondLevels: root.levels)
    case .intelNested(let root):
      WalkedTables(firstLevels: root.table.levels, secondLevels: root.parent.levels)
    // Of the first stage there is what the user's table of contexts names: see `walkedTables` of
    // the port. Of SMMUv3 the levels are not told.
    case .smmuNested(let root): WalkedTables(firstLevels: 4, secondLevels: root.parent.levels)
    case .amdNested(let root): WalkedTables(firstLevels: 4, secondLevels: root.parent.levels)
    case .riscvNested(let root): WalkedTables(firstLevels: 4, secondLevels: root.parent.levels)
    // A processor's: what of its levels is the kernel's to know.
    case .process: WalkedTables(firstLevels: 4)
    }
  }
}
