// SPDX-License-Identifier: Apache-2.0
//
// A device's memory in the file that stands for an open of the device: a program's mmap of that
// file gives the very pages. What is taken is cut off the file's end, so that every mapping of it,
// in whatever process, raises SIGBUS; what was in it is kept here meanwhile.
//
// All accesses of ours are calls on the file: a program that finds a way to cut its own file makes
// them fail, and raises nothing here.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The memory in one device file. Thread-safe.
final class DevicePages: DeviceMemoryBacking {
  private let file: OwnedDescriptor
  private let key: csys_identity
  /// The stretches that answer, by their offsets. Held over each access, so that none grows the
  /// file again after it was cut.
  private let given = RankedMutex(.deviceMemory, [UInt64: Stretch]())

  struct Stretch: Sendable {
    let offset: UInt64
    let length: UInt64
    /// Exclusive.
    var end: UInt64 { offset + length }
  }

  /// Who has its doorbells; nil where programs map none.
  private let owner: DoorbellOwner?

  /// - Parameter file: Open for reading and writing.
  init(_ file: OwnedDescriptor, _ identity: csys_identity, owner: DoorbellOwner? = nil) {
    self.file = file
    key = identity
    self.owner = owner
  }

  func makeDoorbells(
    at offset: UInt64, length: UInt64
  ) throws(IOMMUError) -> (any DoorbellPages)? {
    guard let owner else { return nil }
    let doorbells = try SharedDoorbells(at: offset, length: length)
    try owner.add(doorbells)
    return doorbells
  }

  func makeMemory(at offset: UInt64, length: UInt64) throws(IOMMUError) -> any DeviceMemory {
    Memory(pages: self, Stretch(offset: offset, length: length))
  }

  /// One stretch of it.
  private final class Memory: DeviceMemory {
    let pages: DevicePages
    let stretch: Stretch
    /// What was in it when it was taken; holes are zero.
    private let kept = Guarded<[(offset: UInt64, bytes: [UInt8])]>([])

    init(pages: DevicePages, _ stretch: Stretch) {
      self.pages = pages
      self.stretch = stretch
    }

    var byteCount: UInt64 { stretch.length }
    var identity: MemoryIdentity {
      MemoryIdentity(space: pages.key.device, object: pages.key.inode, offset: stretch.offset)
    }
    var isGiven: Bool { pages.given.withLock { $0[stretch.offset] != nil } }

    func give() {
      pages.given.withLock { given in
        guard given[stretch.offset] == nil else { return }
        given[stretch.offset] = stretch
        pages.fit(given)
        kept.withLock { kept in
          for part in kept { pages.put(part.bytes, at: part.offset) }
          kept = []
        }
      }
    }

    func take() {
      pages.given.withLock { given in
        guard given.removeValue(forKey: stretch.offset) != nil else { return }
        kept.withLock { $0 = pages.data(of: stretch) }
        // Where another stretch follows, the file is not cut here.
        _ = csys_punch_hole(pages.file.number, stretch.offset, stretch.length)
        pages.fit(given)
      }
    }

    func clear() {
      pages.given.withLock { given in
        kept.withLock { $0 = [] }
        guard given[stretch.offset] != nil else { return }
        _ = csys_punch_hole(pages.file.number, stretch.offset, stretch.length)
      }
    }

    func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
      access(address, buffer.count) { offset in
        pages.move(buffer.count) { done in
          // SAFETY: `done` is below the buffer's count.
          unsafe csys_pread(
            pages.file.number, buffer.baseAddress! + done, buffer.count - done,
            offset + UInt64(done))
        }
      }
    }

    func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
      access(address, buffer.count) { offset in
        pages.move(buffer.count) { done in
          // SAFETY: as in `read`.
          unsafe csys_pwrite(
            pages.file.number, buffer.baseAddress! + done, buffer.count - done,
            offset + UInt64(done))
        }
      }
    }

    /// - Parameter body: Gets the offset in the file.
    private func access(_ address: UInt64, _ count: Int, _ body: (UInt64) -> Bool) -> Bool {
      guard address <= byteCount, UInt64(count) <= byteCount - address else { return false }
      return pages.given.withLock { given in
        given[stretch.offset] != nil && body(stretch.offset + address)
      }
    }
  }

  /// Makes the file as long as what is given reaches: pages after its end raise SIGBUS.
  private func fit(_ given: [UInt64: Stretch]) {
    _ = ftruncate(file.number, off_t(given.values.map(\.end).max() ?? 0))
  }

  /// Moves bytes until all are.
  private func move(_ count: Int, _ piece: (_ done: Int) -> Int) -> Bool {
    var done = 0
    while done < count {
      let moved = piece(done)
      if moved == -Int(EINTR) { continue }
      guard moved > 0 else { return false }
      done += moved
    }
    return true
  }

  private func put(_ bytes: [UInt8], at offset: UInt64) {
    unsafe bytes.withUnsafeBytes { bytes in
      _ = move(bytes.count) { done in
        // SAFETY: `done` is below the buffer's count.
        unsafe csys_pwrite(
          file.number, bytes.baseAddress! + done, bytes.count - done, offset + UInt64(done))
      }
    }
  }

  /// `SEEK_DATA` and `SEEK_HOLE`, which the C library shows to C alone.
  private static let seekData: Int32 = 3
  private static let seekHole: Int32 = 4

  /// What is in a stretch, without its holes.
  private func data(of stretch: Stretch) -> [(offset: UInt64, bytes: [UInt8])] {
    var parts: [(UInt64, [UInt8])] = []
    var cursor = stretch.offset
    while cursor < stretch.end {
      let start = lseek(file.number, off_t(cursor), Self.seekData)
      guard start >= 0, UInt64(start) < stretch.end else { break }
      let hole = lseek(file.number, start, Self.seekHole)
      let end = min(hole < 0 ? stretch.end : UInt64(hole), stretch.end)
      guard end > UInt64(start) else { break }
      var bytes = [UInt8](repeating: 0, count: Int(end - UInt64(start)))
      unsafe bytes.withUnsafeMutableBytes { bytes in
        _ = move(bytes.count) { done in
          // SAFETY: as in `put`.
          unsafe csys_pread(
            file.number, bytes.baseAddress! + done, bytes.count - done,
            UInt64(start) + UInt64(done))
        }
      }
      parts.append((UInt64(start), bytes))
      cursor = end
    }
    return parts
  }
}
