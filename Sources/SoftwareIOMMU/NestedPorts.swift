// SPDX-License-Identifier: Apache-2.0
//
// What all tables have in common that users own: the parent below, which knows the ports that go
// through them, to be told what to forget.

import IOMMU

/// A user's table of any format, nested on one of the engine's.
protocol SoftwareNestedDomain: NestedDomain {
  /// Kept alive by the nested table.
  var parent: any SoftwareDomain { get }
  /// What a port of this table goes through.
  var portContext: PortContext { get }
  /// Whether it stands for all PASIDs of a device that have no context of their own (MODEL B9).
  var hasPASIDs: Bool { get }
  /// Whether devices with ATS may keep translations of it.
  var enablesATS: Bool { get }

  /// What hardware or its driver would not take that was taken when the table was made.
  /// - Throws: What an attach answers.
  func check(attaching device: RequesterID, pasid: PASID?) throws(IOMMUError)
}

extension SoftwareNestedDomain {
  var enablesATS: Bool { true }

  /// From now on invalidations wait for this port too, and unmaps of the parent.
  func attach(_ channel: PortChannel, of source: SoftwareIOMMU.Source) {
    parent.attachNested(
      NestedPort(table: ObjectIdentifier(self), source: source, channel: channel))
  }

  /// The port has left the table.
  func detach(_ channel: PortChannel) {
    parent.detachNested(channel, of: ObjectIdentifier(self))
  }
}

extension IOVARange {
  /// Everything that can be cached.
  static let all = IOVARange(first: 0, last: .max)

  /// 2^shift bytes, or up to the end of all addresses, for `shift` of 64 and more.
  init(_ address: UInt64, shift: Int) {
    let inside: UInt64 = shift >= 64 ? .max : (1 << UInt64(shift)) &- 1
    self.init(first: address & ~inside, last: address | inside)
  }

  /// With all of the leaves of 2^shift bytes that it touches.
  @inline(__always)
  func widened(to shift: UInt8) -> IOVARange {
    if shift <= 12 { return self }
    let inside: UInt64 = (1 << UInt64(shift)) &- 1
    return IOVARange(first: first & ~inside, last: last | inside)
  }
}

/// A port of a user's table, with whose it is.
struct NestedPort: Sendable {
  /// The `SoftwareNestedDomain`, which outlives the attachment.
  let table: ObjectIdentifier
  let source: SoftwareIOMMU.Source
  let channel: PortChannel
}

/// What ports of users' tables are told to forget.
enum NestedForgetting: Sendable {
  /// What they have translated, whoever remembers it.
  case translations(IOVARange)
  /// What the IOMMU remembers for devices without ATS.
  case iotlb(IOVARange)
  /// What they have read of tables of PASIDs, and all translations.
  case configuration

  /// The addresses that are concerned.
  var range: IOVARange {
    switch self {
    case .translations(let range), .iotlb(let range): range
    case .configuration: .all
    }
  }

  func post(to channel: PortChannel) {
    switch self {
    case .translations(let range): channel.post(range)
    case .iotlb(let range): channel.postIOTLB(range)
    case .configuration: channel.postConfiguration()
    }
  }
}
