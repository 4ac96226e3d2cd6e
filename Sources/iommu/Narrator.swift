// SPDX-License-Identifier: Apache-2.0
//
// What the demo says: the programs' own lines, and below each step what it means.

import Machine

/// Tells the demo on standard output.
struct Narrator {
  let colour: Bool

  /// Said once, below the first line that contains `words`.
  struct Topic {
    var words: String
    var text: String

    init(_ words: String, _ text: String) {
      self.words = words
      self.text = text
    }
  }

  func open(machine: MachineDescription) {
    say(
      """
      Devices read and write memory by themselves: DMA. An IOMMU stands between a device and
      memory, as the MMU does between a program and memory, and lets through what was mapped.
      Linux gives programs the IOMMU as /dev/iommu and devices as /dev/vfio/devices/vfioN.

      This host need not have either. Below, two ordinary C programs run on this machine, which
      exists only for them (iommu machine prints it):

      """)
    Terminal.print(machine.tree(colour: colour))
  }

  func chapter(_ number: Int, _ title: String) {
    let line = "\(number). \(title)"
    Terminal.print("\n\(bold(line))\n")
  }

  /// Shows a command. The programs lose their directories, which the user knows.
  func command(_ arguments: [String]) {
    let program = arguments.firstIndex(of: "--").map { $0 + 1 }
    let words = arguments.enumerated().map { index, word in
      index == 0 || index == program
        ? word.split(separator: "/").last.map(String.init) ?? word : word
    }
    Terminal.print("\(faint("$ " + words.joined(separator: " ")))\n\n")
  }

  /// Prints a line of the program, and what there is to say about it.
  /// - Parameter topics: What was said is taken out.
  func show(_ line: String, topics: inout [Topic]) {
    Terminal.print("  \(line)\n")
    guard let index = topics.firstIndex(where: { line.contains($0.words) }) else { return }
    let topic = topics.remove(at: index)
    for text in topic.text.split(separator: "\n") {
      Terminal.print("      \(faint("│ " + text))\n")
    }
  }

  func say(_ text: String) { Terminal.print("\(text)\n") }

  func close() {
    say(
      """

      Nothing of this needed root, a kernel module or a device. Next:
        iommu run -- ./your-program        your own VFIO or iommufd program
        iommu run --explain -- …           why a call was refused
        iommu run --trace run.json -- …    everything that happened, for ui.perfetto.dev
        iommu machine --yaml               a machine of your own
      """)
  }

  private func bold(_ text: String) -> String {
    colour ? "\u{1B}[1m\(text)\u{1B}[0m" : text
  }

  private func faint(_ text: String) -> String {
    colour ? "\u{1B}[2m\(text)\u{1B}[0m" : text
  }
}

extension Narrator {
  static let copyTopics = [
    Topic(
      "found a copy engine",
      """
      The program looked through /sys/bus/pci/devices, as on any Linux, and found a DMA copy
      engine that the driver vfio-pci holds for programs.
      """),
    Topic(
      "opened /dev/iommu",
      """
      Each open of /dev/iommu is a context of its own: what is made in it, nobody else can
      name. The two file descriptors are all the permission there is.
      """),
    Topic(
      "bound them",
      """
      Binding takes the device's whole group from the host. From here on its DMA reaches
      nothing; only now may the program touch its registers.
      """),
    Topic(
      "attached it",
      """
      An address space holds translations from the device's addresses (IOVA) to memory. The
      IOMMU now walks this one's page table for the device. It is still empty.
      """),
    Topic(
      "the descriptors at",
      """
      Three maps: the device may read the source, write the destination, and read and write
      its list of orders. Everything else of the program stays out of its reach.
      """),
    Topic(
      "armed MSI-X",
      """
      An interrupt is a DMA write to a reserved address. The program receives it through a
      file descriptor.
      """),
    Topic(
      "programmed the engine",
      """
      The orders lie in memory and carry IOVAs; one register write rings the doorbell. The
      device's own thread then reads them through the page table, and copies.
      """),
    Topic("the interrupt came", "The device is done and says so."),
    Topic(
      "compared", "The program compares both buffers with its own eyes: the device wrote them."),
    Topic(
      "detached",
      "Detached, the device is blocked again. The last close returns it to the host."),
  ]

  static let trespassTopics = [
    Topic(
      "read a register",
      "Before binding, the device file is worth nothing: no register, no interrupt, no mapping."
    ),
    Topic(
      "bind a bound device",
      "A second context cannot take the device, nor reach into the first one's objects."),
    Topic(
      "over a live mapping",
      "Mappings are never replaced or split silently: what a device may reach is always known."),
    Topic(
      "write outside a mapping",
      """
      Now the device itself misbehaves. The IOMMU finds no translation, the access goes
      nowhere, and the engine reports an error instead of raising its interrupt.
      """),
    Topic(
      "write after unmap",
      "When unmap returns, no device thread uses the old translation any more."),
  ]
}
