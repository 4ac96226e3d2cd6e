// SPDX-License-Identifier: Apache-2.0
//
// A program's address space as a source of memory for DMA. Shared file mappings are mapped here
// too, and reached without a call. Everything else is reached by process number until the first
// exec, then through `/proc/PID/mem`, which belongs to the address space, not to the number:
// after an exec it reads nothing.

import CProcessMemory
import CSyscalls
import IOMMU
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// One address space. Thread-safe.
final class ClientMemory: MemorySource, RemoteMemory {
  private let number: UInt64
  let group: Int32
  // Closed once the address space is gone: what is pinned of it may stay pinned for long.
  let process: RevocableDescriptor
  let mem: RevocableDescriptor
  let maps: RevocableDescriptor
  let direct: DirectAccess
  /// Our files: what a program maps of them cannot be pinned, as on Linux.
  let handles: HandleTable
  /// Where the last file mapping was found among the program's descriptors.
  private let hint = Guarded<Int32>(-1)
  private let copiesDescriptors: Bool
  /// Pieces of one object are mapped one after the other as a rule.
  private let lastObject = Guarded<SharedObject?>(nil)

  /// The address space of a thread that waits for an answer; nil where the thread is gone or
  /// may not be looked at.
  /// - Parameter isSettled: False while the process may be executing another program.
  init?(
    thread: Int32, group: Int32, number: UInt64, isSettled: Bool, handles: HandleTable,
    copiesDescriptors: Bool = true
  ) {
    let process = csys_pidfd_open(group, 0)
    guard process >= 0 else { return nil }
    self.process = RevocableDescriptor(process)
    let mem = System.open("/proc/\(thread)/mem", O_RDWR)
    guard mem >= 0 else { return nil }
    self.mem = RevocableDescriptor(mem)
    let maps = System.open("/proc/\(thread)/maps", O_RDONLY)
    guard maps >= 0 else { return nil }
    self.maps = RevocableDescriptor(maps)
    direct = DirectAccess(isClosed: !isSettled)
    self.number = number
    self.group = group
    self.handles = handles
    self.copiesDescriptors = copiesDescriptors
  }

  /// Who answers for what is pinned of it, with the user that was so when it was last asked.
  private let owner = Guarded<(user: UInt32, owner: MemoryOwner)?>(nil)
  /// What is pinned of it.
  let sums = ProcessMemory()

  /// The owner for a user; nil where none was made or the user has changed.
  func owner(for user: UInt32) -> MemoryOwner? {
    owner.withLock { $0?.user == user ? $0?.owner : nil }
  }

  func makeOwner(for user: UInt32, sum: PinnedMemory) -> MemoryOwner {
    let new = MemoryOwner(
      user: sum, process: sums, limit: ProcessLimit(process: process, number: group))
    owner.withLock { $0 = (user, new) }
    return new
  }

  /// Whether the process that this was made for still exists.
  var isOwnerAlive: Bool { process.use { csys_pidfd_send_signal($0, 0) } == 0 }

  /// Whether it has ended, waited for or not.
  var hasEnded: Bool {
    process.use { number in
      var state = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
      // SAFETY: one structure; nothing is waited for.
      return unsafe poll(&state, 1, 0) > 0
    }
  }

  /// Closes the descriptors where no process has the address space any more.
  /// - Returns: False where one has.
  func closeIfGone() -> Bool {
    // No process has memory there, so that nobody can make the answer wait; an address space that
    // is gone reads as at its end.
    var byte: UInt8 = 0
    let isGone = mem.use { unsafe csys_pread($0, &byte, 1, 0x7FFF_FFFF_FFFF_F000) } == 0
    guard isGone else { return false }
    // After an exec the process is there, and has its limits.
    if hasEnded { process.close() }
    mem.close()
    maps.close()
    return true
  }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try pin(
      address: address, length: length, writable: writable, allowsDevices: false, place: place)
  }

  /// - Parameter allowsDevices: Whether device memory that the program has mapped is given too.
  func pin(
    address: UInt64, length: UInt64, writable: Bool, allowsDevices: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    let (end, overflow) = address.addingReportingOverflow(length)
    guard !overflow else {
      // The kernel's word for it; an address that only is not there is EFAULT.
      throw IOMMUError(
        .overflow,
        "the program's memory at \(hex(address)) has no \(hex(length)) bytes after it")
    }
    var cursor = address
    while cursor < end {
      guard var area = maps.use({ MemoryArea.find(cursor, in: $0) }), area.start <= cursor,
        area.end > cursor
      else { throw Self.fault(cursor, "is not mapped") }
      guard area.isWritable || !writable else { throw Self.fault(cursor, "may not be written") }
      guard area.isReadable || writable else { throw Self.fault(cursor, "may not be read") }
      let last = min(area.end, end)
      if let handle = handles.handle(mappedIn: &area) {
        guard let device = area.device(at: cursor, of: handle) else {
          throw Self.fault(cursor, "is a device's, which iommufd does not pin")
        }
        guard allowsDevices else {
          throw Self.fault(
            cursor,
            "is memory of \(handle.file.name), which iommufd does not pin: map it through a type1 "
              + "container (/dev/vfio/vfio)")
        }
        try device.memory.pin(
          address: device.offset, length: last - cursor, writable: writable, place: place)
        cursor = last
        continue
      }
      if area.inode != 0 || !area.isWritable { try probe(cursor, last) }
      try place(try run(cursor, length: last - cursor, area, writable: writable))
      cursor = last
    }
  }

  /// Refuses what the kernel cannot pin: pages beyond the end of a file, pages that are the
  /// kernel's own (`[vvar]`), secret memory.
  private func probe(_ first: UInt64, _ end: UInt64) throws(IOMMUError) {
    var byte: UInt8 = 0
    for address in [first, end - 1] {
      guard mem.use({ unsafe csys_pread($0, &byte, 1, address) }) == 1 else {
        throw Self.fault(address, "is mapped, but has no page that DMA can reach")
      }
    }
  }

  private static func fault(_ address: UInt64, _ what: String) -> IOMMUError {
    IOMMUError(.badAddress, "the program's address \(hex(address)) \(what)")
  }

  private func run(
    _ address: UInt64, length: UInt64, _ area: MemoryArea, writable: Bool
  ) throws(IOMMUError) -> PinnedRun {
    guard area.isShared, area.inode != 0 else {
      return PinnedRun(
        length: length, backing: .remote(self, address: address),
        identity: MemoryIdentity(space: 0, object: number, offset: address))
    }
    let offset = area.offset + (address - area.start)
    let identity = MemoryIdentity(
      space: UInt64(area.major) << 32 | UInt64(area.minor), object: area.inode, offset: offset)
    let request = FileMapping.Request(
      offset: offset, length: length, writable: writable, pageSize: area.pageSize)
    if let mapping = mapFile(area, request) {
      if mapping.isBeyondEnd {
        throw Self.fault(address, "lies beyond the end of the file that is mapped there")
      }
      return PinnedRun(
        length: length, backing: .local(base: mapping.base, owner: mapping), identity: identity)
    }
    let memory: any RemoteMemory =
      object(of: area).map { SharedRun(self, $0, shift: offset &- address) } ?? self
    return PinnedRun(
      length: length, backing: .remote(memory, address: address), identity: identity)
  }

  /// The object that an area shows, where others that map it can stand in for this address space.
  private func object(of area: MemoryArea) -> SharedObject? {
    guard let id = maps.use({ SharedObjectID(area, in: $0) }) else { return nil }
    return lastObject.withLock { last in
      if let last, last.id == id { return last }
      let object = SharedObject(id)
      last = object
      return object
    }
  }

  /// Finds the file behind a shared mapping and maps it here; nil where it cannot be had.
  private func mapFile(_ area: MemoryArea, _ request: FileMapping.Request) -> FileMapping? {
    func attempt(_ descriptor: Int32) -> FileMapping? {
      guard let mapping = FileMapping(descriptor, request), mapping.shows(area) else {
        return nil
      }
      return mapping
    }
    // What the program has open, the last place first.
    let access = request.writable ? O_RDWR : O_RDONLY
    func attempt(number: Int32) -> FileMapping? {
      let copy =
        copiesDescriptors
        ? process.use { process in
          OtherUser.reach("/proc/\(group)/") { csys_pidfd_getfd(process, number) }
        }
        : isOpen(area, as: number)
          ? System.open("/proc/\(group)/fd/\(number)", access | O_NONBLOCK | O_NOCTTY) : -EBADF
      guard copy >= 0 else { return nil }
      defer { close(copy) }
      guard let identity = System.identity(copy), identity.inode == area.inode else {
        return nil
      }
      return attempt(copy)
    }
    let last = hint.withLock { $0 }
    if last >= 0, let mapping = attempt(number: last) { return mapping }
    for entry in System.entries("/proc/\(group)/fd") ?? [] {
      guard let number = Int32(entry.name), isOpen(area, as: number) else { continue }
      if let mapping = attempt(number: number) {
        hint.withLock { $0 = number }
        return mapping
      }
    }
    // The mapping itself, where the host lets us, or the path.
    var paths = [
      "/proc/\(group)/map_files/"
        + "\(String(area.start, radix: 16))-\(String(area.end, radix: 16))"
    ]
    if let name = maps.use({ area.name(in: $0) }), name.hasPrefix("/") {
      paths.append("/proc/\(group)/root" + name)
    }
    for path in paths {
      let file = System.open(path, access | O_NONBLOCK | O_NOCTTY)
      guard file >= 0 else { continue }
      defer { close(file) }
      if let mapping = attempt(file) { return mapping }
    }
    return nil
  }

  /// Whether a descriptor may be that of the file that is mapped in an area.
  private func isOpen(_ area: MemoryArea, as number: Int32) -> Bool {
    var status = stat()
    let path = "/proc/\(group)/fd/\(number)"
    return OtherUser.reach(path) { unsafe stat(path, &status) == 0 ? 0 : -errno } == 0
      && status.st_ino == area.inode && status.st_mode & S_IFMT == S_IFREG
  }

  // MARK: access by calls

  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    // SAFETY: the addresses and counts stay inside of the buffer.
    transfer(buffer.count) {
      unsafe csys_process_vm_readv(group, buffer.baseAddress, address, buffer.count)
    } rest: { done in
      mem.use {
        unsafe csys_pread(
          $0, buffer.baseAddress! + done, buffer.count - done, address + UInt64(done))
      }
    }
  }

  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    // SAFETY: the addresses and counts stay inside of the buffer.
    transfer(buffer.count) {
      unsafe csys_process_vm_writev(group, buffer.baseAddress, address, buffer.count)
    } rest: { done in
      mem.use {
        unsafe csys_pwrite(
          $0, buffer.baseAddress! + done, buffer.count - done, address + UInt64(done))
      }
    }
  }

  /// Moves `count` bytes: by process number as far as that way goes, the rest by descriptor.
  private func transfer(_ count: Int, direct body: () -> Int, rest: (Int) -> Int) -> Bool {
    guard count > 0 else { return true }
    var done = direct.attempt(process, body)
    while done < count {
      let moved = rest(done)
      guard moved > 0 else { return false }
      done += moved
    }
    return true
  }

  /// From here on the process number may stand for another image: only the descriptor is used.
  func willExecute() { direct.close() }
}

/// The way by process number: twice as fast as the descriptor, but right only while the process
/// runs the image that the memory is of. Every exec comes by the supervisor, which closes this
/// gate, waits until nobody is inside, and only then lets it go on.
final class DirectAccess: Sendable {
  private let inside = Atomic(0)
  private let isClosed: Atomic<Bool>

  init(isClosed: Bool) { self.isClosed = Atomic(isClosed) }

  /// Bytes moved; 0 where the way is closed or the process is gone.
  func attempt(_ process: RevocableDescriptor, _ body: () -> Int) -> Int {
    inside.add(1, ordering: .sequentiallyConsistent)
    defer { inside.subtract(1, ordering: .sequentiallyConsistent) }
    guard !isClosed.load(ordering: .sequentiallyConsistent),
      process.use({ csys_pidfd_send_signal($0, 0) }) == 0
    else { return 0 }
    return max(0, body())
  }

  func close() {
    isClosed.store(true, ordering: .sequentiallyConsistent)
    while inside.load(ordering: .sequentiallyConsistent) != 0 { sched_yield() }
  }
}
