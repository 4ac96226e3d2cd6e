// SPDX-License-Identifier: Apache-2.0
//
// What a path leads to, told: stat, readlink, access and their kin of what is ours, and of what is the
// host's where the path alone would lead elsewhere.

import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// Answers a call that looks.
  func look(
    _ call: SystemCall, _ row: PathCall, _ path: WalkedPath, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let isLink = call.number == CSYS_NR_readlink || call.number == CSYS_NR_readlinkat
    if isLink, Int32(truncatingIfNeeded: call[call.number == CSYS_NR_readlinkat ? 3 : 2]) <= 0 {
      throw Self.plain(.invalidArgument)
    }
    switch path.result.place {
    case .absent:
      guard mayMiss(path, caller) else { return try byOwnHand(call, [path], shadow, caller) }
      throw Self.plain(.noSuchFileOrDirectory)
    case .opaque: return try byOwnHand(call, [path], shadow, caller)
    case .view, .host: break
    }
    let real = real(path, shadow)
    switch call.number {
    case CSYS_NR_stat, CSYS_NR_lstat, CSYS_NR_newfstatat, CSYS_NR_statx:
      guard path.isHome || maySee(path, caller) else {
        return try byOwnHand(call, [path], shadow, caller)
      }
      return try status(call, real, path.isHome, node(path, real), caller)
    case CSYS_NR_readlink, CSYS_NR_readlinkat:
      guard maySee(path, caller) else { return try byOwnHand(call, [path], shadow, caller) }
      return try readLink(call, path, real, shadow, caller)
    case CSYS_NR_access, CSYS_NR_faccessat, CSYS_NR_faccessat2:
      return try access(call, path, caller, shadow)
    case _ where path.isHome: throw Self.closed(path.result)
    case _ where !path.isView:
      return try byOwnHand(call, [path], shadow, caller)
    case CSYS_NR_statfs:
      return try fileSystem(call, real, caller)
    case CSYS_NR_listxattr, CSYS_NR_llistxattr, CSYS_NR_listxattrat:
      return .result(0)
    default:
      throw Self.plain(.noData)
    }
  }

  /// Whether the caller would be shown what we are.
  func maySee(_ path: WalkedPath, _ caller: ClientCaller) -> Bool {
    path.isView || gate?.hasOurRoot(caller.thread) ?? false && caller.hasOurRights
  }

  /// Whether the caller would be told too that there is nothing: where a directory is the host's that
  /// may be closed to it.
  func mayMiss(_ path: WalkedPath, _ caller: ClientCaller) -> Bool {
    path.isView || maySee(path, caller)
  }

  /// What of ours a path leads to; nil where it is a plain file, a directory or a link.
  func node(_ path: WalkedPath, _ real: PathBytes) throws(IOMMUError) -> NodeTable.Place? {
    guard case .view(let mode) = path.result.place, mode & S_IFMT != S_IFDIR,
      mode & S_IFMT != S_IFLNK
    else { return nil }
    let file = try openPlace(real.text)
    guard file >= 0 else { return nil }
    defer { close(file) }
    return nodes.place(file)
  }

  private func status(
    _ call: SystemCall, _ real: PathBytes, _ isHome: Bool, _ node: NodeTable.Place?,
    _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let isExtended = call.number == CSYS_NR_statx
    let size = isExtended ? csys_statx_size() : csys_stat_size()
    let noFollow = UInt64(AT_SYMLINK_NOFOLLOW)
    // SAFETY: the buffer is 64 KiB.
    let out = unsafe UnsafeMutableRawBufferPointer(rebasing: caller.lane.buffer[..<size])
    let result = unsafe CallerFiles.withTerminator(real) { path in
      let directory = UInt64(bitPattern: Int64(AT_FDCWD))
      let text = UInt64(UInt(bitPattern: path))
      let place = UInt64(UInt(bitPattern: out.baseAddress))
      let flags = isExtended ? call[2] : call.number == CSYS_NR_newfstatat ? call[3] : 0
      let arguments =
        isExtended
        ? [directory, text, flags & ~0x1000 | noFollow, call[3], place, 0]
        : [directory, text, place, flags & ~0x1000 | noFollow, 0, 0]
      return unsafe csys_call(isExtended ? CSYS_NR_statx : CSYS_NR_newfstatat, arguments)
    }
    guard result >= 0 else {
      throw IOMMUError(
        Errno(rawValue: Int32(-result)), "\(real.text) cannot be looked at")
    }
    // A node without permissions, as a whiteout: nobody goes on into one.
    var device: csys_character_device? = isHome ? csys_character_device() : nil
    if case .node(let node)? = node {
      device = csys_character_device()
      device?.major = node.number.major
      device?.minor = node.number.minor
      device?.permissions = 0o666
    }
    if var device {
      var place = csys_place()
      _ = CallerFiles.look(real, follows: false, &place)
      device.inode = place.inode
      device.seconds = Int64(time(nil))
      // SAFETY: the buffer has the structure's size.
      if isExtended {
        unsafe csys_fill_statx(out.baseAddress, &device)
      } else {
        unsafe csys_fill_stat(out.baseAddress, &device)
      }
    }
    let address = call[isExtended ? 4 : call.number == CSYS_NR_newfstatat ? 2 : 1]
    try unsafe caller.copyOut(UnsafeRawBufferPointer(out), to: address)
    return .result(0)
  }

  private func readLink(
    _ call: SystemCall, _ path: WalkedPath, _ real: PathBytes, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let first = call.number == CSYS_NR_readlinkat ? 2 : 1
    let size = Int32(truncatingIfNeeded: call[first + 1])
    guard size > 0, var text = CallerFiles.link(real) else {
      throw Self.plain(.invalidArgument)
    }
    if let shown = shadow.shown(text.text) { text = PathBytes(text: shown) }
    try copyOut(Array(text.prefix(Int(size))), to: call[first], caller)
    return .result(min(text.count, Int(size)))
  }

  /// Answers access and its kin.
  func access(
    _ call: SystemCall, _ path: WalkedPath, _ caller: ClientCaller, _ shadow: ShadowTree
  ) throws(IOMMUError) -> Answer {
    if path.isHome { throw Self.closed(path.result) }
    guard case .view(let fileMode) = path.result.place else {
      return try byOwnHand(call, [path], shadow, caller)
    }
    let real = real(path, shadow)
    let wanted = call[call.number == CSYS_NR_access ? 1 : 2]
    // AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_EMPTY_PATH.
    let flags = call.number == CSYS_NR_faccessat2 ? UInt32(truncatingIfNeeded: call[3]) : 0
    guard wanted & ~7 == 0, flags & ~0x1300 == 0 else { return .goOn }
    let user = caller.userID
    let isRoot = user == 0 && geteuid() == 0
    var bits = UInt64(user == geteuid() ? fileMode >> 6 : fileMode) & 7
    var isExecutable = fileMode & 0o111 != 0
    var isReadOnly = false
    switch try node(path, real) {
    case .node?:
      bits = 6
      isExecutable = false
    case .attribute(let attribute)?:
      bits = UInt64(attribute.permissions(of: user) & 7)
      isExecutable = false
    case .gone?, nil:
      isReadOnly =
        fileMode & S_IFMT != S_IFLNK && MountView.isReadOnly(path.result.path.top)
    }
    let isAllowed = isRoot ? wanted & 1 == 0 || isExecutable : wanted & ~bits == 0
    guard isAllowed else { throw Self.plain(.permissionDenied) }
    // Last: as a file system says it that is mounted read-only.
    if wanted & 2 != 0, isReadOnly { throw Self.plain(.readOnlyFileSystem) }
    return .result(0)
  }

  private func fileSystem(
    _ call: SystemCall, _ real: PathBytes, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    // SAFETY: the buffer is 64 KiB.
    let out = unsafe UnsafeMutableRawBufferPointer(
      rebasing: caller.lane.buffer[..<csys_statfs_size()])
    let result = unsafe CallerFiles.withTerminator(real) { path in
      unsafe csys_call(
        CSYS_NR_statfs,
        [
          UInt64(UInt(bitPattern: path)), UInt64(UInt(bitPattern: out.baseAddress)), 0, 0, 0, 0,
        ])
    }
    guard result >= 0 else {
      throw IOMMUError(Errno(rawValue: Int32(-result)), "\(real.text) cannot be looked at")
    }
    try unsafe caller.copyOut(UnsafeRawBufferPointer(out), to: call[1])
    return .result(0)
  }
}
