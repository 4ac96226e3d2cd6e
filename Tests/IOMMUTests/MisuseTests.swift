// SPDX-License-Identifier: Apache-2.0
//
// MODEL C5 and others: wrong code does not compile. The files in Misuse/ are given to the
// compiler of this toolchain, against the modules that these tests were built with.

import Foundation
import Testing

@Suite("Misuse") struct MisuseTests {
  struct Diagnostic: Hashable, Comparable, CustomStringConvertible {
    var line: Int
    var message: String

    var description: String { "line \(line): \(message)" }
    static func < (left: Diagnostic, right: Diagnostic) -> Bool {
      (left.line, left.message) < (right.line, right.message)
    }
  }

  @Test(
    "C1, C5, C7: each misuse is refused by the compiler, for the reason that is written above it",
    arguments: ["Attaching.swift", "Ownership.swift", "Forgery.swift"])
  func refused(name: String) throws {
    let file = directory.appendingPathComponent(name)
    let expected = try expectedErrors(file)
    #expect(expected.count > 4)
    let (status, output) = try compile(file)
    #expect(status != 0)
    #expect(Set(errors(output)).sorted() == expected, "\(output)")
  }

  @Test("C5: the same calls, used as they are meant, compile")
  func control() throws {
    let (status, output) = try compile(directory.appendingPathComponent("Control.swift"))
    #expect(status == 0, "\(output)")
    #expect(errors(output).isEmpty, "\(output)")
  }

  @Test("every file of misuses is compiled")
  func complete() throws {
    let files = try FileManager.default.contentsOfDirectory(atPath: directory.path)
    #expect(
      files.sorted() == [
        "Attaching.swift", "Control.swift", "Forgery.swift", "Ownership.swift",
      ])
  }

  // MARK: Expectations

  private var directory: URL {
    URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Misuse")
  }

  /// What follows each `// error: ` of a file, by the line below.
  private func expectedErrors(_ file: URL) throws -> [Diagnostic] {
    let text = try String(contentsOf: file, encoding: .utf8)
    return text.components(separatedBy: "\n").enumerated().compactMap { index, line in
      line.range(of: "// error: ").map {
        Diagnostic(line: index + 2, message: String(line[$0.upperBound...]))
      }
    }.sorted()
  }

  /// Lines of the form `path:line:column: error: message`.
  private func errors(_ output: String) -> [Diagnostic] {
    output.components(separatedBy: "\n").compactMap { line in
      guard let mark = line.range(of: ": error: ") else { return nil }
      let place = line[..<mark.lowerBound].split(separator: ":")
      guard place.count == 3, let number = Int(place[1]) else {
        return Diagnostic(line: 0, message: line)
      }
      return Diagnostic(line: number, message: String(line[mark.upperBound...]))
    }
  }

  // MARK: The compiler

  /// Compiles as far as the checks of ownership go, which come after those of types.
  private func compile(_ file: URL) throws -> (status: Int32, output: String) {
    // The test program stands beside the modules that it was linked from, whatever the
    // configuration and the scratch path.
    let build = URL(
      fileURLWithPath: try FileManager.default.destinationOfSymbolicLink(
        atPath: "/proc/self/exe")
    ).deletingLastPathComponent()
    let process = Process()
    process.executableURL = try compiler()
    process.arguments =
      ["-emit-sil", "-o", "/dev/null", "-swift-version", "6", "-diagnostic-style", "llvm"]
      + ["-I", build.appendingPathComponent("Modules").path]
      + cModules(near: build) + [file.path]
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let output = try pipe.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: output, as: UTF8.self))
  }

  /// The compiler that belongs to the standard library that this process runs with.
  private func compiler() throws -> URL {
    let maps = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8)
    let marker = "/lib/swift/linux/libswiftCore.so"
    for line in maps.split(separator: "\n") {
      guard let library = line.range(of: marker), let start = line.firstIndex(of: "/") else {
        continue
      }
      return URL(fileURLWithPath: line[start..<library.lowerBound] + "/bin/swiftc")
    }
    // A static standard library: the first compiler of the path.
    let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
    return try #require(
      path.split(separator: ":").map { URL(fileURLWithPath: "\($0)/swiftc") }
        .first { FileManager.default.isExecutableFile(atPath: $0.path) })
  }

  /// What the compiler is told of the C modules below ours: the package's own, for which the
  /// build writes module maps, and those of its dependencies.
  private func cModules(near build: URL) -> [String] {
    func list(_ directory: URL, _ tail: String) -> [String] {
      let names = try? FileManager.default.contentsOfDirectory(atPath: directory.path)
      return (names ?? []).map { directory.appendingPathComponent("\($0)/\(tail)").path }
        .filter { FileManager.default.fileExists(atPath: $0) }
    }
    let scratch = build.deletingLastPathComponent().deletingLastPathComponent()
    let checkout = scratch.appendingPathComponent("checkouts/swift-system/Sources")
    let maps =
      list(build, "module.modulemap").filter { $0.hasSuffix(".build/module.modulemap") }
      + list(checkout, "include/module.modulemap")
    return maps.flatMap { ["-Xcc", "-fmodule-map-file=\($0)"] }
  }
}
