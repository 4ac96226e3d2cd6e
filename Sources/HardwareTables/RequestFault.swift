// SPDX-License-Identifier: Apache-2.0
//
// A request that an IOMMU ended, and why, before any family's code is given to it. What each
// family records of it is in IntelFaultRecord+Requests.swift, AMDEvent+Requests.swift,
// SMMUEvent+Requests.swift and RISCVFaultRecord+Requests.swift (MODEL H2).

import PageTables

/// A request of a device to memory.
public struct DeviceRequest: Hashable, Sendable {
  public enum Kind: UInt8, Hashable, Sendable, CaseIterable {
    case untranslated
    /// Of an address that the device's own TLB translated.
    case translated
    /// An ATS translation request. Where it finds no mapping, or not the rights it asks for, it is
    /// answered so, and nothing is recorded (PCIe 10.2.3; VT-d 4.1, 7.1.3; AMD 48882, 2.1.3.2;
    /// IHI 0070, 3.9.1; RISC-V IOMMU 1.0, 3.6).
    case translation
    /// A page request (PRI): a message.
    case page
  }

  /// The requester ID, 16 bits, of VT-d and AMD; the StreamID of SMMUv3; the `device_id` of
  /// RISC-V.
  public var source: UInt32
  /// 20 bits; nil where it had none.
  public var pasid: UInt32?
  /// As the device gave it, in bytes.
  public var address: UInt64
  /// What it asked for. Privilege and execution are told only of requests with a PASID, but by
  /// SMMUv3, and execution by RISC-V.
  public var access: Access
  public var kind: Kind

  public init(
    source: UInt32, pasid: UInt32? = nil, address: UInt64, access: Access,
    kind: Kind = .untranslated
  ) {
    self.source = source
    self.pasid = pasid
    self.address = address
    self.access = access
    self.kind = kind
  }

  var writes: Bool { access.permissions.contains(.write) }
  var executes: Bool { access.permissions.contains(.execute) }
}

/// Which tables a request went through, each with its levels.
public struct WalkedTables: Hashable, Sendable {
  /// Levels of the first stage; nil where there is none.
  public var firstLevels: Int?
  /// Levels of the second stage; nil where there is none.
  public var secondLevels: Int?

  public init(firstLevels: Int? = nil, secondLevels: Int? = nil) {
    self.firstLevels = firstLevels
    self.secondLevels = secondLevels
  }

  /// Whether it is the second stage that faulted: the walk of one table says `.first` of any.
  func isSecond(_ fault: WalkFault) -> Bool { firstLevels == nil || fault.stage == .second }
  /// Whether the faulting entry is in the root table of its stage.
  func isRoot(_ fault: WalkFault) -> Bool {
    Int(fault.level) == (isSecond(fault) ? secondLevels : firstLevels)
  }
  package var isNested: Bool { firstLevels != nil && secondLevels != nil }
  /// What the second stage was asked for; 0 where it did not fault.
  func intermediate(_ fault: WalkFault, of request: DeviceRequest) -> UInt64 {
    guard isSecond(fault) else { return 0 }
    return firstLevels == nil ? request.address : fault.ipa
  }
}

/// Why a request was ended by a lookup in a user's device or PASID tables, in the words of the
/// family whose tables they are.
public enum LookupFault: Hashable, Sendable {
  case intel(IntelFault)
  case amd(AMDFault)
  case smmuV3(SMMUFault)
  case riscv(RISCVFault)
}

/// Why a request was ended.
public enum RequestFault: Hashable, Sendable {
  /// There is nothing in the device table for it.
  case unknownRequester
  /// It is blocked: the device where the request has no PASID, else the PASID.
  case blocked
  case walk(WalkFault, WalkedTables)
  /// Of tables of its own family; of another's nothing is recorded.
  case lookup(LookupFault)
  /// A translated request, of a device whose ATS the IOMMU no longer serves.
  case translatedForbidden
  /// A page request, of a device that may make none. It is answered "invalid request".
  case pageRequestForbidden
  /// Reads of the interrupt window, and writes there that are not 4 aligned bytes.
  case interruptWindow(WalkedTables)
  /// Writes there that are no interrupt of the device.
  case interrupt(InterruptRefusal, WalkedTables)
}

/// What is wrong with an interrupt, in the order of VT-d's checks (5.1.4).
public enum InterruptRefusal: Hashable, Sendable {
  /// Not of the remappable format.
  case notRemappable
  /// Reserved bits of the message are set.
  case reservedBits
  /// The table has no entry of this number.
  case beyondTable(index: UInt16)
  case notPresent(index: UInt16)
  /// The entry is another device's.
  case wrongSource(index: UInt16)
}
