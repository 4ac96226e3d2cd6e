// SPDX-License-Identifier: Apache-2.0
//
// The process that the user started. It stays in front of the terminal, has one thread and no
// part in the work: it passes on the signals that were sent to it alone, and ends, stops and
// goes on as the program does.

import CSyscalls

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What the supervisor tells the front, one message each.
enum Report {
  case started(pid: Int32)
  case exited(status: Int32)
  case signaled(Int32)
  case stopped
  case failed(String)
  /// The program's end is next, and the supervisor ends with it: nobody else uses the machine.
  case closing

  var bytes: [UInt8] {
    func number(_ tag: UInt8, _ value: Int32) -> [UInt8] {
      [tag] + (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
    switch self {
    case .started(let pid): return number(1, pid)
    case .exited(let status): return number(2, status)
    case .signaled(let signal): return number(3, signal)
    case .stopped: return number(4, 0)
    case .failed(let sentence): return [5] + Array(sentence.utf8)
    case .closing: return number(6, 0)
    }
  }

  init?(_ bytes: [UInt8]) {
    guard let tag = bytes.first else { return nil }
    var value: Int32 = 0
    for (index, byte) in bytes.dropFirst().prefix(4).enumerated() {
      value |= Int32(byte) << (8 * Int32(index))
    }
    switch tag {
    case 1: self = .started(pid: value)
    case 2: self = .exited(status: value)
    case 3: self = .signaled(value)
    case 4: self = .stopped
    case 5: self = .failed(String(decoding: bytes.dropFirst(), as: UTF8.self))
    case 6: self = .closing
    default: return nil
    }
  }
}

enum Front {
  /// Fewest descriptors with which anything can be served: ours and those of one program.
  private static let fewestFiles: UInt64 = 16

  static func run(_ options: RunOptions) throws(InterposerError) -> Int32 {
    let limit = csys_open_limit(0, 0)
    guard limit >= fewestFiles else {
      throw InterposerError(
        "\(limit) open files are too few for `iommu run`, which needs \(fewestFiles): raise the "
          + "limit (ulimit -n)")
    }
    fillStandardStreams()
    guard let (ours, theirs) = socketPair(sequenced: true) else {
      throw InterposerError("cannot make a socket pair: \(System.message(-errno))")
    }
    csys_signals_block()
    let child = System.fork()
    guard child >= 0 else {
      throw InterposerError("cannot start the supervisor: \(System.message(child))")
    }
    if child == 0 {
      close(ours)
      Supervisor.main(options, front: theirs)
    }
    close(theirs)
    // The program has these; holding them would keep the other side of a pipe waiting.
    closeAll(above: 2, except: [ours])
    detachStandardStreams(keepError: true)
    let signals = csys_signalfd(0)
    guard signals >= 0 else {
      kill(child, SIGKILL)
      throw InterposerError("cannot watch for signals: \(System.message(signals))")
    }
    return try follow(supervisor: child, socket: ours, signals: signals)
  }

  /// Mirrors the program until it ends.
  private static func follow(
    supervisor: Int32, socket: Int32, signals: Int32
  ) throws(InterposerError) -> Int32 {
    var program: Int32 = 0
    var isClosing = false
    // The machine's files, which may be locked, are free for the next run.
    func waitForSupervisor() {
      var status: Int32 = 0
      while isClosing, unsafe waitpid(supervisor, &status, 0) < 0, errno == EINTR {}
    }
    while true {
      let ready = waitReadable(socket, signals, milliseconds: -1)
      if ready.second { forwardSignals(signals, to: socket, supervisor: supervisor) }
      guard ready.first else { continue }
      // A supervisor that ends before it has read all signals leaves an error (ECONNRESET) in front
      // of its last report.
      guard let bytes = System.readSome(socket) ?? System.readSome(socket),
        let report = Report(bytes)
      else {
        if program != 0 { kill(program, SIGKILL) }
        throw InterposerError(
          "the supervisor ended unexpectedly\(program != 0 ? "; the program was killed" : "")")
      }
      switch report {
      case .started(let pid): program = pid
      case .closing: isClosing = true
      case .exited(let status):
        waitForSupervisor()
        return status
      case .signaled(let signal):
        waitForSupervisor()
        csys_die_of(signal)
      case .stopped: csys_stop_self()
      case .failed(let sentence): throw InterposerError(sentence)
      }
    }
  }

  /// Signals from the terminal reach the program by themselves: it is in our process group.
  /// Those that somebody sent to this process are passed on.
  private static func forwardSignals(_ signals: Int32, to socket: Int32, supervisor: Int32) {
    var signal = csys_signal()
    while unsafe csys_signal_next(signals, &signal) == 0 {
      let sent = signal.code == 0 || signal.code == -1 || signal.code == -6
      guard sent, signal.number != SIGCHLD, signal.pid != supervisor else { continue }
      System.writeAll(socket, [UInt8(truncatingIfNeeded: signal.number)])
    }
  }
}

/// Two connected sockets, close-on-exec.
func socketPair(sequenced: Bool) -> (Int32, Int32)? {
  var pair: (Int32, Int32) = (0, 0)
  let result = unsafe withUnsafeMutablePointer(to: &pair) { pair in
    // SAFETY: a tuple of two Int32 has the layout of int[2].
    unsafe csys_socketpair(
      UnsafeMutableRawPointer(pair).assumingMemoryBound(to: Int32.self), sequenced ? 1 : 0)
  }
  return result < 0 ? nil : pair
}

/// Closes every descriptor above `last` but these.
func closeAll(above last: Int32, except kept: [Int32]) {
  var next = UInt32(last + 1)
  for number in kept.sorted() where UInt32(number) >= next {
    if UInt32(number) > next { _ = csys_close_range(next, UInt32(number) - 1) }
    next = UInt32(number) + 1
  }
  _ = csys_close_range(next, .max)
}

/// Opens what is closed of the three standard streams, so that nothing of ours gets their
/// numbers; the program's exec closes them again.
private func fillStandardStreams() {
  while case let number = System.open("/dev/null", O_RDWR), number >= 0 {
    if number > 2 {
      close(number)
      return
    }
  }
}

/// Puts `/dev/null` where the program's standard streams are.
func detachStandardStreams(keepError: Bool) {
  let null = System.open("/dev/null", O_RDWR)
  guard null >= 0 else { return }
  dup2(null, 0)
  dup2(null, 1)
  if !keepError { dup2(null, 2) }
  if null > 2 { close(null) }
}

/// Waits until one of two descriptors can be read or is hung up.
func waitReadable(
  _ first: Int32, _ second: Int32, milliseconds: Int32
) -> (first: Bool, second: Bool) {
  var set = [
    pollfd(fd: first, events: Int16(POLLIN), revents: 0),
    pollfd(fd: second, events: Int16(POLLIN), revents: 0),
  ]
  let count = unsafe poll(&set, 2, milliseconds)
  guard count > 0 else { return (false, false) }
  return (set[0].revents != 0, set[1].revents != 0)
}
