// SPDX-License-Identifier: Apache-2.0
//
// A caller in this process: its address space is an arena that starts at page 1, its files
// are a table. What the binary face sees of a trapped program, without a program.

import IOMMU
import LinuxABI
import PageTables
import Synchronization
import SystemPackage

/// Counts what it is told.
public final class CountingSignal: WatchableEventFD {
  private let value = Atomic(0)
  private let watchers = Guarded<[Int: @Sendable () -> Void]>([:])
  public init() {}
  public var count: Int { value.load(ordering: .sequentiallyConsistent) }
  /// Whoever signals it has it.
  public var isAbandoned: Bool { false }
  /// How many wait for it.
  public var watcherCount: Int { watchers.withLock { $0.count } }

  public func signal() {
    value.add(1, ordering: .sequentiallyConsistent)
    for watcher in watchers.withLock({ Array($0.values) }) { watcher() }
  }

  public func watch(_ body: @escaping @Sendable () -> Void) -> (@Sendable () -> Void)? {
    let key = watchers.withLock { watchers in
      let key = (watchers.keys.max() ?? 0) + 1
      watchers[key] = body
      return key
    }
    return { [self] in watchers.withLock { _ = $0.removeValue(forKey: key) } }
  }
}

/// A limit that a test sets, in bytes.
public final class SettableLimit: MemoryLimit {
  private let value = Atomic<UInt64>(.max)
  public init() {}
  public var bytes: UInt64 {
    get { value.load(ordering: .relaxed) }
    set { value.store(newValue, ordering: .relaxed) }
  }
}

/// Addresses 0x1000 ..< byteCount are the caller's memory; all others fault.
public final class LocalCaller: Caller {
  public let arena: LocalMemory
  private struct Files: Sendable {
    var open: [Int32: any OpenFile] = [:]
    var memories: [Int32: LocalMemory] = [:]
    var signals: [Int32: CountingSignal] = [:]
    var next: Int32 = 3
  }
  private let files = Guarded(Files())
  /// RLIMIT_MEMLOCK and who it holds for. By default the caller has CAP_IPC_LOCK.
  public let limit = SettableLimit()
  public let owner: MemoryOwner
  private let lockingRight = Guarded(LockingRight.unlimited)
  public var right: LockingRight {
    get { lockingRight.withLock { $0 } }
    set { lockingRight.withLock { $0 = newValue } }
  }
  public let userID: UInt32 = 1000
  public let processID: Int32 = 4711
  public let maySetResourceLimits: Bool

  /// - Parameters:
  ///   - user: The sum of the user whose process this is; nil is a user of its own.
  ///   - arena: The memory, where it is another caller's too.
  public init(
    byteCount: UInt64 = 1 << 20, maySetResourceLimits: Bool = true, user: PinnedMemory? = nil,
    arena: LocalMemory? = nil
  ) throws {
    self.arena = try arena ?? LocalMemory(byteCount: byteCount)
    owner = MemoryOwner(user: user ?? PinnedMemory(), process: ProcessMemory(), limit: limit)
    self.maySetResourceLimits = maySetResourceLimits
  }

  private func check(_ address: UInt64, _ count: Int) throws(IOMMUError) {
    guard address >= 0x1000, address <= arena.byteCount,
      UInt64(count) <= arena.byteCount - address
    else {
      throw IOMMUError(.badAddress, "address 0x\(String(address, radix: 16)) is not mapped")
    }
  }

  public func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) {
    try check(address, buffer.count)
    arena.withUnsafeMutableBytes { bytes in
      buffer.copyMemory(
        from: UnsafeRawBufferPointer(
          rebasing: bytes[Int(address)..<Int(address) + buffer.count]))
    }
  }

  public func copyOut(_ buffer: UnsafeRawBufferPointer, to address: UInt64) throws(IOMMUError) {
    try check(address, buffer.count)
    arena.withUnsafeMutableBytes { bytes in
      UnsafeMutableRawBufferPointer(
        rebasing: bytes[Int(address)..<Int(address) + buffer.count]
      ).copyMemory(from: buffer)
    }
  }

  public func memoryOwner() -> (owner: MemoryOwner, right: LockingRight) { (owner, right) }

  public func memory() throws(IOMMUError) -> any MemorySource { arena }

  /// Page 0 is not there, nor what is past the arena.
  public func addressSpace() -> any ProcessAddressSpace { ArenaProcess(arena: arena) }

  public func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64) {
    guard let memory = files.withLock({ $0.memories[descriptor] }) else {
      throw IOMMUError(.badFileDescriptor, "descriptor \(descriptor) is not open")
    }
    return (memory, memory.byteCount)
  }

  public func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)? {
    try files.withLock { (files) throws(IOMMUError) in
      if let file = files.open[descriptor] { return file }
      guard files.memories[descriptor] != nil || files.signals[descriptor] != nil else {
        throw IOMMUError(.badFileDescriptor, "descriptor \(descriptor) is not open")
      }
      return nil
    }
  }

  public func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal {
    try files.withLock { (files) throws(IOMMUError) in
      if let signal = files.signals[descriptor] { return signal }
      guard files.open[descriptor] != nil || files.memories[descriptor] != nil else {
        throw IOMMUError(.badFileDescriptor, "descriptor \(descriptor) is not open")
      }
      throw IOMMUError(.invalidArgument, "descriptor \(descriptor) is not an eventfd")
    }
  }

  public func install(
    _ file: any OpenFile, closeOnExec: Bool
  ) throws(IOMMUError) -> Int32 {
    try FailurePoint.pass(.descriptor)
    return add(file)
  }

  // MARK: What a test does with it

  @discardableResult
  public func add(_ file: any OpenFile) -> Int32 {
    files.withLock { files in
      defer { files.next += 1 }
      files.open[files.next] = file
      return files.next
    }
  }

  public func add(_ memory: LocalMemory) -> Int32 {
    files.withLock { files in
      defer { files.next += 1 }
      files.memories[files.next] = memory
      return files.next
    }
  }

  public func add(_ signal: CountingSignal) -> Int32 {
    files.withLock { files in
      defer { files.next += 1 }
      files.signals[files.next] = signal
      return files.next
    }
  }

  /// Closes every file, as the program's end does.
  public func closeAll() {
    for descriptor in files.withLock({ Array($0.open.keys) }) { close(descriptor) }
  }

  /// Closes as the last close does.
  public func close(_ descriptor: Int32) {
    files.withLock { files -> (any OpenFile)? in
      guard let file = files.open.removeValue(forKey: descriptor) else { return nil }
      return files.open.values.contains { $0 === file } ? nil : file
    }?.close()
  }

  // MARK: Queues of records, and maps

  private func queue(_ descriptor: Int32) throws(IOMMUError) -> any EventFile {
    guard let file = try openFile(descriptor: descriptor) as? any EventFile else {
      throw IOMMUError(.invalidArgument, "descriptor \(descriptor) is no queue of records")
    }
    return file
  }

  /// One `read(2)` of a queue.
  /// - Returns: Bytes read into the arena at `address`, or the negative errno.
  public func read(_ descriptor: Int32, _ address: UInt64, count: Int) -> Int {
    var done: UInt64 = 0
    do throws(IOMMUError) {
      return try queue(descriptor).read(count: count) { (records) throws(IOMMUError) in
        try copyOut(records, to: address &+ done)
        done += UInt64(records.count)
      }
    } catch {
      return -Int(error.errno.rawValue)
    }
  }

  /// One `write(2)` to a queue, from the arena.
  public func write(_ descriptor: Int32, _ address: UInt64, count: Int) -> Int {
    do throws(IOMMUError) {
      return try queue(descriptor).write(count: count) { (offset, size) throws(IOMMUError) in
        try check(address &+ UInt64(offset), size)
        return (0..<size).map { arena[Int(address) + offset + $0] }
      }
    } catch {
      return -Int(error.errno.rawValue)
    }
  }

  private func copyOut(_ bytes: [UInt8], to address: UInt64) throws(IOMMUError) {
    try check(address, bytes.count)
    for (index, byte) in bytes.enumerated() { arena[Int(address) + index] = byte }
  }

  /// What poll(2) says of a queue; nil where it is none.
  public func poll(_ descriptor: Int32) -> PollEvents? {
    (try? queue(descriptor))?.pollEvents
  }

  /// One `mmap(2)`, shared.
  /// - Returns: 0, or the negative errno. What is then mapped: `LocalMmapBacking.map`.
  public func mmap(_ file: any OpenFile, _ request: MapRequest) -> Int32 {
    do throws(IOMMUError) {
      try file.checkMap(request)
      return 0
    } catch {
      return -error.errno.rawValue
    }
  }

  /// Puts a value into the arena.
  public func put<T>(_ value: T, at address: UInt64) {
    withUnsafeBytes(of: value) { bytes in
      arena.withUnsafeMutableBytes { arena in
        UnsafeMutableRawBufferPointer(
          rebasing: arena[Int(address)..<Int(address) + bytes.count]
        ).copyMemory(from: bytes)
      }
    }
  }

  /// Takes a value out of the arena.
  public func get<T>(_ type: T.Type, at address: UInt64) -> T {
    arena.withUnsafeMutableBytes { $0.loadUnaligned(fromByteOffset: Int(address), as: T.self) }
  }

  /// One ioctl with a structure at 0x2000.
  /// - Returns: 0 or the negative errno, as the system call itself would.
  @discardableResult
  public func ioctl<T>(_ file: any OpenFile, _ command: UInt32, _ structure: inout T) -> Int32 {
    put(structure, at: 0x2000)
    let result = ioctl(file, command, at: 0x2000)
    structure = get(T.self, at: 0x2000)
    return result
  }

  public func ioctl(_ file: any OpenFile, _ command: UInt32, at address: UInt64) -> Int32 {
    do {
      return Int32(try file.ioctl(command, argument: address, by: self))
    } catch {
      return -error.errno.rawValue
    }
  }
}

/// The arena as the address space of a process.
private final class ArenaProcess: ProcessAddressSpace {
  let name = "process 4711"
  private let arena: LocalMemory

  init(arena: LocalMemory) { self.arena = arena }

  private func count(at address: UInt64, _ wanted: Int) -> Int {
    guard address >= 0x1000, address < arena.byteCount else { return 0 }
    return Int(min(UInt64(wanted), arena.byteCount - address))
  }

  func copyOut(from address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    let count = count(at: address, buffer.count)
    for index in 0..<count { buffer[index] = arena[Int(address) + index] }
    return count
  }

  func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int {
    let count = count(at: address, buffer.count)
    for index in 0..<count { arena[Int(address) + index] = buffer[index] }
    return count
  }

  func obstacle(at address: UInt64, to access: Permissions) -> ProcessMemoryObstacle {
    .notMapped
  }
}
