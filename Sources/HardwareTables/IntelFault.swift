// SPDX-License-Identifier: Apache-2.0
//
// Reasons of VT-d's non-recoverable faults: Intel Virtualization Technology for Directed I/O,
// revision 4.1, section 7.1.3 (fault conditions and their reason codes).

/// The reason code of a fault record, by the name that the specification gives the condition.
public enum IntelFaultReason: UInt8, Error, Hashable, Sendable, CaseIterable {
  // Legacy root table.
  /// The root entry could not be read.
  case lrt1 = 0x08
  /// The root entry is not present.
  case lrt2 = 0x01
  /// A reserved field of the present root entry is not zero.
  case lrt3 = 0x0A
  // Legacy context table.
  /// The context entry could not be read.
  case lct1 = 0x09
  /// The context entry is not present.
  case lct2 = 0x02
  /// A reserved field of the present context entry is not zero.
  case lct3 = 0x0B
  /// The context entry is programmed in a way that this unit has not (TT, AW).
  case lct4 = 0x03
  /// TT blocks translation requests and translated requests.
  case lct5 = 0x0D
  // Root-table address register.
  /// The register or its mode is one that this unit has not.
  case rta1 = 0x30
  /// Legacy mode, and the request has a PASID.
  case rta2 = 0x31
  /// Legacy mode, and this is a page request.
  case rta3 = 0x32
  /// DMA is to be aborted (TTM 11b).
  case rta4 = 0x33
  // Scalable-mode root table.
  case srt1 = 0x38
  case srt2 = 0x39
  case srt3 = 0x3A
  // Scalable-mode context table.
  case sct1 = 0x40
  case sct2 = 0x41
  case sct3 = 0x42
  /// The context entry is programmed in a way that this unit has not. No lookup here finds it.
  case sct4 = 0x43
  /// DTE is clear, and this is a translation request or a translated request.
  case sct5 = 0x44
  /// PASIDE is clear, and the request has a PASID.
  case sct6 = 0x45
  /// The PASID is beyond the PASID directory.
  case sct7 = 0x46
  /// PRE is clear, and this is a page request.
  case sct8 = 0x47
  /// RID_PASID is beyond the PASID directory. Revisions differ: some have it under SCT.4.
  case sct9 = 0x48
  // PASID directory.
  case spd1 = 0x50
  case spd2 = 0x51
  case spd3 = 0x52
  // PASID table.
  case spt1 = 0x58
  case spt2 = 0x59
  case spt3 = 0x5A
  /// The PASID entry is programmed in a way that this unit has not (PGTT, AW, FSPM).
  case spt4 = 0x5B
  /// ERE is clear, and the request asks for execution.
  case spt5 = 0x5C
  /// SRE is clear, and the request asks for supervisor privilege.
  case spt6 = 0x5D

  /// Whether a set FPD field keeps it from being reported (7.1.1): all but those of the root
  /// table and of its address.
  public var isQualified: Bool {
    switch self {
    case .lrt1, .lrt2, .lrt3, .rta1, .rta2, .rta3, .rta4, .srt1, .srt2, .srt3: false
    default: true
    }
  }
}

/// A request that a lookup ended.
public struct IntelFault: Error, Hashable, Sendable {
  public var reason: IntelFaultReason
  /// Whether it is recorded: false where it is qualified and an entry that was met on the way
  /// had Fault Processing Disable set.
  public var isReported: Bool

  @inlinable
  public init(_ reason: IntelFaultReason, isReported: Bool = true) {
    self.reason = reason
    self.isReported = isReported
  }
}

/// The kind of a request, as far as the tables treat them apart.
public enum IntelRequest: UInt8, Hashable, Sendable, CaseIterable {
  case untranslated
  /// A device that translated the address before, by its device TLB.
  case translated
  /// An ATS translation request.
  case translation
  /// A PRI page request.
  case page
}
