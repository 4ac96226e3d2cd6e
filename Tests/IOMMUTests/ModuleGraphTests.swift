// SPDX-License-Identifier: Apache-2.0
//
// MODEL A4: calls run one way. No module imports one that is above it, and a thread that takes
// locks out of order is stopped.

import Foundation
import IOMMU
import Testing

@Suite("Module graph") struct ModuleGraphTests {
  /// What each module may import of ours. The first are at the bottom; a new edge is a decision.
  private static let edges: [(module: String, imports: Set<String>)] = [
    ("CBlockFile", []),
    ("CLinuxABI", []),
    ("CProcessMemory", []),
    ("CSyscalls", []),
    ("X86Instructions", []),
    ("PageTables", []),
    ("HardwareTables", ["PageTables"]),
    ("IOMMU", ["CProcessMemory", "PageTables"]),
    ("SoftwareIOMMU", ["HardwareTables", "IOMMU", "PageTables"]),
    ("SelfTestDriver", ["IOMMU", "PageTables"]),
    ("VFIO", ["IOMMU", "PageTables", "SoftwareIOMMU"]),
    ("SoftDevices", ["CBlockFile", "IOMMU", "PageTables", "SoftwareIOMMU", "VFIO"]),
    ("LinuxABI", ["CLinuxABI", "IOMMU", "PageTables", "SelfTestDriver", "VFIO"]),
    (
      "Machine",
      [
        "IOMMU", "LinuxABI", "PageTables", "SelfTestDriver", "SoftDevices", "SoftwareIOMMU",
        "VFIO",
      ]
    ),
    (
      "Interposer",
      ["CProcessMemory", "CSyscalls", "IOMMU", "LinuxABI", "PageTables", "X86Instructions"]
    ),
    ("iommu", ["IOMMU", "Interposer", "LinuxABI", "Machine"]),
  ]

  private var sources: URL {
    URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("../../Sources").standardized
  }

  @Test("A4: the table of modules goes one way, and has every module")
  func table() throws {
    var below: Set<String> = []
    for (module, imports) in Self.edges {
      #expect(imports.isSubset(of: below), "\(module) imports what is not below it")
      below.insert(module)
    }
    let modules = try FileManager.default.contentsOfDirectory(atPath: sources.path)
    #expect(Set(modules.filter { !$0.hasPrefix(".") }) == below)
  }

  @Test("A4: no file imports what its module may not", arguments: edges.map(\.module))
  func imports(module: String) throws {
    let known = Set(Self.edges.map(\.module))
    let allowed = Self.edges.first { $0.module == module }?.imports ?? []
    let root = sources.appendingPathComponent(module)
    let files = try #require(FileManager.default.enumerator(atPath: root.path))
    var count = 0
    for case let file as String in files {
      let text =
        ["swift", "c", "h"].contains((file as NSString).pathExtension)
        ? try String(contentsOf: root.appendingPathComponent(file), encoding: .utf8) : ""
      count += text.isEmpty ? 0 : 1
      for name in Self.imported(in: text) where known.contains(name) && name != module {
        #expect(allowed.contains(name), "\(module)/\(file) imports \(name)")
      }
    }
    #expect(count > 0)
  }

  /// The modules of lines like `@testable public import struct IOMMU.IOVA`.
  static func imported(in text: String) -> [String] {
    text.split(separator: "\n").compactMap { line in
      let words = line.split(separator: " ")
      guard let place = words.firstIndex(of: "import"),
        words[..<place].allSatisfy({
          $0.hasPrefix("@") || ["public", "package", "internal", "private"].contains($0)
        })
      else { return nil }
      let kinds: Set<Substring> = ["struct", "class", "enum", "protocol", "func", "let", "var"]
      let name = words[(place + 1)...].first { !kinds.contains($0) }
      return name?.split(separator: ".").first.map(String.init)
    }
  }

  @Test("A4: an import is found however it is written")
  func reading() {
    let text = """
      import IOMMU
        import Glibc
      @preconcurrency public import struct LinuxABI.View
      // import Machine
      let important = 1
      """
    #expect(Self.imported(in: text) == ["IOMMU", "Glibc", "LinuxABI"])
  }

  // MARK: Lock ranks

  // Release builds do not check.
  #if DEBUG
    @Test("A4: a lock that is taken under one of a later rank ends the process")
    func inversion() async {
      await #expect(processExitsWith: .failure) {
        let driver = RankedMutex(.domain, 0)
        let context = RankedMutex(.configuration, 0)
        driver.withLock { _ in context.withLock { _ in } }
      }
    }

    @Test("A4: so does a lock of the same rank, which another thread may hold in turn")
    func sameRank() async {
      await #expect(processExitsWith: .failure) {
        let one = RankedMutex(.group, 0)
        let other = RankedMutex(.group, 0)
        one.withLock { _ in other.withLock { _ in } }
      }
    }

    @Test("A4: locks in order, and one after the other, are taken")
    func order() async {
      await #expect(processExitsWith: .success) {
        let context = RankedMutex(.configuration, 0)
        let driver = RankedMutex(.domain, 0)
        context.withLock { _ in driver.withLock { _ in } }
        driver.withLock { _ in }
        context.withLock { _ in }
        exit(0)
      }
    }
  #endif
}
