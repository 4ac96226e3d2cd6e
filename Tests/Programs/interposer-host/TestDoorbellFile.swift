// SPDX-License-Identifier: Apache-2.0
//
// A device with doorbells: it opens and closes them all the time, and writes what it has seen to
// memory of the program. A ring that it never sees is lost.

import Glibc
import IOMMU
import LinuxABI
import Synchronization

final class TestDoorbellFile: TestFile, RegisterFile, DeviceMemoryFile, @unchecked Sendable {
  // Unchecked, as its superclass is: everything is constant, guarded or atomic.
  private static let base: UInt64 = 1 << 45
  private static let doorbells: Range<UInt64> = 0x1000..<0x2000
  /// How many words it looks at.
  private static let words: UInt64 = 4

  private let pages = Guarded<(any DoorbellPages)?>(nil)
  private let seen = Guarded([UInt32](repeating: 0, count: Int(words)))
  private let isRunning = Atomic(false)
  private let hasEnded = Atomic(true)
  private let openings = Atomic(0)
  private let traps = Atomic(0)

  var hasMemory: Bool { false }
  func memory(at offset: UInt64) -> (memory: any DeviceMemory, offset: UInt64)? { nil }
  func offerRegisters() {}

  func keepMemory(in backing: any DeviceMemoryBacking) {
    let made = try? backing.makeDoorbells(
      at: Self.base + Self.doorbells.lowerBound, length: UInt64(Self.doorbells.count))
    pages.withLock { $0 = made }
  }

  func registers(at offset: UInt64) -> RegisterPlace? {
    guard offset >= Self.base, offset - Self.base < 0x10000 else { return nil }
    return RegisterPlace(bar: 0, offset: offset - Self.base, barSize: 0x10000)
  }

  override func perform(
    _ command: UInt32, _ request: inout Request, _ caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case 40:  // Begin.
      hasEnded.store(false, ordering: .sequentiallyConsistent)
      isRunning.store(true, ordering: .sequentiallyConsistent)
      var thread = pthread_t()
      let box = unsafe Unmanaged.passRetained(self)
      let result = unsafe pthread_create(
        &thread, nil,
        { argument in
          // SAFETY: the argument is the file that was retained for this thread.
          unsafe Unmanaged<TestDoorbellFile>.fromOpaque(argument!).takeRetainedValue().run()
          return nil
        }, box.toOpaque())
      guard result == 0 else { return 1 }
      // Who ends it asks `hasEnded`.
      pthread_detach(thread)
      return 0
    case 41:  // End; how often the doorbells were opened, how many rings trapped.
      isRunning.store(false, ordering: .sequentiallyConsistent)
      while !hasEnded.load(ordering: .sequentiallyConsistent) { usleep(100) }
      request.a = UInt64(openings.load(ordering: .relaxed))
      request.b = UInt64(traps.load(ordering: .relaxed))
      return 0
    case 42:  // Opens them for good.
      pages.withLock { $0 }?.open()
      return 0
    case 43:  // Closes them; what word `a` was at last.
      let pages = self.pages.withLock { $0 }
      pages?.close()
      request.b = UInt64(pages?.load(request.a) ?? 0)
      return 0
    default:
      return try super.perform(command, &request, caller)
    }
  }

  /// The device.
  private func run() {
    guard let pages = pages.withLock({ $0 }) else { return }
    var random: UInt64 = 1
    while isRunning.load(ordering: .relaxed) {
      pages.open()
      openings.add(1, ordering: .relaxed)
      random = random &* 6_364_136_223_846_793_005 &+ 1
      for _ in 0..<(random >> 56) { look(pages) }
      pages.close()
      look(pages)
      random = random &* 6_364_136_223_846_793_005 &+ 1
      if random >> 62 == 0 { usleep(20) }
    }
    hasEnded.store(true, ordering: .sequentiallyConsistent)
  }

  private func look(_ pages: any DoorbellPages) {
    for word in 0..<Self.words { note(pages.load(4 * word), word) }
  }

  /// Tells the program what was seen.
  private func note(_ value: UInt32, _ word: UInt64) {
    seen.withLock { seen in
      guard seen[Int(word)] != value else { return }
      seen[Int(word)] = value
      guard let run = pinned.withLock({ $0.first }), case .local(let base, _) = run.backing
      else {
        return
      }
      // SAFETY: the program has given a page.
      unsafe UnsafeMutablePointer<UInt32>(bitPattern: base + UInt(4 * word))?.pointee = value
    }
  }

  override func write(
    at offset: UInt64, from buffer: UnsafeRawBufferPointer
  ) throws(IOMMUError) -> Int {
    let place = offset &- Self.base
    guard Self.doorbells.contains(place), buffer.count == 4 else {
      return try unsafe super.write(at: offset, from: buffer)
    }
    let word = (place - Self.doorbells.lowerBound) / 4
    let value = unsafe buffer.loadUnaligned(as: UInt32.self)
    traps.add(1, ordering: .relaxed)
    if let pages = pages.withLock({ $0 }) {
      pages.store(value, at: 4 * word)
      if word < Self.words { note(pages.load(4 * word), word) }
    }
    return 4
  }
}
