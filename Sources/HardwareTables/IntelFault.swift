// SPDX-License-Identifier: Apache-2.0
//
// Reasons of VT-d's non-recoverable faults: Intel Virtualization Technology for Directed I/O,
// revision 4.1, sections 7.1.3 (fault conditions of DMA and their reason codes) and 5.1.4.1
// (those of interrupts).

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
  // Legacy second stage.
  /// A paging entry other than of the root table could not be read.
  case lss1 = 0x07
  /// A reserved field of a paging entry is not zero.
  case lss2 = 0x0C
  // Legacy, general.
  /// The address is beyond what the tables translate.
  case lgn1 = 0x04
  /// A write finds no permission; an entry that is not there has none.
  case lgn2 = 0x05
  /// A read finds no permission.
  case lgn3 = 0x06
  /// The address is in the interrupt range.
  case lgn4 = 0x0E
  // Interrupts (5.1.4.1). The specification numbers them only.
  /// A reserved field of the request is not zero.
  case interruptReserved = 0x20
  /// The index is beyond the table.
  case interruptIndex = 0x21
  /// The entry is not present.
  case interruptNotPresent = 0x22
  /// The table could not be read.
  case interruptTable = 0x23
  /// A reserved field of the entry is not zero.
  case interruptEntryReserved = 0x24
  /// A request of compatibility format is blocked.
  case interruptCompatibility = 0x25
  /// The entry is another source's.
  case interruptSource = 0x26
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
  // First stage.
  /// An entry other than of the root table could not be read.
  case sfs1 = 0x70
  /// An entry is not present.
  case sfs2 = 0x71
  /// A reserved field of a present entry is not zero.
  case sfs3 = 0x72
  /// An entry of the root table could not be read.
  case sfs4 = 0x73
  /// Nested: an entry's address is beyond what the second stage translates.
  case sfs5 = 0x74
  /// Nested: the second stage does not let the root table be read.
  case sfs6 = 0x75
  /// Nested: the second stage does not let another table be read.
  case sfs7 = 0x76
  /// Nested: the second stage does not let an entry be marked.
  case sfs8 = 0x77
  /// Marks are due, and walks do not snoop.
  case sfs9 = 0x90
  /// A mark could not be written.
  case sfs10 = 0x91
  // Second stage.
  /// An entry other than of the root table could not be read.
  case sss1 = 0x78
  /// An entry is not present: it neither reads nor writes.
  case sss2 = 0x79
  /// A reserved field of a present entry is not zero.
  case sss3 = 0x7A
  /// An entry of the root table could not be read.
  case sss4 = 0x7B
  /// Marks are due, and walks do not snoop.
  case sss5 = 0x7C
  /// A mark could not be written.
  case sss6 = 0x7D
  // General.
  /// The address is not canonical.
  case sgn1 = 0x80
  /// User privilege, and the page is the supervisor's.
  case sgn2 = 0x81
  /// Execution finds no permission.
  case sgn3 = 0x82
  /// The address is beyond the host's.
  case sgn4 = 0x83
  /// The address is beyond what the second stage translates.
  case sgn5 = 0x84
  /// A write finds no permission.
  case sgn6 = 0x85
  /// A read finds no permission.
  case sgn7 = 0x86
  /// The address is in the interrupt range.
  case sgn8 = 0x87

  /// As the specification writes it: `SFS.2`; of interrupts the code.
  public var name: String {
    switch rawValue {
    case 0x20...0x26: return "interrupt fault"
    default:
      let name = "\(self)".uppercased()
      return "\(name.prefix(3)).\(name.dropFirst(3))"
    }
  }

  /// Whether a set FPD field keeps it from being reported (7.1.1): all but those of the root
  /// table and of its address, and those of interrupts before an entry is found.
  public var isQualified: Bool {
    switch self {
    case .lrt1, .lrt2, .lrt3, .rta1, .rta2, .rta3, .rta4, .srt1, .srt2, .srt3,
      .interruptReserved, .interruptIndex, .interruptTable, .interruptCompatibility:
      false
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
