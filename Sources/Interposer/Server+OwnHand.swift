// SPDX-License-Identifier: Apache-2.0
//
// Calls that the caller is made to make itself, with the paths that lead where it means. One that has
// another root directory gets them as they are from there.

import IOMMU
import SystemPackage

extension Server {
  /// Has the caller make its call with the paths that lead where it means.
  func byOwnHand(
    _ call: SystemCall, _ paths: [WalkedPath], _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    var arguments: [ErrandArgument] = (0..<6).map { .value(call[$0]) }
    for path in paths where !path.isKernels {
      let (directory, text) = try reach(
        real(path, shadow), from: path.argument.directory(call), caller)
      arguments[path.argument.path] = .path(text)
      if let argument = path.argument.directory {
        arguments[argument] = .value(UInt64(bitPattern: Int64(directory)))
      }
    }
    try tracer.replace(
      caller.waiting,
      by: ReplacementCall(number: call.number, arguments: arguments))
    return .result(0)
  }

  /// How a caller gets to a place.
  /// - Parameter directory: Where its own path begins, if that is relative.
  /// - Returns: A path, and the directory that it is relative to.
  func reach(
    _ real: PathBytes, from directory: Int32, _ caller: ClientCaller
  ) throws(IOMMUError) -> (directory: Int32, path: PathBytes) {
    // Who has other mounts only says the same path.
    guard let root = otherRoot(of: caller) else { return (PathCall.Path.current, real) }
    if real.lies(in: root) {
      let rest = Array(real[root.count...])
      return (PathCall.Path.current, rest.isEmpty ? [PathBytes.slash] : rest)
    }
    // From a directory that is not below its root the way up ends where ours does.
    guard let base = CallerFiles.link(link(to: directory, of: caller)), base.isAbsolute,
      !base.lies(in: root)
    else {
      throw IOMMUError(
        .notPermitted,
        "\(real.shown) is meant, which does not lie below the program's root directory, "
          + "\(root.shown): name it from a directory that does not either")
    }
    let depth = base.split(separator: PathBytes.slash).count
    return (
      directory,
      PathBytes([[PathBytes]](repeating: [Self.up], count: depth).joined().joined())
        + real.drop { $0 == PathBytes.slash }
    )
  }

  private static let up = PathBytes(text: "../")

  /// The root directory of a caller that has entered another one; nil where it is ours.
  func otherRoot(of caller: ClientCaller) -> PathBytes? {
    guard let gate, !gate.hasOurRoot(caller.thread),
      let root = CallerFiles.link(PathBytes(text: "/proc/\(caller.thread)/root")),
      !root.elementsEqual([PathBytes.slash])
    else { return nil }
    return root
  }

  /// The link of /proc that is a descriptor of a caller's, or its current directory.
  func link(to directory: Int32, of caller: ClientCaller) -> PathBytes {
    PathBytes(
      text: directory == PathCall.Path.current
        ? "/proc/\(caller.thread)/cwd" : "/proc/\(caller.thread)/fd/\(directory)")
  }
}
