// SPDX-License-Identifier: Apache-2.0
//
// A run in small, for the doctor: a child that sets itself up as a program does and makes one
// call, and what we could do while it waited.

import CProcessMemory
import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Results; where they are numbers, negative ones are errnos.
struct ProbeSession {
  let view: ViewMode
  var isPrivileged = false
  /// Why /dev and /sys could not be made; empty where they could.
  var viewError = ""
  var filterError: Int32 = -ENOSYS
  var killableWaits = false
  var syncWakeUp = false
  var addDescriptor: Int32 = -ENOSYS
  var copyDescriptor: Int32 = -ENOSYS
  /// The same descriptor as /proc/PID/fd has it.
  var nameDescriptor: Int32 = -ENOSYS
  var threadDescriptor: Int32 = -ENOSYS
  var readMemory: Int32 = -ENOSYS
  var openMemory: Int32 = -ENOSYS
  var queryMaps: Int32 = -ENOSYS
  var trace: Int32 = -ENOSYS

  /// - Parameter view: How the child gets to a /dev and a /sys of its own.
  static func run(_ view: ViewMode) -> ProbeSession {
    var session = ProbeSession(view: view)
    guard let (ours, theirs) = socketPair(sequenced: true) else { return session }
    let child = System.fork()
    if child == 0 {
      close(ours)
      beProgram(theirs, view)
    }
    close(theirs)
    defer {
      close(ours)
      if child > 0 {
        kill(child, SIGKILL)
        var end = csys_wait()
        _ = unsafe csys_wait_end(child, &end)
      }
    }
    guard child > 0, let report = System.readSome(ours), report.count >= 6 else {
      return session
    }
    session.isPrivileged = report[0] != 0
    session.killableWaits = report[1] != 0
    session.filterError = report[2..<6].reversed().reduce(Int32(0)) { $0 << 8 | Int32($1) }
    session.viewError = String(decoding: report[6...], as: UTF8.self)
    guard session.filterError == 0 else { return session }
    let listener = csys_receive_fd(ours)
    guard listener >= 0 else { return session }
    defer { close(listener) }
    session.serve(listener)
    return session
  }

  /// The child: what a program's process does before its exec, then one call.
  private static func beProgram(_ socket: Int32, _ view: ViewMode) -> Never {
    var isPrivileged = false
    var viewError = ""
    do throws(InterposerError) {
      var wire = WireView(nodes: [], view: View(entries: [View.Entry("/sys", .directory)]))
      wire.nodes = [.init(path: "/dev/iommu", number: DeviceNumber(major: 10, minor: 255))]
      switch view {
      case .namespace:
        let mode = try Namespaces.enter()
        isPrivileged = mode == .privileged
        _ = try MountView(wire, mode: mode).build()
      case .paths:
        try ShadowTree(wire).remove()
      }
    } catch {
      viewError = error.description
    }
    _ = csys_no_new_privileges()
    // As it is in either view: what it does to probe takes no path.
    let (listener, killable) = Filter(window: Program.descriptorWindow()).install()
    let error = listener < 0 ? listener : 0
    System.writeAll(
      socket,
      [isPrivileged ? 1 : 0, killable ? 1 : 0]
        + (0..<4).map { UInt8(truncatingIfNeeded: error >> (8 * $0)) } + Array(viewError.utf8))
    if listener >= 0 {
      _ = csys_send_fd(socket, listener)
      close(listener)
      _ = csys_ioctl(0, 0x3B00, nil)
    }
    _exit(0)
  }

  /// Does with the child's call what the supervisor does with a program's.
  private mutating func serve(_ listener: Int32) {
    syncWakeUp = csys_notif_sync_wake_up(listener) == 0
    var notification = csys_notif()
    guard unsafe csys_notif_receive(listener, &notification) == 0 else { return }
    let thread = Int32(bitPattern: notification.pid)
    let null = System.open("/dev/null", O_RDONLY)
    addDescriptor = min(0, csys_notif_add_fd(listener, notification.id, null, 100, 0))
    close(null)
    threadDescriptor = csys_pidfd_open(thread, 0x80)
    if threadDescriptor >= 0 { close(threadDescriptor) }
    let process = csys_pidfd_open(thread, 0)
    copyDescriptor = process < 0 ? process : csys_pidfd_getfd(process, 0)
    if copyDescriptor >= 0 { close(copyDescriptor) }
    if process >= 0 { close(process) }
    var identity = csys_identity()
    let directory = System.open("/proc/\(thread)/fd", System.pathOnly | O_DIRECTORY)
    nameDescriptor =
      directory < 0 ? directory : unsafe csys_identity_at(directory, 100, &identity)
    if directory >= 0 { close(directory) }
    // The child is a fork of us: our own variable has the same address there.
    var word: UInt64 = 0
    var place: UInt64 = 0
    readMemory = unsafe withUnsafeMutableBytes(of: &word) { bytes in
      // SAFETY: the buffer's own address and size, on both sides.
      place = UInt64(UInt(bitPattern: bytes.baseAddress))
      return Int32(
        truncatingIfNeeded: unsafe csys_process_vm_readv(
          thread, bytes.baseAddress, place, bytes.count))
    }
    openMemory = System.open("/proc/\(thread)/mem", O_RDWR)
    if openMemory >= 0 { close(openMemory) }
    let maps = System.open("/proc/\(thread)/maps", O_RDONLY)
    var map = csys_procmap()
    queryMaps = unsafe csys_procmap_query(maps, place, &map, nil, 0)
    if maps >= 0 { close(maps) }
    trace = csys_trace_seize(thread)
    _ = csys_notif_send(listener, notification.id, 0, 0, 0)
  }
}

extension ProbeSession {
  /// Whether a process that has become another user can be looked at: 0, or a negative errno. Nil where
  /// no process of ours can become one.
  static func lookAtOtherUser() -> Int32? {
    guard let (ours, theirs) = socketPair(sequenced: true) else { return nil }
    var word: UInt64 = 0
    let child = System.fork()
    if child == 0 {
      close(ours)
      // `nobody`, where we are not; then what the tracing thread has programs do.
      let other: UInt32 = getuid() == 65534 ? 65533 : 65534
      let result = csys_become_user(other, other)
      if result == 0 { _ = csys_set_dumpable(1) }
      System.writeAll(theirs, [result == 0 ? 1 : 0])
      // Until we are done.
      _ = System.readSome(theirs)
      _exit(0)
    }
    close(theirs)
    defer {
      close(ours)
      if child > 0 {
        kill(child, SIGKILL)
        var end = csys_wait()
        _ = unsafe csys_wait_end(child, &end)
      }
    }
    guard child > 0, System.readSome(ours) == [1] else { return nil }
    return unsafe withUnsafeMutableBytes(of: &word) { bytes in
      let count = OtherUser.reach(child) {
        // SAFETY: the buffer's own address and size; the child, a fork of us, has it at the same place.
        unsafe csys_process_vm_readv(
          child, bytes.baseAddress, UInt64(UInt(bitPattern: bytes.baseAddress)), bytes.count)
      }
      return Int32(truncatingIfNeeded: min(count, 0))
    }
  }
}

extension HandleTable {
  /// Whether a close and only the last one is seen, tried on a file.
  static func canSeeLastClose() throws(InterposerError) -> Bool {
    final class Probe: OpenFile {
      let name = "probe"
      let number = DeviceNumber(major: 0, minor: 0)
      func ioctl(
        _ command: UInt32, argument: UInt64, by caller: any Caller
      ) throws(IOMMUError) -> Int { 0 }
      func read(
        at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
      ) throws(IOMMUError) -> Int { 0 }
      func write(
        at offset: UInt64, from buffer: UnsafeRawBufferPointer
      ) throws(IOMMUError) -> Int { 0 }
      func checkMap(_ request: MapRequest) throws(IOMMUError) {}
      func close() {}
    }
    let table = try HandleTable()
    do throws(IOMMUError) {
      let handle = try table.add(Probe())
      var first = handle.describe(flags: O_RDWR)
      var second = handle.describe(flags: O_RDONLY)
      guard first != nil, second != nil else { return false }
      first = nil
      table.drain()
      guard table.count == 1 else { return false }
      second = nil
      for _ in 0..<100 where table.count > 0 {
        table.drain()
        if table.count > 0 { usleep(1000) }
      }
      return table.count == 0
    } catch {
      throw InterposerError(error.reason)
    }
  }
}
