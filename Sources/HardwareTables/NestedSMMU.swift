// SPDX-License-Identifier: Apache-2.0
//
// IOMMU_HWPT_DATA_ARM_SMMUV3, the stage 1 half of a stream table entry that a user owns:
// include/uapi/linux/iommufd.h, struct iommu_hwpt_arm_smmuv3; IHI 0070, section 5.2.

/// The two words of a user's stream table entry, nested over a stage 2 of the host.
public struct SMMUNestedEntry: Hashable, Sendable {
  /// With what is not the user's taken out; all clear where V is.
  public private(set) var words: Words2
  /// EATS asks for ATS, and Config lets it.
  public private(set) var enablesATS: Bool

  /// The bits that are the user's: V, Config, S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR,
  /// S1COR, S1CSH, S1STALLD, EATS.
  static let allowed = Words2(
    .mask(5, 0) | .mask(51, 6) | .mask(63, 59), .mask(7, 0) | .mask(27, 27) | .mask(29, 28))
  private static let atsField: UInt64 = .mask(29, 28)

  /// Config, of those that are allowed.
  public enum Configuration: Hashable, Sendable {
    /// All transactions are aborted. Where V is clear they are the guest's C_BAD_STE.
    case abort
    /// Stage 2 alone.
    case bypass
    /// Stage 1 over stage 2.
    case stage1
  }

  /// Checks the words in Linux's order.
  /// - Throws: EIO.
  public init(decoding words: Words2) throws(NestedTableError) {
    guard words[0].bit(0) else {
      self.words = Words2()
      enablesATS = false
      return
    }
    if words.hasAny(of: ~Self.allowed) { throw .ioError }
    let config = words[0].bits(3, 1)
    if config != 0, config != 4, config != 5 { throw .ioError }
    let ats = words[1].bits(29, 28)
    if ats > 1 { throw .ioError }
    self.words = Words2(words[0], words[1] & ~Self.atsField)
    enablesATS = ats == 1 && config == 5
  }

  public var isValid: Bool { words[0].bit(0) }

  public var configuration: Configuration {
    switch words[0].bits(3, 1) {
    case 4: .bypass
    case 5: .stage1
    default: .abort
    }
  }

  /// The entry that nests these words.
  /// - Parameter parent: The host's entry of stage 2 alone, its EATS as `enablesATS` says.
  public func entry(parent: SMMUStreamTableEntry) -> SMMUStreamTableEntry {
    var words = parent.words
    switch configuration {
    case .abort: words = Words8(1, 0, 0, 0, 0, 0, 0, 0)
    case .bypass: break
    case .stage1:
      // Config 7, and MEV: a guest is not to fill the host's queue.
      words[0] = self.words[0] | .mask(3, 1)
      words[1] |= self.words[1] | .mask(19, 19)
    }
    return SMMUStreamTableEntry(words)
  }
}
