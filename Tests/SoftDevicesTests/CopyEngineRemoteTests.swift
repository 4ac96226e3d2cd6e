// SPDX-License-Identifier: Apache-2.0
//
// The engine on memory that is reached by calls, as another process's private pages are: it
// copies, and it notices when that memory is gone.

import IOMMU
import LinuxABI
import PageTables
import SoftDevices
import Synchronization
import TestSupport
import Testing

/// Bytes behind calls; gone once somebody says so.
private final class DistantMemory: MemorySource, RemoteMemory {
  private let bytes: Guarded<[UInt8]>
  private let gone = Atomic(false)

  init(byteCount: Int) { bytes = Guarded([UInt8](repeating: 0, count: byteCount)) }

  func vanish() { gone.store(true, ordering: .sequentiallyConsistent) }
  func fill(_ range: Range<Int>, with byte: (Int) -> UInt8) {
    bytes.withLock { bytes in for index in range { bytes[index] = byte(index) } }
  }
  func contents(_ range: Range<Int>) -> [UInt8] { bytes.withLock { Array($0[range]) } }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try place(
      PinnedRun(
        length: length, backing: .remote(self, address: address),
        identity: MemoryIdentity(space: 0, object: 77, offset: address)))
  }

  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    guard !gone.load(ordering: .sequentiallyConsistent) else { return false }
    bytes.withLock { buffer.copyBytes(from: $0[Int(address)..<Int(address) + buffer.count]) }
    return true
  }

  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    guard !gone.load(ordering: .sequentiallyConsistent) else { return false }
    bytes.withLock { bytes in
      for (index, byte) in zip(Int(address)..., buffer) { bytes[index] = byte }
    }
    return true
  }
}

@Suite(.timeLimit(.minutes(10))) struct CopyEngineRemoteTests {
  @Test("J1: memory reached by calls is copied; once it is gone, read and write data errors")
  func vanishing() throws {
    let bench = try EngineBench()
    let memory = DistantMemory(byteCount: 1 << 20)
    memory.fill(0..<1 << 19) { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
    let context = try #require(bench.rig.iommuFile as? any ContextFile).context
    let distant: UInt64 = 0x4000_0000
    _ = try context.map(
      memory, start: 0, length: 1 << 20, into: ObjectID(bench.rig.ioas),
      at: .fixed(IOVA(distant)))
    // From there to there, not aligned to anything, more than one piece long.
    bench.descriptor(
      size: 300_001, source: distant + 13, destination: distant + (1 << 19) + 5)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() == bench.ring | 1)
    #expect(
      memory.contents(13..<300_014) == memory.contents((1 << 19) + 5..<(1 << 19) + 300_006))
    // To and from our own memory.
    bench.descriptor(size: 100_000, source: distant + 1)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() == bench.ring | 1)
    #expect(
      bench.rig.caller.get(UInt8.self, at: bench.destination + 99_999)
        == memory.contents(100_000..<100_001)[0])
    memory.vanish()
    let faults = bench.rig.iommu.faults.count
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 3)
    #expect(bench.rig.errors == 0x100)
    bench.descriptor(destination: distant)
    bench.rig.start(bench.ring, count: 1)
    #expect(bench.rig.wait() & 7 == 3)
    #expect(bench.rig.errors == 0x200)
    #expect(bench.rig.iommu.faults.count == faults + 2)
  }
}
