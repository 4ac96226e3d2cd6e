// SPDX-License-Identifier: Apache-2.0
//
// `iommu machine`: the machine that a program would see.

import ArgumentParser
import Machine

struct PrintMachine: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machine",
    abstract: "Print the machine: IOMMUs, groups, devices.",
    discussion: """
      Examples:
        iommu machine                              the built-in machine, as a tree
        iommu machine --yaml > my.yaml             a file to start your own from
        iommu machine --machine my.yaml --json     for scripts
        iommu machine --dot | dot -Tsvg > m.svg    a picture
      """)

  enum Format: EnumerableFlag {
    case tree, json, dot, yaml

    static func help(for value: Format) -> ArgumentHelp? {
      switch value {
      case .tree: "For people (the default)."
      case .json: "For scripts."
      case .dot: "For Graphviz."
      case .yaml: "A machine file."
      }
    }
  }

  @OptionGroup var source: MachineOption
  @Flag var format: Format = .tree

  func run() throws {
    let machine = try source.description()
    switch format {
    case .tree: Terminal.print(machine.tree(colour: Terminal.colour))
    case .json: Terminal.print(machine.json)
    case .dot: Terminal.print(machine.dot)
    case .yaml: Terminal.print(machine.yaml)
    }
  }
}

/// `--machine FILE`.
struct MachineOption: ParsableArguments {
  @Option(
    name: .customLong("machine"),
    help: ArgumentHelp(
      "The machine to use, a YAML file ('-' reads standard input).", valueName: "file"),
    completion: .file(extensions: ["yaml", "yml"]))
  var file: String?

  /// The machine of the file, or the built-in one.
  /// - Throws: `MachineFileError`.
  func description() throws(MachineFileError) -> MachineDescription {
    guard let file else { return .standard }
    return try MachineDescription(path: file)
  }
}
