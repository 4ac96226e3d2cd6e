// SPDX-License-Identifier: Apache-2.0
//
// What programs cannot write: opens that would make a file in our /sys, or write one that takes no
// commands, fail as a real sysfs fails them; and access(2) knows which files take commands.
//
// The mount is read-only, so that everything else that would change it is EROFS, and so is what
// is not recognized here.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// Why an open fails that leads to none of our places; nil where the kernel shall say.
  ///
  /// Linux: a directory of sysfs makes no files, and a file without `store` cannot be opened to
  /// write; both are `EACCES`, for root too.
  func refusal(
    _ request: Request, _ path: [UInt8], of caller: ClientCaller
  ) throws(IOMMUError) -> IOMMUError? {
    let flags = Int32(truncatingIfNeeded: request.flags)
    guard flags & (O_ACCMODE | O_CREAT | O_TRUNC) != 0,
      flags & (System.pathOnly | O_DIRECTORY) == 0, request.resolve & 0x18 == 0,
      let place = absolute(String(decoding: path, as: UTF8.self), request, of: caller)
    else { return nil }
    let root = try openPlace("/proc/\(caller.thread)/root")
    guard root >= 0 else { return nil }
    defer { close(root) }
    let resolve = request.resolve | Self.inRoot
    let file = try lookUp(from: root, place, flags: request.flags, resolve)
    if file >= 0 {
      defer { close(file) }
      guard flags & (O_ACCMODE | O_TRUNC) != 0,
        flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL,
        System.identity(file).map({ $0.mode & S_IFMT == S_IFREG }) ?? false,
        nodes.isReadOnly(file), isValid(caller.id)
      else { return nil }
      return IOMMUError(
        .permissionDenied, "\(place): it shows something and takes no commands")
    }
    guard file == -ENOENT, flags & O_CREAT != 0,
      let directory = try makes(place, from: root, resolve), isValid(caller.id)
    else { return nil }
    return IOMMUError(
      .permissionDenied,
      "\(place): \(directory) has no such file, and programs cannot make one")
  }

  /// Whether an open of a path that is not there would make it in a file system of ours that
  /// programs cannot write: which one.
  private func makes(
    _ path: String, from root: Int32, _ resolve: UInt64
  ) throws(IOMMUError) -> String? {
    guard let slash = path.lastIndex(of: "/"), !path.hasSuffix("/") else { return nil }
    // What is a link makes something elsewhere.
    let link = try lookUp(from: root, path, flags: UInt64(O_NOFOLLOW), resolve)
    if link >= 0 { close(link) }
    guard link == -ENOENT else { return nil }
    let parent = try lookUp(from: root, String(path[...slash]), flags: 0, resolve)
    guard parent >= 0 else { return nil }
    defer { close(parent) }
    guard nodes.isReadOnly(parent) else { return nil }
    return path.hasPrefix("/dev/") ? "/dev" : "/sys"
  }

  /// A path from the caller's root, where it begins in the place of a file system that programs
  /// cannot write; nil where it does not.
  private func absolute(
    _ text: String, _ request: Request, of caller: ClientCaller
  ) -> String? {
    var whole = text
    if !text.hasPrefix("/") {
      guard let base = System.readLink(directory(request, of: caller.thread)) else {
        return nil
      }
      whole = base + "/" + text
    }
    whole = "/" + whole.drop { $0 == "/" }
    return nodes.beginsReadOnly(whole) ? whole : nil
  }

  /// access and faccessat, which ask whether something can be written: the mount would say that
  /// an attribute cannot be.
  func access(_ call: SystemCall, _ caller: ClientCaller) -> Answer {
    let isPlain = call.number == CSYS_NR_access
    var request = Request(
      directory: isPlain ? AT_FDCWD : Int32(truncatingIfNeeded: call[0]),
      path: call[isPlain ? 0 : 1], flags: 0)
    // AT_SYMLINK_NOFOLLOW; the plain faccessat has no flags.
    let flags = call.number == CSYS_NR_faccessat2 ? UInt32(truncatingIfNeeded: call[3]) : 0
    if flags & 0x100 != 0 { request.flags = UInt64(O_NOFOLLOW) }
    let mode = call[isPlain ? 1 : 2]
    // AT_EACCESS is 0x200, AT_EMPTY_PATH 0x1000.
    guard mode & ~7 == 0, flags & ~0x1300 == 0,
      let path = string(at: request.path, of: call, caller)
    else { return .goOn }
    let place: NodeTable.Place?
    do throws(IOMMUError) {
      place =
        path.isEmpty && flags & 0x1000 != 0
        ? try node(opened: directory(request, of: caller.thread))
        : try resolve(request, path, of: caller)
    } catch {
      return .failure(error)
    }
    guard case .attribute(let attribute)? = place, isValid(call.id) else { return .goOn }
    let bits = attribute.permissions(of: caller.userID)
    // Root is let through as by the kernel, though an open will be refused.
    let isRoot = caller.userID == 0 && geteuid() == 0
    let isAllowed = isRoot ? mode & 1 == 0 : mode & ~UInt64(bits & 7) == 0
    guard isAllowed else {
      return .failure(
        IOMMUError(
          .permissionDenied,
          "\(attribute.path): its mode is \(String(attribute.attribute.mode, radix: 8))"))
    }
    return .result(0)
  }
}
