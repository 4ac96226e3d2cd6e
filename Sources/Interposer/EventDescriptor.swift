// SPDX-License-Identifier: Apache-2.0
//
// A program's eventfd, of which we have a copy.

import CSyscalls
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// An eventfd of a program.
final class EventDescriptor: WatchableEventFD {
  private let descriptor: OwnedDescriptor

  init(_ descriptor: OwnedDescriptor) { self.descriptor = descriptor }

  func signal() { _ = csys_eventfd_signal(descriptor.number) }

  /// A thread reads it; a socket whose other end is closed ends that.
  func watch(_ body: @escaping @Sendable () -> Void) -> (@Sendable () -> Void)? {
    guard let (ours, theirs) = socketPair(sequenced: false) else { return nil }
    let (stop, stopped) = (OwnedDescriptor(ours), OwnedDescriptor(theirs))
    let isStarted = System.startThread { [descriptor] in
      while true {
        let ready = waitReadable(descriptor.number, stopped.number, milliseconds: -1)
        if ready.second { return }
        guard ready.first else { continue }
        guard System.readSome(descriptor.number, limit: 8) != nil else { return }
        body()
      }
    }
    guard isStarted else { return nil }
    return { shutdown(stop.number, Int32(SHUT_RDWR)) }
  }

  /// Our copy keeps the eventfd, so that its end is never told: who has it is looked for. One that
  /// is under way in a socket, or that a thread has in a table of its own, is not seen.
  var isAbandoned: Bool {
    guard let identity = Self.identity("/proc/self/fdinfo/\(descriptor.number)") else {
      return false
    }
    let here = getpid()
    for entry in System.entries("/proc") ?? [] {
      guard let process = Int32(entry.name), process != here else { continue }
      for file in System.entries("/proc/\(process)/fd") ?? []
      where System.readLink("/proc/\(process)/fd/\(file.name)") == "anon_inode:[eventfd]" {
        if Self.identity("/proc/\(process)/fdinfo/\(file.name)") == identity { return false }
      }
    }
    return true
  }

  /// What tells one eventfd from all others, since Linux 5.2.
  private static func identity(_ information: String) -> Substring? {
    guard let text = System.contents(information) else { return nil }
    let line = String(decoding: text, as: UTF8.self).split(separator: "\n").first {
      $0.hasPrefix("eventfd-id:")
    }
    return line?.dropFirst("eventfd-id:".count)
  }
}
