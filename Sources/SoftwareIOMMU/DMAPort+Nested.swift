// SPDX-License-Identifier: Apache-2.0
//
// How a port walks a table that a user owns: on the port's thread, without locks, allocation or
// reference counting, every address through the parent.

import IOMMU
import PageTables

extension DMAPort {
  /// Without a PASID the interrupt window is no memory, as ever; with one it is translated as any
  /// address is (VT-d 3.14).
  @inline(__always)
  func checkWindow(_ iova: UInt64) throws(DMAFault.Reason) {
    if pasid == nil, InterruptRemapper.window.contains(iova) { throw .interruptWindow }
  }

  /// A walk in two stages, for a request that claims no privilege.
  @inline(never)
  func walk(
    _ root: IntelNestedRoot, _ iova: UInt64, _ need: UInt64
  ) throws(DMAFault.Reason) -> Translation {
    try checkWindow(iova)
    return try walk(root.table, iova, need, through: root.parent)
  }

  @inline(__always)
  func walk<First: PageTableFormat, Second: PageTableFormat>(
    _ table: TableRoot<First>, _ iova: UInt64, _ need: UInt64,
    through parent: PageTableRoot<Second>
  ) throws(DMAFault.Reason) -> Translation {
    var leaf: UInt8 = 0
    do throws(WalkFault) {
      let translation = try table.walk(
        IOVA(iova), for: Access(Permissions(rawValue: UInt8(truncatingIfNeeded: need))),
        through: parent, in: PhysicalTables(memory), firstLeafShift: &leaf)
      noteLeaf(leaf)
      return translation
    } catch {
      throw reason(of: error)
    }
  }
}
