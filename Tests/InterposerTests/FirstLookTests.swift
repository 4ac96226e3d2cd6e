// SPDX-License-Identifier: Apache-2.0
//
// What the first look reads from a call against the table of calls (MODEL J1).

import CSyscalls
import Glibc
import Testing

@testable import Interposer

@Suite("What the first look reads from a call")
struct FirstLookTests {
  private func call(_ number: Int32, _ arguments: [UInt64]) -> SystemCall {
    var notification = csys_notif()
    notification.data.nr = number
    _ = withUnsafeMutableBytes(of: &notification.data.args) {
      $0.bindMemory(to: UInt64.self).update(fromContentsOf: arguments)
    }
    return SystemCall(notification)
  }

  /// Every bit alone in every argument, none, and all.
  private var allArguments: [[UInt64]] {
    var all = [[UInt64](repeating: 0, count: 6), [UInt64](repeating: .max, count: 6)]
    for argument in 0..<6 {
      for bit in 0..<64 {
        var given = [UInt64](repeating: 0, count: 6)
        given[argument] = 1 << UInt64(bit)
        all.append(given)
      }
    }
    return all
  }

  @Test("J1: a call's path, directory and last link are read as its row has them")
  func rows() throws {
    let arguments = allArguments
    for row in PathCall.all where row.kind == .look || row.kind == .change {
      let form = PathForm.all[Int(row.number)]
      let only = try #require(row.paths.first)
      let isDescriptor = if case .descriptor = only.following { true } else { false }
      guard row.paths.count == 1, !isDescriptor else {
        #expect(form.path < 0 && form.isHeld == isDescriptor, "\(row.name)")
        continue
      }
      #expect(Int(form.path) == only.path && !form.isHeld, "\(row.name)")
      #expect(Int(form.directory) == only.directory ?? -1, "\(row.name)")
      for given in arguments {
        let call = call(row.number, given)
        #expect(form.follows(call) == only.rules(call).followsLast, "\(row.name) \(given)")
      }
    }
  }

  @Test("J1: an open follows the last link but where it must not, or makes a new file")
  func opens() {
    for (number, path) in [(CSYS_NR_open, 0), (CSYS_NR_openat, 1)] where number >= 0 {
      let form = PathForm.all[Int(number)]
      #expect(form.path == path && form.directory == path - 1 && form.isOpen)
      for (flags, follows) in [
        (O_RDONLY, true), (O_CREAT, true), (O_EXCL, true), (O_CREAT | O_EXCL, false),
        (O_NOFOLLOW, false), (O_NOFOLLOW | O_CREAT, false), (O_RDWR | O_CLOEXEC, true),
      ] {
        var given = [UInt64](repeating: 0, count: 6)
        given[path + 1] = UInt64(flags)
        #expect(form.follows(call(number, given)) == follows, "\(number) \(flags)")
      }
    }
  }

  @Test("J1: what does more than look at one path is not for the first look")
  func others() {
    let first: Set<PathCall.Kind> = [.look, .change, .open]
    for row in PathCall.all where !first.contains(row.kind) {
      let form = PathForm.all[Int(row.number)]
      // Where a program is matters only once it may be in a directory of the view.
      #expect(form.path < 0 && form.isHeld == (row.kind == .directory), "\(row.name)")
    }
    // Flags in memory.
    #expect(PathForm.all[Int(CSYS_NR_openat2)].path < 0)
  }
}
