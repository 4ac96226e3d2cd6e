// SPDX-License-Identifier: Apache-2.0
//
// A system call of a program, as its notification has it.

import CSyscalls

/// A notification's call.
struct SystemCall: Sendable {
  let id: UInt64
  let thread: Int32
  let number: Int32
  private let arguments: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

  init(_ notification: csys_notif) {
    id = notification.id
    thread = Int32(bitPattern: notification.pid)
    number = notification.data.nr
    arguments = notification.data.args
  }

  subscript(index: Int) -> UInt64 {
    switch index {
    case 0: arguments.0
    case 1: arguments.1
    case 2: arguments.2
    case 3: arguments.3
    case 4: arguments.4
    default: arguments.5
    }
  }
}
