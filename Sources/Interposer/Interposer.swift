// SPDX-License-Identifier: Apache-2.0
//
// The face of `iommu run`: what to run, on which machine, and what comes of it.

import IOMMU
import LinuxABI

/// What a program gets to see: device nodes, files, and where the engine logs.
public struct InterposedMachine: Sendable {
  /// Device nodes, and the files that go with them; what changes here, programs see change.
  public var files: LiveView
  /// Files that each of the program's threads has in /proc.
  public var threadNodes: [any ThreadNode]
  /// Its entries go into the trace.
  public var events: EventLog?

  public init(
    files: LiveView, threadNodes: [any ThreadNode] = [], events: EventLog? = nil
  ) {
    self.files = files
    self.threadNodes = threadNodes
    self.events = events
  }
}

/// Why a program could not be run: one sentence that says what is missing and what to do.
public struct InterposerError: Error, CustomStringConvertible, Sendable {
  public let description: String

  public init(_ description: String) { self.description = description }
}

/// What to run, and how.
public struct RunOptions: Sendable {
  /// Where the trace of every call goes.
  public enum Trace: Sendable {
    case none
    /// Chrome/Perfetto trace JSON.
    case file(path: String)
    /// One line for each call.
    case standardError
  }

  /// Looked up in `PATH` where it has no slash.
  public var program: String
  /// Without the program's name.
  public var arguments: [String]
  /// `NAME=value`; nil leaves the environment as it is.
  public var environment: [String]?
  public var trace: Trace
  /// Whether each failed call is explained on standard error.
  public var explain: Bool
  /// Whether each program's RLIMIT_MEMLOCK bounds what it pins (MODEL B6); otherwise nothing does.
  public var limitsMemory: Bool
  /// How programs see the machine's files; nil: by a mount namespace where the host allows one,
  /// else by paths.
  public var view: ViewMode?
  /// Builds the machine. Called in the supervisor, a process of its own in which the machine
  /// lives; descriptors above 2 that were open before `run` are closed there.
  public var makeMachine: @Sendable () throws -> InterposedMachine

  public init(
    program: String, arguments: [String] = [], environment: [String]? = nil,
    trace: Trace = .none, explain: Bool = false, limitsMemory: Bool = true,
    view: ViewMode? = nil,
    makeMachine: @escaping @Sendable () throws -> InterposedMachine
  ) {
    self.program = program
    self.arguments = arguments
    self.environment = environment
    self.trace = trace
    self.explain = explain
    self.limitsMemory = limitsMemory
    self.view = view
    self.makeMachine = makeMachine
  }
}

/// Runs a program on a machine and waits for its end.
///
/// Call it from a process that has one thread. It takes the process's signals, standard input
/// and output, and closes its descriptors above 2: the program has them. Where the program
/// ends by a signal, this process does too and `run` does not return.
/// - Returns: The program's exit status; 126 and 127 where it could not be executed, as
///   `env(1)` has it.
/// - Throws: Where the host refuses a part of the mechanism, or the machine cannot be made.
public func run(_ options: RunOptions) throws(InterposerError) -> Int32 {
  try Front.run(options)
}
