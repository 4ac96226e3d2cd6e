// SPDX-License-Identifier: Apache-2.0
//
// The seccomp filter: which system calls come to the supervisor. Generated from one table, for
// the architecture that this is built for.

import CSyscalls

/// Numbers of descriptors that a program gets from us, where the filter can tell them apart.
struct DescriptorWindow: Sendable {
  /// First number, inclusive, and end, exclusive.
  let first: UInt32
  let end: UInt32

  /// Just below 1024 (so that `select` works) or the soft limit on open files.
  init(softLimit: UInt64) {
    end = UInt32(min(1024, max(softLimit, 4)))
    first = max(end - min(256, end), end / 2)
  }
}

/// A filter program under construction.
struct Filter {
  private(set) var code: [csys_bpf] = []

  private enum Condition {
    /// Argument's second-lowest byte: an ioctl's type.
    case ioctlType(argument: Int, UInt32)
    /// The 64-bit argument is a region offset of a device file: bit 45 set, below 2^46, where no
    /// file of the host reaches (LinuxABI gives them out).
    case regionOffset(argument: Int)
    /// The argument is one of our descriptors' numbers.
    case descriptor(argument: Int)
    /// At most `longestCommand` bytes for descriptor 1, where shells put the file that a command's output
    /// goes to.
    case shortOutput
    /// The 64-bit argument is SIGBUS.
    case isBusError(argument: Int)
    /// The call is one that the kernel has not.
    case isUnknown
    /// The argument has one of some bits; it has none of them.
    case has(argument: Int, UInt32)
    case hasNot(argument: Int, UInt32)
    /// The argument, a directory's descriptor, is AT_FDCWD.
    case isCurrent(argument: Int)
    /// The argument, of `access`, asks whether something can be written.
    case asksToWrite(argument: Int)
  }

  /// What a command for an attribute in /sys has at most; longer output of programs is no
  /// business of ours.
  static let longestCommand: UInt32 = 128

  /// What the supervisor is told of: call number and any of these conditions (none: always).
  /// - Parameters:
  ///   - trapsKVM: Whether VMs are ours.
  ///   - translatesPaths: Whether calls that take a path are.
  ///   - trapsUsers: Whether calls that change a thread's user are.
  private static func table(
    trapsKVM: Bool, translatesPaths: Bool, trapsUsers: Bool
  ) -> [(number: Int32, when: [Condition])] {
    var table: [(number: Int32, when: [Condition])] = fixed.map { row in
      guard trapsKVM, row.number == CSYS_NR_ioctl else { return row }
      return (row.number, row.when + [.ioctlType(argument: 1, 0xAE)])
    }
    if trapsUsers { table += users.map { ($0, []) } }
    guard translatesPaths else { return table }
    // What takes a path comes always.
    return table.filter { row in !paths.contains { $0.number == row.number } } + paths
  }

  /// Calls that take a path, in the view by paths; in place of their rows in `fixed`.
  private static let paths: [(number: Int32, when: [Condition])] = PathCall.all.map { row in
    switch row.trap {
    case .always: (row.number, [])
    case .unlessEmptyPath(let flags):
      (
        row.number,
        [.hasNot(argument: flags, 0x1000), .isCurrent(argument: 0), .descriptor(argument: 0)]
      )
    case .flags(let argument, let bits): (row.number, [.has(argument: argument, bits)])
    case .unknown: (row.number, [.isUnknown])
    }
  }

  /// Calls that change a thread's user, where that hides its process from us.
  private static let users = [
    CSYS_NR_setuid, CSYS_NR_setgid, CSYS_NR_setreuid, CSYS_NR_setregid, CSYS_NR_setresuid,
    CSYS_NR_setresgid, CSYS_NR_setfsuid, CSYS_NR_setfsgid,
  ]

  private static let fixed: [(number: Int32, when: [Condition])] = [
    (CSYS_NR_read, [.descriptor(argument: 0)]),
    (CSYS_NR_write, [.shortOutput, .descriptor(argument: 0)]),
    (CSYS_NR_ioctl, [.ioctlType(argument: 1, 0x3B)]),
    (CSYS_NR_pread64, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_pwrite64, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_fstat, [.descriptor(argument: 0)]),
    (CSYS_NR_newfstatat, [.descriptor(argument: 0)]),
    (CSYS_NR_statx, [.descriptor(argument: 0)]),
    (CSYS_NR_mmap, [.regionOffset(argument: 5), .descriptor(argument: 4)]),
    (CSYS_NR_lseek, [.descriptor(argument: 0)]),
    (CSYS_NR_openat, []),
    (CSYS_NR_open, []),
    (CSYS_NR_openat2, []),
    (CSYS_NR_creat, []),
    (CSYS_NR_access, [.asksToWrite(argument: 1)]),
    (CSYS_NR_faccessat, [.asksToWrite(argument: 2)]),
    (CSYS_NR_faccessat2, [.asksToWrite(argument: 2)]),
    (CSYS_NR_readv, [.descriptor(argument: 0)]),
    (CSYS_NR_writev, [.descriptor(argument: 0)]),
    (CSYS_NR_preadv, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_pwritev, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_preadv2, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_pwritev2, [.regionOffset(argument: 3), .descriptor(argument: 0)]),
    (CSYS_NR_ftruncate, [.descriptor(argument: 0)]),
    (CSYS_NR_fallocate, [.descriptor(argument: 0)]),
    (CSYS_NR_fcntl, [.descriptor(argument: 0)]),
    (CSYS_NR_dup, [.descriptor(argument: 0)]),
    (CSYS_NR_execve, []),
    (CSYS_NR_execveat, []),
    (CSYS_NR_rt_sigaction, [.isBusError(argument: 0)]),
    (CSYS_NR_userfaultfd, []),
    (CSYS_NR_io_uring_setup, []),
  ]

  private static let allow: UInt32 = 0x7FFF_0000
  private static let notify: UInt32 = 0x7FC0_0000
  private static let noSuchCall: UInt32 = 0x0005_0000 | 38

  /// - Parameters:
  ///   - trapsKVM: Whether the machine has VMs of its own. Calls on other KVM files go on to the
  ///     kernel.
  ///   - translatesPaths: Whether the view is one by paths (`ViewMode.paths`).
  ///   - trapsUsers: Whether programs that change their user are hidden from us (`OtherUser`).
  init(
    window: DescriptorWindow, trapsKVM: Bool = false, translatesPaths: Bool = false,
    trapsUsers: Bool = false
  ) {
    load(offset: 4)
    // A program of another architecture: the supervisor says so and ends it.
    jump(.equal, CSYS_AUDIT_ARCH, ifTrue: 1, ifFalse: 0)
    finish(Self.notify)
    load(offset: 0)
    #if arch(x86_64)
      jump(.notBelow, 0x4000_0000, ifTrue: 0, ifFalse: 1)
      finish(Self.noSuchCall)
    #endif
    let table = Self.table(
      trapsKVM: trapsKVM, translatesPaths: translatesPaths, trapsUsers: trapsUsers)
    for (number, conditions) in table where number >= 0 {
      let block = Self.block(conditions, window)
      jump(.equal, UInt32(number), ifTrue: 0, ifFalse: UInt8(block.count))
      code += block
    }
    finish(Self.allow)
  }

  private init() {}

  private static func block(_ conditions: [Condition], _ window: DescriptorWindow) -> [csys_bpf]
  {
    var block = Filter()
    for condition in conditions {
      switch condition {
      case .ioctlType(let argument, let type):
        block.load(offset: 16 + 8 * argument)
        block.code.append(csys_bpf(code: 0x74, jt: 0, jf: 0, k: 8))
        block.code.append(csys_bpf(code: 0x54, jt: 0, jf: 0, k: 0xFF))
        block.jump(.equal, type, ifTrue: 0, ifFalse: 1)
      case .regionOffset(let argument):
        block.load(offset: 16 + 8 * argument + 4)
        block.code.append(csys_bpf(code: 0x74, jt: 0, jf: 0, k: 13))
        block.jump(.equal, 1, ifTrue: 0, ifFalse: 1)
      case .descriptor(let argument):
        block.load(offset: 16 + 8 * argument)
        block.jump(.notBelow, window.first, ifTrue: 0, ifFalse: 2)
        block.jump(.notBelow, window.end, ifTrue: 1, ifFalse: 0)
      case .isUnknown:
        block.finish(noSuchCall)
        continue
      case .has(let argument, let bits):
        block.load(offset: 16 + 8 * argument)
        block.jump(.hasBits, bits, ifTrue: 0, ifFalse: 1)
      case .hasNot(let argument, let bits):
        block.load(offset: 16 + 8 * argument)
        block.jump(.hasBits, bits, ifTrue: 1, ifFalse: 0)
      case .isCurrent(let argument):
        block.load(offset: 16 + 8 * argument)
        block.jump(
          .equal, UInt32(bitPattern: PathCall.Path.current), ifTrue: 0, ifFalse: 1)
      case .asksToWrite(let argument):
        block.load(offset: 16 + 8 * argument)
        block.code.append(csys_bpf(code: 0x54, jt: 0, jf: 0, k: 2))
        block.jump(.equal, 2, ifTrue: 0, ifFalse: 1)
      case .isBusError(let argument):
        block.load(offset: 16 + 8 * argument + 4)
        block.jump(.equal, 0, ifTrue: 0, ifFalse: 3)
        block.load(offset: 16 + 8 * argument)
        block.jump(.equal, 7, ifTrue: 0, ifFalse: 1)
      case .shortOutput:
        block.load(offset: 16)
        block.jump(.equal, 1, ifTrue: 0, ifFalse: 5)
        block.load(offset: 16 + 8 * 2 + 4)
        block.jump(.equal, 0, ifTrue: 0, ifFalse: 3)
        block.load(offset: 16 + 8 * 2)
        block.jump(.notBelow, longestCommand + 1, ifTrue: 1, ifFalse: 0)
      }
      block.finish(notify)
    }
    block.finish(conditions.isEmpty ? notify : allow)
    return block.code
  }

  private enum Comparison: UInt16 {
    case equal = 0x15
    case notBelow = 0x35
    case hasBits = 0x45
  }

  /// Loads a 32-bit word of `struct seccomp_data`.
  private mutating func load(offset: Int) {
    code.append(csys_bpf(code: 0x20, jt: 0, jf: 0, k: UInt32(offset)))
  }

  private mutating func jump(_ how: Comparison, _ k: UInt32, ifTrue: UInt8, ifFalse: UInt8) {
    code.append(csys_bpf(code: how.rawValue, jt: ifTrue, jf: ifFalse, k: k))
  }

  private mutating func finish(_ action: UInt32) {
    code.append(csys_bpf(code: 0x06, jt: 0, jf: 0, k: action))
  }

  /// Installs the filter on this thread and what it will start.
  /// - Returns: The listener, and whether calls wait for the answer without being interrupted;
  ///   or a negative errno.
  func install() -> (listener: Int32, killableWaits: Bool) {
    let flags = UInt32(CSYS_NEW_LISTENER)
    let killable = flags | UInt32(CSYS_WAIT_KILLABLE_RECV)
    return unsafe code.withUnsafeBufferPointer { code in
      let listener = unsafe csys_seccomp_install(code.baseAddress, code.count, killable)
      if listener != -22 { return (listener, true) }
      return (unsafe csys_seccomp_install(code.baseAddress, code.count, flags), false)
    }
  }
}
