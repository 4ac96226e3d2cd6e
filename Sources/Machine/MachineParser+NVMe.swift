// SPDX-License-Identifier: Apache-2.0
//
// What a machine file says of an NVMe controller: its names, its limits, and its namespaces with
// the files that keep them.

import IOMMU
import SoftDevices
import Yams

extension MachineParser {
  static let nvmeKeys = [
    "namespaces", "serial", "model-name", "queues", "queue-entries", "mdts", "vendor-id",
    "device-id",
  ]
  private static let namespaceLimit = 64

  func nvme(_ fields: MachineReader.Fields) -> NVMeConfiguration {
    var result = NVMeConfiguration(namespaces: [])
    if let node = fields["namespaces"] {
      result.namespaces = reader.items(
        of: node, what: "namespaces", limit: Self.namespaceLimit
      ).compactMap(namespace)
      checkFiles(of: result.namespaces, node)
    } else {
      reader.report(
        fields.node,
        "found an NVMe controller without 'namespaces', expected a list of them, each with a "
          + "'file', a 'size' or both")
    }
    if let node = fields["serial"], let text = name(node, "a serial number", limit: 20) {
      result.serial = text
    }
    if let node = fields["model-name"], let text = name(node, "a model name", limit: 40) {
      result.modelName = text
    }
    func number(
      _ key: String, _ what: String, in range: ClosedRange<UInt64>, hexadecimal: Bool = false
    ) -> UInt64? {
      fields[key].flatMap { reader.number($0, what, in: range, hexadecimal: hexadecimal) }
    }
    if let count = number(
      "queues", "a number of I/O queues", in: 1...UInt64(NVMeConfiguration.queueLimit))
    {
      result.queues = Int(count)
    }
    if let count = number("queue-entries", "a number of entries", in: 2...65536) {
      result.queueEntries = Int(count)
    }
    let limits = NVMeConfiguration.transferLimits
    if let limit = number(
      "mdts", "log2 of the longest transfer in pages of 4KiB",
      in: UInt64(limits.lowerBound)...UInt64(limits.upperBound))
    {
      result.transferLimit = UInt8(truncatingIfNeeded: limit)
    }
    if let id = number("vendor-id", "a vendor id", in: 1...0xFFFE, hexadecimal: true) {
      result.vendor = UInt16(truncatingIfNeeded: id)
    }
    if let id = number("device-id", "a device id", in: 0...0xFFFF, hexadecimal: true) {
      result.device = UInt16(truncatingIfNeeded: id)
    }
    return result
  }

  private func namespace(_ node: Node) -> NVMeConfiguration.Namespace? {
    guard
      let fields = reader.fields(
        of: node, what: "a namespace",
        known: ["file", "size", "block-size", "read-only", "shared"],
        required: [])
    else { return nil }
    var result = NVMeConfiguration.Namespace()
    if let node = fields["file"], let path = reader.word(node, expected: "the path of a file") {
      if path.isEmpty { reader.report(node, "found an empty path, expected a file") }
      result.file = resolved(path)
    }
    if let node = fields["block-size"],
      let size = reader.number(node, "a block size", in: 512...4096)
    {
      if NVMeConfiguration.blockSizes.contains(Int(size)) {
        result.blockSize = Int(size)
      } else {
        reader.report(node, "found \(size), expected blocks of 512 or 4096 bytes")
      }
    }
    if let node = fields["size"] {
      result.size = reader.size(node, "a size", in: 4096...1 << 44)
      if let size = result.size, size % UInt64(result.blockSize) != 0 {
        reader.report(
          node, "found \(size) bytes, expected a multiple of the block size \(result.blockSize)"
        )
      }
    } else if fields["file"] == nil {
      reader.report(
        fields.node,
        "found a namespace without 'file' and 'size', expected a file, or the size of one in "
          + "memory")
    }
    result.isReadOnly = fields["read-only"].flatMap(reader.flag) ?? false
    if let node = fields["shared"], let isShared = reader.flag(node) {
      result.isShared = isShared
      if isShared, result.file == nil {
        reader.report(node, "found a namespace in memory, expected a file that others have too")
      }
    }
    return result
  }

  /// A file is one namespace's, where any of them writes it.
  private func checkFiles(of namespaces: [NVMeConfiguration.Namespace], _ node: Node) {
    var seen: [String: Bool] = [:]
    for namespace in namespaces {
      guard let file = namespace.file else { continue }
      if let other = seen[file], !(other && namespace.isReadOnly) {
        reader.report(
          node,
          "found the file '\(file)' twice, expected one for each namespace that is written")
      }
      seen[file] = namespace.isReadOnly
    }
  }

  /// A path in the file is one from where the file is; whole, as the machine's own directory may
  /// be another when a device comes back.
  private func resolved(_ path: String) -> String {
    guard !path.hasPrefix("/") else { return path }
    let file = reader.text.file
    let place = file.lastIndex(of: "/").map { String(file[...$0]) } ?? ""
    return (place.hasPrefix("/") ? "" : workingDirectory() + "/") + place + path
  }

  /// Printing ASCII, as the fields of Identify have it.
  private func name(_ node: Node, _ what: String, limit: Int) -> String? {
    guard let text = reader.word(node, expected: what) else { return nil }
    guard (1...limit).contains(text.utf8.count),
      text.utf8.allSatisfy({ (0x20...0x7E).contains($0) })
    else {
      reader.report(
        node,
        "found \(reader.describe(node)), expected \(what) of 1 to \(limit) ASCII characters")
      return nil
    }
    return text
  }
}
