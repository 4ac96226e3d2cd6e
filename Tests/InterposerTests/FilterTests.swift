// SPDX-License-Identifier: Apache-2.0
//
// The filter program, run by an interpreter as small as the few instructions that it uses; and
// the view on its way between processes.

import CSyscalls
import IOMMU
import LinuxABI
import Testing

@testable import Interposer

@Suite("The filter")
struct FilterTests {
  private enum Verdict: UInt32 {
    case allow = 0x7FFF_0000
    case notify = 0x7FC0_0000
    case noSuchCall = 0x0005_0026
  }

  private let window = DescriptorWindow(softLimit: 1024)

  /// Runs the filter on a call.
  private func verdict(
    _ number: Int32, _ arguments: [UInt64] = [], arch: UInt32 = CSYS_AUDIT_ARCH,
    trapsKVM: Bool = false, translatesPaths: Bool = false, trapsUsers: Bool = false
  ) -> Verdict? {
    var words: [UInt32] = [UInt32(bitPattern: number), arch, 0, 0]
    for index in 0..<6 {
      let value = index < arguments.count ? arguments[index] : 0
      words += [UInt32(truncatingIfNeeded: value), UInt32(truncatingIfNeeded: value >> 32)]
    }
    let code = Filter(
      window: window, trapsKVM: trapsKVM, translatesPaths: translatesPaths,
      trapsUsers: trapsUsers
    ).code
    var place = 0
    var accumulator: UInt32 = 0
    while place < code.count {
      let step = code[place]
      place += 1
      switch step.code {
      case 0x20: accumulator = words[Int(step.k) / 4]
      case 0x54: accumulator &= step.k
      case 0x74: accumulator >>= step.k
      case 0x15: place += Int(accumulator == step.k ? step.jt : step.jf)
      case 0x35: place += Int(accumulator >= step.k ? step.jt : step.jf)
      case 0x45: place += Int(accumulator & step.k != 0 ? step.jt : step.jf)
      case 0x06: return Verdict(rawValue: step.k)
      default: return nil
      }
    }
    return nil
  }

  @Test(
    "Calls that change a thread's user come to us where that hides it from us, and only there")
  func users() {
    for number in [
      CSYS_NR_setuid, CSYS_NR_setgid, CSYS_NR_setreuid, CSYS_NR_setregid, CSYS_NR_setresuid,
      CSYS_NR_setresgid, CSYS_NR_setfsuid, CSYS_NR_setfsgid,
    ] {
      #expect(verdict(number, [65534]) == .allow)
      #expect(verdict(number, [65534], trapsUsers: true) == .notify)
      #expect(verdict(number, [65534], translatesPaths: true, trapsUsers: true) == .notify)
    }
  }

  @Test("ioctl comes to us by its type byte alone, whatever the descriptor")
  func ioctl() {
    #expect(verdict(CSYS_NR_ioctl, [3, 0x3B85]) == .notify)
    #expect(verdict(CSYS_NR_ioctl, [900, 0x3B85]) == .notify)
    #expect(verdict(CSYS_NR_ioctl, [3, 0xC028_3B85]) == .notify)
    #expect(verdict(CSYS_NR_ioctl, [3, 0xFFFF_FFFF_0000_3B64]) == .notify)
    #expect(verdict(CSYS_NR_ioctl, [3, 0x5401]) == .allow)
    #expect(verdict(CSYS_NR_ioctl, [900, 0x5401]) == .allow)
    #expect(verdict(CSYS_NR_ioctl, [3, 0x3B]) == .allow)
  }

  @Test("KVM's ioctls come to us where VMs are the machine's, and go by where they are not")
  func kvm() {
    for command: UInt64 in [0xAE01, 0xAEF0, 0x4020_AE46] {
      #expect(verdict(CSYS_NR_ioctl, [3, command]) == .allow)
      #expect(verdict(CSYS_NR_ioctl, [3, command], trapsKVM: true) == .notify)
    }
    #expect(verdict(CSYS_NR_ioctl, [3, 0x3B85], trapsKVM: true) == .notify)
    #expect(verdict(CSYS_NR_ioctl, [3, 0x5401], trapsKVM: true) == .allow)
  }

  @Test("Region offsets come to us, the offsets of real files do not")
  func offsets() {
    let bit: UInt64 = 1 << 45
    for number in [CSYS_NR_pread64, CSYS_NR_pwrite64, CSYS_NR_preadv, CSYS_NR_pwritev2] {
      #expect(verdict(number, [3, 0, 4, bit]) == .notify)
      #expect(verdict(number, [3, 0, 4, 2 * bit - 1]) == .notify)
      #expect(verdict(number, [3, 0, 4, bit - 1]) == .allow)
      #expect(verdict(number, [3, 0, 4, 2 * bit]) == .allow)
      #expect(verdict(number, [3, 0, 4, .max]) == .allow)
      #expect(verdict(number, [1000, 0, 4, 0]) == .notify)
    }
    #expect(verdict(CSYS_NR_mmap, [0, 4096, 1, 1, 3, bit]) == .notify)
    #expect(verdict(CSYS_NR_mmap, [0, 4096, 1, 1, 3, 0]) == .allow)
    #expect(verdict(CSYS_NR_mmap, [0, 4096, 1, 1, 1000, 0]) == .notify)
    #expect(verdict(CSYS_NR_mmap, [0, 4096, 1, 0x22, 0xFFFF_FFFF, 0]) == .allow)
  }

  @Test("Plain calls come to us for the window's descriptors only")
  func descriptors() {
    for number in [
      CSYS_NR_read, CSYS_NR_write, CSYS_NR_readv, CSYS_NR_writev, CSYS_NR_fstat,
      CSYS_NR_newfstatat, CSYS_NR_statx, CSYS_NR_lseek, CSYS_NR_ftruncate, CSYS_NR_fallocate,
      CSYS_NR_dup, CSYS_NR_fcntl,
    ] {
      #expect(verdict(number, [0]) == .allow)
      #expect(verdict(number, [767]) == .allow)
      #expect(verdict(number, [768]) == .notify)
      #expect(verdict(number, [1023]) == .notify)
      #expect(verdict(number, [1024]) == .allow)
      #expect(verdict(number, [0xFFFF_FF9C]) == .allow)
    }
  }

  @Test("Opens and execs come to us always, other calls never")
  func always() {
    for number in [CSYS_NR_openat, CSYS_NR_openat2, CSYS_NR_execve, CSYS_NR_execveat] {
      #expect(verdict(number) == .notify)
    }
    for number: Int32 in [39, 60, 186, 231] { #expect(verdict(number, [1000]) == .allow) }
  }

  @Test("J1: in a view by paths each call that takes a path comes to us, others as ever")
  func paths() {
    func verdict(_ number: Int32, _ arguments: [UInt64] = []) -> Verdict? {
      self.verdict(number, arguments, translatesPaths: true)
    }
    for row in PathCall.all {
      if case .always = row.trap { #expect(verdict(row.number) == .notify, "\(row.name)") }
      #expect(PathCall.row(row.number)?.name == row.name)
    }
    #expect(Set(PathCall.all.map(\.number)).count == PathCall.all.count)
    #expect(PathCall.row(CSYS_NR_read) == nil && PathCall.row(-1) == nil)
    // stat of a descriptor itself: of ours only.
    let current = UInt64(UInt32(bitPattern: -100))
    for (number, flags) in [(CSYS_NR_newfstatat, 3), (CSYS_NR_statx, 2)] {
      func status(_ directory: UInt64, _ bits: UInt64) -> Verdict? {
        var arguments: [UInt64] = [directory, 0x1000, 0x1000, 0, 0]
        arguments[flags] = bits
        return verdict(number, arguments)
      }
      #expect(status(3, 0) == .notify && status(3, 0x100) == .notify)
      #expect(status(3, 0x1000) == .allow && status(900, 0x1000) == .notify)
      #expect(status(current, 0x1000) == .notify && status(.max - 99, 0x1000) == .notify)
    }
    // What leaves our mounts.
    for flag: UInt64 in [0x20000, 0x1000_0000] {
      #expect(verdict(CSYS_NR_clone, [flag | 17]) == .notify)
      #expect(verdict(CSYS_NR_unshare, [flag]) == .notify)
    }
    #expect(verdict(CSYS_NR_clone, [0x3D0F00]) == .allow)
    #expect(verdict(CSYS_NR_unshare, [0x400]) == .allow)
    #expect(verdict(CSYS_NR_clone3, [0x1000, 88]) == .noSuchCall)
    #expect(self.verdict(CSYS_NR_clone3, [0x1000, 88]) == .allow)
    for number: Int32 in [CSYS_NR_read, CSYS_NR_lseek, CSYS_NR_fstat, CSYS_NR_mmap] {
      for place: UInt64 in [3, 900] {
        #expect(verdict(number, [place]) == self.verdict(number, [place]))
      }
    }
  }

  @Test("access comes to us where it asks whether something can be written")
  func access() {
    for mode: UInt64 in 0..<8 {
      let expected: Verdict = mode & 2 == 0 ? .allow : .notify
      #expect(verdict(CSYS_NR_faccessat, [0, 0, mode]) == expected)
      #expect(verdict(CSYS_NR_faccessat2, [0, 0, mode, 0x200]) == expected)
      #if arch(x86_64)
        #expect(verdict(CSYS_NR_access, [0, mode]) == expected)
      #endif
    }
    #expect(verdict(CSYS_NR_faccessat, [2, 2, 1]) == .allow)
  }

  @Test("Another architecture comes to us, x32 is refused")
  func architectures() {
    #expect(verdict(20, arch: 0x4000_0003) == .notify)
    #if arch(x86_64)
      #expect(verdict(0x4000_0000 | CSYS_NR_ioctl, [3, 0x3B85]) == .noSuchCall)
      #expect(verdict(-1) == .noSuchCall)
    #endif
  }

  @Test("The window lies below 1024 and the limit, and leaves the lower half free")
  func windows() {
    for limit: UInt64 in [0, 1, 16, 64, 256, 512, 1024, 4096, .max] {
      let window = DescriptorWindow(softLimit: limit)
      #expect(window.end <= 1024 && window.first < window.end)
      #expect(window.first >= window.end / 2 && window.end - window.first <= 256)
      #expect(limit < 4 || UInt64(window.end) <= limit)
    }
  }

  @Test("A short write to standard output comes to us, a long one and other descriptors do not")
  func outputs() {
    #expect(verdict(CSYS_NR_write, [1, 0x1000, 1]) == .notify)
    #expect(verdict(CSYS_NR_write, [1, 0x1000, 128]) == .notify)
    #expect(verdict(CSYS_NR_write, [1, 0x1000, 129]) == .allow)
    #expect(verdict(CSYS_NR_write, [1, 0x1000, 1 << 32]) == .allow)
    #expect(verdict(CSYS_NR_write, [2, 0x1000, 1]) == .allow)
    #expect(verdict(CSYS_NR_write, [900, 0x1000, 129]) == .notify)
  }

  @Test("A view arrives as it was sent, and garbage ends it without a trap")
  func wire() {
    final class Node: DeviceNode {
      let path = "/dev/iommu"
      let number = DeviceNumber(major: 10, minor: 125)
      func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
        throw IOMMUError(.noSuchDevice, "")
      }
    }
    let view = View(entries: [
      .init("/sys/a", .directory), .init("/sys/b", .exclusiveDirectory),
      .init("/sys/a/f", .file(contents: [0, 255, 10], mode: 0o444)),
      .init("/sys/b/l", .link(target: "../a")),
      .init("/sys/b/c", .attribute(CommandAttribute(mode: 0o200))),
    ])
    let bytes = WireView(nodes: [Node()], view: view).bytes
    let arrived = WireView(bytes)
    #expect(arrived.bytes == bytes)
    #expect(arrived.nodes.map(\.path) == ["/dev/iommu"])
    #expect(arrived.view.entries.map(\.path) == view.entries.map(\.path))
    for count in 0..<bytes.count { _ = WireView(Array(bytes[..<count])) }
    var random = SystemRandomNumberGenerator()
    for _ in 0..<1000 {
      _ = WireView((0..<40).map { _ in UInt8.random(in: 0...5, using: &random) })
    }
  }
}
