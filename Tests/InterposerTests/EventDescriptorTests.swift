// SPDX-License-Identifier: Apache-2.0
//
// Signalling a client's eventfd: never blocking, whatever the client has done to it.

import CSyscalls
import Foundation
import Testing

@testable import Interposer

@Suite struct EventDescriptorTests {
  private func counter(_ number: Int32) -> UInt64? {
    var value: UInt64 = 0
    return read(number, &value, 8) == 8 ? value : nil
  }

  @Test("J1: an interrupt adds 1 to the client's eventfd, whose flags stay its own")
  func adds() throws {
    let mine = eventfd(0, 0)
    try #require(mine >= 0)
    defer { close(mine) }
    let signal = EventDescriptor(OwnedDescriptor(dup(mine)))
    for _ in 0..<200 { signal.signal() }
    #expect(counter(mine) == 200)
    #expect(fcntl(mine, F_GETFL) & O_NONBLOCK == 0)
  }

  @Test("J1: an eventfd that is full blocks nobody")
  func full() throws {
    let mine = eventfd(0, 0)
    try #require(mine >= 0)
    defer { close(mine) }
    var most = UInt64.max - 1
    try #require(write(mine, &most, 8) == 8)
    let signal = EventDescriptor(OwnedDescriptor(dup(mine)))
    // The kernel's own signal saturates; a write(2) would wait here for ever.
    signal.signal()
    signal.signal()
    #expect(counter(mine) == UInt64.max)
    signal.signal()
    #expect(counter(mine) == 1)
  }

  @Test("J1: interrupts from many threads are all counted")
  func threads() async throws {
    let mine = eventfd(0, 0)
    try #require(mine >= 0)
    defer { close(mine) }
    let signal = EventDescriptor(OwnedDescriptor(dup(mine)))
    await withTaskGroup(of: Void.self) { tasks in
      for _ in 0..<4 {
        tasks.addTask { for _ in 0..<5_000 { signal.signal() } }
      }
    }
    #expect(counter(mine) == 20_000)
  }

  @Test("J1: an eventfd is abandoned when the last program that had it is gone")
  func abandoned() throws {
    let mine = eventfd(0, Int32(EFD_CLOEXEC))
    try #require(mine >= 0)
    defer { close(mine) }
    let signal = EventDescriptor(OwnedDescriptor(fcntl(mine, F_DUPFD_CLOEXEC, 0)))
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, mine, 9)
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("sleep"), strdup("100"), nil]
    defer { for case let argument? in arguments { free(argument) } }
    var program: pid_t = 0
    try #require(posix_spawnp(&program, "sleep", &actions, nil, &arguments, environ) == 0)
    #expect(!signal.isAbandoned)
    kill(program, SIGKILL)
    var status: Int32 = 0
    #expect(waitpid(program, &status, 0) == program)
    // A process that another test has just forked has our descriptors until it executes a program.
    while !signal.isAbandoned { usleep(1000) }
  }
}
