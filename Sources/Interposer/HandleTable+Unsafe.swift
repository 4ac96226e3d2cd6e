// SPDX-License-Identifier: Apache-2.0
//
// Our open files: which file of the host stands for each, and when the last reference to it
// anywhere is gone.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// All handles. Thread-safe.
final class HandleTable: Sendable {
  private struct State {
    var byKey: [FileKey: Handle] = [:]
    var byFile: [ObjectIdentifier: Handle] = [:]
    var byWatch: [Int32: Handle] = [:]
    /// Whose doorbells a file has.
    var byDoorbells: [FileKey: Handle] = [:]
    /// By the number of the pipe's writing end.
    var byPipe: [Int32: Handle] = [:]
    /// Closed somewhere, but not yet known to be abandoned.
    var suspects: [FileKey: Handle] = [:]
    /// Attributes that may have been written, in the order of the writes.
    var written: [Handle] = []
  }

  private let state = Guarded(State())
  /// Held while closed files are found.
  private let draining = Guarded(())
  private let closings = Closings()
  /// The thread that each close interrupts; 0 where there is none.
  private let interrupted = Atomic<Int32>(0)
  private let inotify: OwnedDescriptor
  /// Ready where inotify is, and where a pipe has lost its last reader.
  private let either: OwnedDescriptor
  private let hasSuspects = Atomic(false)
  private let hasPipes = Atomic(false)
  private let attributes = Atomic(0)
  private let closesSeen = Atomic<UInt64>(0)
  private static let inModify: UInt32 = 0x2
  private static let inClose: UInt32 = 0x18
  private static let inOverflow: UInt32 = 0x4000

  init() throws(InterposerError) {
    let number = inotify_init1(O_CLOEXEC | O_NONBLOCK)
    guard number >= 0 else {
      throw InterposerError(
        "cannot watch for closed files (\(System.message(-errno))): raise "
          + "fs.inotify.max_user_instances")
    }
    inotify = OwnedDescriptor(number)
    let both = csys_epoll_create()
    guard both >= 0 else {
      throw InterposerError("cannot watch for closed queues: \(System.message(both))")
    }
    either = OwnedDescriptor(both)
    _ = csys_epoll_watch(both, number, 1)
  }

  /// Readable when something was closed.
  var descriptor: Int32 { either.number }

  /// Interrupts this thread at each close from now on (`csys_note_changes`); false where the
  /// host cannot do that.
  func interruptThisThread() -> Bool {
    guard csys_note_changes(inotify.number, 0) == 0 else { return false }
    interrupted.store(csys_thread(), ordering: .relaxed)
    return true
  }

  /// Grows when one of our files was closed somewhere.
  var closes: UInt64 { closesSeen.load(ordering: .relaxed) }

  /// Makes the host's file for one of ours.
  func add(_ file: any OpenFile) throws(IOMMUError) -> Handle {
    if let queue = file as? any EventFile { return try add(queue) }
    func failed(_ what: String, _ result: Int32) -> IOMMUError {
      IOMMUError(
        .init(rawValue: -result), "the supervisor cannot \(what) for \(file.name)")
    }
    let memory = unsafe csys_memfd_create("iommu:" + file.name.prefix(200), 3)
    guard memory >= 0 else { throw failed("make a file", memory) }
    defer { close(memory) }
    // F_ADD_SEALS: no shrinking, no growing, no writing, no further seals. The file stays
    // empty: nothing backs a register, and a descriptor that the filter cannot tell (below the
    // window) reads as at its end and takes no data.
    // A context's may grow and be written: pages to share are made in it. That of a device with
    // memory shrinks too, when the memory is taken. An attribute's has its text and takes what is
    // written to a low descriptor.
    let pages = file as? any MmapFile
    let attribute = file as? AttributeFile
    let device = (file as? any DeviceMemoryFile).flatMap { $0.hasMemory ? $0 : nil }
    // That of a device with registers alone stays empty, but can be mapped to be written: touching
    // what lies after a file's end raises SIGBUS.
    let registers = Tracer.impediment == nil ? file as? any RegisterFile : nil
    let isPlain = pages == nil && device == nil && attribute == nil && registers == nil
    if attribute == nil {
      let seals: Int =
        isPlain
        ? 0x2 | 0x4 | 0x8 | 0x1
        : device != nil ? 0x1 : pages != nil ? 0x2 | 0x1 : 0x2 | 0x4 | 0x1
      _ = csys_fcntl(memory, 1033, seals)
    }
    let probe = System.open("/proc/self/fd/\(memory)", isPlain ? O_RDONLY : O_RDWR)
    guard probe >= 0 else { throw failed("open a file", probe) }
    let owned = OwnedDescriptor(probe)
    guard let identity = System.identity(probe) else { throw failed("open a file", -EIO) }
    do throws(IOMMUError) {
      try attribute?.refresh(probe)
    } catch  where error.errno == .ioError {
      // A read says so.
    }
    let watch = unsafe inotify_add_watch(
      inotify.number, "/proc/self/fd/\(probe)",
      attribute?.isWritable == true ? Self.inClose | Self.inModify : Self.inClose)
    guard watch >= 0 else { throw failed("watch a file", -errno) }
    let handle = Handle(
      file: file, key: FileKey(identity),
      stand: .memory(StandInMemory(probe: owned, watch: watch)))
    pages?.areas.keep(in: SharedPages(owned, identity))
    if let pages = device ?? registers as? any DeviceMemoryFile {
      let owner = registers == nil ? nil : DoorbellOwner(table: self, handle: handle)
      pages.keepMemory(in: DevicePages(owned, identity, owner: owner))
    }
    registers?.offerRegisters()
    state.withLock {
      $0.byKey[handle.key] = handle
      $0.byFile[ObjectIdentifier(file)] = handle
      $0.byWatch[watch] = handle
    }
    if attribute != nil { attributes.add(1, ordering: .relaxed) }
    return handle
  }

  /// A device has doorbells from here on.
  fileprivate func add(_ doorbells: SharedDoorbells, of handle: Handle) throws(IOMMUError) {
    let watch = unsafe inotify_add_watch(
      inotify.number, "/proc/self/fd/\(doorbells.probe.number)", Self.inClose)
    guard watch >= 0 else {
      throw IOMMUError(
        .init(rawValue: errno), "the supervisor cannot watch a page of doorbells")
    }
    let old = handle.doorbells.withLock { present in
      defer { present = Handle.Doorbells(pages: doorbells, watch: watch) }
      return present
    }
    if let old { forget(old) }
    state.withLock {
      $0.byDoorbells[doorbells.key] = handle
      $0.byWatch[watch] = handle
    }
  }

  private func forget(_ doorbells: Handle.Doorbells) {
    state.withLock {
      $0.byDoorbells[doorbells.pages.key] = nil
      $0.byWatch[doorbells.watch] = nil
    }
    _ = inotify_rm_watch(inotify.number, doorbells.watch)
  }

  /// The file that is mapped in an area. Where the area has doorbells, its offset becomes that in the
  /// device's file.
  func handle(mappedIn area: inout MemoryArea) -> Handle? {
    guard area.inode != 0 else { return nil }
    let key = FileKey(area)
    let (handle, isDoorbells) = state.withLock { state in
      state.byKey[key].map { ($0, false) } ?? (state.byDoorbells[key], true)
    }
    if isDoorbells, let pages = handle?.doorbells.withLock({ $0?.pages }) {
      area.offset &+= pages.offset
    }
    return handle
  }

  /// Whether a program has an attribute open.
  var hasAttributes: Bool { attributes.load(ordering: .relaxed) > 0 }

  /// One more description of a file that programs have already; nil where they have not. Nobody
  /// finds it abandoned meanwhile.
  func describeAgain(
    _ file: any OpenFile, flags: Int32
  ) -> (handle: Handle, description: OwnedDescriptor?)? {
    draining.withLock { _ in
      guard let handle = state.withLock({ $0.byFile[ObjectIdentifier(file)] }) else {
        return nil
      }
      return (handle, handle.describe(flags: flags))
    }
  }

  private func add(_ queue: any EventFile) throws(IOMMUError) -> Handle {
    let pipe = try StandInPipe(isWritable: queue.isWritable)
    let number = pipe.writingEnd.number
    // Nothing is asked for: an error is when nobody can read any more.
    guard let identity = pipe.identity, csys_epoll_watch(either.number, number, 0) == 0 else {
      throw IOMMUError(.noMemory, "the supervisor cannot watch \(queue.name)")
    }
    _ = csys_note_changes(number, interrupted.load(ordering: .relaxed))
    let handle = Handle(file: queue, key: FileKey(identity), stand: .pipe(pipe))
    state.withLock {
      $0.byKey[handle.key] = handle
      $0.byPipe[number] = handle
    }
    hasPipes.store(true, ordering: .relaxed)
    queue.readiness.show(on: pipe)
    return handle
  }

  func handle(_ key: FileKey) -> Handle? { state.withLock { $0.byKey[key] } }

  /// Whether a close is still to be confirmed: call `drain` again soon.
  var needsAttention: Bool { hasSuspects.load(ordering: .relaxed) }

  /// Frees what has been closed for the last time by now. Returns once that is done, or takes too
  /// long to wait for.
  func drain() {
    // One cheap call where nothing happened.
    let abandoned = draining.withLock { _ in closings.begin(takeAbandoned()) }
    closings.close(abandoned)
  }

  /// Takes out what nobody has open any more.
  private func takeAbandoned() -> [Handle] {
    var abandoned: [Handle] = []
    if hasPipes.load(ordering: .relaxed) {
      abandoned = takeAbandonedQueues()
      repairQueues()
    }
    let events = takeEvents()
    if events || !abandoned.isEmpty { closesSeen.add(1, ordering: .relaxed) }
    guard events || needsAttention else { return abandoned }
    storeUnseen()
    let suspects = state.withLock { Array($0.suspects.values) }
    for handle in suspects {
      if handle.isAbandoned, take(handle) { abandoned.append(handle) }
    }
    hasSuspects.store(state.withLock { !$0.suspects.isEmpty }, ordering: .relaxed)
    return abandoned
  }

  /// Takes a handle out and leaves its file open.
  func discard(_ handle: Handle) { draining.withLock { _ in _ = take(handle) } }

  /// A file that was made but never reached a program.
  func forget(_ handle: Handle) {
    if draining.withLock({ _ in take(handle) }) { handle.file.close() }
  }

  /// Closes everything: no program is left.
  func closeAll() {
    let all = draining.withLock { _ in
      state.withLock { Array($0.byKey.values) }.filter { take($0) }
    }
    for handle in all { handle.file.close() }
  }

  var count: Int { state.withLock { $0.byKey.count } }

  private func take(_ handle: Handle) -> Bool {
    let present = state.withLock { state in
      switch handle.stand {
      case .memory(let memory): state.byWatch[memory.watch] = nil
      case .pipe(let pipe): state.byPipe[pipe.writingEnd.number] = nil
      }
      state.suspects[handle.key] = nil
      state.byFile[ObjectIdentifier(handle.file)] = nil
      hasPipes.store(!state.byPipe.isEmpty, ordering: .relaxed)
      return state.byKey.removeValue(forKey: handle.key) != nil
    }
    guard present else { return false }
    if let doorbells = handle.doorbells.withLock({ $0 }) { forget(doorbells) }
    if handle.attribute != nil { attributes.subtract(1, ordering: .relaxed) }
    switch handle.stand {
    case .memory(let memory):
      _ = inotify_rm_watch(inotify.number, memory.watch)
    case .pipe(let pipe):
      _ = csys_epoll_forget(either.number, pipe.writingEnd.number)
      handle.queue?.readiness.show(on: nil)
    }
    return true
  }

  /// Carries out what was written to attributes behind our back.
  private func storeUnseen() {
    let written = state.withLock { state in
      defer { state.written = [] }
      return state.written
    }
    for handle in written {
      if case .memory(let memory) = handle.stand {
        handle.attribute?.takeUnseen(memory.probe.number)
      }
    }
  }

  private func takeAbandonedQueues() -> [Handle] {
    var abandoned: [Handle] = []
    var ready = [Int32](repeating: 0, count: 32)
    while true {
      // SAFETY: at most the array's count is written.
      let count = unsafe csys_epoll_ready(either.number, &ready, 32)
      guard count > 0 else { return abandoned }
      let gone = state.withLock { state in
        ready[..<Int(count)].compactMap { state.byPipe[$0] }
      }
      abandoned += gone.filter { take($0) }
      // What was taken out is not reported again.
      if count < 32 { return abandoned }
    }
  }

  /// A pipe that somebody else has read sends SIGIO as its last close does: the next call finds it.
  private func repairQueues() {
    for handle in state.withLock({ Array($0.byPipe.values) }) {
      if case .pipe(let pipe) = handle.stand { pipe.repair() }
    }
  }

  /// Reads all events; true where there were any of interest.
  private func takeEvents() -> Bool {
    var some = false
    unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
      while true {
        let count = unsafe System.read(inotify.number, into: buffer)
        guard count > 0 else { return }
        var offset = 0
        state.withLock { state in
          while offset + 16 <= count {
            // SAFETY: `struct inotify_event` is 16 bytes and a name of `length` bytes.
            let watch = unsafe buffer.loadUnaligned(fromByteOffset: offset, as: Int32.self)
            let mask = unsafe buffer.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self)
            let length = unsafe buffer.loadUnaligned(
              fromByteOffset: offset + 12, as: UInt32.self)
            offset += 16 + Int(length)
            if mask & Self.inOverflow != 0 {
              state.suspects = state.byKey
              state.written = state.byKey.values.filter { $0.attribute != nil }
              some = true
            } else if mask & Self.inModify != 0, let handle = state.byWatch[watch] {
              state.written.append(handle)
              some = true
            } else if mask & Self.inClose != 0, let handle = state.byWatch[watch] {
              state.suspects[handle.key] = handle
              some = true
            }
          }
        }
      }
    }
    return some
  }
}

/// Whose doorbells are made.
final class DoorbellOwner: Sendable {
  private let state: Guarded<State>

  private struct State: Sendable {
    weak var table: HandleTable?
    weak var handle: Handle?
  }

  init(table: HandleTable, handle: Handle) {
    state = Guarded(State(table: table, handle: handle))
  }

  /// Has programs' mappings show them.
  func add(_ doorbells: SharedDoorbells) throws(IOMMUError) {
    let (table, handle) = state.withLock { ($0.table, $0.handle) }
    if let table, let handle { try table.add(doorbells, of: handle) }
  }
}
