// SPDX-License-Identifier: Apache-2.0
//
// Dispatch of commands that start with their own size (MODEL L): the forward-compatibility
// rule is checked here and only here. A structure may be shorter than ours down to a minimum
// (the rest is zero) and longer, if what we do not know is zero.

import IOMMU
import SystemPackage

/// One row of the command table: a number, its sizes, and what it does.
struct Command: Sendable {
  /// As `ioctl(2)` takes it: `IOMMU_IOAS_MAP`.
  let number: UInt32
  let name: String
  /// Structures below this size are `EINVAL`, in bytes.
  let minimumSize: Int
  /// Checks the structure, runs the command and responds. What it returns, the call returns.
  let run: @Sendable (Invocation) throws(IOMMUError) -> Int

  /// - Parameters:
  ///   - minimumSize: The end of the last field that the first Linux with the command had.
  ///   - zero: An all-zero structure: what a shorter one is filled up with.
  ///   - body: Runs the command. It calls `respond` where there is something to say.
  init<Structure: Sendable>(
    _ number: UInt32, _ name: String, minimumSize: Int, zero: Structure,
    _ body: @escaping @Sendable (Invocation, inout Structure) throws(IOMMUError) -> Void
  ) {
    self.init(number, name, minimumSize: minimumSize) { invocation throws(IOMMUError) in
      try invocation.run(zero, body)
    }
  }

  /// A command whose call returns something else than 0: a descriptor.
  init<Structure: Sendable>(
    _ number: UInt32, _ name: String, minimumSize: Int, returning zero: Structure,
    _ body: @escaping @Sendable (Invocation, inout Structure) throws(IOMMUError) -> Int
  ) {
    self.init(number, name, minimumSize: minimumSize) { invocation throws(IOMMUError) in
      var structure = try invocation.structure(zero: zero)
      return try body(invocation, &structure)
    }
  }

  /// For the commands that have to be fast: a closure that captures nothing counts no
  /// references when it is called.
  /// - Parameter run: Calls `run` of the invocation.
  init(
    _ number: UInt32, _ name: String, minimumSize: Int,
    run: @escaping @Sendable (Invocation) throws(IOMMUError) -> Int
  ) {
    self.number = number
    self.name = name
    self.minimumSize = minimumSize
    self.run = run
  }
}

extension Command {
  /// No command: no call has this number.
  static let missing = Command(0, "", minimumSize: 0, zero: UInt32(0)) { _, _ in }
}

/// One call of a command.
struct Invocation {
  let file: IOMMUFile
  let caller: any Caller
  /// Where the structure is in the caller's memory, and how long the caller says that it is.
  let address: UInt64
  let size: Int

  var context: Context { file.context }

  /// Runs a command on its structure.
  /// - Returns: 0, what its call returns.
  @inline(__always)
  func run<Structure>(
    _ zero: Structure,
    _ body: (Invocation, inout Structure) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    var structure = try structure(zero: zero)
    try body(self, &structure)
    return 0
  }

  /// Linux: `copy_struct_from_user`.
  @inline(__always)
  fileprivate func structure<Structure>(
    zero: Structure
  ) throws(IOMMUError) -> Structure {
    let known = MemoryLayout<Structure>.size
    if size > known {
      guard try caller.isZero(at: address &+ UInt64(known), count: UInt64(size - known)) else {
        throw IOMMUError(
          .argListTooLong,
          "the structure says it is \(size) bytes long; only \(known) are known, and the rest "
            + "is not zero")
      }
    }
    return try caller.load(zero, from: address, size: size)
  }

  /// Writes the structure back, no further than the caller's goes.
  @inline(__always)
  func respond<Structure>(with structure: Structure) throws(IOMMUError) {
    try caller.store(structure, to: address, size: size)
  }

  /// Writes the structure back; where that fails, takes back what the command did.
  @inline(__always)
  func respond<Structure>(
    with structure: Structure, orUndo undo: () throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    do throws(IOMMUError) {
      try respond(with: structure)
    } catch {
      try undo()
      throw error
    }
  }
}

/// `EOPNOTSUPP` where a field that must be zero is not.
func requireZero(_ value: some BinaryInteger, _ field: String) throws(IOMMUError) {
  guard value == 0 else {
    throw IOMMUError(.operationNotSupported, "\(field) is \(hex(value)) and must be 0")
  }
}

/// `EOPNOTSUPP` where a flag is set that this interface does not have.
func requireOnly(
  _ known: UInt32, in flags: UInt32, _ field: String = "flags"
) throws(IOMMUError) {
  guard flags & ~known == 0 else {
    throw IOMMUError(
      .operationNotSupported,
      "\(field) \(hex(flags)) has unknown bits \(hex(flags & ~known))")
  }
}
