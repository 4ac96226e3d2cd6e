// SPDX-License-Identifier: Apache-2.0
//
// Failures on demand, for tests (Linux: fault injection and `/proc/TID/fail-nth`): the n-th
// place on a call's way that could fail does, so that every way back out is walked.

import Synchronization
import SystemPackage

/// A place where the engine, a driver or the binary face can run out of something.
///
/// In life most of them hardly ever fail. A thread that runs under a `FailureCountdown` counts
/// them, and one fails. Where no thread does, passing one costs a relaxed load.
public enum FailurePoint: String, CaseIterable, Sendable {
  /// An open makes a context.
  case context
  /// A context's table takes another object.
  case object
  /// A driver makes a page table or another object of its own.
  case driverObject
  /// A driver needs memory for a page table.
  case tableMemory
  /// An area is added to an address space.
  case area
  /// A range is reserved in an address space.
  case reservation
  /// A run of memory is pinned.
  case pin
  /// Pinned memory is charged to an account.
  case account
  /// A pinned run gets its place in physical space.
  case segment
  /// What an accessor has pinned is noted.
  case accessorPin
  /// A driver switches a requester to another context.
  case attachment
  /// Scratch memory of a command.
  case scratch
  /// A client's structure is copied in.
  case copyIn
  /// A result is copied out.
  case copyOut
  /// A client is given a descriptor.
  case descriptor

  /// What the failed call returns.
  var errno: Errno {
    switch self {
    case .copyIn, .copyOut: .badAddress
    case .descriptor: .tooManyOpenFiles
    default: .noMemory
    }
  }

  /// Fails where the current thread runs under a countdown that has come to its end.
  /// - Throws: `ENOMEM`; `EFAULT` for copies, `EMFILE` for descriptors.
  @inline(__always)
  package static func pass(_ point: FailurePoint) throws(IOMMUError) {
    if FailureCountdown.isAnyRunning { try FailureCountdown.passed(point) }
  }
}

/// Makes the n-th failure point that a thread passes fail. It fails once and is then spent.
///
/// Thread-safe: it may be armed and read while a call runs under it.
public final class FailureCountdown: Sendable {
  private struct State: Sendable {
    var remaining: Int
    var failed: FailurePoint?
  }

  private let state: Guarded<State>

  /// Threads that run under a countdown.
  private static let running = Atomic(0)
  @TaskLocal private static var current: FailureCountdown?

  /// - Parameter nth: Which failure point fails, counted from 1; 0 is none.
  public init(_ nth: Int = 0) { state = Guarded(State(remaining: nth)) }

  /// How many failure points are left to pass, the failing one included: 0 where it has failed
  /// or none will. Setting it arms the countdown again.
  public var remaining: Int {
    get { state.withLock { $0.remaining } }
    set { state.withLock { $0 = State(remaining: newValue) } }
  }

  /// What failed; nil where nothing has.
  public var failed: FailurePoint? { state.withLock { $0.failed } }

  /// Runs a call under the countdown: only what the current thread does in it counts.
  public func run<Result, Failure: Error>(
    _ call: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    Self.running.add(1, ordering: .relaxed)
    defer { Self.running.subtract(1, ordering: .relaxed) }
    // A task-local value is a thread's own outside of tasks. A result keeps the error's type.
    return try Self.$current.withValue(self) {
      Swift.Result { () throws(Failure) in try call() }
    }.get()
  }

  /// Runs a way back, which restores what was there before: it fails by itself only, if at all.
  static func whileNothingFails(_ body: () -> Void) {
    Interruption.suspended {
      guard isAnyRunning else { return body() }
      $current.withValue(nil) { body() }
    }
  }

  @inline(__always)
  fileprivate static var isAnyRunning: Bool { running.load(ordering: .relaxed) != 0 }

  @inline(never)
  fileprivate static func passed(_ point: FailurePoint) throws(IOMMUError) {
    guard let current else { return }
    let fails = current.state.withLock { state in
      guard state.remaining > 0 else { return false }
      state.remaining -= 1
      guard state.remaining == 0 else { return false }
      state.failed = point
      return true
    }
    guard fails else { return }
    throw IOMMUError(point.errno, "a test made the failure point '\(point.rawValue)' fail")
  }
}
