// SPDX-License-Identifier: Apache-2.0
//
// The invalidation protocol (MODEL G2) between whoever changes translations and a port that
// does DMA.
//
// A port does all its DMA inside transactions. It enters one with a sequentially consistent
// store, then looks whether mail is pending, then translates with plain loads. Whoever
// changes a translation changes the table, posts mail to each port, and then looks (all
// sequentially consistent) whether the port is inside a transaction. So at least one of the
// two sees the other: either the port reads its mail before it translates, or the poster
// waits until the port left the transaction or read its mail. Idle ports are not waited for.
//
// What a port remembers is the IOMMU's IOTLB for its device, or, of a device with ATS, the device's
// own cache: then invalidations of the IOTLB are nothing to it, those of the device TLB are, and
// the device confirms them. It does so by taking its mail, or by hand (DeviceCache).

import IOMMU
import Synchronization

/// What one port shares with the threads that change translations.
final class PortChannel: Sendable {
  /// Odd while the port is inside a transaction. Changes too when the port reads its mail.
  let sequence = Atomic<UInt64>(0)
  /// Whether there is mail.
  let pending = Atomic<Bool>(false)
  private let mailbox = RankedMutex(.mailbox, Mailbox())
  /// Of a device with ATS; nil where the port remembers for the IOMMU.
  let device: DeviceCache?
  /// Whether what the port remembers is the device's at the moment: ATS is on.
  private let isDeviceTLB = Atomic(false)

  init(device: DeviceCache? = nil) {
    self.device = device
    isDeviceTLB.store(device != nil, ordering: .relaxed)
  }

  /// What a port has to do before it translates again.
  struct Mailbox: Sendable {
    static let capacity = 16

    /// Ranges to forget, both ends inclusive.
    var ranges = InlineArray<16, IOVARange>(repeating: IOVARange(first: 0, last: 0))
    var count = 0
    /// Forget everything: the ranges overflowed, or the context changed.
    var flushesAll = false
    /// Forget what a user's table of PASIDs said: it is read again.
    var forgetsConfiguration = false
    /// What the requester's DMA goes through from now on.
    var context: PortContext?
    /// Whether the device asks for translations of it.
    var hasATS = false

    mutating func add(_ range: IOVARange) {
      if flushesAll { return }
      if count > 0 {
        // Unmaps come again at one place, or in ascending order.
        let latest = ranges[count - 1]
        if range.first >= latest.first,
          range.first <= latest.last
            || range.first == latest.last &+ 1 && range.first != 0
        {
          ranges[count - 1].last = max(latest.last, range.last)
          return
        }
      }
      guard count < Self.capacity else {
        flushesAll = true
        return
      }
      ranges[count] = range
      count += 1
    }
  }

  /// Tells the port to forget a range, whoever remembers it.
  func post(_ range: IOVARange) {
    mailbox.withLock { mail in
      if let device, isDeviceTLB.load(ordering: .relaxed), device.hold(range) { return }
      mail.add(range)
      announce()
    }
  }

  /// Tells the port to forget a range that the IOMMU remembers.
  func postIOTLB(_ range: IOVARange) {
    mailbox.withLock { mail in
      if isDeviceTLB.load(ordering: .relaxed) { return }
      mail.add(range)
      announce()
    }
  }

  /// Says that there is mail. Under the mailbox's lock, so that the port's taking of the mail
  /// does not come between; where mail was announced before and not taken, nothing is to do.
  @inline(__always)
  private func announce() {
    if !pending.load(ordering: .relaxed) {
      pending.store(true, ordering: .sequentiallyConsistent)
    }
  }

  /// Tells the port to forget what it read of a user's table of PASIDs, and what it translated by
  /// that, which may have been another address space.
  func postConfiguration() {
    mailbox.withLock { mail in
      mail.forgetsConfiguration = true
      // What a device has translated stays until that is invalidated.
      if !isDeviceTLB.load(ordering: .relaxed) { mail.flushesAll = true }
      announce()
    }
  }

  /// As `post` and `wait`.
  func invalidate(_ range: IOVARange) {
    post(range)
    wait()
  }

  /// Tells the port to change its context in one step, and to forget everything.
  /// - Parameter hasATS: Whether a device with ATS keeps translations of the new one.
  func post(_ context: PortContext, hasATS: Bool = true) {
    mailbox.withLock { mail in
      mail.context = context
      if let device, device.holdAll() {
        // It forgets when it confirms.
      } else {
        mail.flushesAll = true
      }
      mail.hasATS = device != nil && hasATS
      isDeviceTLB.store(mail.hasATS, ordering: .relaxed)
      announce()
    }
  }

  /// Blocks the device, which has not confirmed in time: what it keeps is refused from now on.
  private func cutOff() {
    mailbox.withLock { mail in
      // A context that was set meanwhile is another chance.
      guard device?.isCutOff ?? true else { return }
      mail.context = .cutOff
      mail.flushesAll = true
      announce()
    }
  }

  /// Returns once the port cannot use anything older than what was posted before.
  ///
  /// Blocks while the port is inside a transaction: at most for one chunk of a copy; and until a
  /// device that confirms by hand has, or its time is up.
  /// - Returns: Whether the device confirmed, where it had to: else it is cut off now.
  @discardableResult
  func wait() -> Bool {
    let isConfirmed = device?.isConfirmed() ?? true
    if !isConfirmed { cutOff() }
    let seen = sequence.load(ordering: .sequentiallyConsistent)
    guard seen & 1 == 1 else { return isConfirmed }
    var backoff = Backoff()
    while sequence.load(ordering: .acquiring) == seen { backoff.pause() }
    return isConfirmed
  }

  /// The port takes its mail, inside a transaction and holding no translation. Only the port's
  /// thread calls this.
  ///
  /// - Parameter number: The next odd sequence number. It is published under the mailbox's
  ///   lock, so that whoever posts later waits for a change after this one.
  func take(sequence number: UInt64) -> Mailbox {
    mailbox.withLock { mail in
      defer {
        mail.count = 0
        mail.flushesAll = false
        mail.context = nil
        mail.forgetsConfiguration = false
      }
      pending.store(false, ordering: .relaxed)
      sequence.store(number, ordering: .releasing)
      return mail
    }
  }
}

/// A closed range of bus addresses, in bytes.
struct IOVARange: Hashable, Sendable {
  var first: UInt64
  var last: UInt64
}
