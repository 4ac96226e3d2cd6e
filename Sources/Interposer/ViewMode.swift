// SPDX-License-Identifier: Apache-2.0
//
// The two ways to a /dev and a /sys of the program's own.

/// How programs get to see the machine's /dev and /sys.
public enum ViewMode: String, Sendable, CaseIterable {
  /// File systems of ours, mounted in a mount namespace of the program's own. Calls that take a
  /// path go to the kernel.
  case namespace
  /// A directory of ours, and calls that take a path come by the supervisor, which says what each
  /// path leads to. Needs no privilege, no namespace and no mount: it works in containers.
  case paths
}
