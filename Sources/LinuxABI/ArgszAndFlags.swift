// SPDX-License-Identifier: Apache-2.0
//
// The two fields that the structures of VFIO, /dev/ioasid and KVM's PASID calls begin with.

import IOMMU
import SystemPackage

/// Checks what a caller says of its structure.
/// - Parameters:
///   - argsz: Bytes that the structure has, as the caller knows it.
///   - minimum: Bytes that this call cannot do without.
///   - known: Bits that `flags` may have.
/// - Throws: `EINVAL` where bytes are missing, and for unknown flags.
func checkHead(
  argsz: UInt32, atLeast minimum: Int, flags: UInt32 = 0, known: UInt32 = 0
) throws(IOMMUError) {
  guard Int(argsz) >= minimum else {
    throw IOMMUError(.invalidArgument, "argsz is \(argsz); \(minimum) bytes are needed")
  }
  let unknown = flags & ~known
  guard unknown == 0 else {
    throw IOMMUError(
      .invalidArgument,
      "flags are \(hex(flags)); "
        + (known == 0 ? "none is known here" : "\(hex(unknown)) is not known here"))
  }
}
