// SPDX-License-Identifier: Apache-2.0
//
// Translations that a device keeps itself (MODEL G1, G2; PCI Express, 10.3: ATS invalidation; VT-d
// revision 4.1, section 6.5.2.5): it is told what to forget, and says when it has. A device that
// does not say so in time is cut off, as the IOMMU may take no longer to complete an invalidation.

import IOMMU
import Synchronization

/// What a device with ATS has been told to forget and has not confirmed, where it confirms by hand.
/// Thread-safe; its lock is a leaf, taken under the port's mailbox.
final class DeviceCache: Sendable {
  private struct State: Sendable {
    var isByHand = false
    /// What to forget. Its context and configuration are not used.
    var mail = PortChannel.Mailbox()
    /// Invalidations that were posted, and how many of them are done.
    var posted: UInt64 = 0
    var confirmed: UInt64 = 0
    /// It has not confirmed in time, and had no context since.
    var isCutOff = false
  }

  private let state = Guarded(State())
  private let name: String
  private let timeout: Duration
  private let events: EventLog

  /// - Parameters:
  ///   - name: Of the IOMMU and the device, for sentences.
  ///   - timeout: How long an invalidation waits for the device.
  init(name: String, timeout: Duration, events: EventLog) {
    self.name = name
    self.timeout = timeout
    self.events = events
  }

  var isByHand: Bool {
    get { state.withLock { $0.isByHand } }
    set { state.withLock { $0.isByHand = newValue } }
  }

  var isCutOff: Bool { state.withLock { $0.isCutOff } }

  /// Whether something waits to be forgotten.
  var isPending: Bool { state.withLock { $0.posted != $0.confirmed } }

  /// Takes an invalidation for later.
  /// - Returns: False where the port is to do it with its mail.
  func hold(_ range: IOVARange) -> Bool {
    state.withLock { state in
      guard state.isByHand else { return false }
      state.mail.add(range)
      state.posted += 1
      return true
    }
  }

  /// As `hold`, of everything: the context is another. One that was cut off has another chance.
  func holdAll() -> Bool {
    state.withLock { state in
      guard state.isByHand, !state.isCutOff else {
        state.isCutOff = false
        return false
      }
      state.mail.flushesAll = true
      state.posted += 1
      return true
    }
  }

  /// What to forget now, and the number to confirm when that is done; nil for nothing.
  func take() -> (mail: PortChannel.Mailbox, number: UInt64)? {
    state.withLock { state in
      guard state.posted != state.confirmed else { return nil }
      defer { state.mail = PortChannel.Mailbox() }
      return (state.mail, state.posted)
    }
  }

  func confirm(_ number: UInt64) {
    state.withLock { $0.confirmed = max($0.confirmed, number) }
  }

  /// Waits until everything that was posted before is confirmed.
  /// - Returns: False where the device has had its time: the caller cuts it off.
  func isConfirmed() -> Bool {
    let (target, isDone) = state.withLock {
      ($0.posted, $0.confirmed == $0.posted || $0.isCutOff)
    }
    if isDone { return true }
    let end = ContinuousClock.now + timeout
    var backoff = Backoff()
    while state.withLock({ $0.confirmed < target && !$0.isCutOff }) {
      guard ContinuousClock.now < end else { break }
      backoff.pause()
    }
    let cuts = state.withLock { state in
      guard state.confirmed < target, !state.isCutOff else { return false }
      state.isCutOff = true
      state.confirmed = state.posted
      state.mail = PortChannel.Mailbox()
      return true
    }
    if cuts {
      events.append(
        .note(
          "\(name) has not confirmed an invalidation of its translations within \(timeout): it is "
            + "cut off until a context is set for it again"))
    }
    return !cuts
  }
}
