// SPDX-License-Identifier: Apache-2.0
//
// One call of a program, as the binary face sees it: its memory, its descriptors, and the
// descriptors that the call will give it.

import CProcessMemory
import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Lives for one notification, on one serving thread.
///
/// Unchecked: its state and its lane's are touched by that thread only, which is the one that
/// calls into the binary face.
final class ClientCaller: Caller, @unchecked Sendable {
  /// A descriptor number that was promised, and what will be there.
  struct Promise {
    let number: Int32
    let handle: Handle
    let description: OwnedDescriptor
    let closeOnExec: Bool
    /// Whether no program has the file yet.
    let isFirst: Bool
  }

  let server: Server
  let lane: Lane
  let id: UInt64
  let thread: Int32
  private(set) var promises: [Promise] = []
  /// Descriptors of which the caller is to hand over copies first: the call then begins anew.
  var missing: [Int32] = []
  /// Copies that it has handed over for this call.
  lazy var handOver = server.handed.take(of: thread)
  /// Eventfds of this call, so that they are what they were when it was looked for them.
  private(set) var events: [Int32: OwnedDescriptor] = [:]
  /// What was read around the first address that was asked for: a structure's size and then
  /// the structure take one system call, and are read once.
  private var ahead: (address: UInt64, count: Int) = (0, 0)
  /// When the notification was last known to be valid.
  private var checked: UInt64 = 0
  private static let aheadSize = 256
  /// In nanoseconds.
  private static let freshness: UInt64 = 2_000_000

  init(_ server: Server, _ lane: Lane, id: UInt64, thread: Int32) {
    self.server = server
    self.lane = lane
    self.id = id
    self.thread = thread
  }

  func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) {
    guard buffer.count > 0 else { return }
    if address >= ahead.address, address - ahead.address <= UInt64(ahead.count),
      buffer.count <= ahead.count - Int(address - ahead.address)
    {
      let offset = Int(address - ahead.address)
      // SAFETY: both ends were just compared with what is there.
      unsafe buffer.copyMemory(
        from: UnsafeRawBufferPointer(
          rebasing: lane.ahead[offset..<offset + buffer.count]))
      return
    }
    guard ahead.count == 0, buffer.count <= Self.aheadSize else {
      return try unsafe read(address, buffer)
    }
    // To the page's end at most: the next page may not be there.
    let count = max(buffer.count, min(Self.aheadSize, 4096 - Int(address & 4095)))
    // SAFETY: `count` is at most `aheadSize`, the allocation's size.
    try unsafe read(address, UnsafeMutableRawBufferPointer(rebasing: lane.ahead[..<count]))
    ahead = (address, count)
    unsafe buffer.copyMemory(
      from: UnsafeRawBufferPointer(rebasing: lane.ahead[..<buffer.count]))
  }

  private func read(
    _ address: UInt64, _ buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) {
    let count = OtherUser.reach(thread) {
      unsafe csys_process_vm_readv(thread, buffer.baseAddress, address, buffer.count)
    }
    // What was read is the caller's only if the caller was still there after.
    guard count == buffer.count, server.isValid(id) else { throw Self.fault(address) }
    checked = Reporter.now()
  }

  func copyOut(
    _ buffer: UnsafeRawBufferPointer, to address: UInt64
  ) throws(IOMMUError) {
    guard buffer.count > 0 else { return }
    ahead = (0, 0)
    // A thread's number is not given out again within milliseconds.
    let now = Reporter.now()
    guard now - checked < Self.freshness || server.isValid(id) else {
      throw Self.fault(address)
    }
    checked = now
    let count = OtherUser.reach(thread) {
      unsafe csys_process_vm_writev(thread, buffer.baseAddress, address, buffer.count)
    }
    guard count == buffer.count else { throw Self.fault(address) }
  }

  private static func fault(_ address: UInt64) -> IOMMUError {
    IOMMUError(
      .badAddress,
      "the call points at \(hex(address)), where the program has no memory that it may use so")
  }

  func memory() throws(IOMMUError) -> any MemorySource { try clientMemory() }

  func addressSpace() throws(IOMMUError) -> any ProcessAddressSpace { try clientMemory() }

  func clientMemory() throws(IOMMUError) -> ClientMemory {
    guard let memory = server.tasks.memory(of: thread) else {
      throw IOMMUError(
        .noMemory, "the program's memory cannot be opened; `iommu doctor` says why")
    }
    return memory
  }

  private func descriptor(_ number: Int32) throws(IOMMUError) -> ClientDescriptor {
    guard let descriptor = server.tasks.descriptor(number, of: thread) else {
      throw IOMMUError(.badFileDescriptor, "descriptor \(number) is not open")
    }
    return descriptor
  }

  func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64) {
    let found = try self.descriptor(descriptor)
    let isForeign = server.handles.handle(found.key) == nil
    var file = try found.file()
    if file == nil { file = try handedOver(found) }
    guard let file else { throw Self.isMissing([descriptor]) }
    return (FileMemory(file, isForeign: isForeign), found.identity.size)
  }

  func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)? {
    server.handles.handle(try self.descriptor(descriptor).key)?.file
  }

  func prepare(eventFDs: [Int32]) throws(IOMMUError) {
    guard !server.tasks.copiesDescriptors else { return }
    for number in eventFDs where number >= 0 && events[number] == nil {
      guard let found = server.tasks.descriptor(number, of: thread), found.isEvent,
        let event = found.eventNumber
      else { continue }
      if let copy = copy(ofEvent: event, number) {
        events[number] = copy
      } else if !missing.contains(number) {
        missing.append(number)
      }
    }
    guard missing.isEmpty else { throw Self.isMissing(missing) }
  }

  func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal {
    if let copy = events[descriptor] { return EventDescriptor(copy) }
    let found = try self.descriptor(descriptor)
    guard found.isEvent else {
      throw IOMMUError(.invalidArgument, "descriptor \(descriptor) is not an eventfd")
    }
    if let copy = found.copy { return EventDescriptor(copy) }
    guard let event = found.eventNumber, let copy = copy(ofEvent: event, descriptor) else {
      missing.append(descriptor)
      throw Self.isMissing(missing)
    }
    return EventDescriptor(copy)
  }

  func install(_ file: any OpenFile, closeOnExec: Bool) throws(IOMMUError) -> Int32 {
    try install(file, flags: O_RDWR, closeOnExec: closeOnExec)
  }

  func install(
    _ file: any OpenFile, flags: Int32, closeOnExec: Bool
  ) throws(IOMMUError) -> Int32 {
    try FailurePoint.pass(.descriptor)
    guard let number = freeNumber() else {
      throw IOMMUError(.tooManyOpenFiles, "the program has no free descriptor")
    }
    do throws(IOMMUError) {
      let (handle, description, isFirst) = try describe(file, flags: flags)
      promises.append(
        Promise(
          number: number, handle: handle, description: description, closeOnExec: closeOnExec,
          isFirst: isFirst))
    } catch {
      release(number)
      throw error
    }
    return number
  }

  private func describe(
    _ file: any OpenFile, flags: Int32
  ) throws(IOMMUError) -> (Handle, OwnedDescriptor, isFirst: Bool) {
    try server.installing.withLock { (_) throws(IOMMUError) in
      let another = server.handles.describeAgain(file, flags: flags)
      let handle = if let another { another.handle } else { try server.handles.add(file) }
      guard
        let description = another.map(\.description) ?? handle.describe(flags: flags)
      else {
        // The file is still its maker's to close.
        if another == nil { server.handles.discard(handle) }
        throw IOMMUError(.tooManyOpenFiles, "the supervisor cannot open another file")
      }
      return (handle, description, another == nil)
    }
  }

  /// The lowest free number in the window, the highest one below it, or one above: always below
  /// the program's limit, which it may have changed since it started.
  private func freeNumber() -> Int32? {
    let limit = openLimit
    let first = Int32(min(UInt64(server.window.first), limit))
    let end = Int32(min(UInt64(server.window.end), limit))
    let most = Int32(min(max(limit, UInt64(end)), 1 << 20))
    // In their order: the window's, those below, those above.
    let inWindow = end - first
    func free(in places: Range<Int32>) -> (place: Int32, number: Int32)? {
      for place in places {
        let number =
          place < inWindow ? first + place : place < end ? end - 1 - place : place
        if claim(number) { return (place, number) }
      }
      return nil
    }
    let process = processID
    let closes = server.handles.closes
    let hint = server.firstFree.withLock { $0[process] }
    // What was in use is, as long as nothing was closed.
    let start = hint.map { $0.closes == closes ? min($0.place, most) : 0 } ?? 0
    guard let found = free(in: start..<max(most, end)) ?? free(in: 0..<start) else {
      return nil
    }
    server.firstFree.withLock {
      if $0.count >= Self.mostHints { $0.removeAll() }
      $0[process] = (found.place + 1, closes)
    }
    return found.number
  }

  private static let mostHints = 256

  /// Gives the program another number for a description of its own, in the window and not below
  /// `least`; nil where there is none.
  func duplicate(
    _ description: OwnedDescriptor, from least: UInt64, closeOnExec: Bool
  ) -> Int32? {
    let end = min(UInt64(server.window.end), openLimit)
    let first = max(UInt64(server.window.first), least)
    guard first < end,
      let number = (Int32(first)..<Int32(end)).first(where: claim)
    else { return nil }
    defer { release(number) }
    guard
      csys_notif_add_fd(
        server.listener, id, description.number, number,
        closeOnExec ? UInt32(O_CLOEXEC) : 0) >= 0
    else { return nil }
    return number
  }

  /// A number in the window, and not below `least`, that the program may give to a copy of its own: far
  /// from those that are given out first.
  func freeInWindow(from least: UInt64) -> Int32? {
    let end = min(UInt64(server.window.end), openLimit)
    let first = max(UInt64(server.window.first), least)
    guard first < end, let number = (Int32(first)..<Int32(end)).last(where: claim) else {
      return nil
    }
    release(number)
    return number
  }

  /// The program's soft limit on open files. Of a program with other user ids it takes a
  /// privilege to ask, but not to read.
  private var openLimit: UInt64 {
    let limit = csys_open_limit(thread, 0)
    return limit == 0 ? System.limit("Max open files", of: thread) ?? 0 : limit
  }

  /// Whether a number is free, in the program's table and of promises: then it is promised.
  private func claim(_ number: Int32) -> Bool {
    guard server.promised.withLock({ $0.insert(number).inserted }) else { return false }
    if server.tasks.descriptor(number, of: thread) == nil { return true }
    release(number)
    return false
  }

  private func release(_ number: Int32) {
    server.promised.withLock { _ = $0.remove(number) }
  }

  /// Puts what was promised into the program's table.
  /// - Throws: Where the program has no room; `ESRCH` where the caller is gone.
  func keepPromises() throws(IOMMUError) {
    while let promise = promises.first {
      let result = csys_notif_add_fd(
        server.listener, id, promise.description.number, promise.number,
        promise.closeOnExec ? UInt32(O_CLOEXEC) : 0)
      guard result >= 0 else {
        throw IOMMUError(
          result == -ENOENT ? .noSuchProcess : .tooManyOpenFiles,
          "the program cannot take descriptor \(promise.number)")
      }
      release(promises.removeFirst().number)
    }
  }

  /// Takes back what has not reached the program.
  func breakPromises() {
    let broken = promises.filter(\.isFirst).map(\.handle)
    for promise in promises { release(promise.number) }
    promises = []
    for handle in broken { server.handles.forget(handle) }
  }

  var userID: UInt32 {
    var status = stat()
    guard unsafe stat("/proc/\(thread)", &status) == 0 else { return 0xFFFE }
    return status.st_uid
  }

  var threadID: Int32 { thread }

  var processID: Int32 { server.tasks.task(thread)?.group ?? thread }

  var maySetResourceLimits: Bool {
    isInHostUserNamespace && Capabilities.has(.systemResource, thread: thread)
  }

  /// A capability counts in the host's user namespace, not in the program's own.
  var isInHostUserNamespace: Bool {
    System.readLink("/proc/\(thread)/ns/user") == Self.hostUserNamespace
  }

  private static let hostUserNamespace = System.readLink("/proc/self/ns/user")
}
