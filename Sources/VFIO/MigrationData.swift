// SPDX-License-Identifier: Apache-2.0
//
// A session in which a device's state is read or written: what is behind the data_fd of
// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE. Facts: Linux 6.12, vfio/pci/mlx5/main.c.

import IOMMU
import SystemPackage

/// One session. The descriptor may outlive it. Thread-safe.
public final class MigrationData: Sendable {
  public enum Direction: Sendable {
    /// The device's state is read.
    case saving
    /// A state is written.
    case resuming
  }

  public let direction: Direction
  /// Readable while there is something to read, and at the end. One that is written to says so
  /// always, as a file without poll does.
  public let readiness = Readiness()

  /// What a session needs of its device.
  struct Device: Sendable {
    var origin: MigrationRecord.Origin
    /// The longest payload of a state.
    var limit: Int
    /// Puts bytes into a memory BAR.
    var store: @Sendable ([UInt8]) throws(IOMMUError) -> Void
  }

  private enum Phase: Sendable {
    /// More may come.
    case open
    /// All is there: a reader gets to the end.
    case complete
    /// The session was ended, or failed.
    case over
  }

  private struct State: Sendable {
    var phase = Phase.open
    /// Saving: what is to be read. Resuming: the record that is coming in.
    var bytes: [UInt8] = []
    var read = 0
    /// Of `bytes`, and of all that was there before: where the first image ends.
    var initialLeft = 0
    /// What is read once `bytes` is through; nil at its end.
    var more: (@Sendable () throws(IOMMUError) -> [UInt8]?)?
    var head: MigrationRecord.Head?
    /// The payload of the state, once it has come.
    var image: [UInt8]?
    /// The image that was put in last.
    var last: [UInt8] = []

    var left: Int { bytes.count - read }
  }

  private let device: Device
  private let state = RankedMutex(.migrationData, State())

  init(_ direction: Direction, device: Device) {
    self.direction = direction
    self.device = device
    if direction == .resuming { readiness.recordAdded() }
  }

  // MARK: Saving

  /// Puts in the state of a device that runs, where it is another one than last time.
  /// - Returns: Bytes that came to the stream.
  func addPreliminary(_ image: [UInt8]) {
    state.withLock { state in
      guard state.phase == .open, image != state.last else { return }
      let isFirst = state.last.isEmpty
      state.last = image
      state.bytes += MigrationRecord.encode(.preliminary, image, of: device.origin)
      if isFirst { state.initialLeft = state.left }
      readiness.recordAdded()
    }
  }

  /// Puts in what is left: whatever `more` gives, which is asked as it is read.
  func complete(_ more: @escaping @Sendable () throws(IOMMUError) -> [UInt8]?) {
    state.withLock { state in
      guard state.phase == .open else { return }
      state.phase = .complete
      state.more = more
      readiness.recordAdded()
    }
  }

  /// What is left to read while the device runs: of the first image, and of what came since.
  /// - Throws: `ENODEV` where the session is over.
  func preliminaryBytes() throws(IOMMUError) -> (initial: Int, dirty: Int) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.phase != .over else { throw Self.over }
      return state.initialLeft > 0 ? (state.initialLeft, 0) : (0, state.left)
    }
  }

  /// Reads on.
  /// - Parameters:
  ///   - count: At most so many bytes; not negative.
  ///   - deliver: Takes them. Where it throws they are read again next time.
  /// - Returns: Bytes read; 0 at the end of the state.
  /// - Throws: `ENOMSG` where a device that still runs has nothing new; `ENODEV` where the session
  ///   is over; `EBADF` of one that is written; what `deliver` throws.
  public func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    guard direction == .saving else {
      throw IOMMUError(.badFileDescriptor, "this session takes a state: write it")
    }
    return try state.withLock { (state) throws(IOMMUError) in
      var done = 0
      while done < count {
        guard state.phase != .over else { throw Self.over }
        if state.left == 0 {
          (state.bytes, state.read) = ([], 0)
          guard try refill(&state) else { break }
        }
        let piece = min(count - done, state.left)
        do throws(IOMMUError) {
          try deliver(Array(state.bytes[state.read..<state.read + piece]))
        } catch {
          guard done > 0 else { throw error }
          return done
        }
        state.read += piece
        state.initialLeft = max(0, state.initialLeft - piece)
        done += piece
      }
      if state.left == 0, state.phase == .open { readiness.emptied() }
      guard done > 0 || count == 0 || state.phase == .complete else {
        throw IOMMUError(
          Self.noMessage, "the device has nothing new to save; poll, or go on to STOP_COPY")
      }
      return done
    }
  }

  /// ENOMSG.
  private static let noMessage = Errno(rawValue: 42)

  /// - Returns: False where there is nothing more.
  private func refill(_ state: inout State) throws(IOMMUError) -> Bool {
    guard let more = state.more else { return false }
    do throws(IOMMUError) {
      guard let bytes = try more() else {
        state.more = nil
        return false
      }
      state.bytes = bytes
      return true
    } catch {
      state.phase = .over
      throw error
    }
  }

  // MARK: Resuming

  /// Takes bytes of the stream.
  /// - Throws: `EINVAL` for what is no state of such a device: the session is over then, and the
  ///   device fails at the next step; `ENODEV` where it is over; `EBADF` of one that is read.
  public func write(_ bytes: [UInt8]) throws(IOMMUError) {
    guard direction == .resuming else {
      throw IOMMUError(.badFileDescriptor, "this session gives a state: read it")
    }
    try state.withLock { (state) throws(IOMMUError) in
      guard state.phase != .over else { throw Self.over }
      do throws(IOMMUError) {
        var rest = bytes[...]
        while !rest.isEmpty { try take(&rest, &state) }
        // A record without a payload is whole with its head.
        try finishRecord(&state)
      } catch {
        state.phase = .over
        state.bytes = []
        throw error
      }
    }
  }

  private func take(
    _ rest: inout ArraySlice<UInt8>, _ state: inout State
  ) throws(IOMMUError) {
    try finishRecord(&state)
    guard state.phase == .open else {
      throw DeviceStateReader.invalid("something follows its end")
    }
    let wanted = (state.head?.length ?? MigrationRecord.headSize) - state.bytes.count
    let piece = rest.prefix(wanted)
    state.bytes += piece
    rest = rest.dropFirst(piece.count)
    guard state.head == nil, state.bytes.count == MigrationRecord.headSize else { return }
    state.head = try MigrationRecord.head(
      of: state.bytes, origin: device.origin, limit: device.limit)
    state.bytes = []
  }

  private func finishRecord(_ state: inout State) throws(IOMMUError) {
    guard let head = state.head, state.bytes.count == head.length else { return }
    let payload = state.bytes
    (state.head, state.bytes) = (nil, [])
    guard MigrationRecord.sum(payload) == head.sum else {
      throw DeviceStateReader.invalid("its sum is wrong: bytes were changed on the way")
    }
    switch head.kind {
    case .preliminary: break
    case .memory: try device.store(payload)
    case .final:
      state.image = payload
      state.phase = .complete
    }
  }

  /// The state that was written, whole.
  /// - Throws: `EINVAL` where it is not.
  func image() throws(IOMMUError) -> [UInt8] {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.phase == .complete, let image = state.image else {
        throw IOMMUError(
          .invalidArgument,
          state.phase == .over
            ? "what was written is no state of this device; reset it"
            : "the state that was written is not whole; reset the device to give it up")
      }
      return image
    }
  }

  // MARK: The end

  /// The device leaves the session: who has the descriptor gets errors.
  func end() {
    state.withLock { state in
      state = State()
      state.phase = .over
      readiness.recordAdded()
    }
  }

  private static var over: IOMMUError {
    IOMMUError(.noSuchDevice, "this session is over; a change of the device's state ended it")
  }
}
