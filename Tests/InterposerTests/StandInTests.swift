// SPDX-License-Identifier: Apache-2.0
//
// What stands for a queue of records: the pipe's readiness while many threads change it, and the
// last close of it.

import CSyscalls
import Glibc
import IOMMU
import LinuxABI
import Synchronization
import Testing

@testable import Interposer

@Suite struct StandInTests {
  private static func events(_ descriptor: OwnedDescriptor) -> Int32 {
    var set = pollfd(fd: descriptor.number, events: Int16(POLLIN | POLLOUT), revents: 0)
    return poll(&set, 1, 0) < 0 ? -1 : Int32(set.revents)
  }

  /// Counts as a queue does, under one lock with its readiness.
  private final class Records: Sendable {
    let readiness = Readiness()
    private let count = Guarded(0)

    func add() {
      count.withLock {
        $0 += 1
        readiness.recordAdded()
      }
    }

    func take() {
      count.withLock {
        $0 -= 1
        if $0 == 0 { readiness.emptied() }
      }
    }
  }

  private final class Flag: Sendable { let isSet = Atomic(false) }

  @Test("H1: a pipe shows what its queue set last, and is never seen empty while it is not")
  func threads() async throws {
    let pipe = try StandInPipe(isWritable: true)
    let description = try #require(pipe.takeDescription())
    #expect(pipe.takeDescription() == nil)
    let records = Records()
    records.add()
    records.readiness.show(on: pipe)
    // One record stays all the time.
    let done = Flag()
    async let poller = Task.detached {
      var wrong = 0
      repeat {
        if Self.events(description) != POLLIN | POLLOUT { wrong += 1 }
      } while !done.isSet.load(ordering: .relaxed)
      return wrong
    }.value
    await withTaskGroup(of: Void.self) { tasks in
      for _ in 0..<4 {
        tasks.addTask {
          for _ in 0..<3000 {
            records.add()
            records.take()
          }
        }
      }
    }
    done.isSet.store(true, ordering: .relaxed)
    #expect(await poller == 0)
    records.take()
    #expect(Self.events(description) == POLLOUT)
    // And from nothing to something and back.
    await withTaskGroup(of: Void.self) { tasks in
      for _ in 0..<4 {
        tasks.addTask {
          for _ in 0..<1000 {
            records.add()
            records.take()
          }
        }
      }
    }
    #expect(Self.events(description) == POLLOUT)
  }

  private final class Queue: EventFile {
    let name = "queue"
    let readiness = Readiness()
    let isWritable: Bool
    let closes = Atomic(0)
    init(isWritable: Bool) { self.isWritable = isWritable }
    func read(
      count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
    ) throws(IOMMUError) -> Int { 0 }
    func close() { closes.add(1, ordering: .relaxed) }
  }

  @Test("A queue is closed once, when its last description is")
  func close() throws {
    let table = try HandleTable()
    let queues = (0..<40).map { Queue(isWritable: $0 % 2 == 0) }
    var descriptions: [OwnedDescriptor] = []
    for queue in queues {
      let handle = try table.add(queue)
      let description = try #require(handle.describe(flags: O_RDWR))
      let identity = try #require(System.identity(description.number))
      #expect(table.handle(FileKey(identity)) === handle)
      descriptions.append(description)
    }
    let copy = OwnedDescriptor(dup(descriptions[0].number))
    table.drain()
    #expect(table.count == 40)
    descriptions = []
    table.drain()
    #expect(table.count == 1 && queues[0].closes.load(ordering: .relaxed) == 0)
    #expect(queues.dropFirst().allSatisfy { $0.closes.load(ordering: .relaxed) == 1 })
    queues[0].readiness.recordAdded()
    #expect(Self.events(copy) == POLLIN | POLLOUT)
    // Never reached a program, or the machine ends: closed all the same, once.
    table.closeAll()
    #expect(table.count == 0 && queues[0].closes.load(ordering: .relaxed) == 1)
    table.drain()
    let unseen = Queue(isWritable: false)
    table.forget(try table.add(unseen))
    table.drain()
    #expect(unseen.closes.load(ordering: .relaxed) == 1 && table.count == 0)
  }
}
