// SPDX-License-Identifier: Apache-2.0
//
// `iommu doctor`: what this host allows, and what is lost without it.

import ArgumentParser
import Glibc
import Interposer
import Machine

struct Doctor: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Say what this host allows, which mechanism each feature uses, what is lost.",
    discussion: """
      Tries each mechanism on a child process of its own. The exit status is 0
      where `iommu run` works, even if something is lost, and 1 where it does not.

      Examples:
        iommu doctor
        iommu doctor --json
      """)

  @Flag(help: "Print JSON for scripts.")
  var json = false

  func run() throws {
    let findings = Interposer.Doctor.probe()
    Terminal.print(json ? Self.json(findings) : Self.table(findings, colour: Terminal.colour))
    if !Interposer.Doctor.canRun(findings) { throw ExitCode.failure }
  }

  private typealias Finding = Interposer.Doctor.Finding

  private static func table(_ findings: [Finding], colour: Bool) -> String {
    func paint(_ text: String, _ code: Int) -> String {
      colour ? "\u{1B}[\(code)m\(text)\u{1B}[0m" : text
    }
    var lines = ["Linux \(kernel()), user \(geteuid())", ""]
    let width = findings.map(\.feature.count).max() ?? 0
    for finding in findings {
      let mark =
        finding.works
        ? paint("yes", 32) : finding.isRequired ? paint("NO ", 31) : paint("no ", 33)
      let gap = String(repeating: " ", count: width - finding.feature.count)
      lines.append("\(mark)  \(finding.feature)\(gap)  \(paint(finding.mechanism, 2))")
      guard !finding.works else { continue }
      if !finding.detail.isEmpty { lines.append("       the host says: \(finding.detail)") }
      lines.append(
        "       \(finding.isRequired ? "without it" : "lost"): \(finding.lostWithout)")
      lines.append("       what to do: \(finding.remedy)")
      if !finding.kernelSince.isEmpty {
        lines.append("       Linux has it since \(finding.kernelSince)")
      }
    }
    lines += ["", verdict(findings), ""]
    return lines.joined(separator: "\n")
  }

  private static func verdict(_ findings: [Finding]) -> String {
    guard Interposer.Doctor.canRun(findings), let view = Interposer.Doctor.view(of: findings)
    else {
      return "`iommu run` does not work here; see NO above."
    }
    let way =
      switch view {
      case .namespace: "Programs see the machine in a mount namespace (--view namespace)."
      case .paths:
        "Programs see the machine by paths (--view paths), for there is no mount namespace."
      }
    // What would only be another way is no loss.
    let isWhole = findings.allSatisfy { $0.works || $0.view == .paths }
    return "\(way)\n"
      + (isWhole
        ? "`iommu run` works here, with everything it has."
        : "`iommu run` works here; what is lost is above.")
  }

  private static func json(_ findings: [Finding]) -> String {
    let rows = findings.map { finding in
      JSON.object([
        ("feature", .string(finding.feature)),
        ("mechanism", .string(finding.mechanism)),
        ("works", .boolean(finding.works)),
        ("required", .boolean(finding.isRequired)),
        ("kernel-since", .string(finding.kernelSince)),
        ("lost-without", .string(finding.lostWithout)),
        ("remedy", .string(finding.remedy)),
        ("detail", .string(finding.detail)),
        ("view", finding.view.map { .string($0.rawValue) } ?? .null),
      ])
    }
    let view = Interposer.Doctor.view(of: findings)
    return JSON.object([
      ("kernel", .string(kernel())),
      ("works", .boolean(Interposer.Doctor.canRun(findings))),
      ("view", view.map { .string($0.rawValue) } ?? .null), ("findings", .array(rows)),
    ]).text(indent: 0) + "\n"
  }

  /// As `uname -r`.
  private static func kernel() -> String {
    var name = utsname()
    // SAFETY: uname fills the structure, whose release is a C string within its field.
    guard unsafe uname(&name) == 0 else { return "unknown" }
    return unsafe withUnsafeBytes(of: &name.release) { bytes in
      unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
  }
}
