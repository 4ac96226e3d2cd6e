// SPDX-License-Identifier: Apache-2.0
//
// Errno values that swift-system names otherwise than the field or not at all, and the
// symbols that kernel programmers read.

import SystemPackage

extension Errno {
  /// EOPNOTSUPP.
  package static var operationNotSupported: Errno { Errno(rawValue: 95) }
  /// ENODEV.
  package static var noSuchDevice: Errno { Errno(rawValue: 19) }
  /// EBADFD: the descriptor is open, but not of the kind that is needed.
  package static var badDescriptorState: Errno { Errno(rawValue: 77) }

  /// As `errno(3)` spells it: `EINVAL`; the number where it has no name here.
  public var symbol: String { Self.symbols[rawValue] ?? "errno \(rawValue)" }

  private static let symbols: [Int32: String] = [
    1: "EPERM", 2: "ENOENT", 3: "ESRCH", 4: "EINTR", 5: "EIO", 6: "ENXIO", 7: "E2BIG",
    9: "EBADF", 11: "EAGAIN", 12: "ENOMEM", 13: "EACCES", 14: "EFAULT", 16: "EBUSY",
    17: "EEXIST", 18: "EXDEV", 19: "ENODEV", 20: "ENOTDIR", 21: "EISDIR", 22: "EINVAL",
    23: "ENFILE",
    24: "EMFILE", 25: "ENOTTY", 27: "EFBIG", 28: "ENOSPC", 29: "ESPIPE", 30: "EROFS",
    34: "ERANGE", 35: "EDEADLK", 36: "ENAMETOOLONG", 38: "ENOSYS", 40: "ELOOP", 61: "ENODATA",
    75: "EOVERFLOW",
    77: "EBADFD", 87: "EUSERS", 90: "EMSGSIZE", 95: "EOPNOTSUPP", 98: "EADDRINUSE",
    110: "ETIMEDOUT",
  ]
}
