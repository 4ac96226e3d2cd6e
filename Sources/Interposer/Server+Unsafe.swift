// SPDX-License-Identifier: Apache-2.0
//
// The serving threads: each takes a notification, does the call or lets it go on, answers.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What becomes of a call.
enum Answer {
  case result(Int)
  /// As `result`; the caller gets it from an errand.
  /// - Parameter ifNot: What the caller gets where the errand comes to nothing.
  case errand(Int, ifNot: Int32 = 0)
  /// Without a sentence where any file system says so, and nobody wonders.
  case failure(IOMMUError)
  /// The kernel does the call.
  case goOn
}

/// Serves the calls of one filter. Thread-safe: each lane serves one call at a time.
final class Server: Sendable {
  let listener: Int32
  let handles: HandleTable
  let window: DescriptorWindow
  let reporter: Reporter
  let tracer: Tracer
  let nodes: NodeTable
  /// What paths lead to; nil where the kernel knows, in a mount namespace.
  let shadow: ShadowTree?
  /// Who looks at each path first; nil as the shadow is.
  let gate: PathGate?
  let tasks: TaskTable
  let owners = Guarded(MemoryOwners())
  /// Descriptors that programs have handed over.
  let handed = HandedCopies()
  /// Whether RLIMIT_MEMLOCK bounds what programs pin.
  let limitsMemory: Bool
  /// Descriptor numbers that callers were promised and do not have yet.
  let promised = Guarded(Set<Int32>())
  /// Where to begin to look for a free descriptor number of a process, as long as so many closes
  /// were seen.
  let firstFree = Guarded([Int32: (place: Int32, closes: UInt64)]())
  /// Held while a file gets its first description.
  let installing = Guarded(())
  /// How many descriptors this process may have.
  private let files: UInt64

  init(
    listener: Int32, handles: HandleTable, window: DescriptorWindow, nodes: NodeTable,
    shadow: ShadowTree? = nil, reporter: Reporter, tracer: Tracer, limitsMemory: Bool,
    copiesDescriptors: Bool = true
  ) {
    self.tracer = tracer
    self.limitsMemory = limitsMemory
    self.listener = listener
    self.handles = handles
    files = csys_open_limit(0, 0)
    tasks = TaskTable(
      Tasks(files: files, handles: handles, copiesDescriptors: copiesDescriptors))
    self.window = window
    self.nodes = nodes
    self.shadow = shadow
    gate = shadow.map { PathGate(mounts: $0.mounts, shadow: $0.path) }
    self.reporter = reporter
  }

  /// Calls that are being served.
  private let calls = Atomic(0)

  func isValid(_ id: UInt64) -> Bool { csys_notif_id_valid(listener, id) == 0 }

  /// Waits until no call is being served, for a while: one whose caller was killed is taken back and
  /// told of before the end.
  func settle() {
    var pauses = 0
    while calls.load(ordering: .acquiring) > 0, pauses < Self.mostPauses {
      usleep(1000)
      pauses += 1
    }
  }

  /// Of a millisecond each: who waits for the end of a run is told of it after so many at the latest.
  private static let mostPauses = 5000

  /// Serves until no program is left.
  func serve() {
    Interruption.ask { csys_serving_is_over() != 0 }
    let lanes = Lanes(
      files: files, isAlive: { self.isValid($0) },
      serve: { self.serve(Lane(isFirst: false), $0) })
    _ = System.startThread { lanes.watch() }
    serve(Lane(isFirst: true), lanes)
  }

  private func serve(_ lane: Lane, _ lanes: Lanes) {
    var notification = csys_notif()
    // A close anywhere interrupts the first lane before the closer goes on: the calls of programs
    // that close nothing need not look.
    let isTold = lane.isFirst && handles.interruptThisThread()
    func serveNext() {
      // A close that came before this call takes effect before it.
      if !isTold || csys_changes_noted() != 0 || handles.needsAttention { handles.drain() }
      serve(notification, lane)
    }
    while true {
      lanes.wait()
      let result = unsafe csys_notif_receive(listener, &notification)
      lanes.take()
      guard result == 0 else {
        // ENOENT: the caller died before we looked, or nobody is left; the monitor ends us.
        if result == -EINTR { continue }
        if result == -ENOENT {
          var set = pollfd(fd: listener, events: 0, revents: 0)
          if unsafe poll(&set, 1, 0) == 1 { return }
          continue
        }
        return
      }
      if letInjectedGoOn(notification) { continue }
      guard lanes.admit(notification, lane) else { continue }
      serveNext()
      while lanes.end(lane, next: &notification) { serveNext() }
      if lanes.mayLeave(lane) { return }
    }
  }

  /// Lets the call of a thread go on that the tracing thread has it make and may wait for, before all
  /// else: others wait for the tracing thread, as many as may serve one process.
  /// - Returns: False where it is another call.
  private func letInjectedGoOn(_ notification: csys_notif) -> Bool {
    let call = SystemCall(notification)
    guard tracer.isInjected(call.thread) else { return false }
    // What was asked for is done where the thread is; it was checked, and who traces sees its end.
    if call.number == CSYS_NR_execve || call.number == CSYS_NR_execveat {
      tasks.willExecute(call.thread)
    }
    _ = csys_notif_send(listener, call.id, 0, 0, 1)
    return true
  }

  private func serve(_ notification: csys_notif, _ lane: Lane) {
    calls.add(1, ordering: .relaxed)
    defer { calls.subtract(1, ordering: .releasing) }
    let call = SystemCall(notification)
    csys_serving(listener, call.id)
    defer { csys_serving(listener, 0) }
    guard notification.data.arch == CSYS_AUDIT_ARCH else {
      refuseForeign(call)
      return
    }
    // By far the most calls of a view by paths end here, before anything is made for them.
    let first = firstLook(call, lane)
    if first == .kernel {
      _ = csys_notif_send(listener, call.id, 0, 0, 1)
      return
    }
    let caller = ClientCaller(self, lane, id: call.id, thread: call.thread)
    // Whatever comes of the call: what was handed over for it is not for the next one.
    if call.number == CSYS_NR_ioctl, !tasks.copiesDescriptors { _ = caller.handOver }
    let started = reporter.isTracing ? Reporter.now() : 0
    var (file, answer) = dispatch(call, first, caller)
    OtherUser.report(call.thread, to: reporter) { isValid(call.id) }
    if case .result = answer, !caller.promises.isEmpty {
      do throws(IOMMUError) {
        try caller.keepPromises()
      } catch {
        answer = .failure(error)
      }
    }
    // What the caller has to hand over first: no trace of this call is left.
    if !caller.missing.isEmpty {
      caller.breakPromises()
      do throws(IOMMUError) {
        try caller.askForMissing()
        _ = csys_notif_send(listener, call.id, 0, 0, 0)
        return
      } catch {
        answer = .failure(error)
      }
    }
    if reporter.isActive { report(call, caller, file, answer, started) }
    switch answer {
    case .result(let value):
      _ = csys_notif_send(listener, call.id, Int64(value), 0, 0)
    case .errand(_, let ifNot):
      _ = csys_notif_send(listener, call.id, 0, -ifNot, 0)
    case .failure(let error):
      caller.breakPromises()
      _ = csys_notif_send(listener, call.id, 0, -error.errno.rawValue, 0)
    case .goOn:
      _ = csys_notif_send(listener, call.id, 0, 0, 1)
    }
    file = nil
  }

  /// Says once what a program of another architecture is missing, and ends it.
  private func refuseForeign(_ call: SystemCall) {
    let name = System.readLink("/proc/\(call.thread)/exe") ?? "process \(call.thread)"
    reporter.say(
      "\(name) is a 32-bit program, or made a 32-bit call: /dev/iommu can be shown to 64-bit programs "
        + "only; it is killed"
    )
    if let task = tasks.task(call.thread) { kill(task.group, SIGKILL) }
    _ = csys_notif_send(listener, call.id, 0, -ENOSYS, 0)
  }

  private func dispatch(
    _ call: SystemCall, _ first: FirstLook, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer) {
    if let gate, let shadow, let row = PathCall.row(call.number),
      let served = servePaths(call, row, first, gate, shadow, caller)
    {
      return served
    }
    switch call.number {
    case CSYS_NR_open, CSYS_NR_openat, CSYS_NR_openat2, CSYS_NR_creat:
      return open(call, caller)
    case CSYS_NR_access, CSYS_NR_faccessat, CSYS_NR_faccessat2:
      return (nil, access(call, caller))
    case CSYS_NR_execve, CSYS_NR_execveat:
      tasks.willExecute(call.thread)
      return (nil, .goOn)
    case CSYS_NR_rt_sigaction:
      return (nil, busAction(call, caller))
    case CSYS_NR_setuid, CSYS_NR_setgid, CSYS_NR_setreuid, CSYS_NR_setregid, CSYS_NR_setresuid,
      CSYS_NR_setresgid, CSYS_NR_setfsuid, CSYS_NR_setfsgid:
      // Where it cannot be traced, it is told of at the first call that we cannot look at.
      let isDone = tracer.changeUser(caller.waiting, by: call)
      return (nil, isDone ? .errand(0, ifNot: Errand.noChange) : .goOn)
    case CSYS_NR_userfaultfd:
      tasks.memoryMayBlock()
      return (nil, .goOn)
    case CSYS_NR_io_uring_setup:
      reporter.note(
        "process \(call.thread) sets up io_uring: what it submits there does not come by here; "
          + "/dev/iommu and /dev/vfio cannot be opened through it")
      return (nil, .goOn)
    default:
      break
    }
    // The descriptor of an anonymous mapping is not looked at.
    if call.number == CSYS_NR_mmap, Int32(truncatingIfNeeded: call[3]) & MAP_ANONYMOUS != 0 {
      return (nil, .goOn)
    }
    let isOutput = isOrdinaryOutput(call)
    if isOutput, !handles.hasAttributes { return (nil, .goOn) }
    let number = Int32(truncatingIfNeeded: call[call.number == CSYS_NR_mmap ? 4 : 0])
    let found = tasks.descriptor(number, of: call.thread)
    // An `ioctl` that comes by here is most likely one of ours.
    if found == nil, call.number == CSYS_NR_ioctl {
      do throws(IOMMUError) {
        let probe = try openPlace("/")
        close(probe)
      } catch {
        return (nil, .failure(error))
      }
    }
    guard let descriptor = found, let handle = handles.handle(descriptor.key),
      !isOutput || handle.attribute != nil
    else { return (nil, .goOn) }
    do throws(IOMMUError) {
      return (handle.file, try perform(call, caller, handle, descriptor))
    } catch {
      return (handle.file, .failure(error))
    }
  }

  private func perform(
    _ call: SystemCall, _ caller: ClientCaller, _ handle: Handle,
    _ descriptor: ClientDescriptor
  ) throws(IOMMUError) -> Answer {
    if let attribute = handle.attribute, case .memory(let memory) = handle.stand {
      return try perform(call, caller, attribute, memory, descriptor)
    }
    let file = handle.file
    switch call.number {
    case CSYS_NR_ioctl:
      return .result(
        try file.ioctl(UInt32(truncatingIfNeeded: call[1]), argument: call[2], by: caller))
    case CSYS_NR_mmap:
      return try checkMap(call, caller, handle)
    case CSYS_NR_fstat:
      return try status(call[1], handle, caller, extended: false)
    case CSYS_NR_newfstatat:
      guard try isEmptyPath(call[1], flags: call[3], caller) else { return .goOn }
      return try status(call[2], handle, caller, extended: false)
    case CSYS_NR_statx:
      guard try isEmptyPath(call[1], flags: call[2], caller) else { return .goOn }
      return try status(call[4], handle, caller, extended: true)
    case CSYS_NR_lseek:
      return .result(try seek(file, offset: call[1], whence: call[2]))
    case CSYS_NR_ftruncate:
      throw IOMMUError(.invalidArgument, "\(file.name) is a device and cannot be truncated")
    case CSYS_NR_fallocate:
      throw IOMMUError(.noSuchDevice, "\(file.name) is a device and has no space to allocate")
    case CSYS_NR_dup, CSYS_NR_fcntl:
      guard case .pipe(let pipe) = handle.stand else { return .goOn }
      return control(call, caller, pipe, descriptor)
    default:
      if let queue = handle.queue { return .result(try transfer(call, caller, queue)) }
      return .result(try transfer(call, caller, file, descriptor))
    }
  }

  /// `lseek`: to the start or to the end of a file that has a length, nowhere else.
  private func seek(
    _ file: any OpenFile, offset: UInt64, whence: UInt64
  ) throws(IOMMUError) -> Int {
    guard let length = file.seekableLength else {
      throw IOMMUError(.illegalSeek, "\(file.name) has no file position")
    }
    switch (Int32(truncatingIfNeeded: whence), offset) {
    case (SEEK_SET, 0): return 0
    case (SEEK_END, 0): return Int(clamping: length)
    default:
      throw IOMMUError(
        .invalidArgument, "\(file.name) can be asked for its start and its end only")
    }
  }

  private func checkMap(
    _ call: SystemCall, _ caller: ClientCaller, _ handle: Handle
  ) throws(IOMMUError) -> Answer {
    let protection = Int32(truncatingIfNeeded: call[2])
    // MAP_SHARED or MAP_SHARED_VALIDATE.
    let sharing = Int32(truncatingIfNeeded: call[3]) & 0xF
    // What the kernel refuses whatever the file is.
    guard call[5] & 4095 == 0, call[1] > 0, call[1] <= UInt64(Int64.max) else { return .goOn }
    let offset = handle.registers?.mapOffset(call[5]) ?? call[5]
    try handle.file.checkMap(
      MapRequest(
        offset: offset, length: (call[1] + 4095) & ~4095,
        isWritable: protection & PROT_WRITE != 0, isExecutable: protection & PROT_EXEC != 0,
        isShared: sharing == MAP_SHARED || sharing == 3))
    if let registers = handle.registers,
      offset != call[5] || registers.registers(at: offset) != nil
    {
      let thread = caller.waiting
      try tracer.admit(thread)
      // The program has a descriptor more for each from here on, which the end of the call closes.
      var overlays: [MapOverlay] = []
      if offset != call[5] { overlays.append(try move(call, handle, to: offset)) }
      if let doorbells = doorbells(call, handle, at: offset) { overlays.append(doorbells) }
      for overlay in overlays {
        try tracer.admit(thread, overlay: overlay)
      }
    }
    return .goOn
  }

  /// Whether a `stat` by path is one of the descriptor itself.
  private func isEmptyPath(
    _ path: UInt64, flags: UInt64, _ caller: ClientCaller
  ) throws(IOMMUError) -> Bool {
    guard flags & 0x1000 != 0 else { return false }
    if path == 0 { return true }
    var first: UInt8 = 1
    try unsafe withUnsafeMutableBytes(of: &first) { (byte) throws(IOMMUError) in
      try unsafe caller.copyIn(from: path, into: byte)
    }
    return first == 0
  }

  /// Answers `fstat` with what Linux says of such a file: a character device.
  private func status(
    _ address: UInt64, _ handle: Handle, _ caller: ClientCaller, extended: Bool
  ) throws(IOMMUError) -> Answer {
    var device = csys_character_device()
    device.inode = handle.key.inode
    device.major = handle.file.number.major
    device.minor = handle.file.number.minor
    device.permissions = handle.queue == nil ? 0o666 : 0o600
    // Linux's anonymous inodes are of no type.
    device.is_anonymous = handle.queue == nil ? 0 : 1
    device.seconds = Int64(time(nil))
    let size = extended ? csys_statx_size() : csys_stat_size()
    try unsafe withUnsafeTemporaryAllocation(byteCount: size, alignment: 8) {
      (out) throws(IOMMUError) in
      // SAFETY: the allocation has the structure's size.
      if extended {
        unsafe csys_fill_statx(out.baseAddress, &device)
      } else {
        unsafe csys_fill_stat(out.baseAddress, &device)
      }
      try unsafe caller.copyOut(UnsafeRawBufferPointer(out), to: address)
    }
    return .result(0)
  }

  private func report(
    _ call: SystemCall, _ caller: ClientCaller, _ file: (any OpenFile)?, _ answer: Answer,
    _ started: UInt64
  ) {
    if case .goOn = answer, file == nil { return }
    switch answer {
    case .result, .errand:
      if !reporter.isTracing { return }
    case .failure, .goOn: break
    }
    reporter.call(
      CallRecord(
        call: call, description: CallDescription(call, file, caller), file: file,
        process: caller.processID, answer: answer, started: started))
  }
}
