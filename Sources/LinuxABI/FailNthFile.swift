// SPDX-License-Identifier: Apache-2.0
//
// `/proc/TID/fail-nth` (Linux: fault injection): a program arms the failure of the n-th failure
// point that one of its threads will pass in the calls on /dev/iommu. With the self-tests only.

import IOMMU
import SystemPackage

/// A file that each thread of a program has in `/proc`, as `/proc/self/task/TID/NAME`.
public protocol ThreadNode: AnyObject, Sendable {
  /// Its last component.
  var name: String { get }

  /// One `open(2)`.
  /// - Parameter thread: Whose file it is, as the kernel numbers threads.
  func open(thread: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile
}

/// A file that `read(2)` and `write(2)` use at a position that they move; other files of ours
/// are devices, which have none.
public protocol PositionedFile: OpenFile {
  var position: UInt64 { get set }
}

/// The countdowns of threads. Thread-safe.
public final class FailNthNode: ThreadNode {
  public let name = "fail-nth"
  private let countdowns = Guarded<[Int32: FailureCountdown]>([:])

  init() {}

  public func open(thread: Int32, by caller: any Caller) -> any OpenFile {
    FailNthFile(
      countdowns.withLock { countdowns in
        let countdown = countdowns[thread] ?? FailureCountdown()
        countdowns[thread] = countdown
        return countdown
      })
  }

  /// Does a call of a thread under its countdown, where it has armed one.
  func run<Result>(
    _ caller: any Caller, _ call: () throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    guard let countdown = countdowns.withLock({ $0[caller.threadID] }), countdown.remaining > 0
    else { return try call() }
    return try countdown.run(call)
  }
}

/// An open `fail-nth`. What is written arms; what is read says how many failure points are
/// left: 0 where one has failed.
final class FailNthFile: PositionedFile {
  let name = "fail-nth"
  let number = DeviceNumber(major: 0, minor: 0)
  private let countdown: FailureCountdown
  private let place = Guarded<UInt64>(0)

  init(_ countdown: FailureCountdown) { self.countdown = countdown }

  var position: UInt64 {
    get { place.withLock { $0 } }
    set { place.withLock { $0 = newValue } }
  }

  func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    let text = Array("\(countdown.remaining)\n".utf8)
    let rest = text.dropFirst(Int(min(offset, UInt64(text.count)))).prefix(buffer.count)
    unsafe buffer.copyBytes(from: rest)
    return rest.count
  }

  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int {
    let text = String(decoding: unsafe Array(buffer.prefix(24)), as: UTF8.self)
    let digits = text.hasSuffix("\n") ? text.dropLast() : text[...]
    guard let nth = UInt32(digits) else {
      throw IOMMUError(.invalidArgument, "fail-nth takes a number, not '\(digits)'")
    }
    countdown.remaining = Int(nth)
    return buffer.count
  }

  func close() {}
}
