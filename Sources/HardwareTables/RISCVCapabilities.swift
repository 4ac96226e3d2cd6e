// SPDX-License-Identifier: Apache-2.0
//
// What a RISC-V IOMMU can do and how it is set up, as far as the checks of its tables ask:
// RISC-V IOMMU Architecture 1.0, sections 5.3 (capabilities), 5.4 (fctl), 5.5 (ddtp).

/// The capabilities register with the fields of `fctl`.
public struct RISCVCapabilities: Hashable, Sendable {
  /// `capabilities` (5.3), as the register reads.
  public var rawValue: UInt64
  /// `fctl.BE`: the directory and the queues are big-endian (5.4).
  public var isBigEndian: Bool
  /// Whether software can change `fctl.BE`; else `DC.tc.SBE` has to equal it.
  public var canChangeEndianness: Bool
  /// `fctl.WSI`: interrupts are wires, not messages.
  public var hasWiredInterrupts: Bool
  /// `fctl.GXL`: guests' physical addresses are those of 32-bit systems.
  public var isGuest32Bit: Bool
  /// Whether software can change `fctl.GXL`; else `DC.tc.SXL` has to equal it.
  public var canChangeGuestWidth: Bool
  /// Widths of RCID and MCID in bits, at most 12: of the quality-of-service extension.
  public var resourceIDWidth: Int
  public var monitoringIDWidth: Int

  public init(
    rawValue: UInt64, isBigEndian: Bool = false, canChangeEndianness: Bool = false,
    hasWiredInterrupts: Bool = false, isGuest32Bit: Bool = false,
    canChangeGuestWidth: Bool = false, resourceIDWidth: Int = 12, monitoringIDWidth: Int = 12
  ) {
    self.rawValue = rawValue
    self.isBigEndian = isBigEndian
    self.canChangeEndianness = canChangeEndianness
    self.hasWiredInterrupts = hasWiredInterrupts
    self.isGuest32Bit = isGuest32Bit
    self.canChangeGuestWidth = canChangeGuestWidth
    self.resourceIDWidth = resourceIDWidth
    self.monitoringIDWidth = monitoringIDWidth
  }

  /// A bit of `capabilities`, by its number in the register.
  public struct Feature: RawRepresentable, Hashable, Sendable {
    public var rawValue: Int
    @inlinable public init(rawValue: Int) { self.rawValue = rawValue }

    public static let sv32 = Feature(rawValue: 8)
    public static let sv39 = Feature(rawValue: 9)
    public static let sv48 = Feature(rawValue: 10)
    public static let sv57 = Feature(rawValue: 11)
    public static let sv32x4 = Feature(rawValue: 16)
    public static let sv39x4 = Feature(rawValue: 17)
    public static let sv48x4 = Feature(rawValue: 18)
    public static let sv57x4 = Feature(rawValue: 19)
    /// MSI_FLAT: message page tables, and with them the extended format of device contexts.
    public static let flatMessageTable = Feature(rawValue: 22)
    /// AMO_HWAD: the IOMMU sets A and D.
    public static let updatesAccessedDirty = Feature(rawValue: 24)
    public static let ats = Feature(rawValue: 25)
    public static let t2gpa = Feature(rawValue: 26)
    /// END: both byte orders at once.
    public static let bothEndiannesses = Feature(rawValue: 27)
    public static let pd8 = Feature(rawValue: 38)
    public static let pd17 = Feature(rawValue: 39)
    public static let pd20 = Feature(rawValue: 40)
    /// QOSID: DC.ta has RCID and MCID.
    public static let qualityOfService = Feature(rawValue: 41)
  }

  @inlinable
  public func has(_ feature: Feature) -> Bool { rawValue.bit(feature.rawValue) }

  /// Bytes of a device context: 64 in the extended format (2.1.2), else 32.
  @inlinable
  public var deviceContextSize: UInt64 { has(.flatMessageTable) ? 64 : 32 }

  /// A word as the IOMMU's own structures have it in memory.
  @inlinable @inline(__always)
  func word(_ stored: UInt64) -> UInt64 { isBigEndian ? stored.byteSwapped : stored }
}

/// `ddtp.iommu_mode` (5.5, table of its encodings).
public enum RISCVDirectoryMode: UInt8, Hashable, Sendable {
  /// All transactions are refused.
  case off = 0
  /// None is translated.
  case bare = 1
  case oneLevel = 2
  case twoLevels = 3
  case threeLevels = 4

  /// Levels of the directory; 0 where there is none.
  @inlinable
  public var levels: Int { Swift.max(0, Int(rawValue) - 1) }

  /// How many bits of `device_id` the directory tells apart (2.1): 7, 16, 24 in the base
  /// format and 6, 15, 24 in the extended one.
  @inlinable
  public func deviceIDWidth(_ iommu: RISCVCapabilities) -> Int {
    switch self {
    case .off, .bare, .threeLevels: 24
    case .oneLevel: iommu.has(.flatMessageTable) ? 6 : 7
    case .twoLevels: iommu.has(.flatMessageTable) ? 15 : 16
    }
  }
}
