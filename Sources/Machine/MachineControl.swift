// SPDX-License-Identifier: Apache-2.0
//
// What can be done to a machine while programs run on it, by words: `iommu ctl` brings them.

import IOMMU
import VFIO

/// Carries out commands on a running machine. Thread-safe.
public struct MachineControl: Sendable {
  private let machine: Machine

  public init(_ machine: Machine) { self.machine = machine }

  /// Words of `fault` that are no error of advanced error reporting.
  public static let faults: [(name: String, summary: String)] = [
    ("dma", "the next access to memory fails, or the next N"),
    ("stuck", "the device takes no more work in hand, until it is reset"),
    ("link-down", "registers read as all ones, mappings fault, DMA ends, commands are ENODEV"),
    ("link-up", "ends link-down; the device was reset"),
  ]

  /// Errors that a function reports: the status bit, and ERR where nothing corrected it.
  public static let errors = PCIError.allCases.map(\.rawValue)

  /// Carries out a command.
  /// - Parameters:
  ///   - words: `list`; `remove BDF [surprise]`; `add BDF`; `fault BDF KIND [N]`.
  ///   - isWanted: Whether who asked is still there.
  ///   - tell: Is told what it waits for.
  /// - Returns: Lines to print.
  /// - Throws: `EINVAL` for what is no command; what the command throws.
  public func perform(
    _ words: [String], isWanted: () -> Bool = { true }, tell: (String) -> Void = { _ in }
  ) throws(IOMMUError) -> [String] {
    switch (words.first, words.count) {
    case ("list", 1):
      return machine.hotPlug.devices.map(Self.line)
    case ("remove", 2), ("remove", 3):
      let surprise = words.count == 3
      guard !surprise || words[2] == "surprise" else { throw unknown(words) }
      try machine.hotPlug.remove(words[1], surprise: surprise, isWanted: isWanted, tell: tell)
      return ["\(words[1]) is gone"]
    case ("add", 2):
      try machine.hotPlug.add(words[1])
      return ["\(words[1]) is there"]
    case ("fault", 3), ("fault", 4):
      let function = try machine.hotPlug.function(named: words[1])
      try inject(words[2], words.count == 4 ? words[3] : nil, into: function)
      return ["\(words[1]): \(words[2])"]
    default:
      throw unknown(words)
    }
  }

  private func unknown(_ words: [String]) -> IOMMUError {
    IOMMUError(.invalidArgument, "'\(words.joined(separator: " "))' is no command of a machine")
  }

  private static func line(_ status: HotPlug.Status) -> String {
    let state =
      switch (status.isThere, status.isInUse, status.hasLink) {
      case (false, _, _): "removed"
      case (true, true, true): "in use"
      case (true, true, false): "in use, link down"
      case (true, false, true): "free"
      case (true, false, false): "link down"
      }
    return "\(status.name)  group \(status.group)  \(status.driver ?? "-")  \(state)"
  }

  private func inject(
    _ kind: String, _ argument: String?, into function: PCIFunction
  ) throws(IOMMUError) {
    guard argument == nil || kind == "dma" else {
      throw IOMMUError(.invalidArgument, "fault \(kind) takes no number")
    }
    // Said before what comes of it, except where the device may refuse.
    func say(_ what: String) {
      machine.system.events.append(.injectedFault(device: function.name, what: what))
    }
    if let error = PCIError(rawValue: kind) {
      say("reports \(kind)")
      return function.report(error)
    }
    switch kind {
    case "dma":
      guard let count = Int(argument ?? "1"), count > 0, count <= 1_000_000 else {
        throw IOMMUError(
          .invalidArgument, "'\(argument ?? "")' is no count of accesses: 1 to 1000000")
      }
      say("dma: the next " + (count == 1 ? "access fails" : "\(count) accesses fail"))
      function.failDMA(count)
    case "stuck":
      try function.stick()
      say("stuck: it takes no more work in hand, until it is reset")
    case "link-down":
      say("link-down")
      function.loseLink()
    case "link-up":
      say("link-up: it was reset")
      function.restoreLink()
    default:
      let known = Self.faults.map(\.name) + Self.errors
      throw IOMMUError(
        .invalidArgument,
        "there is no fault '\(kind)'; there are \(known.joined(separator: ", "))")
    }
  }
}
