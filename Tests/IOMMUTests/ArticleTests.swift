// SPDX-License-Identifier: Apache-2.0
//
// docs/device-and-group.md keeps its word: its code is compiled, and does what its comments say.

import Foundation
import IOMMU
import SystemPackage
import Testing

@Suite("Article: device or group") struct ArticleTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))

  private var tests: URL { URL(fileURLWithPath: #filePath).deletingLastPathComponent() }

  private func article() throws -> String {
    try String(
      contentsOf: tests.appendingPathComponent("../../docs/device-and-group.md").standardized,
      encoding: .utf8)
  }

  private static func trimmed(_ line: String) -> String {
    line.trimmingCharacters(in: .whitespaces)
  }

  @Test("each block of the article is in the file that is compiled")
  func blocks() throws {
    let source = try String(
      contentsOf: tests.appendingPathComponent("ArticleExample.swift"), encoding: .utf8)
    let blocks = try article().components(separatedBy: "```swift\n").dropFirst().map {
      $0.components(separatedBy: "```")[0]
    }
    #expect(blocks.count == 4)
    for block in blocks { #expect(source.contains(block), "\(block)") }
  }

  @Test("what the article says the compiler says is what it is tested to say")
  func compilerMessages() throws {
    let misuse = try ["Attaching", "Ownership"].map {
      try String(
        contentsOf: tests.appendingPathComponent("Misuse/\($0).swift"), encoding: .utf8)
    }.joined()
    let lines = try article().components(separatedBy: "\n").map(Self.trimmed)
    let tested = misuse.components(separatedBy: "\n").map(Self.trimmed)
      .joined(separator: "\n")
    let messages = lines.indices.filter { lines[$0].hasPrefix("// error: ") }
    #expect(messages.count == 3)
    for index in messages {
      #expect(tested.contains("\(lines[index])\n\(lines[index + 1])"), "\(lines[index])")
    }
  }

  @Test("C2, C5: a pair moves together, as its comments say")
  func pair() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    try attachPair(devices[0], devices[1], Context(system: machine.system))
    for device in devices {
      let history = machine.driver.history(of: device)
      #expect(history.count == 4 && history[0] == .blocked && history[1] != .blocked)
      #expect(history.suffix(2) == [.blocked, .host])
    }
  }

  @Test("C5: whoever thinks a device alone is told its neighbours, in the article's words")
  func alone() throws {
    let group = try machine.system.addGroup(1)
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    let error = #expect(throws: IOMMUError.self) { try attachAlone(devices[0], context) }
    #expect(error?.errno == .invalidArgument)
    let quoted = try article().replacing("\n    ", with: " ")
    #expect(quoted.contains(error?.reason ?? "?"), "\(error?.reason ?? "")")
    #expect(machine.driver.history(of: devices[1]) == [.blocked, .host])
    try attachAlone(machine.device(3), context)
    let binding = try context.register(devices[0])
    #expect(whoMoves(binding) == devices.map(\.name))
  }

  @Test("C1: a slice moves alone")
  func slice() throws {
    let parent = try machine.device(1, hostDriver: .dma("idxd"))
    let slice = try machine.system.addMediatedDevice(
      name: "slice", parent: parent, defaultPASID: PASID(rawValue: 5))
    try attachSlice(slice, Context(system: machine.system))
    #expect(machine.driver.history(of: parent).isEmpty)
    #expect(machine.driver.history(of: 5).count > 3)
  }
}
