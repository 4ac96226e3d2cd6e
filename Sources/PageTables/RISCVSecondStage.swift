// SPDX-License-Identifier: Apache-2.0
//
// RISC-V second-stage (G-stage) tables: Sv39x4, Sv48x4 and Sv57x4. RISC-V Privileged
// Architecture 18.5 (two-stage address translation); RISC-V IOMMU 1.0, 2.1.3.3 (iohgatp).

/// RISC-V second-stage format: 3 levels (41 bits), 4 (50 bits) or 5 (59 bits), with a root of
/// 16 KiB. Leaves without U are not there for any request.
public enum RISCVSecondStage: RISCVFormat {
  @inlinable public static var extraRootBits: Int { 2 }
  @inlinable public static func addressBits(levels: Int) -> Int { 14 + 9 * levels }

  /// Every request counts as unprivileged (18.5.1).
  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: RISCVSwitches
  ) -> Rights {
    guard isLeaf(entry, level: level) else { return .all }
    guard entry & userBit != 0 else { return .none }
    return Rights(rawValue: UInt8(truncatingIfNeeded: entry >> 1 & 7) &* 9)
  }
}
