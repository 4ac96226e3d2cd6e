// SPDX-License-Identifier: Apache-2.0
//
// Addresses of local sockets in a view by paths: a socket lies where its path leads, as any other file.

import CProcessMemory
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
  /// `struct sockaddr_un`: the family, then at most so many bytes.
  private static let familySize = 2
  private static let longestAddress = 108

  /// Answers `bind` and `connect`.
  func address(
    _ call: SystemCall, _ gate: PathGate, _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> Answer {
    let isMade = call.number == CSYS_NR_bind
    guard let text = unsafe localAddress(of: call, caller),
      unsafe gate.decide(
        text, thread: call.thread, directory: PathCall.Path.current, follows: !isMade) == .walk
    else { return .goOn }
    let argument = PathCall.Path(
      directory: nil, path: 1, following: isMade ? .name : .always, isMade: isMade)
    do throws(IOMMUError) {
      guard
        let path = try walk(
          unsafe text.bytes, argument, from: PathCall.Path.current, argument.rules(call),
          shadow, caller),
        !path.isKernels || path.isView, isValid(call.id)
      else { return .goOn }
      if path.isHome { throw Self.closed(path.result) }
      switch path.result.place {
      case .view where isMade: throw Self.plain(.addressInUse)
      case .view(let mode):
        // Who connects to something writes it.
        let mayWrite = mode & (caller.userID == geteuid() ? 0o200 : 0o002) != 0
        throw Self.plain(
          mayWrite || caller.userID == 0 ? .connectionRefused : .permissionDenied)
      case .absent where isMade && path.isView && path.result.hasTrailingSlash:
        throw Self.plain(.noSuchFileOrDirectory)
      case .absent(_, let directory) where isMade:
        if directory.isInView, isClosed(directory, shadow) {
          throw IOMMUError(
            .readOnlyFileSystem,
            "\(path.result.path.shown): programs cannot change the machine's view")
        }
      case .absent:
        if path.result.usedView, mayMiss(path, caller) {
          throw Self.plain(.noSuchFileOrDirectory)
        }
      case .host, .opaque: break
      }
      guard path.result.usedView else { return .goOn }
      return try bindByOwnHand(call, real(path, shadow), caller)
    } catch {
      return .failure(error)
    }
  }

  private func bindByOwnHand(
    _ call: SystemCall, _ real: PathBytes, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let (_, path) = try reach(real, from: PathCall.Path.current, caller)
    guard path.count < Self.longestAddress else {
      throw IOMMUError(
        .invalidArgument,
        "\(path.shown) is meant, which is longer than the address of a socket can be: "
          + "change to a directory that is not in /dev or /sys first")
    }
    let family = [UInt8(AF_UNIX), 0]
    try tracer.replace(
      caller.waiting,
      by: ReplacementCall(
        number: call.number,
        arguments: [
          .value(call[0]), .path(family + path),
          .value(UInt64(Self.familySize + path.count + 1)),
        ]))
    return .result(0)
  }

  /// The path that an address is; nil where it is none. It lies in the lane's buffer.
  private func localAddress(of call: SystemCall, _ caller: ClientCaller) -> PathGate.Text? {
    let size = Int(Int32(truncatingIfNeeded: call[2]))
    guard size > Self.familySize, size <= Self.familySize + Self.longestAddress else {
      return nil
    }
    // SAFETY: the buffer is 64 KiB, which the room, an address and a terminator fit in.
    let start = unsafe caller.lane.buffer.baseAddress! + PathGate.Text.room
    let count = OtherUser.reach(call.thread) {
      unsafe csys_process_vm_readv(call.thread, start, call[1], size)
    }
    guard count == size else { return nil }
    let address = unsafe UnsafeMutableRawBufferPointer(start: start, count: size + 1)
    // Little endian.
    guard unsafe address[0] == UInt8(AF_UNIX), unsafe address[1] == 0 else { return nil }
    unsafe address[size] = 0
    let path = unsafe start + Self.familySize
    // An abstract address begins with a zero.
    let length = unsafe strlen(path.assumingMemoryBound(to: CChar.self))
    guard length > 0 else { return nil }
    return unsafe PathGate.Text(start: path.assumingMemoryBound(to: CChar.self), count: length)
  }
}
