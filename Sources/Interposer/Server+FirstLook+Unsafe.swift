// SPDX-License-Identifier: Apache-2.0
//
// The first look at a call of a view by paths, before anything is made for the call: what has nothing
// to do with the view goes on to the kernel for what its path costs to read and to look up once.

import CProcessMemory
import CSyscalls

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What the first look at a call says.
enum FirstLook {
  /// The kernel finds what the program shall find.
  case kernel
  /// Only a walk can say what its path leads to.
  case walk
  /// It is not for the first look.
  case none
}

/// Where a call has its path: `PathCall`'s row in numbers alone, so that nothing is counted or copied
/// to ask for it.
struct PathForm {
  /// The arguments of the path and of its directory's descriptor; negative where there is none.
  private(set) var path: Int8 = -1
  private(set) var directory: Int8 = -1
  /// A link at the end is followed where the argument has none of the bits, or only where it has
  /// one.
  private var flags: Int8 = 0
  private var bits: UInt64 = 0
  private var followsWithout = true
  /// An open does not follow it either where the file has to be new.
  private(set) var isOpen = false
  /// It means a directory or a descriptor that the caller has, which is the view's only where a
  /// program holds something of it.
  private(set) var isHeld = false

  /// Of no call.
  private init() {}

  /// Nil where the first look cannot tell what a call means: it has several paths, or flags in
  /// memory, or there is more to note of it.
  private init?(_ row: PathCall) {
    if row.kind == .directory {
      isHeld = true
      return
    }
    guard row.paths.count == 1, let only = row.paths.first else { return nil }
    if case .descriptor = only.following {
      isHeld = true
      return
    }
    path = Int8(only.path)
    directory = Int8(only.directory ?? -1)
    switch (row.kind, row.number) {
    case (.look, _), (.change, _): break
    case (.open, CSYS_NR_open), (.open, CSYS_NR_openat):
      isOpen = true
      flags = path + 1
      bits = UInt64(O_NOFOLLOW)
      return
    default: return nil
    }
    switch only.following {
    case .always: break
    case .never, .name: followsWithout = false
    case .unless(let argument, let bit): (flags, bits) = (Int8(argument), bit)
    case .when(let argument, let bit):
      (flags, bits, followsWithout) = (Int8(argument), bit, false)
    case .descriptor: break
    }
  }

  func follows(_ call: SystemCall) -> Bool {
    let given = call[Int(flags)]
    let new = UInt64(O_CREAT | O_EXCL)
    return (given & bits == 0) == followsWithout && !(isOpen && given & new == new)
  }

  /// By number.
  static let all: [PathForm] = {
    let last = PathCall.all.map(\.number).max() ?? 0
    var forms = [PathForm](repeating: PathForm(), count: Int(last) + 1)
    for row in PathCall.all { forms[Int(row.number)] = PathForm(row) ?? PathForm() }
    return forms
  }()
}

extension Server {
  func firstLook(_ call: SystemCall, _ lane: Lane) -> FirstLook {
    // What the tracing thread makes a thread do was looked at before.
    guard let gate, call.number >= 0, call.number < gate.forms.count, !tracer.hasInjected
    else { return .none }
    let form = gate.forms[Int(call.number)]
    if form.isHeld { return gate.isShadowHeld ? .none : .kernel }
    guard form.path >= 0,
      let text = unsafe text(at: call[Int(form.path)], of: call, lane), unsafe text.count > 0
    else { return .none }
    // Some files of /proc are answered in any view.
    if form.isOpen, unsafe text.isAbsolute, unsafe PathGate.top(text) == .processes {
      return .none
    }
    let directory =
      form.directory < 0
      ? PathCall.Path.current : Int32(truncatingIfNeeded: call[Int(form.directory)])
    let decision = unsafe gate.decide(
      text, thread: call.thread, directory: directory, follows: form.follows(call))
    return decision == .kernel ? .kernel : .walk
  }

  /// A path in the caller's memory; nil where the kernel shall say what is wrong with it. It lies in
  /// the lane's buffer, until the next one.
  func text(at address: UInt64, of call: SystemCall, _ lane: Lane) -> PathGate.Text? {
    // SAFETY: the buffer is 64 KiB; the text with its terminator takes 4 KiB after the room.
    let start = unsafe lane.buffer.baseAddress! + PathGate.Text.room
    var count = 0
    while count < Self.longestText {
      // Up to the page's end: the next page may not be there.
      let cursor = address &+ UInt64(count)
      let part = min(4096 - Int(cursor & 4095), count == 0 ? 256 : 4096)
      let got = OtherUser.reach(call.thread) {
        unsafe csys_process_vm_readv(call.thread, start + count, cursor, part)
      }
      guard got > 0 else { return nil }
      if let end = unsafe memchr(start + count, 0, got) {
        let count = unsafe UnsafeRawPointer(end) - UnsafeRawPointer(start)
        guard count < Self.longestText else { return nil }
        return unsafe PathGate.Text(
          start: start.assumingMemoryBound(to: CChar.self), count: count)
      }
      count += got
    }
    return nil
  }

  /// As Linux's, with the terminator.
  private static let longestText = 4096
}
