// SPDX-License-Identifier: Apache-2.0
//
// /dev/iommu: the node, an open of it, and the table of its commands (MODEL L).

import CLinuxABI
import IOMMU
import SystemPackage

/// The node `/dev/iommu`. Every open is a context of its own (MODEL A1).
public final class IOMMUNode: DeviceNode {
  public let path = "/dev/iommu"
  public let number = DeviceNumber(major: 10, minor: 127)
  private let system: IOMMUSystem
  private let table: CommandTable
  private let trustsCallers: Bool
  /// Makes calls fail for those that ask for it; nil outside of self-tests.
  public let failures: FailNthNode?

  /// - Parameter system: Whose devices and memory the contexts work with.
  public convenience init(system: IOMMUSystem) {
    self.init(system: system, additionalCommands: [])
  }

  /// - Parameters:
  ///   - additionalCommands: Rows of a driver's back door.
  ///   - trustsCallers: Whether every caller counts as privileged.
  ///   - failures: Makes calls fail for those that ask for it.
  init(
    system: IOMMUSystem, additionalCommands: [Command], trustsCallers: Bool = false,
    failures: FailNthNode? = nil
  ) {
    self.system = system
    self.trustsCallers = trustsCallers
    self.failures = failures
    table = CommandTable(Command.iommufd + additionalCommands)
  }

  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    guard let failures else { return makeFile() }
    return try failures.run(caller) { () throws(IOMMUError) in
      try FailurePoint.pass(.context)
      return makeFile()
    }
  }

  private func makeFile() -> IOMMUFile {
    IOMMUFile(
      context: Context(system: system), number: number, table: table,
      trustsCallers: trustsCallers, failures: failures)
  }
}

/// An open `/dev/iommu`.
final class IOMMUFile: ContextFile, MmapFile {
  let name = "iommufd"
  let number: DeviceNumber
  let context: Context
  /// Whether every caller may do what Linux asks CAP_SYS_RESOURCE for.
  let trustsCallers: Bool
  private let table: CommandTable
  private let failures: FailNthNode?

  init(
    context: Context, number: DeviceNumber, table: CommandTable, trustsCallers: Bool,
    failures: FailNthNode? = nil
  ) {
    self.context = context
    self.number = number
    self.table = table
    self.trustsCallers = trustsCallers
    self.failures = failures
  }

  var areas: MmapAreas { context.areas }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    guard let failures else { return try run(command, argument: argument, by: caller) }
    return try failures.run(caller) { () throws(IOMMUError) in
      try run(command, argument: argument, by: caller)
    }
  }

  private func run(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    guard let number = table.index(of: command) else {
      let call = CompatibilityCall(file: self, caller: caller, argument: argument)
      if let result = try call.run(command) { return result }
      throw CommandTable.unknown(command)
    }
    // As on Linux, the size is read before the exact number is checked.
    let size = Int(try caller.load(UInt32.self, from: argument, zero: 0))
    return try table.run(
      number, command, Invocation(file: self, caller: caller, address: argument, size: size))
  }

  func checkMap(_ request: MapRequest) throws(IOMMUError) {
    try areas.check(
      offset: request.offset, length: request.length, isShared: request.isShared,
      isExecutable: request.isExecutable)
  }

  func close() { context.close() }
}

/// The rows by number, found by index.
struct CommandTable: Sendable {
  static func unknown(_ command: UInt32) -> IOMMUError {
    IOMMUError(
      .inappropriateIOCTLForDevice,
      command == IOMMU_TEST_CMD
        ? "IOMMU_TEST_CMD is there with `iommu run --self-test-driver` only"
        : "/dev/iommu has no command \(hex(command))")
  }

  /// Number 0x80 comes first; a row of number 0 where there is no such command.
  private let rows: [Command]

  init(_ commands: [Command]) {
    let last = commands.map { $0.number & 0xff }.max() ?? 0
    var rows = [Command](repeating: .missing, count: max(0, Int(last) - 0x7f))
    for command in commands { rows[Int(command.number & 0xff) - 0x80] = command }
    self.rows = rows
  }

  /// The row for the low byte of a command, as Linux looks it up; nil where it is outside.
  func index(of command: UInt32) -> Int? {
    let index = Int(command & 0xff) - Int(IOMMUFD_CMD_BASE)
    return rows.indices.contains(index) ? index : nil
  }

  /// Checks number and size, and runs the command of a row.
  /// - Returns: What the call returns.
  ///
  /// The row is borrowed, not copied: a copy would count references to each part of it.
  func run(
    _ index: Int, _ command: UInt32, _ invocation: Invocation
  ) throws(IOMMUError) -> Int {
    let rows = rows.span
    guard rows[index].number == command else {
      throw CommandTable.unknown(command)
    }
    guard invocation.size >= rows[index].minimumSize else {
      throw tooShort(rows[index], invocation.size)
    }
    return try rows[index].run(invocation)
  }

  private func tooShort(_ row: Command, _ size: Int) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "the structure says it is \(size) bytes long; \(row.name) needs \(row.minimumSize)")
  }
}
