// SPDX-License-Identifier: Apache-2.0
//
// What entries allow and what accesses need: reading, writing and fetching instructions, each
// for unprivileged and for privileged requests.

/// Six permissions: three for unprivileged requests (user, EL0, U mode) and three for
/// privileged ones (supervisor, EL1, S mode). A walk allows what all its entries allow.
public struct Rights: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8

  @inlinable @inline(__always)
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The bits of `Permissions`, in its order, for unprivileged requests.
  @inlinable public static var userRead: Rights { Rights(rawValue: 1) }
  @inlinable public static var userWrite: Rights { Rights(rawValue: 2) }
  @inlinable public static var userExecute: Rights { Rights(rawValue: 4) }
  /// The same for privileged requests.
  @inlinable public static var privilegedRead: Rights { Rights(rawValue: 8) }
  @inlinable public static var privilegedWrite: Rights { Rights(rawValue: 16) }
  @inlinable public static var privilegedExecute: Rights { Rights(rawValue: 32) }

  // Not as array literals, which may be made at run time.
  @inlinable public static var none: Rights { Rights(rawValue: 0) }
  @inlinable public static var all: Rights { Rights(rawValue: 63) }
  @inlinable public static var user: Rights { Rights(rawValue: 7) }
  @inlinable public static var privileged: Rights { Rights(rawValue: 56) }
  /// Reading and writing, of one kind of request each.
  @inlinable public static var userAccess: Rights { Rights(rawValue: 3) }
  @inlinable public static var privilegedAccess: Rights { Rights(rawValue: 24) }
  @inlinable public static var writes: Rights { Rights(rawValue: 18) }
  @inlinable public static var executes: Rights { Rights(rawValue: 36) }

  /// The same three for both kinds of request: of formats that know no privilege.
  @inlinable @inline(__always)
  public init(_ permissions: Permissions) {
    rawValue = (permissions.rawValue & 7) &* 9
  }

  /// Three for each kind of request.
  @inlinable @inline(__always)
  public init(user: Permissions, privileged: Permissions) {
    rawValue = user.rawValue & 7 | (privileged.rawValue & 7) << 3
  }

  /// What requests of one kind may do.
  @inlinable @inline(__always)
  public func permissions(privileged: Bool) -> Permissions {
    Permissions(rawValue: (privileged ? rawValue >> 3 : rawValue) & 7)
  }
}

/// What a request asks of a translation.
@frozen
public struct Access: Hashable, Sendable {
  /// What it does: an atomic reads and writes. Empty: nothing, which is always allowed.
  public var permissions: Permissions
  /// Whether it claims privilege (PCIe: PASID prefix with Privileged Mode Requested).
  public var isPrivileged: Bool

  @inlinable
  public init(_ permissions: Permissions, privileged: Bool = false) {
    self.permissions = permissions
    isPrivileged = privileged
  }

  /// What has to be allowed for it.
  @inlinable @inline(__always)
  public var needs: Rights {
    Rights(rawValue: isPrivileged ? permissions.rawValue << 3 & 56 : permissions.rawValue & 7)
  }
}
