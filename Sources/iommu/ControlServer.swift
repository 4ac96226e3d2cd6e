// SPDX-License-Identifier: Apache-2.0
//
// The side of a run: takes a line of words from each caller, carries it out, and answers in lines:
// `progress TEXT` while it waits, `out TEXT`, and at the end `ok` or `error NUMBER TEXT`.

import Glibc
import IOMMU
import Machine
import Synchronization

/// What listens while a machine runs.
final class ControlServer: Sendable {
  /// Of the protocol: the first word of a command.
  static let version = "1"
  /// Callers at one time.
  private static let mostCallers = 16

  private let control: MachineControl
  private let program: String
  private let listener: Int32
  private let callers = Atomic(0)

  /// Listens from here on. A host without a place for the socket runs the program all the same.
  /// - Parameters:
  ///   - pid: What `iommu ctl` names the run by.
  ///   - program: For a person.
  static func start(_ machine: Machine, pid: Int32, program: String) {
    guard let (listener, path) = ControlSocket.listen(pid: pid) else { return }
    let server = ControlServer(machine, listener: listener, program: program)
    guard ControlSocket.startThread({ server.serve() }) else {
      close(listener)
      unsafe unlink(path)
      return
    }
  }

  private init(_ machine: Machine, listener: Int32, program: String) {
    control = MachineControl(machine)
    self.listener = listener
    self.program = program
  }

  private func serve() {
    while let caller = ControlSocket.accept(listener) {
      let isOne =
        callers.add(1, ordering: .relaxed).newValue <= Self.mostCallers
        && ControlSocket.startThread { [self] in
          answer(caller)
          close(caller)
          callers.subtract(1, ordering: .relaxed)
        }
      if !isOne {
        callers.subtract(1, ordering: .relaxed)
        close(caller)
      }
    }
  }

  private func answer(_ caller: Int32) {
    var reader = LineReader(caller)
    guard let line = reader.next() else { return }
    let words = line.split(separator: " ").map(String.init)
    guard words.first == Self.version else {
      ControlSocket.send("error \(EPROTO) this run speaks version \(Self.version)", to: caller)
      return
    }
    if words.count == 2, words[1] == "list" {
      ControlSocket.send("program \(program.prefix(200))", to: caller)
    }
    do throws(IOMMUError) {
      let lines = try control.perform(
        Array(words.dropFirst()), isWanted: { !ControlSocket.isClosed(caller) },
        tell: { ControlSocket.send("progress \($0)", to: caller) })
      for line in lines { ControlSocket.send("out \(line)", to: caller) }
      ControlSocket.send("ok", to: caller)
    } catch {
      ControlSocket.send("error \(error.errno.rawValue) \(error.reason)", to: caller)
    }
  }
}
