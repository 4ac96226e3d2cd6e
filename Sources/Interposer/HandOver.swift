// SPDX-License-Identifier: Apache-2.0
//
// Copies that a thread sends us of its own descriptors, where the host lets us take none: of eventfds,
// which nobody can open anew. The thread gets a socket, sends them over it and begins its call anew, which
// finds them here.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Copies that a thread is to send before it begins its call anew. Thread-safe.
final class HandOver: Sendable {
  private struct State {
    var copies: [Int32: OwnedDescriptor]
    var failure: Int32 = 0
  }

  let descriptors: [Int32]
  /// The thread's end of the socket, by its number there.
  let socket: Int32
  let ours: OwnedDescriptor
  /// How many came before this one, of the same call.
  let round: Int
  private let state: Guarded<State>

  /// - Parameter copies: What the call has already: others may be done with those by then.
  init(
    _ descriptors: [Int32], socket: Int32, ours: OwnedDescriptor, round: Int,
    copies: [Int32: OwnedDescriptor]
  ) {
    state = Guarded(State(copies: copies))
    self.descriptors = descriptors
    self.socket = socket
    self.ours = ours
    self.round = round
  }

  /// What is there for the call, by the number that it has in the program.
  var copies: [Int32: OwnedDescriptor] { state.withLock { $0.copies } }
  /// Why something was not sent, as a negative errno; 0 where everything was.
  var failure: Int32 { state.withLock { $0.failure } }

  func take(_ copy: OwnedDescriptor, of number: Int32) {
    state.withLock { $0.copies[number] = copy }
  }

  func fail(_ result: Int32) { state.withLock { $0.failure = result } }
}

/// `struct msghdr` with one byte and SCM_RIGHTS, as it lies in a 64-bit program's memory.
struct Message {
  /// MSG_DONTWAIT, MSG_NOSIGNAL.
  static let doesNotWait = 0x40
  static let raisesNothing = 0x4000

  private(set) var bytes: [UInt8] = []

  /// `struct msghdr` is 56 bytes, `struct iovec` 16; the byte has 8, `struct cmsghdr` 16.
  static func byteCount(_ descriptors: Int) -> Int { 96 + (descriptors * 4 + 7) & ~7 }

  /// - Parameter address: Where it is to lie.
  init(_ descriptors: [Int32], at address: UInt64) {
    let control = UInt64(16 + descriptors.count * 4)
    // No name; the vector and its length; the control message and its length; no flags.
    append([0, 0, address &+ 56, 1, address &+ 80, (control + 7) & ~7, 0])
    // The byte.
    append([address &+ 72, 1, 0])
    // SOL_SOCKET, SCM_RIGHTS.
    append([control, 1 << 32 | 1])
    for descriptor in descriptors {
      bytes += (0..<4).map { UInt8(truncatingIfNeeded: descriptor >> (8 * $0)) }
    }
    bytes += [UInt8](repeating: 0, count: -bytes.count & 7)
  }

  private mutating func append(_ words: [UInt64]) {
    for word in words { bytes += (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
  }
}

/// Copies that programs have handed over. Thread-safe.
final class HandedCopies: Sendable {
  private struct Held: Sendable {
    weak var copy: OwnedDescriptor?
  }

  private struct State: Sendable {
    /// Of eventfds, by what tells them from others: nobody else gets that number as long as there
    /// is a copy.
    var events: [UInt64: Held] = [:]
    var eventsToLook = 64
    /// By thread: on their way, until the call that is begun anew has come.
    var underWay: [Int32: HandOver] = [:]
    var underWayToLook = 64
  }

  private let state = Guarded(State())

  /// A copy of an eventfd that somebody uses.
  func event(_ number: UInt64) -> OwnedDescriptor? {
    state.withLock { $0.events[number]?.copy }
  }

  func keep(_ copy: OwnedDescriptor, ofEvent number: UInt64) {
    state.withLock { state in
      state.events[number] = Held(copy: copy)
      guard state.events.count >= state.eventsToLook else { return }
      state.events = state.events.filter { $0.value.copy != nil }
      state.eventsToLook = 2 * state.events.count + 64
    }
  }

  /// A thread hands over.
  func expect(_ handOver: HandOver, of thread: Int32) {
    state.withLock { state in
      state.underWay[thread] = handOver
      guard state.underWay.count >= state.underWayToLook else { return }
      // Of threads that were killed meanwhile.
      state.underWay = state.underWay.filter { unsafe access("/proc/\($0.key)", F_OK) == 0 }
      state.underWayToLook = 2 * state.underWay.count + 64
    }
  }

  /// What a thread has handed over for the call that has come now.
  func take(of thread: Int32) -> HandOver? {
    state.withLock { $0.underWay.removeValue(forKey: thread) }
  }
}
