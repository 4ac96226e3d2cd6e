// SPDX-License-Identifier: Apache-2.0
//
// Why DMA was aborted: what a device model sees, and what the fault log keeps.

import HardwareTables
import IOMMU
import PageTables

/// A DMA access that the IOMMU aborted. Unrecoverable (MODEL H2).
public struct DMAFault: Error, Hashable, Sendable {
  public let requester: RequesterID
  /// nil for requests by RID alone.
  public let pasid: PASID?
  /// The first byte that could not be reached. Bytes below it were transferred.
  public let iova: IOVA
  /// What was tried.
  public let access: Permissions
  public let reason: Reason
  /// What the IOMMU found, as its hardware tells it apart: of walks the stage, the level, the
  /// intermediate address. Nil where it has nothing to report: it let the access through, and
  /// the memory behind it could not be reached.
  public let cause: RequestFault?
  /// What the device made of it. A device whose ATS is on asks for translations.
  public let kind: DeviceRequest.Kind
  /// What became of asking for the page, for sentences. Of devices that ask.
  package var pageRequest: PageRequestEnd?
  /// Pages from `iova` on that the access lacks and that its device may ask for; 0 where the
  /// fault stands. Of accesses that leave it to their caller to ask.
  package var missingPages = 0

  public enum Reason: UInt8, Error, Hashable, Sendable, CaseIterable {
    /// No context was ever set for this requester.
    case unknownRequester
    /// The requester is blocked (MODEL C2).
    case blocked
    /// The requester is in the host's context. The host's memory is out of reach of a
    /// machine in user space: nobody owns it on the device's behalf.
    case hostMemory
    /// The address, or the end of the access, has more bits than are translated.
    case addressWidth
    /// Nothing is mapped there.
    case notPresent
    /// A page-table entry has reserved bits set.
    case reservedBits
    /// Mapped, but not for reading or not for writing.
    case permission
    /// The translation is there and the memory behind it is gone: its owner unmapped it,
    /// executed another program or died.
    case memoryGone
    /// A read of the interrupt window, or a write there that is not 4 aligned bytes.
    case interruptWindow
    /// A write to the interrupt window that is no interrupt of this requester.
    case interruptRefused
    /// What a user says of the device or of its PASID is wrong, or not there.
    case badConfiguration
  }

  public init(
    requester: RequesterID, pasid: PASID? = nil, iova: IOVA, access: Permissions,
    reason: Reason, cause: RequestFault? = nil, kind: DeviceRequest.Kind = .untranslated
  ) {
    self.requester = requester
    self.pasid = pasid
    self.iova = iova
    self.access = access
    self.reason = reason
    self.cause = cause
    self.kind = kind
  }
}

extension DMAFault.Reason: CustomStringConvertible {
  public var description: String {
    switch self {
    case .unknownRequester: "no context was ever set for this requester"
    case .blocked: "the device is blocked"
    case .hostMemory: "nobody owns the device, and the host's memory is out of reach"
    case .addressWidth: "the address is too wide for this IOMMU"
    case .notPresent: "nothing is mapped there"
    case .reservedBits: "a page-table entry has reserved bits set"
    case .permission: "the mapping does not allow it"
    case .memoryGone: "the memory behind the mapping is gone"
    case .interruptWindow: "the interrupt window takes aligned writes of 4 bytes only"
    case .interruptRefused: "this is no interrupt of the device"
    case .badConfiguration: "the user's own table of contexts does not say how to translate it"
    }
  }

  init(_ fault: WalkFault) {
    switch fault.reason {
    case .addressWidth, .addressSize: self = .addressWidth
    case .notPresent, .accessFlag: self = .notPresent
    case .reservedBits, .misaligned: self = .reservedBits
    case .permission, .dirtyFlag: self = .permission
    case .tableUnreachable, .tableCorrupted: self = .memoryGone
    }
  }
}

/// Why a device that asks for pages did not get one.
package enum PageRequestEnd: Sendable {
  /// The table has no fault queue.
  case unasked
  /// The answer was "invalid", or the wait was ended in its place.
  case refused
}

extension DMAFault {
  /// The reason, of two stages whose tables have it so, and what became of asking for the page.
  public var explanation: String {
    switch pageRequest {
    case nil: place
    case .unasked:
      place + "; the device could ask for it, but its page table has no fault queue"
    case .refused: place + "; its page request was answered with invalid, or ended unanswered"
    }
  }

  private var place: String {
    guard case .walk(let walk, let tables)? = cause, tables.isNested else { return "\(reason)" }
    guard walk.stage == .second else { return "in the user's table \(reason)" }
    let address = hex(walk.ipa)
    return walk.isTableFetch
      ? "the user's table goes on at \(address), and in its parent \(reason)"
      : "the user's table leads to \(address), and in its parent \(reason)"
  }
}

extension DMAFault: CustomStringConvertible {
  public var description: String {
    let verb = access == .read ? "read" : access == .write ? "write" : "access"
    let source = pasid.map { "\(requester) (PASID \($0.rawValue))" } ?? "\(requester)"
    return "\(source): \(verb) at \(iova) aborted: \(explanation)"
  }
}
