// SPDX-License-Identifier: Apache-2.0
//
// RISC-V first-stage tables: Sv39, Sv48 and Sv57. RISC-V Privileged Architecture 10.4 to 10.6;
// RISC-V IOMMU 1.0, 2.2 (process context: ENS, SUM) and 3.3.

/// RISC-V first-stage format: 3 levels (39 bits), 4 (48 bits) or 5 (57 bits), canonical
/// addresses. MODEL B2.
public enum RISCVFirstStage: RISCVFormat {
  @inlinable public static var addressExtension: AddressExtension { .sign }
  @inlinable public static func addressBits(levels: Int) -> Int { 12 + 9 * levels }

  /// Of the leaf alone. What unprivileged requests may reach, privileged ones may not, unless
  /// SUM says so, and never execute (10.3.1, IOMMU 3.3).
  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: RISCVSwitches
  ) -> Rights {
    guard isLeaf(entry, level: level) else { return .all }
    let allowed = UInt8(truncatingIfNeeded: entry >> 1 & 7)
    guard entry & userBit != 0 else { return Rights(rawValue: allowed << 3) }
    return Rights(
      rawValue: allowed | (switches.allowsSupervisorUserAccess ? allowed & 3 : 0) << 3)
  }

  /// With SADE every fetch of an entry marks it as written in the second stage, where that may be
  /// written, for the entry may have to be marked (10.3.1: an implicit access may set D there).
  @inlinable @inline(__always)
  public static func fetchesAsWrites(_ switches: RISCVSwitches) -> Bool {
    switches.updatesEntries
  }
}
