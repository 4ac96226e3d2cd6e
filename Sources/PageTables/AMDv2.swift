// SPDX-License-Identifier: Apache-2.0
//
// AMD guest page tables, "version 2". AMD I/O Virtualization Technology (IOMMU) Specification,
// publication 48882: 2.2.6 (I/O page tables for guest translations); AMD64 Architecture
// Programmer's Manual volume 2, 5.3.3 to 5.3.5 for the entries.

/// AMD's guest format: x86-64 paging with 4 levels (48 bits) or 5 (57 bits), canonical
/// addresses, leaves of 4 KiB, 2 MiB and 1 GiB. MODEL B2.
///
/// For requests without a PASID hardware extends addresses by zeros; a root may say so.
public enum AMDv2: X86Format {
  @inlinable public static var choosesExtension: Bool { true }

  /// Bit 8 must be zero in PML5E and PML4E, where leaves have G (APM 5.3.3).
  @inlinable @inline(__always)
  public static func reservedTableBits(level: Int) -> UInt64 { level > 3 ? 1 << 8 : 0 }
}
