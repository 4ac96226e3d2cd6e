// SPDX-License-Identifier: Apache-2.0
//
// The smallest queue of records behind a descriptor: fixed-size records, responses that are kept.
// It shows what an EventFile does, to carriers' tests and to those who write one.

import IOMMU
import LinuxABI
import SystemPackage

/// Records of 8 bytes; a response is 8 bytes too and fails with EINVAL where it is zero.
public final class TestEventQueue: EventFile {
  public let name: String
  public let readiness = Readiness()
  public let isWritable: Bool
  public static let recordSize = 8

  private struct State: Sendable {
    var records: [UInt64] = []
    var responses: [UInt64] = []
    var isClosed = false
  }

  private let state = Guarded(State())

  public init(name: String = "test queue", isWritable: Bool) {
    self.name = name
    self.isWritable = isWritable
  }

  /// Adds a record, as a device does.
  public func add(_ record: UInt64) {
    state.withLock { state in
      state.records.append(record)
      readiness.recordAdded()
    }
  }

  /// Takes all records back, as a detach does.
  public func removeAll() {
    state.withLock { state in
      state.records = []
      readiness.emptied()
    }
  }

  public var responses: [UInt64] { state.withLock { $0.responses } }
  public var isClosed: Bool { state.withLock { $0.isClosed } }

  public func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    guard count >= 0, count % Self.recordSize == 0 else {
      throw IOMMUError(.illegalSeek, "\(count) bytes are no whole records")
    }
    var done = 0
    while count - done >= Self.recordSize, let record = take() {
      do throws(IOMMUError) {
        try deliver((0..<8).map { UInt8(truncatingIfNeeded: record >> (8 * $0)) })
      } catch {
        putBack(record)
        guard done > 0 else { throw error }
        return done
      }
      done += Self.recordSize
    }
    return done
  }

  /// The queue's lock is not held while the caller's memory is touched.
  private func take() -> UInt64? {
    state.withLock { state in
      guard !state.records.isEmpty else { return nil }
      let record = state.records.removeFirst()
      if state.records.isEmpty { readiness.emptied() }
      return record
    }
  }

  private func putBack(_ record: UInt64) {
    state.withLock { state in
      state.records.insert(record, at: 0)
      readiness.recordAdded()
    }
  }

  public func write(
    count: Int, fetch: (_ offset: Int, _ size: Int) throws(IOMMUError) -> [UInt8]
  ) throws(IOMMUError) -> Int {
    guard isWritable else {
      throw IOMMUError(.invalidArgument, "\(name) takes no responses")
    }
    guard count >= 0, count % 8 == 0 else {
      throw IOMMUError(.illegalSeek, "\(count) bytes are no whole responses")
    }
    var done = 0
    while done < count {
      do throws(IOMMUError) {
        let response = try fetch(done, 8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard response != 0 else {
          throw IOMMUError(.invalidArgument, "there is no record 0 to respond to")
        }
        state.withLock { $0.responses.append(response) }
      } catch {
        guard done > 0 else { throw error }
        return done
      }
      done += 8
    }
    return done
  }

  public func close() { state.withLock { $0.isClosed = true } }
}
