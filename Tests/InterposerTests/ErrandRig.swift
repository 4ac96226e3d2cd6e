// SPDX-License-Identifier: Apache-2.0
//
// Serves the calls of a program as a server would that has its threads make other calls: those that name
// a path below /shown are made with the same path below a directory.

import CProcessMemory
import CSyscalls
import Glibc
import LinuxABI
import Testing

@testable import Interposer

final class ErrandRig: Sendable {
  private static let shown = Array("/shown".utf8)
  /// What the test program asks for in place of a call that Linux knows.
  private static let seekCommand: UInt64 = 7777

  let directory: String
  private let tracer: Tracer
  private let listener: Int32
  let program: Int32

  /// Starts a test of the program `errands`.
  init(_ test: String) throws {
    var template = Array("/tmp/errands-XXXXXX".utf8CString)
    directory = String(cString: mkdtemp(&template)!)
    let built = Programs.built("errands")
    symlink(built, directory + "/program")
    mkfifo(directory + "/fifo", 0o600)
    mkdir(directory + "/directory", 0o700)
    let file = open(directory + "/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
    write(file, "text\n", 5)
    close(file)
    let (ours, theirs) = try #require(socketPair(sequenced: false))
    defer { close(ours) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    posix_spawn_file_actions_adddup2(&actions, theirs, 3)
    // This thread has signals blocked.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    let words = [strdup(built), strdup(test), nil]
    defer { for word in words { free(word) } }
    var child: pid_t = 0
    let result = posix_spawn(&child, built, &actions, &attributes, words, environ)
    posix_spawn_file_actions_destroy(&actions)
    close(theirs)
    try #require(result == 0)
    program = child
    listener = csys_receive_fd(ours)
    try #require(listener >= 0)
    tracer = Tracer(
      handles: try HandleTable(),
      reporter: try Reporter(RunOptions(program: test) { throw InterposerError("none") }),
      program: child)
    for _ in 0..<4 { _ = System.startThread { self.serve() } }
  }

  /// Waits for the program's end, at most five minutes.
  func end() -> csys_wait {
    var change = csys_wait()
    for turn in 0..<150_000 {
      tracer.clearBell()
      let result = tracer.nextChange(&change)
      if result < 0 || change.pid == program && change.stopped == 0 && change.continued == 0 {
        break
      }
      usleep(2000)
      if turn == 149_000 { kill(program, SIGKILL) }
    }
    for name in ["program", "fifo", "file"] { unlink(directory + "/" + name) }
    rmdir(directory + "/directory")
    rmdir(directory)
    return change
  }

  private func serve() {
    var call = csys_notif()
    while true {
      let result = csys_notif_receive(listener, &call)
      if result == -ENOENT {
        var set = pollfd(fd: listener, events: 0, revents: 0)
        if poll(&set, 1, 0) == 1 { return }
      }
      guard result == 0 else { continue }
      let answer = answer(call)
      _ = csys_notif_send(
        listener, call.id, 0, min(answer, 0), answer == 1 ? 1 : 0)
    }
  }

  /// 0: done; 1: the kernel does it; a negative errno.
  private func answer(_ call: csys_notif) -> Int32 {
    let thread = Int32(bitPattern: call.pid)
    if tracer.isInjected(thread) { return 1 }
    let arguments = [
      call.data.args.0, call.data.args.1, call.data.args.2, call.data.args.3,
      call.data.args.4, call.data.args.5,
    ]
    var other = ReplacementCall(number: call.data.nr, arguments: [])
    if call.data.nr == CSYS_NR_fcntl {
      guard arguments[1] == Self.seekCommand else { return 1 }
      other.number = CSYS_NR_lseek
      other.arguments = [.value(arguments[0]), .value(arguments[2]), .value(UInt64(SEEK_SET))]
      other.result = 42
    } else {
      var isShown = false
      other.arguments = arguments.enumerated().map { index, value in
        let holdsPath =
          index == 0
          || index == 1
            && [CSYS_NR_openat, renameNumber, CSYS_NR_newfstatat].contains(
              call.data.nr)
        guard holdsPath, let path = path(at: value, of: thread), path.starts(with: Self.shown)
        else { return .value(value) }
        isShown = true
        return .path(Array(directory.utf8) + path.dropFirst(Self.shown.count))
      }
      guard isShown else { return 1 }
    }
    guard let group = Tasks.group(of: thread) else { return -ESRCH }
    do {
      let caller = WaitingThread(
        thread: thread, process: group, listener: listener, call: call.id)
      try tracer.replace(caller, by: other)
      return 0
    } catch {
      return -error.errno.rawValue
    }
  }

  private func path(at address: UInt64, of thread: Int32) -> [UInt8]? {
    var text: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 64)
    while text.count < 4096 {
      let place = address &+ UInt64(text.count)
      let count = csys_process_vm_readv(
        thread, &part, place, min(64, Int(4096 - (place & 4095))))
      guard count > 0 else { return nil }
      text += part[..<count]
      if let end = part[..<count].firstIndex(of: 0) {
        return Array(text[..<(text.count - count + end)])
      }
    }
    return nil
  }
}

private let renameNumber: Int32 = 82
