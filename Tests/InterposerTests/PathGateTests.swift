// SPDX-License-Identifier: Apache-2.0
//
// The first look at a path against the walk (MODEL J1): what it lets go on to the kernel, the walk finds
// to lead where the kernel finds it. On this machine's own files, with random paths.

import CSyscalls
import Glibc
import IOMMU
import LinuxABI
import SystemPackage
import Testing

@testable import Interposer

@Suite("The first look at a path")
struct PathGateTests {
  private final class Node: DeviceNode {
    let path = "/dev/iommu-gate"
    let number = DeviceNumber(major: 10, minor: 127)
    func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
      throw IOMMUError(.noSuchDevice, "it is never opened")
    }
  }

  private static let names = [
    "dev", "sys", "bus", "class", "pci", "devices", "gate", "iommu-gate", "null", "fd", "shm",
    "only",
    "value", "up", "top", "node", "tree", "dangling", "self", "proc", "cwd", "root", "etc",
    "passwd",
    "usr", "bin", "lib", "none", "kernel", "x", "far",
  ]

  private func text(_ random: inout some RandomNumberGenerator, _ links: String) -> String {
    var text = ["/", "/", links + "/", links + "/", "", "/dev/", "/sys/", "/proc/self/"]
      .randomElement(using: &random)!
    let count = Int.random(in: 1...5, using: &random)
    for index in 0..<count {
      switch Int.random(in: 0..<12, using: &random) {
      case 0: text += "."
      case 1, 2: text += ".."
      default: text += Self.names.randomElement(using: &random)!
      }
      if index + 1 < count { text += Int.random(in: 0..<10, using: &random) == 0 ? "//" : "/" }
    }
    if Int.random(in: 0..<8, using: &random) == 0 { text += "/" }
    return text
  }

  private func decide(
    _ gate: PathGate, _ text: String, directory: Int32, follows: Bool
  ) -> PathGate.Decision {
    withUnsafeTemporaryAllocation(byteCount: 8192, alignment: 8) { buffer in
      let start = buffer.baseAddress! + PathGate.Text.room
      let bytes = Array(text.utf8) + [0]
      bytes.withUnsafeBytes { start.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
      return gate.decide(
        PathGate.Text(start: start.assumingMemoryBound(to: CChar.self), count: bytes.count - 1),
        thread: csys_gettid(), directory: directory, follows: follows)
    }
  }

  @Test(
    "J1: what goes on to the kernel at the first look leads where the walk finds it",
    arguments: 1...8)
  func agrees(_ seed: Int) throws {
    let links = ScratchDirectory()
    for (name, target) in [
      ("node", "/dev/iommu-gate"), ("tree", "/sys/devices/gate"), ("up", "../../.."),
      ("top", "/"),
      ("dangling", "/dev/none"), ("far", "/sys/devices/gate/only/../../../../etc"),
      ("x", "node"),
    ] { symlink(target, links.path + "/" + name) }
    mkdir(links.path + "/only", 0o755)
    symlink("../../../dev", links.path + "/only/dev")
    let view = View(entries: [
      .init("/sys/bus", .directory), .init("/sys/class", .directory),
      .init("/sys/class/gate", .link(target: "../devices/gate")),
      .init("/sys/devices", .directory), .init("/sys/devices/gate", .directory),
      .init("/sys/devices/gate/value", .file(contents: [10], mode: 0o444)),
      .init("/sys/devices/gate/only", .exclusiveDirectory),
      .init("/sys/devices/gate/far", .link(target: "../../../etc")),
      .init("/dev/gate", .exclusiveDirectory),
      .init("/dev/gate/node", .link(target: "../iommu-gate")),
    ])
    let shadow = try ShadowTree(WireView(nodes: [Node()], view: view))
    defer { shadow.remove() }
    let gate = PathGate(mounts: shadow.mounts, shadow: shadow.path)
    let held = seed % 2 == 0
    var places = ["/", "/usr", "/sys", "/sys/class", "/dev", links.path, links.path + "/only"]
    if held {
      gate.noteShadowHeld()
      places += ["/sys/devices/gate", "/sys/devices/gate/only", "/dev", "/sys/class"].map {
        shadow.real($0)
      }
    }
    var random = SystemRandomNumberGenerator()
    var passed = 0
    for _ in 0..<3000 {
      let path = text(&random, links.path)
      let place = places.randomElement(using: &random)!
      let base = OwnedDescriptor(System.open(place, System.pathOnly))
      try #require(base.number >= 0)
      let follows = Bool.random(using: &random)
      guard decide(gate, path, directory: base.number, follows: follows) == .kernel else {
        continue
      }
      passed += 1
      let files = CallerFiles(shadow: shadow, thread: csys_gettid(), process: getpid())
      var walk = PathWalk(
        host: files, view: ShadowFiles(shadow: shadow),
        root: WalkPosition(path: [], isInView: false), rules: WalkRules(followsLast: follows))
      let result = Result { () throws(WalkError) in
        try walk.follow(PathBytes(text: path)) { () throws(WalkError) in
          let link = PathBytes(text: "/proc/\(csys_gettid())/fd/\(base.number)")
          guard case .place(let path, .directory, let fromShadow)? = files.magic(link) else {
            throw WalkError(errno: .badFileDescriptor, usedView: false)
          }
          let isInView = ShadowFiles(shadow: shadow).contains(path)
          return (WalkPosition(path: path, isInView: isInView), fromShadow)
        }
      }
      let isKernels =
        switch result {
        case .failure(let error): !error.usedView
        case .success(let result):
          if case .view = result.place { false } else { !result.usedView }
        }
      #expect(isKernels, "\(path) from \(place), follows: \(follows), held: \(held): \(result)")
    }
    #expect(passed > 0)
  }
}
