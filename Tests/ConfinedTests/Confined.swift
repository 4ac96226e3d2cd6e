// SPDX-License-Identifier: Apache-2.0
//
// Runs programs under `confined`, as a container would: as root or as nobody.

import Foundation

/// Who is in the container.
enum User: String, CaseIterable {
  /// Whoever runs the tests; Docker's own default is root.
  case current
  /// `docker run --user 65534`; the same as `current` where the tests do not run as root.
  case nobody
  /// Somebody who is nobody already and confines himself: one id is mapped.
  case unprivileged
}

struct Finished {
  var status: Int32
  var output: String
  var errors: String
}

/// Runs a program in a container's confinement.
func confined(
  _ program: [String], options: [String] = [], as user: User = .current
) throws -> Finished {
  var command = [Built.confined] + options + ["--"]
  let isRoot = getuid() == 0
  let lowered = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
  if isRoot, user == .nobody { command += lowered }
  if isRoot, user == .unprivileged { command = lowered + command }
  return try run(command + program)
}

/// Runs a program of python's, given by its text.
func confinedPython(
  _ script: String, options: [String] = [], as user: User = .current
) throws -> Finished {
  try confined(["python3", "-c", script], options: options, as: user)
}

func run(_ command: [String]) throws -> Finished {
  let process = Process()
  process.executableURL = URL(filePath: "/usr/bin/env")
  // What a user has in his home is closed to nobody.
  process.arguments = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] + command
  let (output, errors) = (Pipe(), Pipe())
  process.standardInput = FileHandle.nullDevice
  process.standardOutput = output
  process.standardError = errors
  try process.run()
  // What these programs say fits into a pipe: none of them waits for a reader of the second.
  let said = try output.fileHandleForReading.readToEnd() ?? Data()
  let complained = try errors.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  return Finished(
    status: process.terminationStatus, output: String(decoding: said, as: UTF8.self),
    errors: String(decoding: complained, as: UTF8.self))
}

/// The programs of this build, where everybody can execute them.
enum Built {
  static let confined = copy("confined")
  static let iommu = copy("iommu")

  private static let directory: URL = {
    var template = Array("/tmp/iommu-confined-XXXXXX".utf8CString)
    _ = mkdtemp(&template)
    let place = String(decoding: template.dropLast().map(UInt8.init), as: UTF8.self)
    chmod(place, 0o755)
    atexit { try? FileManager.default.removeItem(at: Built.directory) }
    return URL(filePath: place)
  }()

  private static func copy(_ name: String) -> String {
    let here = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
    let target = directory.appending(path: name)
    try? FileManager.default.copyItem(
      at: here.deletingLastPathComponent().appending(path: name), to: target)
    return target.path
  }
}
