// SPDX-License-Identifier: Apache-2.0
//
// How an event reaches whoever waits for it: the client's eventfd, or a test's counter.

/// Something that an interrupt or another event signals. Thread-safe.
public protocol EventSignal: AnyObject, Sendable {
  /// Adds 1 to the counter. Never blocks.
  func signal()
}
