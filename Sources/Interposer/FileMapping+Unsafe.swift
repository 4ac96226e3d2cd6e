// SPDX-License-Identifier: Apache-2.0
//
// Files of a program, mapped here: what lies in a range of an address space, and a shared
// mapping of exactly the pages that DMA needs.

import CSyscalls
import IOMMU
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// One mapping in an address space.
struct MemoryArea: Sendable {
  var start: UInt64
  /// Exclusive.
  var end: UInt64
  var isReadable: Bool
  var isWritable: Bool
  var isShared: Bool
  var pageSize: UInt64
  /// In the file, in bytes.
  var offset: UInt64
  var major: UInt32
  var minor: UInt32
  /// 0 where no file is mapped.
  var inode: UInt64

  /// The mapping around an address; nil where there is none.
  /// - Parameter maps: An open `/proc/PID/maps`.
  static func find(_ address: UInt64, in maps: Int32) -> MemoryArea? {
    var map = csys_procmap()
    let result = unsafe csys_procmap_query(maps, address, &map, nil, 0)
    guard result == -ENOTTY else {
      guard result == 0 else { return nil }
      return MemoryArea(
        start: map.start, end: map.end, isReadable: map.flags & 1 != 0,
        isWritable: map.flags & 2 != 0, isShared: map.flags & 8 != 0,
        pageSize: max(map.page_size, 4096), offset: map.offset, major: map.major,
        minor: map.minor, inode: map.inode)
    }
    return parse(maps).first { $0.0.start <= address && address < $0.0.end }?.0
  }

  /// The path that the mapping was made from, as the program's file system has it.
  func name(in maps: Int32) -> String? {
    var map = csys_procmap()
    var name = [CChar](repeating: 0, count: 4096)
    let result = unsafe csys_procmap_query(maps, start, &map, &name, 4096)
    if result == 0 {
      return unsafe name.withUnsafeBufferPointer { name in
        // SAFETY: the kernel terminates the name.
        unsafe String(cString: name.baseAddress!)
      }
    }
    guard result == -ENOTTY else { return nil }
    return Self.parse(maps).first { $0.0.start == start }?.1
  }

  /// The mappings of the files that have this inode number, on whatever device.
  static func areas(of inode: UInt64, in maps: Int32) -> [MemoryArea] {
    let number = Array(" \(inode) ".utf8)
    return parse(maps) { line in
      var start = line.startIndex
      while let found = line[start...].firstIndex(of: number[0]) {
        if line[found...].starts(with: number) { return true }
        start = found + 1
      }
      return false
    }.map(\.0).filter { $0.inode == inode }
  }

  /// The text, where there is no call for it (before Linux 6.11) or all mappings are of interest.
  private static func parse(
    _ maps: Int32, where isWanted: (ArraySlice<UInt8>) -> Bool = { _ in true }
  ) -> [(MemoryArea, String)] {
    var text: [UInt8] = []
    // By offset: threads share the file.
    while let some = System.readSome(maps, from: UInt64(text.count)), !some.isEmpty {
      text += some
    }
    return text.split(separator: UInt8(ascii: "\n")).compactMap { line in
      guard isWanted(line) else { return nil }
      let fields = line.split(
        separator: UInt8(ascii: " "), maxSplits: 5, omittingEmptySubsequences: true
      ).map { String(decoding: $0, as: UTF8.self) }
      guard fields.count >= 5 else { return nil }
      let range = fields[0].split(separator: "-")
      let device = fields[3].split(separator: ":")
      guard range.count == 2, device.count == 2, let start = UInt64(range[0], radix: 16),
        let end = UInt64(range[1], radix: 16), let offset = UInt64(fields[2], radix: 16),
        let major = UInt32(device[0], radix: 16), let minor = UInt32(device[1], radix: 16),
        let inode = UInt64(fields[4])
      else { return nil }
      let permissions = Array(fields[1])
      let area = MemoryArea(
        start: start, end: end, isReadable: permissions[0] == "r",
        isWritable: permissions[1] == "w", isShared: permissions[3] == "s", pageSize: 4096,
        offset: offset, major: major, minor: minor, inode: inode)
      return (area, fields.count > 5 ? String(fields[5].drop { $0 == " " }) : "")
    }
  }
}

/// How many mappings of files this process may have: the kernel counts all of a process's
/// mappings (`vm.max_map_count`), and thread stacks and the heap need some too. Thread-safe.
final class MappingRoom: Sendable {
  /// All of this process but 8192, or half where the host allows few.
  static let shared: MappingRoom = {
    let text = System.contents("/proc/sys/vm/max_map_count") ?? []
    let all =
      Int(String(decoding: text.prefix { $0 >= 48 && $0 < 58 }, as: UTF8.self)) ?? 65_530
    return MappingRoom(all / 2 < 8192 ? all / 2 : all - 8192)
  }()

  private let most: Int
  private let count = Atomic(0)

  init(_ most: Int) { self.most = most }

  /// Whether there was room for one more.
  func take() -> Bool {
    if count.add(1, ordering: .relaxed).newValue <= most { return true }
    give()
    return false
  }

  func give() { count.subtract(1, ordering: .relaxed) }
}

/// A shared mapping in this process; unmapped with its last reference.
final class FileMapping: Sendable {
  struct Request: Sendable {
    /// In the file, in bytes, a multiple of 4 KiB as `length` is.
    var offset: UInt64
    var length: UInt64
    var writable: Bool
    /// Page size of the file system: larger for hugetlbfs.
    var pageSize: UInt64
  }

  /// Address of the first byte that was asked for.
  let base: UInt
  /// Whether the file ended before the range did.
  let isBeyondEnd: Bool
  private let start: UInt
  private let size: Int
  private let room: MappingRoom

  /// nil where the file cannot be mapped, or where there is no room for it.
  init?(_ descriptor: Int32, _ request: Request, room: MappingRoom = .shared) {
    guard let identity = System.identity(descriptor), identity.mode & S_IFMT == S_IFREG else {
      return nil
    }
    let mask = request.pageSize &- 1
    let first = request.offset & ~mask
    let (sum, overflow) = request.offset.addingReportingOverflow(request.length)
    guard !overflow, sum <= UInt64(Int64.max) - mask else { return nil }
    let end = (sum + mask) & ~mask
    guard room.take() else { return nil }
    var address: UInt = 0
    let result = unsafe csys_map_shared(
      descriptor, first, Int(end - first), request.writable ? 1 : 0, &address)
    guard result == 0 else {
      room.give()
      return nil
    }
    self.room = room
    start = address
    size = Int(end - first)
    base = address + UInt(request.offset - first)
    isBeyondEnd = sum > (identity.size + 4095) & ~4095
  }

  deinit {
    _ = csys_unmap(start, size)
    room.give()
  }

  /// Whether this is the file that another address space has mapped: the kernel's own answer,
  /// since `stat` may name another device than a mapping does.
  func shows(_ area: MemoryArea) -> Bool {
    let maps = System.open("/proc/self/maps", O_RDONLY)
    guard maps >= 0 else { return false }
    defer { close(maps) }
    guard let here = MemoryArea.find(UInt64(start), in: maps) else { return false }
    return here.inode == area.inode && here.major == area.major && here.minor == area.minor
  }
}

/// A file of a program as a source of memory: addresses are offsets.
///
/// Any file can be given; what cannot be pinned is `EINVAL` then and not before, as on Linux
/// (`memfd_pin_folios`): other files than those in shared memory or huge pages, and ranges that
/// pass the end of the file.
final class FileMemory: MemorySource {
  private let descriptor: OwnedDescriptor
  /// Nil where the file cannot be pinned.
  private let identity: MemoryIdentity?
  private let pageSize: UInt64

  /// - Parameter isForeign: Whether it is the program's own file, none of ours.
  init(_ descriptor: OwnedDescriptor, isForeign: Bool) {
    pageSize = csys_map_granule(descriptor.number)
    self.descriptor = descriptor
    identity =
      isForeign && csys_is_shared_memory(descriptor.number) != 0
      ? Self.identity(of: descriptor, pageSize: pageSize) : nil
  }

  /// As a mapping of it says: `stat` may name another device.
  private static func identity(of descriptor: OwnedDescriptor, pageSize: UInt64)
    -> MemoryIdentity?
  {
    let first = FileMapping.Request(
      offset: 0, length: pageSize, writable: false, pageSize: pageSize)
    guard let mapping = FileMapping(descriptor.number, first) else { return nil }
    let maps = System.open("/proc/self/maps", O_RDONLY)
    defer { close(maps) }
    guard let area = MemoryArea.find(UInt64(mapping.base), in: maps) else { return nil }
    return MemoryIdentity(
      space: UInt64(area.major) << 32 | UInt64(area.minor), object: area.inode, offset: 0)
  }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard var identity else {
      throw IOMMUError(
        .invalidArgument,
        "the file is neither a memfd nor in tmpfs or hugetlbfs: its pages cannot be pinned")
    }
    let request = FileMapping.Request(
      offset: address, length: length, writable: writable, pageSize: pageSize)
    // Linux takes no page that the file's end cuts.
    let size = System.identity(descriptor.number)?.size ?? 0
    guard length <= size, address <= size - length,
      let mapping = FileMapping(descriptor.number, request), !mapping.isBeyondEnd
    else {
      throw IOMMUError(
        .invalidArgument,
        "the file has no \(hex(length)) bytes from \(hex(address)) that could be mapped")
    }
    identity.offset = address
    try place(
      PinnedRun(
        length: length, backing: .local(base: mapping.base, owner: mapping), identity: identity)
    )
  }
}
