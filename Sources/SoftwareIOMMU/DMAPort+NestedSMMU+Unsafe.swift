// SPDX-License-Identifier: Apache-2.0
//
// How a port walks the stage 1 of a user's stream: the context descriptor, once, and then the
// table that it names, through stage 2. IHI 0070, 3.3.2 and 3.4.1 (address sizes).

import HardwareTables
import IOMMU
import PageTables

extension DMAPort {
  /// Invalidations by address are of whole leaves: remembers how large they are.
  @inline(__always)
  func noteLeaf(_ shift: UInt8) {
    // SAFETY: the state is the port thread's own and lives as long as the port.
    if unsafe shift > state.pointee.widestLeaf { unsafe state.pointee.widestLeaf = shift }
  }

  @inline(never)
  func walk(
    _ root: SMMUNestedRoot, _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Translation {
    try checkWindow(iova)
    if case .none = unsafe state.pointee.configuration { try readContext(root) }
    switch unsafe state.pointee.configuration {
    case .bypass: return try walk(root.parent, iova, need)
    case .smmu(let context): return try walk(context, iova, need, through: root.parent)
    case .none, .amd, .riscv: throw .badConfiguration
    }
  }

  @inline(never)
  private func readContext(_ root: SMMUNestedRoot) throws(DMAFault.Reason) {
    do throws(SMMUStreamFault) {
      unsafe state.pointee.configuration = try root.configuration(
        substream: pasid?.rawValue, in: memory)
    } catch {
      switch error {
      case .aborted: throw .blocked
      case .recorded(let fault): throw reason(of: LookupFault.smmuV3(fault))
      }
    }
  }

  /// Bit 55 says which of the two tables it is.
  @inline(__always)
  private func walk(
    _ context: SMMUContext, _ iova: UInt64, _ need: UInt64,
    through parent: PageTableRoot<ArmStage2<Granule4KiB>>
  ) throws(DMAFault.Reason) -> Translation {
    let isHigh = iova >> 55 & 1 != 0
    var address = iova
    if isHigh ? context.highIgnoresTopByte : context.lowIgnoresTopByte {
      address = UInt64(bitPattern: Int64(bitPattern: iova << 8) >> 8)
    }
    switch isHigh ? context.high : context.low {
    case .of4KiB(let table): return try walk(table, address, need, through: parent)
    case .of16KiB(let table): return try walk(table, address, need, through: parent)
    case .of64KiB(let table): return try walk(table, address, need, through: parent)
    case .disabled: throw .notPresent
    }
  }
}
