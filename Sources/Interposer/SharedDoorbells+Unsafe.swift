// SPDX-License-Identifier: Apache-2.0
//
// Doorbells of one open of a device: a file of their own, which a program's mapping of them shows.
// While they are open the file has its pages; while they are closed it is empty, and a store raises
// SIGBUS, which the tracer carries out as a write of a register.
//
// No ring is lost when they close: a pipe takes a reference to the pages first, then the file is cut.
// A store either reached the page before the kernel took it from every processor, and is in the pipe;
// or it faults.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The doorbells in one device file. Thread-safe.
final class SharedDoorbells: DoorbellPages {
  private struct State: Sendable {
    var isOpen = false
    /// What the words were when they were closed.
    var words: [UInt32]
  }

  let byteCount: UInt64
  /// Where in the device's file they are, in bytes.
  let offset: UInt64
  /// The file; never given away.
  let probe: OwnedDescriptor
  let key: FileKey
  private let reader: OwnedDescriptor
  private let writer: OwnedDescriptor
  /// Our view of the file: touched while it is open only, under the lock.
  private let base: UInt
  /// Unranked: nothing is called under it.
  private let state: Guarded<State>

  /// - Throws: `ENOMEM`.
  init(at offset: UInt64, length: UInt64) throws(IOMMUError) {
    func failed(_ what: String) -> IOMMUError {
      IOMMUError(.noMemory, "the supervisor cannot make \(what) for a page of doorbells")
    }
    let memory = unsafe csys_memfd_create("iommu:doorbells", 3)
    guard memory >= 0 else { throw failed("a file") }
    defer { _ = csys_close_range(UInt32(memory), UInt32(memory)) }
    // F_ADD_SEALS: no further seals.
    _ = csys_fcntl(memory, 1033, 0x1)
    let number = System.open("/proc/self/fd/\(memory)", O_RDWR)
    guard number >= 0 else { throw failed("a file") }
    probe = OwnedDescriptor(number)
    guard let identity = System.identity(number) else { throw failed("a file") }
    key = FileKey(identity)
    var ends: (Int32, Int32) = (-1, -1)
    let made = unsafe withUnsafeMutablePointer(to: &ends) { ends in
      // SAFETY: two numbers, one after the other.
      unsafe csys_pipe(UnsafeMutableRawPointer(ends).assumingMemoryBound(to: Int32.self))
    }
    guard made == 0 else { throw failed("a pipe") }
    reader = OwnedDescriptor(ends.0)
    writer = OwnedDescriptor(ends.1)
    // F_SETPIPE_SZ: room for all pages, each with its own buffer.
    if length > 65_536 { _ = csys_fcntl(ends.1, 1031, Int(clamping: length)) }
    var base: UInt = 0
    guard unsafe csys_map_shared(number, 0, Int(length), 1, &base) == 0 else {
      throw failed("a mapping")
    }
    self.base = base
    self.offset = offset
    byteCount = length
    state = Guarded(State(words: Array(repeating: 0, count: Int(length / 4))))
  }

  deinit { _ = csys_unmap(base, Int(byteCount)) }

  /// A description for a program.
  func describe() -> OwnedDescriptor? {
    let number = System.open("/proc/self/fd/\(probe.number)", O_RDWR)
    return number < 0 ? nil : OwnedDescriptor(number)
  }

  func open() {
    state.withLock { state in
      guard !state.isOpen else { return }
      // Each page has its words before the file has the page.
      let bytes = unsafe state.words.withUnsafeBytes { bytes in
        // SAFETY: the array's own count.
        unsafe csys_pwrite(probe.number, bytes.baseAddress!, bytes.count, 0)
      }
      state.isOpen = bytes == Int(byteCount)
      // Without memory for all of them they stay closed: each ring traps.
      if !state.isOpen { take(&state) }
    }
  }

  func load(_ offset: UInt64) -> UInt32 {
    state.withLock { state in
      state.isOpen ? csys_word_load(base + UInt(offset)) : state.words[Int(offset / 4)]
    }
  }

  func store(_ value: UInt32, at offset: UInt64) {
    state.withLock { state in
      if state.isOpen {
        csys_word_store(base + UInt(offset), value)
      } else {
        state.words[Int(offset / 4)] = value
      }
    }
  }

  func close() {
    state.withLock { state in
      guard state.isOpen else { return }
      state.isOpen = false
      take(&state)
    }
  }

  /// Cuts the file and takes what was in it.
  private func take(_ state: inout State) {
    var held = 0
    while held < Int(byteCount) {
      let count = csys_splice(
        probe.number, UInt64(held), writer.number, Int(byteCount) - held)
      if count == -Int(EINTR) { continue }
      guard count > 0 else { break }
      held += count
    }
    _ = ftruncate(probe.number, 0)
    unsafe state.words.withUnsafeMutableBytes { bytes in
      var done = 0
      while done < held {
        let count = unsafe System.read(reader.number, into: .init(rebasing: bytes[done..<held]))
        guard count > 0 else { break }
        done += count
      }
    }
  }
}
