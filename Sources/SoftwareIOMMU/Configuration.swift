// SPDX-License-Identifier: Apache-2.0
//
// What one software IOMMU is: a machine file's data, checked.

import HardwareTables
import IOMMU
import PageTables

extension SoftwareIOMMU {
  public typealias Architecture = HardwareFamily

  /// Which of an IOMMU's two translations a table is for.
  public enum Stage: String, Hashable, Sendable, CaseIterable {
    /// The one that a guest would own: VT-d first stage, AMD guest (v2), SMMUv3 stage 1, RISC-V
    /// first stage.
    case first
    /// The one below it: VT-d second stage, AMD host (v1), SMMUv3 stage 2, RISC-V second stage.
    case second
  }

  /// What an IOMMU of the machine can do. Constant while it exists.
  public struct Configuration: Hashable, Sendable {
    public var architecture: Architecture
    /// Of the tables that the engine fills, but for those that others nest on (second) and, of all
    /// but VT-d, for those that take PASIDs (first). As Linux's drivers choose it: first for
    /// SMMUv3 and RISC-V; for VT-d and AMD second.
    public var stage: Stage
    /// Width of the addresses that it translates, in bits. Canonical first stages translate the
    /// lower half of that.
    public var addressBits: Int
    /// Ranges that no address space may map, the MSI window included.
    public var reservedRegions: [ReservedRegion]
    /// Width of PASIDs in bits, 0 to 20; 0 is none.
    public var pasidBits: UInt8
    /// Whether it takes page requests of devices (PRI), which keep translations themselves (ATS).
    public var pageRequests: Bool
    /// Whether it can force accesses to snoop; then all its translations do.
    public var snoopControl: Bool
    /// Whether it keeps accessed and dirty bits in the page tables that ask for it. On by
    /// default, as in server processors since 2022.
    public var tracksDirty: Bool
    /// Whether, where it keeps no such bits, its tables can tell what was written by protection:
    /// the first write to a page costs a miss more.
    public var tracksDirtyInSoftware: Bool
    /// Whether users' tables may nest on the engine's. A VT-d unit is in scalable mode then.
    public var nests: Bool
    /// Most table pages (of 4 KiB) that one page table may have.
    public var maximumTablePages: Int
    /// Page requests that wait to be passed on at most; at least the 32 of a group.
    public var pageRequestQueueLength = 512
    /// How long an invalidation waits for a device with ATS that confirms by hand, before the
    /// device is cut off. PCI Express allows a minute; drivers do not wait that long.
    public var invalidationTimeout: Duration = .milliseconds(300)

    /// - Parameters:
    ///   - stage: nil for what Linux's driver chooses.
    ///   - levels: Of VT-d's and RISC-V's tables, 3 to 5; nil for what the width needs.
    ///   - addressBits: nil for what the levels translate (48 without them). Clamped to that, and
    ///     to at least 32, so that the MSI window exists. RISC-V: what the levels translate.
    ///   - reservedRegions: Beside the MSI window, which every machine reserves.
    public init(
      architecture: Architecture = .intel, stage: Stage? = nil, levels: Int? = nil,
      addressBits: Int? = nil, reservedRegions: [ReservedRegion] = [], pasidBits: UInt8 = 0,
      pageRequests: Bool = false, snoopControl: Bool = true, tracksDirty: Bool = true,
      tracksDirtyInSoftware: Bool = false, nests: Bool = true, maximumTablePages: Int = .max
    ) {
      self.architecture = architecture
      let widest: Int
      switch architecture {
      case .intel, .riscv:
        let levels = levels ?? IntelSecondStage.levels(addressBits: addressBits ?? 48)
        widest = IntelSecondStage.addressBits(levels: min(max(levels, 3), 5))
      case .amd: widest = 64
      case .smmuV3: widest = 48
      }
      self.addressBits =
        architecture == .riscv
        ? widest : min(max(addressBits ?? min(widest, levels == nil ? 48 : 64), 32), widest)
      self.stage = stage ?? (architecture == .intel || architecture == .amd ? .second : .first)
      self.pasidBits = min(pasidBits, 20)
      self.reservedRegions =
        [ReservedRegion(InterruptRemapper.window, kind: .msi)]
        + reservedRegions.filter { $0.range != InterruptRemapper.window }
      self.pageRequests = pageRequests
      self.snoopControl = snoopControl
      self.tracksDirty = tracksDirty
      self.tracksDirtyInSoftware = tracksDirtyInSoftware
      self.nests = nests
      self.maximumTablePages = maximumTablePages
    }

    /// Levels that 9 bits each need for the address width over pages of 4 KiB: those of VT-d's
    /// second stage, AMD's host tables and RISC-V's. First stages of VT-d and AMD have at least
    /// 4.
    var levels: Int { IntelSecondStage.levels(addressBits: addressBits) }
  }
}
