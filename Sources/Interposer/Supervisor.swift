// SPDX-License-Identifier: Apache-2.0
//
// The process in which the machine lives. One thread watches over the program, the front and
// closed files; another one serves calls. It leaves the terminal's session, so that no key ends
// it before the program.

import CSyscalls
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

enum Supervisor {
  /// The program's process before its exec.
  struct Start: Sendable {
    let program: Int32
    /// Our end of the socket to it.
    let socket: Int32
    let view: ViewMode
    /// Why it is not the view that would have been taken first.
    var refusal: String?
  }

  /// Starts the program, serves it to its end and that of all its descendants.
  static func main(_ options: RunOptions, front: Int32) -> Never {
    do throws(InterposerError) {
      let start = try Self.start(options, front: front)
      // Not here: the standard library's mutex remembers a thread's number, and this thread's
      // is the one that it had before the fork. Where two threads meet at a mutex, the kernel
      // would look for the wrong owner, for ever.
      let isStarted = System.startThread { supervise(options, front: front, start) }
      guard isStarted else {
        kill(start.program, SIGKILL)
        throw InterposerError("cannot start the watching thread")
      }
      while true { pause() }
    } catch {
      giveUp(error, front: front)
    }
  }

  private static func supervise(_ options: RunOptions, front: Int32, _ start: Start) -> Never {
    do throws(InterposerError) {
      let supervision = try Supervision(options, front: front, start)
      supervision.watch()
    } catch {
      kill(start.program, SIGKILL)
      giveUp(error, front: front)
    }
  }

  private static func giveUp(_ error: InterposerError, front: Int32) -> Never {
    System.writeAll(front, Report.failed(error.description).bytes)
    _exit(125)
  }

  /// Forks the program's process: before the machine can start threads, and before this process
  /// leaves the session.
  private static func start(
    _ options: RunOptions, front: Int32
  ) throws(InterposerError) -> Start {
    do throws(InterposerError) {
      return try start(options, options.view ?? .namespace, front: front)
    } catch {
      if options.view == .namespace {
        throw InterposerError("\(error.description); `--view paths` takes none of that")
      }
      guard options.view == nil else { throw error }
      // Another process: that one may be in half of its namespaces.
      var start = try Self.start(options, .paths, front: front)
      start.refusal = error.description
      return start
    }
  }

  private static func start(
    _ options: RunOptions, _ view: ViewMode, front: Int32
  ) throws(InterposerError) -> Start {
    guard let (ours, theirs) = socketPair(sequenced: false) else {
      throw InterposerError("cannot make a socket pair: \(System.message(-errno))")
    }
    let program = System.fork()
    guard program >= 0 else {
      throw InterposerError("cannot start the program: \(System.message(program))")
    }
    if program == 0 {
      close(ours)
      close(front)
      Program.main(options, view: view, socket: theirs)
    }
    close(theirs)
    do throws(InterposerError) {
      try hear(ours)
    } catch {
      close(ours)
      var end = csys_wait()
      _ = unsafe csys_wait_end(program, &end)
      throw error
    }
    return Start(program: program, socket: ours, view: view)
  }

  /// An answer of the program's process.
  /// - Throws: Where it failed.
  static func hear(_ socket: Int32) throws(InterposerError) {
    guard let head = System.readExactly(socket, 4) else {
      throw InterposerError("the program's process ended before it was set up")
    }
    let count = head.reversed().reduce(0) { $0 << 8 | Int($1) }
    guard count > 0 else { return }
    let text = System.readExactly(socket, count) ?? []
    throw InterposerError(String(decoding: text, as: UTF8.self))
  }
}

/// A program under supervision.
final class Supervision {
  private let front: Int32
  private let program: Int32
  private let listener: Int32
  private let children: Int32
  private let handles: HandleTable
  /// The machine's, which nobody else may hold: devices come and go in it.
  private let files: LiveView
  private let reporter: Reporter
  private let tracer: Tracer
  private let server: Server
  private let shadow: ShadowTree?
  private var frontIsOpen = true
  private var programIsAlive = true
  private var frontIsStopped = false
  /// No task has the filter any more; the program may still be on its way out.
  private var filterIsUnused = false

  /// Makes the machine, gives the program its view, takes its filter's listener, serves.
  init(
    _ options: RunOptions, front: Int32, _ start: Supervisor.Start
  ) throws(InterposerError) {
    self.front = front
    program = start.program
    let ours = start.socket
    let window = Program.descriptorWindow()
    reporter = try Self.prepare(options, keeping: [front, ours])
    let machine: InterposedMachine
    do {
      machine = try options.makeMachine()
    } catch {
      throw InterposerError("\(error)")
    }
    files = machine.files
    // Where nothing gives us a right to the program's memory but that it descends from us (Yama).
    if start.view == .paths { _ = csys_adopt_orphans() }
    let mount: LiveMount
    (listener, mount) = try Self.show(machine, start)
    shadow = mount.shadow
    close(ours)
    unsafe chdir("/")
    children = csys_signalfd(1)
    guard children >= 0 else {
      throw InterposerError("cannot watch for the program's end: \(System.message(children))")
    }
    handles = try HandleTable()
    reporter.attach(machine.events)
    if start.view == .paths { reporter.report(start) }
    _ = csys_notif_sync_wake_up(listener)
    _ = csys_guard_truncation()
    tracer = Tracer(handles: handles, reporter: reporter, program: program)
    server = Server(
      listener: listener, handles: handles, window: window, nodes: mount.nodes,
      shadow: shadow, reporter: reporter, tracer: tracer, limitsMemory: options.limitsMemory,
      copiesDescriptors: Tasks.canCopy(from: program))
    guard System.startThread({ [server] in server.serve() }) else {
      throw InterposerError("cannot start the serving thread")
    }
    System.writeAll(front, Report.started(pid: program).bytes)
  }

  /// Opens the trace, leaves the session, gives back the program's descriptors.
  private static func prepare(
    _ options: RunOptions, keeping kept: [Int32]
  ) throws(InterposerError) -> Reporter {
    // Before the descriptors go: it may be one of them, as /dev/stdout is, or /dev/fd/63 of a
    // shell's >(command).
    let reporter = try Reporter(options)
    setsid()
    closeAll(above: 2, except: kept + reporter.descriptors)
    detachStandardStreams(keepError: true)
    var limit = rlimit()
    #if canImport(Glibc)
      let files = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    #else
      let files = RLIMIT_NOFILE
    #endif
    if unsafe getrlimit(files, &limit) == 0 {
      limit.rlim_cur = limit.rlim_max
      _ = unsafe setrlimit(files, &limit)
    }
    return reporter
  }

  /// - Throws: Where there is no place for it; with why the view that needs none was not to be had.
  private static func shadow(
    _ wire: WireView, _ start: Supervisor.Start
  ) throws(InterposerError) -> ShadowTree {
    do throws(InterposerError) {
      return try ShadowTree(wire)
    } catch {
      guard let refusal = start.refusal else { throw error }
      throw InterposerError(
        "\(error.description). It was tried without namespaces, for \(refusal)")
    }
  }

  /// Gives the program its view, which follows the machine from here on.
  /// - Returns: The filter's listener, and what carries changes.
  private static func show(
    _ machine: InterposedMachine, _ start: Supervisor.Start
  ) throws(InterposerError) -> (listener: Int32, mount: LiveMount) {
    // What comes later has the permissions that the machine says.
    umask(0)
    let socket = start.socket
    var listener: Int32 = -1
    let mount = try machine.files.carry { (view, nodes) throws(InterposerError) in
      let wire = WireView(nodes: nodes, view: view)
      let bytes = wire.bytes
      System.writeAll(
        socket, (0..<8).map { UInt8(truncatingIfNeeded: bytes.count >> (8 * $0)) })
      System.writeAll(socket, bytes)
      // While the program's process makes its filter.
      let shadow = start.view == .paths ? try Self.shadow(wire, start) : nil
      try Supervisor.hear(socket)
      listener = csys_receive_fd(socket)
      guard listener >= 0 else {
        throw InterposerError(
          "the filter could not be handed over: \(System.message(listener))")
      }
      let roots = try Self.roots(from: socket)
      let table = try NodeTable(
        nodes, threadNodes: machine.threadNodes, view: view,
        root: shadow == nil ? "/proc/\(start.program)/root" : "",
        fileSystems: shadow?.roots ?? roots, shadow: shadow)
      return LiveMount(shadow?.roots ?? roots, table, shadow: shadow)
    }
    return (listener, mount)
  }

  /// The roots of the program's file systems, as `Program` sends them.
  private static func roots(
    from socket: Int32
  ) throws(InterposerError) -> [String: OwnedDescriptor] {
    var roots: [String: OwnedDescriptor] = [:]
    while let count = System.readExactly(socket, 1)?.first, count > 0 {
      guard let name = System.readExactly(socket, Int(count)) else { break }
      let root = csys_receive_fd(socket)
      guard root >= 0 else {
        throw InterposerError("the program's view was not handed over: \(System.message(root))")
      }
      roots[String(decoding: name, as: UTF8.self)] = OwnedDescriptor(root)
    }
    return roots
  }

  /// Watches until nobody uses the filter any more.
  func watch() -> Never {
    var pause: Int32 = 1
    while true {
      let ready = wait(milliseconds: handles.needsAttention ? pause : reporter.pollInterval)
      // A close is confirmed soon or, where the file is open twice, at leisure.
      pause = handles.needsAttention ? min(pause * 2, 1000) : 1
      handles.drain()
      reporter.drain()
      if ready.children { noteChanges() }
      if ready.front { listenToFront() }
      if ready.hungUp {
        filterIsUnused = true
        noteChanges()
      }
      if filterIsUnused, !programIsAlive { finish() }
    }
  }

  private func wait(milliseconds: Int32) -> (children: Bool, front: Bool, hungUp: Bool) {
    var set = [
      pollfd(fd: children, events: Int16(POLLIN), revents: 0),
      pollfd(fd: frontIsOpen ? front : -1, events: Int16(POLLIN), revents: 0),
      pollfd(fd: filterIsUnused ? -1 : listener, events: 0, revents: 0),
      pollfd(fd: handles.descriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: tracer.descriptor, events: Int16(POLLIN), revents: 0),
    ]
    // A listener that nobody is behind stays ready: it is not looked at while the program's
    // end, which comes as a signal, is waited for.
    guard unsafe poll(&set, 5, milliseconds) > 0 else { return (false, false, false) }
    if set[4].revents != 0 { tracer.clearBell() }
    return (
      set[0].revents != 0 || set[4].revents != 0, set[1].revents != 0, set[2].revents != 0
    )
  }

  private func noteChanges() {
    var signal = csys_signal()
    while unsafe csys_signal_next(children, &signal) == 0 {}
    var change = csys_wait()
    while true {
      let result = tracer.nextChange(&change)
      if result == -ECHILD, programIsAlive {
        programIsAlive = false
        end(.failed("the program's end was not seen: its exit status is not known"))
      }
      guard result > 0 else { return }
      guard change.pid == program else { continue }
      if change.stopped != 0 {
        frontIsStopped = true
        tell(.stopped)
      } else if change.continued != 0 {
        // Whoever continued the program continues the front too.
        if frontIsStopped { kill(getppid(), SIGCONT) }
        frontIsStopped = false
      } else {
        programIsAlive = false
        end(change.exited != 0 ? .exited(status: change.code) : .signaled(change.code))
      }
    }
  }

  /// The program is gone; what it started may live on.
  private func end(_ report: Report) {
    if frontIsStopped { kill(getppid(), SIGCONT) }
    var set = pollfd(fd: listener, events: 0, revents: 0)
    handles.drain()
    // The filter goes with the last of the program's threads, which may take a moment.
    if unsafe poll(&set, 1, 100) > 0 {
      tell(.closing)
      server.settle()
      handles.closeAll()
      reporter.finish()
      shadow?.remove()
      tell(report)
      _exit(0)
    }
    reporter.drain()
    reporter.flush()
    detachStandardStreams(keepError: false)
    tell(report)
    close(front)
    frontIsOpen = false
  }

  private func finish() -> Never {
    server.settle()
    handles.closeAll()
    reporter.finish()
    shadow?.remove()
    _exit(0)
  }

  private func tell(_ report: Report) {
    if frontIsOpen { System.writeAll(front, report.bytes) }
  }

  /// Signals for the program; or the front is gone, and the program goes with it.
  private func listenToFront() {
    guard let bytes = System.readSome(front, limit: 64), let signal = bytes.first else {
      if programIsAlive { kill(program, SIGKILL) }
      close(front)
      frontIsOpen = false
      return
    }
    if programIsAlive { kill(program, Int32(signal)) }
  }
}
