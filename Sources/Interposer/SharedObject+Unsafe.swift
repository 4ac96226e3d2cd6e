// SPDX-License-Identifier: Apache-2.0
//
// Shared memory without a name (`MAP_SHARED | MAP_ANONYMOUS`, a memfd that nobody has open) where the
// host lets nobody open a mapping (/proc/PID/map_files takes CAP_CHECKPOINT_RESTORE). Linux pins its
// pages; here it is reached through the address space that mapped it for DMA and, when that one has
// it no more, through any other of the run that has.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What an object of the kernel's own shared memory is known by, for as long as the kernel runs.
///
/// It counts their inodes on in 64 bits (from Linux 5.9 on, which is older than what `iommu run` needs),
/// so that none stands for another one later. Not so segments of System V, whose numbers come again
/// and stand for others in each namespace, files of a file system, and huge pages without a name:
/// those are none of these objects.
struct SharedObjectID: Equatable, Sendable {
  private let inode: UInt64

  /// - Parameters:
  ///   - area: A mapping.
  ///   - maps: Its address space's open `/proc/PID/maps`.
  /// - Returns: nil where it is of none of these objects.
  init?(_ area: MemoryArea, in maps: Int32) {
    guard area.isShared, area.inode != 0, let device = Self.device, area.major == device.major,
      area.minor == device.minor, let name = area.name(in: maps),
      // Segments are on the same device. No program can give another mapping such a name.
      !name.hasPrefix("/SYSV")
    else { return nil }
    inode = area.inode
  }

  /// The device of the kernel's own shared memory, which no file system has that could be mounted.
  private static let device: (major: UInt32, minor: UInt32)? = {
    // SAFETY: a page of its own, which nobody touches.
    let page = unsafe mmap(nil, 4096, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    guard let page = unsafe page, unsafe page != MAP_FAILED else { return nil }
    defer { _ = unsafe munmap(page, 4096) }
    let maps = System.open("/proc/self/maps", O_RDONLY)
    guard maps >= 0 else { return nil }
    defer { close(maps) }
    let area = MemoryArea.find(UInt64(UInt(bitPattern: page)), in: maps)
    return area.map { ($0.major, $0.minor) }
  }()

  /// Mappings that may be of the object.
  fileprivate func candidates(in maps: Int32) -> [MemoryArea] {
    MemoryArea.areas(of: inode, in: maps)
  }

  fileprivate func isShown(by area: MemoryArea, in maps: Int32) -> Bool {
    area.inode == inode && SharedObjectID(area, in: maps) != nil
  }
}

/// Memory of an address space that is shared with others. Thread-safe.
final class SharedRun: RemoteMemory {
  private let client: ClientMemory
  private let object: SharedObject
  /// From an address to the place in the object.
  private let shift: UInt64

  init(_ client: ClientMemory, _ object: SharedObject, shift: UInt64) {
    self.client = client
    self.object = object
    self.shift = shift
  }

  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    // SAFETY: the caller's buffer, here and below.
    if unsafe client.read(at: address, into: buffer) { return true }
    return unsafe object.read(at: address &+ shift, into: buffer)
  }

  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    if unsafe client.write(at: address, from: buffer) { return true }
    return unsafe object.write(at: address &+ shift, from: buffer)
  }
}

/// An object, reached through whoever maps it. Thread-safe.
final class SharedObject: Sendable {
  let id: SharedObjectID
  /// Who was last found to map it.
  private let holder = Guarded<Holder?>(nil)

  init(_ id: SharedObjectID) { self.id = id }

  /// - Parameter offset: In the object, in bytes.
  /// - Returns: False where nobody maps it so that the access is allowed.
  func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    transfer(offset, buffer.count, isStore: false) { mem, address, done, count in
      // SAFETY: `done + count` is at most the buffer's count.
      unsafe csys_pread(mem, buffer.baseAddress! + done, count, address)
    }
  }

  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    transfer(offset, buffer.count, isStore: true) { mem, address, done, count in
      // SAFETY: as in `read`.
      unsafe csys_pwrite(mem, buffer.baseAddress! + done, count, address)
    }
  }

  /// Moves bytes between an address space, by its descriptor, and the caller's buffer from `done` on.
  private typealias Move = (_ mem: Int32, _ address: UInt64, _ done: Int, _ count: Int) -> Int

  private func transfer(_ offset: UInt64, _ count: Int, isStore: Bool, _ move: Move) -> Bool {
    var done = 0
    while done < count {
      let piece = Holder.Piece(
        offset: offset + UInt64(done), count: count - done, isStore: isStore)
      let moved = self.move(piece) { move($0, $1, done, $2) }
      guard moved > 0 else { return false }
      done += moved
    }
    return true
  }

  private func move(_ piece: Holder.Piece, _ body: Holder.Body) -> Int {
    if let last = holder.withLock({ $0 }) {
      let moved = last.move(piece, body)
      if moved > 0 { return moved }
    }
    // Whoever else has it; of several that look at once any may be remembered.
    var moved = 0
    AddressSpaces.contains { path in
      guard let found = Holder(of: id, path) else { return false }
      moved = found.move(piece, body)
      guard moved > 0 else { return false }
      holder.withLock { $0 = found }
      return true
    }
    return moved
  }
}

/// An address space in which an object is mapped. Thread-safe.
private final class Holder: Sendable {
  struct Piece {
    /// In the object, in bytes.
    let offset: UInt64
    let count: Int
    let isStore: Bool
  }

  /// Moves at most so many bytes, by descriptor; returns how many.
  typealias Body = (_ mem: Int32, _ address: UInt64, _ count: Int) -> Int

  private let id: SharedObjectID
  private let mem: OwnedDescriptor
  private let maps: OwnedDescriptor
  private let areas: Guarded<[MemoryArea]>

  /// - Parameter path: The directory of a process or a thread in /proc.
  /// - Returns: nil where it does not map the object, or may not be looked at.
  init?(of id: SharedObjectID, _ path: String) {
    let before = System.open(path + "/maps", O_RDONLY)
    guard before >= 0 else { return nil }
    defer { close(before) }
    let areas = id.candidates(in: before)
    guard areas.contains(where: { id.isShown(by: $0, in: before) }) else { return nil }
    let mem = System.open(path + "/mem", O_RDWR)
    guard mem >= 0 else { return nil }
    self.mem = OwnedDescriptor(mem)
    // Anew: then both are the same address space's, whatever the process executed meanwhile.
    let maps = System.open(path + "/maps", O_RDONLY)
    guard maps >= 0 else { return nil }
    self.maps = OwnedDescriptor(maps)
    self.areas = Guarded(areas)
    self.id = id
  }

  /// - Returns: Bytes moved; 0 where the object is not mapped here, or not for such an access.
  func move(_ piece: Piece, _ body: Body) -> Int {
    let known = areas.withLock { $0 }
    let moved = move(piece, by: known, body)
    if moved > 0 { return moved }
    // Mapped elsewhere by now, perhaps.
    let found = id.candidates(in: maps.number)
    areas.withLock { $0 = found }
    return move(piece, by: found, body)
  }

  private func move(_ piece: Piece, by areas: [MemoryArea], _ body: Body) -> Int {
    for area in areas where area.offset <= piece.offset {
      let address = area.start &+ (piece.offset - area.offset)
      guard address < area.end, let now = mapping(of: piece, at: address) else { continue }
      let moved = body(mem.number, address, min(piece.count, Int(clamping: now.end - address)))
      // Bytes that something else may have had there by then are none of the object's.
      if moved > 0, piece.isStore || mapping(of: piece, at: address) != nil { return moved }
    }
    return 0
  }

  /// The object's mapping at an address, as it is now; nil where it is gone or allows no such access.
  private func mapping(of piece: Piece, at address: UInt64) -> MemoryArea? {
    guard let area = MemoryArea.find(address, in: maps.number),
      area.start <= address, area.end > address, id.isShown(by: area, in: maps.number),
      area.offset + (address - area.start) == piece.offset,
      // No processor has pages that can be written only.
      area.isWritable || !piece.isStore && area.isReadable
    else { return nil }
    return area
  }
}
