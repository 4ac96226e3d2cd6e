// SPDX-License-Identifier: Apache-2.0
//
// What all tables have in common that users own: the parent below, and the ports that go through
// them, to be told what to forget.

import IOMMU

/// A user's table of any format, nested on one of the engine's.
protocol SoftwareNestedDomain: NestedDomain {
  /// Kept alive by the nested table.
  var parent: any SoftwareDomain { get }
  /// What a port of this table goes through.
  var portContext: PortContext { get }
  var ports: NestedPorts { get }
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
    ports.add(channel)
    parent.attachNested(channel, of: source)
  }

  /// The port has left the table.
  func detach(_ channel: PortChannel) {
    parent.detachNested(channel)
    ports.remove(channel)
  }
}

/// The ports of one user's table. Thread-safe; the lock is held while ports are waited for, and
/// ports never take it.
final class NestedPorts: Sendable {
  /// Each attachment once, as in `DomainState`.
  private let channels = RankedMutex<[PortChannel]>(.domain, [])

  func add(_ channel: PortChannel) { channels.withLock { $0.append(channel) } }

  func remove(_ channel: PortChannel) {
    channels.withLock { channels in
      if let index = channels.firstIndex(where: { $0 === channel }) {
        channels.remove(at: index)
      }
    }
  }

  /// Returns once no port can use what it knew of a range before (MODEL G2).
  func invalidate(_ range: IOVARange) {
    channels.withLock { channels in
      for channel in channels { channel.post(range) }
      for channel in channels { channel.wait() }
    }
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
