// SPDX-License-Identifier: Apache-2.0
//
// The devices of the interposer's tests. Commands have type ';' and take a pointer to
// `struct request { u64 a, b, c; s32 d, e; }`.

import Glibc
import IOMMU
import Interposer
import LinuxABI
import Synchronization

func complain(_ line: String) {
  let bytes = Array((line + "\n").utf8)
  _ = unsafe write(2, bytes, bytes.count)
}

enum TestMachine {
  private static var isFirstThread: Bool {
    var text = [UInt8](repeating: 0, count: 64)
    let count = unsafe text.withUnsafeMutableBytes { text in
      // SAFETY: at most the array's size is written.
      unsafe readlink(
        "/proc/thread-self", text.baseAddress!.assumingMemoryBound(to: CChar.self), 64)
    }
    return String(decoding: text.prefix(max(count, 0)), as: UTF8.self)
      == "\(getpid())/task/\(getpid())"
  }

  static func make() -> InterposedMachine {
    let counts = Counts()
    counts.isForkedThread.store(isFirstThread, ordering: .relaxed)
    let files = LiveView(
      View(entries: [
        .init("/dev/char", .directory),
        .init("/dev/char/10:124", .link(target: "../iommu")),
        .init("/sys/bus", .directory),
        .init("/sys/bus/pci", .directory),
        .init("/sys/bus/pci/devices", .exclusiveDirectory),
        .init("/sys/bus/pci/devices/0000:e0:04.0", .link(target: "../../../devices/test")),
        .init("/sys/devices", .directory),
        .init("/sys/devices/test", .directory),
        .init("/sys/devices/test/vendor", .file(contents: Array("0x8086\n".utf8), mode: 0o444)),
      ]),
      nodes: [
        TestNode("/dev/iommu", DeviceNumber(major: 10, minor: 124), counts),
        TestNode("/dev/vfio/devices/vfio0", DeviceNumber(major: 250, minor: 0), counts),
        TestNode("/dev/vfio/devices/vfio1", DeviceNumber(major: 250, minor: 2), counts),
      ])
    LiveDevices(files, counts).add()
    return InterposedMachine(files: files)
  }
}

/// How many files were opened and closed, and what calls have added.
final class Counts: Sendable {
  let opened = Atomic(0)
  let closed = Atomic(0)
  let calls = Atomic(0)
  /// Whether the machine was made in the process's first thread, which a fork left.
  let isForkedThread = Atomic(false)
}

final class TestNode: DeviceNode {
  let path: String
  let number: DeviceNumber
  private let counts: Counts

  init(_ path: String, _ number: DeviceNumber, _ counts: Counts) {
    self.path = path
    self.number = number
    self.counts = counts
  }

  func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    switch path {
    case "/dev/iommu": TestContextFile(name: path, number: number, counts)
    case "/dev/vfio/devices/vfio1": TestDoorbellFile(name: path, number: number, counts)
    default: TestFile(name: path, number: number, counts)
    }
  }
}

/// Answers the tests' commands.
class TestFile: OpenFile, @unchecked Sendable {
  // Unchecked, as a class with a subclass must be: everything is constant or guarded.
  let name: String
  let number: DeviceNumber
  let regionWindowSize: UInt64
  private let counts: Counts
  private let registers = Guarded([UInt8](repeating: 0, count: 65_536))
  let pinned = Guarded<[PinnedRun]>([])
  let kept = Guarded<[any EventSignal]>([])

  init(name: String, number: DeviceNumber, _ counts: Counts) {
    self.name = name
    self.number = number
    self.counts = counts
    regionWindowSize = name.contains("vfio") ? 1 << 45 : 0
    counts.opened.add(1, ordering: .relaxed)
  }

  struct Request {
    var a: UInt64 = 0
    var b: UInt64 = 0
    var c: UInt64 = 0
    var d: Int32 = 0
    var e: Int32 = 0
  }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    counts.calls.add(1, ordering: .relaxed)
    if command & 0xFF == 0 { return 0 }
    var request = Request()
    try unsafe withUnsafeMutableBytes(of: &request) { (bytes) throws(IOMMUError) in
      try unsafe caller.copyIn(from: argument, into: bytes)
    }
    let result = try perform(command & 0xFF, &request, caller)
    try unsafe withUnsafeMutableBytes(of: &request) { (bytes) throws(IOMMUError) in
      try unsafe caller.copyOut(UnsafeRawBufferPointer(bytes), to: argument)
    }
    return result
  }

  func perform(
    _ command: UInt32, _ request: inout Request, _ caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case 1:  // Echo.
      request.b = request.a &+ 1
      return Int(truncatingIfNeeded: request.a & 0xFFFF)
    case 2:  // Fail with errno `a`.
      throw IOMMUError(
        .init(rawValue: Int32(truncatingIfNeeded: request.a)), "the test asked for it")
    case 3:  // How many files are open, how many calls came.
      request.a = UInt64(
        counts.opened.load(ordering: .relaxed) - counts.closed.load(ordering: .relaxed))
      request.b = UInt64(counts.calls.load(ordering: .relaxed))
      request.c = counts.isForkedThread.load(ordering: .relaxed) ? 1 : 0
      return 0
    case 4:  // Give out a file; then fail where `a` is not 0.
      let file = TestFile(name: "test file", number: number, counts)
      do throws(IOMMUError) {
        request.d = try caller.install(file, closeOnExec: request.b != 0)
      } catch {
        file.close()
        throw error
      }
      if request.a != 0 { throw IOMMUError(.invalidArgument, "after the file was made") }
      return 0
    case 5:  // Pin `b` bytes at `a`, writable where `c` is not 0.
      var runs: [PinnedRun] = []
      try caller.memory().pin(
        address: request.a, length: request.b, writable: request.c != 0
      ) { (run) throws(IOMMUError) in runs.append(run) }
      if case .local? = runs.first?.backing { request.e = 1 } else { request.e = 0 }
      request.d = Int32(runs.count)
      pinned.withLock { [runs] in $0 = runs }
      return 0
    case 6:  // Write byte `b` at offset `a` of what is pinned, `c` times.
      return try access(request, write: true) == nil ? 0 : 0
    case 7:  // Read it.
      request.b = UInt64(try access(request, write: false) ?? 0)
      return 0
    case 8:  // Signal the eventfd `d`.
      try caller.eventFD(descriptor: request.d).signal()
      return 0
    case 9:  // What is descriptor `d`? 0: another file; 1: ours.
      return try caller.openFile(descriptor: request.d) == nil ? 0 : 1
    case 10:  // Pin the file `d` from `a`, `b` bytes.
      let (source, size) = try caller.fileMemory(descriptor: request.d)
      var runs: [PinnedRun] = []
      try source.pin(address: request.a, length: request.b, writable: true) {
        (run) throws(IOMMUError) in runs.append(run)
      }
      pinned.withLock { [runs] in $0 = runs }
      request.c = size
      return 0
    case 11:  // Take `a` milliseconds, 10 seconds at most.
      usleep(UInt32(min(request.a, 10_000)) * 1000)
      return Int(truncatingIfNeeded: request.b)
    case 13:  // Signal the `b` eventfds whose numbers are at `a`, or none; keep them, with `c`.
      var numbers = [Int32](repeating: 0, count: Int(min(request.b, 4096)))
      for index in numbers.indices {
        var number: Int32 = 0
        try unsafe withUnsafeMutableBytes(of: &number) { (bytes) throws(IOMMUError) in
          try unsafe caller.copyIn(from: request.a &+ UInt64(4 * index), into: bytes)
        }
        numbers[index] = number
      }
      try caller.prepare(eventFDs: numbers)
      let events = try numbers.map { (number) throws(IOMMUError) in
        try caller.eventFD(descriptor: number)
      }
      for event in events { event.signal() }
      // As a device with interrupts does.
      if request.c != 0 { kept.withLock { [events] in $0 = events } }
      return 0
    case 14:  // Signal what was kept.
      for event in kept.withLock({ $0 }) { event.signal() }
      return 0
    case 12:  // Drop what is pinned.
      pinned.withLock { $0 = [] }
      return 0
    default:
      throw IOMMUError(.init(rawValue: ENOTTY), "there is no such command")
    }
  }

  private func access(_ request: Request, write: Bool) throws(IOMMUError) -> UInt8? {
    let fault = IOMMUError(.ioError, "the memory cannot be reached")
    let runs = pinned.withLock { $0 }
    var offset = request.a
    for run in runs {
      guard offset < run.length else {
        offset -= run.length
        continue
      }
      switch run.backing {
      case .local(let base, _):
        guard let place = unsafe UnsafeMutablePointer<UInt8>(bitPattern: base + UInt(offset))
        else {
          throw fault
        }
        if write { unsafe place.pointee = UInt8(truncatingIfNeeded: request.b) }
        return unsafe place.pointee
      case .remote(let memory, let address):
        var byte = UInt8(truncatingIfNeeded: request.b)
        let done = unsafe withUnsafeMutableBytes(of: &byte) { bytes in
          write
            ? unsafe memory.write(at: address + offset, from: UnsafeRawBufferPointer(bytes))
            : unsafe memory.read(at: address + offset, into: bytes)
        }
        guard done else { throw fault }
        return byte
      }
    }
    throw fault
  }

  private func window(_ offset: UInt64, _ count: Int) throws(IOMMUError) -> Range<Int> {
    let base: UInt64 = 1 << 45
    guard regionWindowSize > 0, offset >= base, offset - base <= 65_536 else {
      throw IOMMUError(.invalidArgument, "there is no region at \(offset)")
    }
    let first = Int(offset - base)
    return first..<min(first + count, 65_536)
  }

  func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    let range = try window(offset, buffer.count)
    registers.withLock { registers in
      for (index, place) in range.enumerated() { unsafe buffer[index] = registers[place] }
    }
    return range.count
  }

  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int {
    let range = try window(offset, buffer.count)
    registers.withLock { registers in
      for (index, place) in range.enumerated() { unsafe registers[place] = buffer[index] }
    }
    return range.count
  }

  func checkMap(_ request: MapRequest) throws(IOMMUError) {
    guard regionWindowSize > 0 else {
      throw IOMMUError(.init(rawValue: ENODEV), "nothing to map")
    }
    guard request.isShared else { throw IOMMUError(.invalidArgument, "only shared mappings") }
  }

  func close() { counts.closed.add(1, ordering: .relaxed) }
}
