// SPDX-License-Identifier: Apache-2.0
//
// Intel VT-d first-stage tables. Intel Virtualization Technology for Directed I/O, revision
// 4.1: 3.6 (first-stage translation), 9.7 (first-stage paging entries), 9.6 (the PASID entry's
// WPE, NXE, SMEP, EAFE and FSPM).

/// VT-d first-stage format: x86-64 paging with 4 levels (48 bits) or 5 (57 bits), canonical
/// addresses, leaves of 4 KiB, 2 MiB and 1 GiB. MODEL B2.
public enum IntelFirstStage: X86Format {
  @inlinable @inline(__always)
  public static func reservedTableBits(level: Int) -> UInt64 { 0 }
}
