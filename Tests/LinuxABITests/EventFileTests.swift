// SPDX-License-Identifier: Apache-2.0
//
// What every queue of records and every area to map has in common, without a program.

import Glibc
import IOMMU
import LinuxABI
import TestSupport
import Testing

@Suite("Queues of records and areas to map")
struct EventFileTests {
  private final class Shown: ReadinessSignal {
    let history = Guarded<[Bool]>([])
    func set(isReadable: Bool) { history.withLock { $0.append(isReadable) } }
    var all: [Bool] { history.withLock { $0 } }
  }

  @Test("H1: readiness is shown with each record and once when the last is taken")
  func readiness() throws {
    let queue = TestEventQueue(isWritable: true)
    queue.add(1)
    let shown = Shown()
    queue.readiness.show(on: shown)
    #expect(shown.all == [true])
    queue.add(2)
    #expect(try queue.read(count: 8) == [1, 0, 0, 0, 0, 0, 0, 0])
    #expect(shown.all == [true, true])
    #expect(try queue.read(count: 64).count == 8)
    #expect(shown.all == [true, true, false])
    #expect(try queue.read(count: 64).isEmpty)
    queue.removeAll()
    #expect(shown.all == [true, true, false])
    queue.readiness.show(on: nil)
    queue.add(3)
    #expect(shown.all == [true, true, false])
  }

  @Test("H1: what cannot be copied out stays; poll, read and write through a caller")
  func caller() throws {
    let caller = try LocalCaller()
    let queue = TestEventQueue(isWritable: true)
    let descriptor = try caller.install(queue, closeOnExec: true)
    #expect(caller.poll(descriptor) == [.writable])
    #expect(caller.read(descriptor, 0x3000, count: 8) == 0)
    queue.add(5)
    #expect(caller.poll(descriptor) == [.readable, .writable])
    #expect(caller.read(descriptor, 8, count: 8) == -Int(EFAULT))
    #expect(caller.read(descriptor, 0x3000, count: 7) == -Int(ESPIPE))
    #expect(caller.read(descriptor, 0x3000, count: 8) == 8)
    #expect(caller.get(UInt64.self, at: 0x3000) == 5)
    #expect(caller.poll(descriptor) == [.writable])
    #expect(caller.write(descriptor, 0x3000, count: 8) == 8)
    #expect(caller.write(descriptor, 8, count: 8) == -Int(EFAULT))
    #expect(caller.write(descriptor, 0x4000, count: 8) == -Int(EINVAL))
    #expect(queue.responses == [5])
    caller.close(descriptor)
    #expect(queue.isClosed)
    let events = TestEventQueue(isWritable: false)
    #expect(events.pollEvents == [])
    #expect(throws: IOMMUError.self) { try events.write([1, 0, 0, 0, 0, 0, 0, 0]) }
  }

  @Test("L: mmap of /dev/iommu asks for one area, whole, shared: EINVAL, EPERM, ENXIO")
  func areas() throws {
    let rig = try EngineRig()
    let file = try #require(rig.iommuFile as? any MmapFile)
    func map(
      _ offset: UInt64, _ length: UInt64, shared: Bool = true, executable: Bool = false
    ) -> Int32 {
      rig.caller.mmap(
        file,
        MapRequest(
          offset: offset, length: length, isExecutable: executable, isShared: shared))
    }
    #expect(map(0, 4096) == -ENXIO)
    let backing = LocalMmapBacking()
    file.areas.keep(in: backing)
    let first = try file.areas.make(length: 4096)
    let second = try file.areas.make(length: 8192)
    #expect(first.offset != second.offset)
    #expect(map(first.offset, 4096) == 0)
    #expect(map(second.offset, 8192) == 0)
    #expect(map(second.offset, 4096) == -ENXIO)
    #expect(map(second.offset + 4096, 4096) == -ENXIO)
    #expect(map(first.offset, 8192) == -ENXIO)
    #expect(map(first.offset, 4096, shared: false) == -EINVAL)
    #expect(map(first.offset, 4096, executable: true) == -EPERM)
    #expect(map(first.offset, 4096, shared: false, executable: true) == -EINVAL)
    #expect(throws: IOMMUError.self) { try file.areas.make(length: 100) }
    #expect(throws: IOMMUError.self) { try file.areas.make(length: .max & ~4095) }

    #expect(!first.isMapped)
    let seen = try #require(backing.map(offset: first.offset))
    _ = backing.map(offset: first.offset)
    #expect(first.isMapped && !second.isMapped)
    first[word: 8] = 0x1234_5678
    #expect(seen[8] == 0x78 && seen[11] == 0x12)
    seen[12] = 9
    #expect(first[word: 12] == 9)
    backing.unmap(offset: first.offset)
    #expect(first.isMapped)
    backing.unmap(offset: first.offset)
    #expect(!first.isMapped)
    file.areas.remove(first)
    #expect(map(first.offset, 4096) == -ENXIO)
    #expect(try file.areas.make(length: 4096).offset > second.offset)
  }
}
