// SPDX-License-Identifier: Apache-2.0
//
// What stands for a queue of records: a pipe, whose only use is what poll says of it.
//
// Why a pipe: the program holds a reading end, we the one writing end. poll, select and epoll of
// it say POLLIN exactly while a byte lies in it, and we can put one in and take all out without
// holding a reading end, since a pipe, unlike a socket, opens anew through /proc/self/fd. So when
// the last reading end anywhere is closed (copies, forks, ends in flight), the kernel says so at
// once: POLLERR and SIGIO on the writing end. A fault queue's end is open for writing too and the
// pipe is never full: POLLOUT always; an event queue's is not: POLLOUT never. A pipe has an inode
// of its own, by which any copy of it is known. An eventfd has none, says POLLOUT always and shows
// no last close; a socket's byte cannot be taken back by who does not hold that end; an epoll
// descriptor shows no last close.

import CSyscalls
import IOMMU
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A pipe as the descriptor of a queue. Thread-safe.
final class StandInPipe: ReadinessSignal {
  /// Never read, and written by us alone.
  let writingEnd: OwnedDescriptor
  /// Whether the program asked for O_NONBLOCK. Its description always has it: a read that the
  /// filter cannot tell, below the window, shall not wait for ever.
  let isNonBlocking = Atomic(false)
  private let description: Guarded<OwnedDescriptor?>
  private let bytes = Guarded(0)
  /// Each record puts in a byte, to wake who waits for edges. Far below a pipe's 16 pages.
  private static let mostBytes = 1024
  private static let byte: [UInt8] = [1]

  /// - Parameter isWritable: Whether poll shall say that it can be written.
  /// - Throws: A negative errno in words.
  init(isWritable: Bool) throws(IOMMUError) {
    func failed(_ result: Int32) -> IOMMUError {
      IOMMUError(.init(rawValue: -result), "the supervisor cannot make a pipe for a queue")
    }
    var ends: (Int32, Int32) = (-1, -1)
    let result = unsafe withUnsafeMutablePointer(to: &ends) { ends in
      // SAFETY: a tuple of two Int32 has the layout of int[2].
      unsafe csys_pipe(UnsafeMutableRawPointer(ends).assumingMemoryBound(to: Int32.self))
    }
    guard result == 0 else { throw failed(result) }
    let reading = OwnedDescriptor(ends.0)
    writingEnd = OwnedDescriptor(ends.1)
    guard isWritable else {
      description = Guarded(reading)
      return
    }
    let both = System.open("/proc/self/fd/\(reading.number)", O_RDWR | O_NONBLOCK)
    guard both >= 0 else { throw failed(both) }
    description = Guarded(OwnedDescriptor(both))
  }

  /// What the program gets; nil the second time.
  func takeDescription() -> OwnedDescriptor? {
    description.withLock { description in
      defer { description = nil }
      return description
    }
  }

  var identity: csys_identity? { System.identity(writingEnd.number) }

  func set(isReadable: Bool) {
    bytes.withLock { bytes in
      guard isReadable else {
        takeOut(.max)
        bytes = 0
        return
      }
      System.writeAll(writingEnd.number, Self.byte)
      bytes += 1
      if bytes > Self.mostBytes {
        // Never all of them, or who polls just now would see none.
        takeOut(bytes - 1)
        bytes = 1
      }
    }
  }

  /// Puts right what a program did to the pipe through a descriptor that the filter cannot tell:
  /// a read of it took the bytes that others wait for, or a write left some.
  func repair() {
    bytes.withLock { bytes in
      let there = csys_pipe_count(writingEnd.number)
      if bytes > 0, there == 0 {
        System.writeAll(writingEnd.number, Self.byte)
        bytes = 1
      } else if bytes == 0, there > 0 {
        takeOut(.max)
      }
    }
  }

  /// Takes out so many bytes, or all there are.
  private func takeOut(_ count: Int) {
    let end = System.open("/proc/self/fd/\(writingEnd.number)", O_RDONLY | O_NONBLOCK)
    guard end >= 0 else { return }
    defer { close(end) }
    var left = count
    while left > 0, let some = System.readSome(end, limit: min(left, 4096)), !some.isEmpty {
      left -= some.count
    }
  }
}
