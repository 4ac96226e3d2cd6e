// SPDX-License-Identifier: Apache-2.0
//
// A controller's state, for another one to go on with: registers, queues, features, events and
// counters. The blocks are not in it: both controllers have the same files, or their user copies
// them.

import IOMMU
import VFIO

/// What of a controller moves. Plain data.
struct NVMeState: Sendable {
  struct Submissions: Hashable, Sendable {
    var number: UInt16
    var address: UInt64
    var size: UInt32
    var completions: UInt16
    var head: UInt32
    var tail: UInt32
    var rung: UInt32
  }

  struct Completions: Hashable, Sendable {
    var number: UInt16
    var address: UInt64
    var size: UInt32
    var vector: UInt16?
    var head: UInt32
    var tail: UInt32
    var rung: UInt32
    var phase: Bool
  }

  var registers: NVMeRegisters
  var isRunning = false
  var completions: [Completions] = []
  var submissions: [Submissions] = []
  var features: NVMeFeatures
  var events = NVMeEvents()
  var health = NVMeHealth()

  /// As one that was never enabled.
  init(registers: NVMeRegisters, configuration: NVMeConfiguration) {
    self.registers = registers
    features = NVMeFeatures(vectors: configuration.queues + 1)
  }

  // MARK: Saving

  func bytes(of configuration: NVMeConfiguration, _ stores: [BlockStore]) -> [UInt8] {
    var bytes = DeviceStateWriter()
    Self.describe(configuration, stores, in: &bytes)
    registers.save(to: &bytes)
    bytes.append(isRunning)
    bytes.append(UInt16(completions.count))
    for queue in completions {
      bytes.append(queue.number)
      bytes.append(queue.address)
      bytes.append(queue.size)
      bytes.append(queue.vector != nil)
      bytes.append(queue.vector ?? 0)
      for word in [queue.head, queue.tail, queue.rung] { bytes.append(word) }
      bytes.append(queue.phase)
    }
    bytes.append(UInt16(submissions.count))
    for queue in submissions {
      bytes.append(queue.number)
      bytes.append(queue.address)
      bytes.append(queue.size)
      bytes.append(queue.completions)
      for word in [queue.head, queue.tail, queue.rung] { bytes.append(word) }
    }
    features.save(to: &bytes)
    events.save(to: &bytes)
    health.save(to: &bytes)
    return bytes.bytes
  }

  /// What two controllers have to have in common.
  private static func describe(
    _ configuration: NVMeConfiguration, _ stores: [BlockStore],
    in bytes: inout DeviceStateWriter
  ) {
    for number in [configuration.queues, configuration.queueEntries, stores.count] {
      bytes.append(UInt32(number))
    }
    bytes.append(configuration.transferLimit)
    for store in stores {
      bytes.append(store.blockCount)
      bytes.append(UInt32(store.blockSize))
      bytes.append(store.isReadOnly)
    }
    for text in [configuration.serial, configuration.modelName] {
      bytes.append(UInt16(text.utf8.count))
      bytes.append(Array(text.utf8))
    }
  }

  // MARK: Loading

  /// What `bytes` gave.
  /// - Throws: `EINVAL` for what it cannot have given, or what is of another kind of controller.
  init(
    _ bytes: [UInt8], configuration: NVMeConfiguration, _ stores: [BlockStore]
  ) throws(IOMMUError) {
    var reader = DeviceStateReader(bytes)
    var own = DeviceStateWriter()
    Self.describe(configuration, stores, in: &own)
    guard try Array(reader.read(count: own.bytes.count)) == own.bytes else {
      throw IOMMUError(
        .invalidArgument,
        "the state is of another NVMe controller; give both the same keys in the machine file, "
          + "and namespaces of the same sizes")
    }
    registers = try NVMeRegisters(from: &reader, queueEntries: configuration.queueEntries)
    isRunning = try reader.readFlag()
    let most = UInt16(configuration.queues + 1)
    for _ in 0..<(try Self.count(&reader, most)) {
      completions.append(try Self.completions(&reader, most))
    }
    for _ in 0..<(try Self.count(&reader, most)) {
      submissions.append(try Self.submissions(&reader, most))
    }
    features = try NVMeFeatures(from: &reader, vectors: Int(most))
    events = try NVMeEvents(from: &reader)
    health = try NVMeHealth(from: &reader)
    try reader.finish()
    try check()
  }

  private static func count(
    _ reader: inout DeviceStateReader, _ most: UInt16
  ) throws(IOMMUError) -> UInt16 {
    let count = try reader.read(UInt16.self)
    guard count <= most else { throw DeviceStateReader.invalid("it has \(count) queues") }
    return count
  }

  private static func completions(
    _ reader: inout DeviceStateReader, _ most: UInt16
  ) throws(IOMMUError) -> Completions {
    let number = try reader.read(UInt16.self)
    let address = try reader.read(UInt64.self)
    let size = try reader.read(UInt32.self)
    let hasVector = try reader.readFlag()
    let vector = try reader.read(UInt16.self)
    let queue = Completions(
      number: number, address: address, size: size, vector: hasVector ? vector : nil,
      head: try reader.read(), tail: try reader.read(), rung: try reader.read(),
      phase: try reader.readFlag())
    guard number < most, vector < most, (2...65536).contains(size), queue.head < size,
      queue.tail < size
    else { throw DeviceStateReader.invalid("a completion queue cannot be") }
    return queue
  }

  private static func submissions(
    _ reader: inout DeviceStateReader, _ most: UInt16
  ) throws(IOMMUError) -> Submissions {
    let queue = Submissions(
      number: try reader.read(), address: try reader.read(), size: try reader.read(),
      completions: try reader.read(), head: try reader.read(), tail: try reader.read(),
      rung: try reader.read())
    guard queue.number < most, queue.completions < most, (2...65536).contains(queue.size),
      queue.head < queue.size, queue.tail < queue.size
    else { throw DeviceStateReader.invalid("a submission queue cannot be") }
    return queue
  }

  /// Queues are there once, with what they need.
  private func check() throws(IOMMUError) {
    let targets = Set(completions.map(\.number))
    let sources = Set(submissions.map(\.number))
    guard targets.count == completions.count, sources.count == submissions.count,
      submissions.allSatisfy({ targets.contains($0.completions) }),
      submissions.isEmpty == !sources.contains(0),
      submissions.allSatisfy({ ($0.number == 0) == ($0.completions == 0) }),
      completions.isEmpty == submissions.isEmpty, !isRunning || !submissions.isEmpty
    else { throw DeviceStateReader.invalid("its queues do not fit together") }
    // What is to be disabled may have been told another size already.
    guard
      !isRunning || registers.requests.contains(.disable)
        || registers.configuration.pageShift <= 12 + Int(NVMeRegisters.largestPage)
    else { throw DeviceStateReader.invalid("pages of a size that it has not") }
  }
}
