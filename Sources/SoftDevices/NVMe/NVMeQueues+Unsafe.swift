// SPDX-License-Identifier: Apache-2.0
//
// Submission and completion queues: rings in the program's memory (NVM Express 1.4, 4.1, 4.6).

import IOMMU
import PageTables
import Synchronization
import VFIO

/// A submission queue. Of the controller's thread.
final class SubmissionQueue {
  let number: UInt16
  fileprivate(set) var address: UInt64
  /// Entries, 2 to 65536.
  let size: UInt32
  let completions: CompletionQueue
  var head: UInt32 = 0
  var tail: UInt32 = 0
  /// What the doorbell said last, valid or not.
  var rung: UInt32 = 0

  init(number: UInt16, address: UInt64, size: UInt32, completions: CompletionQueue) {
    self.number = number
    self.address = address
    self.size = size
    self.completions = completions
  }

  /// Commands that were rung for and not fetched yet.
  var waiting: UInt32 { tail >= head ? tail - head : tail + size - head }
}

extension SubmissionQueue {
  /// Takes both queues to where the registers say now. Nothing is in them yet.
  func place(submissions: UInt64, completions: UInt64) {
    address = submissions
    self.completions.address = completions
  }
}

/// A completion queue. Of the controller's thread.
@safe
final class CompletionQueue {
  /// In bytes.
  static let entrySize: UInt64 = 16

  let number: UInt16
  fileprivate(set) var address: UInt64
  /// Entries, 2 to 65536.
  let size: UInt32
  /// Nil where it raises no interrupts.
  let vector: UInt16?
  /// Submission queues that complete here.
  var users = 0
  /// Entries of commands that are being flushed.
  var reserved: UInt32 = 0
  var head: UInt32 = 0
  /// Where the next entry goes that is not staged.
  private(set) var tail: UInt32 = 0
  /// What the doorbell said last, valid or not.
  var rung: UInt32 = 0
  /// Of the entry at `tail`; turns over each time round.
  private var phase = true
  private let staged: UnsafeMutableRawBufferPointer
  private(set) var stagedCount = 0

  /// Entries that go out together.
  static let batch = 8

  init(number: UInt16, address: UInt64, size: UInt32, vector: UInt16?) {
    self.number = number
    self.address = address
    self.size = size
    self.vector = vector
    // SAFETY: this object's own, freed in deinit.
    unsafe staged = .allocate(byteCount: Self.batch * Int(Self.entrySize), alignment: 16)
    _ = unsafe staged.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit { unsafe staged.deallocate() }

  /// One that goes on where another was.
  convenience init(_ state: NVMeState.Completions) {
    self.init(
      number: state.number, address: state.address, size: state.size, vector: state.vector)
    head = state.head
    tail = state.tail
    rung = state.rung
    phase = state.phase
  }

  /// With nothing staged.
  var state: NVMeState.Completions {
    NVMeState.Completions(
      number: number, address: address, size: size, vector: vector, head: head, tail: tail,
      rung: rung, phase: phase)
  }

  /// Entries that the driver has not taken yet.
  var used: UInt32 { tail >= head ? tail - head : tail + size - head }
  /// Entries that may be staged: one always stays free, or full would look like empty.
  var room: UInt32 { size - 1 - used - reserved - UInt32(stagedCount) }
  var isFull: Bool { stagedCount == Self.batch }

  /// Readies an entry. There is room, and it is not `isFull`.
  func stage(
    identifier: UInt16, queue: UInt16, head: UInt32, status: NVMeStatus, result: UInt32
  ) {
    let low = UInt64(result)
    let high =
      UInt64(UInt16(truncatingIfNeeded: head)) | UInt64(queue) << 16 | UInt64(identifier) << 32
      | UInt64(status.field) << 49
    let start = stagedCount * Int(Self.entrySize)
    // SAFETY: `stagedCount` is less than `batch`.
    unsafe staged.storeBytes(of: low.littleEndian, toByteOffset: start, as: UInt64.self)
    unsafe staged.storeBytes(of: high.littleEndian, toByteOffset: start + 8, as: UInt64.self)
    stagedCount += 1
  }

  /// Writes what is staged: first all of it with the phase of last time round, then once more with
  /// the new one, so that a driver that sees an entry's phase sees all of it, however the writes
  /// are carried out.
  func flush(_ port: any BusPort) throws(BusError) {
    var done = 0
    while done < stagedCount {
      let count = min(stagedCount - done, Int(size - tail))
      for isNew in [false, true] {
        let bit: UInt64 = (isNew == phase) ? 1 << 48 : 0
        for index in done..<done + count {
          let place = index * Int(Self.entrySize) + 8
          // SAFETY: as in `stage`.
          let high = unsafe staged.load(fromByteOffset: place, as: UInt64.self).littleEndian
          unsafe staged.storeBytes(
            of: (high & ~(1 << 48) | bit).littleEndian, toByteOffset: place, as: UInt64.self)
        }
        // What the commands did is seen before their completions, and those before their phase.
        atomicMemoryFence(ordering: .releasing)
        let start = done * Int(Self.entrySize)
        // SAFETY: the slice is checked against the buffer.
        try unsafe port.write(
          IOVA(address &+ UInt64(tail) * Self.entrySize),
          from: UnsafeRawBufferPointer(
            rebasing: staged[start..<start + count * Int(Self.entrySize)]))
      }
      tail += UInt32(count)
      if tail == size {
        tail = 0
        phase.toggle()
      }
      done += count
    }
    stagedCount = 0
  }
}

/// Commands that were fetched together. Of the controller's thread.
@safe
final class CommandBatch {
  /// Commands fetched at once.
  static let size = 32
  private let buffer: UnsafeMutableRawBufferPointer

  init() {
    // SAFETY: this object's own, freed in deinit.
    unsafe buffer = .allocate(byteCount: Self.size * NVMeCommand.size, alignment: 64)
    _ = unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit { unsafe buffer.deallocate() }

  /// - Parameter count: Commands, at most `size`.
  func fetch(_ address: UInt64, count: Int, _ port: any BusPort) throws(BusError) {
    // SAFETY: the slice is checked against the buffer.
    try unsafe port.read(
      IOVA(address),
      into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<(count * NVMeCommand.size)]))
  }

  func command(_ index: Int) -> NVMeCommand {
    precondition(index >= 0 && index < Self.size)
    var words = InlineArray<8, UInt64>(repeating: 0)
    for word in 0..<8 {
      // SAFETY: the index was checked.
      words[word] = unsafe UInt64(
        littleEndian: buffer.load(
          fromByteOffset: index * NVMeCommand.size + word * 8, as: UInt64.self))
    }
    return NVMeCommand(words: words)
  }
}
