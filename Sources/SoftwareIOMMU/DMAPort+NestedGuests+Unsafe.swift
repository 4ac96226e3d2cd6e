// SPDX-License-Identifier: Apache-2.0
//
// How a port walks the guest tables of AMD's IOMMU and the first stage of a RISC-V IOMMU that users
// own: their table of PASIDs, once, and then the table that it names, through the parent.

import HardwareTables
import IOMMU
import PageTables

extension DMAPort {
  @inline(never)
  func walk(
    _ root: AMDNestedRoot, _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Translation {
    try checkWindow(iova)
    // SAFETY: the state is the port thread's own and lives as long as the port; here and below.
    if case .none = unsafe state.pointee.configuration {
      do throws(AMDFault) {
        unsafe state.pointee.configuration = try root.configuration(
          pasid: pasid?.rawValue, in: memory)
      } catch {
        throw reason(of: LookupFault.amd(error))
      }
    }
    switch unsafe state.pointee.configuration {
    case .bypass: return try walk(root.parent, iova, need)
    case .amd(let table): return try walk(table, iova, need, through: root.parent)
    case .none, .smmu, .riscv: throw .badConfiguration
    }
  }

  @inline(never)
  func walk(
    _ root: RISCVNestedRoot, _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Translation {
    try checkWindow(iova)
    if case .none = unsafe state.pointee.configuration {
      do throws(RISCVFault) {
        unsafe state.pointee.configuration = try root.configuration(
          process: pasid?.rawValue,
          transaction: need & IOTLB.writeFlag != 0 ? .untranslatedWrite : .untranslatedRead,
          in: memory)
      } catch {
        throw reason(of: LookupFault.riscv(error))
      }
    }
    switch unsafe state.pointee.configuration {
    case .bypass: return try walk(root.parent, iova, need)
    case .riscv(let table): return try walk(table, iova, need, through: root.parent)
    case .none, .smmu, .amd: throw .badConfiguration
    }
  }
}
