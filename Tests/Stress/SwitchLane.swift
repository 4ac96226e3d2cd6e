// SPDX-License-Identifier: Apache-2.0
//
// One requester's DMA while its security context changes: where it lands, and where it may.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization

/// What a security context gives access to, as a set.
struct Reach: OptionSet, Hashable, Sendable, CustomStringConvertible {
  var rawValue: UInt32

  /// Nothing.
  static let blocked = Reach(rawValue: 1)
  static let host = Reach(rawValue: 2)

  /// A user's address space, from 1 up.
  static func space(_ number: Int) -> Reach { Reach(rawValue: 2 << UInt32(number)) }

  /// What the memory of number `target` is: 0 is the host's.
  static func memory(_ target: Int) -> Reach { target == 0 ? host : space(target) }

  var description: String {
    let names = (0..<8).compactMap { bit in
      rawValue >> UInt32(bit) & 1 == 0
        ? nil : bit == 0 ? "blocked" : bit == 1 ? "the host's memory" : "space \(bit - 1)"
    }
    return names.isEmpty ? "none" : names.joined(separator: " or ")
  }
}

/// What a lane's DMA may reach at each moment. One thread changes it, another reads it.
final class ReachModel: Sendable {
  private static let length = 64
  private let sequence: Atomic<UInt64>
  private let ring: [Cell]

  private final class Cell: Sendable {
    let value: Atomic<UInt32>
    init(_ reach: Reach) { value = Atomic(reach.rawValue) }
  }

  init(_ reach: Reach) {
    sequence = Atomic(0)
    ring = (0..<Self.length).map { _ in Cell(reach) }
  }

  private func append(_ reach: Reach) {
    let next = sequence.load(ordering: .relaxed) + 1
    ring[Int(next % UInt64(Self.length))].value.store(reach.rawValue, ordering: .relaxed)
    sequence.store(next, ordering: .sequentiallyConsistent)
  }

  var now: Reach {
    let place = Int(sequence.load(ordering: .relaxed) % UInt64(Self.length))
    return Reach(rawValue: ring[place].value.load(ordering: .relaxed))
  }

  /// A change begins: from here on old, new, and what comes in between.
  func begin(to new: Reach, via between: Reach = []) { append([now, new, between]) }
  func end(at new: Reach) { append(new) }

  var moment: UInt64 { sequence.load(ordering: .sequentiallyConsistent) }

  /// All that was allowed since a moment; nil where that is too long ago.
  func allowed(since start: UInt64) -> Reach? {
    let end = moment
    guard end - start < UInt64(Self.length / 2) else { return nil }
    var reach: Reach = []
    for index in start...end {
      let cell = ring[Int(index % UInt64(Self.length))]
      reach.insert(Reach(rawValue: cell.value.load(ordering: .relaxed)))
    }
    return moment - start < UInt64(Self.length) ? reach : nil
  }
}

/// The memory behind the same bus addresses in the host's context and in each space.
struct SwitchMemory: Sendable {
  static let iova: UInt64 = 0x10_0000
  /// Four pages that say whose they are in each word, and one that lanes write.
  static let stampBytes = 4 * 4096
  static let byteCount: UInt64 = 5 * 4096

  let arena: LocalMemory
  let targets: Int

  /// - Parameter targets: The host's, then the spaces'.
  init(targets: Int) throws(IOMMUError) {
    self.targets = targets
    arena = try LocalMemory(byteCount: UInt64(targets) * Self.byteCount)
    for target in 0..<targets {
      for word in 0..<Self.stampBytes / 8 { set(target, word, Self.stamp(of: target)) }
    }
  }

  static func stamp(of target: Int) -> UInt64 { 0x5A5A_0000_0000_0000 | UInt64(target) }

  /// Offset of a target's first byte.
  func start(_ target: Int) -> UInt64 { UInt64(target) * Self.byteCount }

  /// The index of a lane's own word.
  static func word(of lane: Int) -> Int { stampBytes / 8 + lane }

  func get(_ target: Int, _ word: Int) -> UInt64 {
    arena.withUnsafeMutableBytes {
      $0.load(fromByteOffset: Int(start(target)) + word * 8, as: UInt64.self)
    }
  }

  func set(_ target: Int, _ word: Int, _ value: UInt64) {
    arena.withUnsafeMutableBytes {
      $0.storeBytes(of: value, toByteOffset: Int(start(target)) + word * 8, as: UInt64.self)
    }
  }
}

/// One requester, or one PASID of it. `probe` is called by one thread at a time.
final class SwitchLane: @unchecked Sendable {
  // Unchecked: all that varies belongs to the thread that probes.
  let number: Int
  let name: String
  let model: ReachModel
  private let port: DMAPort
  private let memory: SwitchMemory
  private var random: SplitMix
  private var count: UInt64 = 0
  private var buffer = [UInt64](repeating: 0, count: SwitchMemory.stampBytes / 8)
  /// How often each outcome was seen.
  private(set) var seen: [Reach: Int] = [:]

  init(
    number: Int, name: String, port: DMAPort, memory: SwitchMemory, starting reach: Reach,
    seed: UInt64
  ) {
    self.number = number
    self.name = name
    self.port = port
    self.memory = memory
    model = ReachModel(reach)
    random = SplitMix(seed: seed)
  }

  /// One DMA.
  /// - Returns: What was wrong with it, in a sentence; nil where nothing was.
  func probe() -> String? {
    let start = model.moment
    let outcome: Result<Reach, Wrong>
    switch random.below(4) {
    case 0: outcome = read()
    case 1: outcome = load()
    case 2: outcome = write()
    default: outcome = copy()
    }
    switch outcome {
    case .failure(let wrong): return "D1: \(name) \(wrong.sentence)"
    case .success(let reach):
      seen[reach, default: 0] += 1
      guard let allowed = model.allowed(since: start), !allowed.isSuperset(of: reach) else {
        return nil
      }
      let row = reach == .host ? "C2" : "D1"
      return "\(row): \(name) met \(reach), where it could meet \(allowed) only"
    }
  }

  private struct Wrong: Error {
    var sentence: String
    init(_ sentence: String) { self.sentence = sentence }
  }

  private func meaning(of fault: DMAFault) -> Result<Reach, Wrong> {
    switch fault.reason {
    case .blocked, .unknownRequester: .success(.blocked)
    case .hostMemory: .success(.host)
    default: .failure(Wrong("has a fault that no context explains: \(fault)"))
    }
  }

  private func meaning(ofStamp value: UInt64) -> Result<Reach, Wrong> {
    for target in 0..<memory.targets where value == SwitchMemory.stamp(of: target) {
      return .success(.memory(target))
    }
    return .failure(Wrong("read \(hex(value)), which is nobody's"))
  }

  /// Four pages in one access: they come from one context, or none of them does.
  private func read() -> Result<Reach, Wrong> {
    for index in buffer.indices { buffer[index] = 0 }
    var fault: DMAFault?
    buffer.withUnsafeMutableBytes { bytes in
      do throws(DMAFault) {
        try port.read(IOVA(SwitchMemory.iova), into: bytes)
      } catch {
        fault = error
      }
    }
    if let fault {
      guard buffer.allSatisfy({ $0 == 0 }) else {
        return .failure(Wrong("was blocked in the middle of an access: \(fault)"))
      }
      return meaning(of: fault)
    }
    guard let other = buffer.first(where: { $0 != buffer[0] }) else {
      return meaning(ofStamp: buffer[0])
    }
    return .failure(Wrong("read \(hex(buffer[0])) and \(hex(other)) in one access"))
  }

  private func load() -> Result<Reach, Wrong> {
    let offset = UInt64(random.below(buffer.count)) * 8
    do throws(DMAFault) {
      return try meaning(
        ofStamp: port.load(IOVA(SwitchMemory.iova + offset), as: UInt64.self))
    } catch {
      return meaning(of: error)
    }
  }

  private var ownAddress: IOVA {
    IOVA(SwitchMemory.iova + UInt64(SwitchMemory.word(of: number)) * 8)
  }

  /// A write: into one memory, or none.
  private func write() -> Result<Reach, Wrong> {
    count += 1
    let value = count
    return transfer(
      expecting: { _ in value },
      by: { (port, address) throws(DMAFault) in try port.store(value, at: address) })
  }

  /// A copy from a context's stamps to the lane's word: of the same context.
  private func copy() -> Result<Reach, Wrong> {
    let source = IOVA(SwitchMemory.iova + UInt64(random.below(buffer.count)) * 8)
    return transfer(
      expecting: { SwitchMemory.stamp(of: $0) },
      by: { (port, address) throws(DMAFault) in
        try port.copy(from: source, to: address, length: 8)
      })
  }

  /// - Parameter expected: What must be in the word, by the memory that it is in.
  private func transfer(
    expecting expected: (Int) -> UInt64, by body: (DMAPort, IOVA) throws(DMAFault) -> Void
  ) -> Result<Reach, Wrong> {
    let word = SwitchMemory.word(of: number)
    for target in 0..<memory.targets { memory.set(target, word, 0) }
    var fault: DMAFault?
    do throws(DMAFault) { try body(port, ownAddress) } catch { fault = error }
    let hit = (0..<memory.targets).filter { memory.get($0, word) != 0 }
    if let fault {
      return hit.isEmpty
        ? meaning(of: fault) : .failure(Wrong("changed memory with an access that failed"))
    }
    guard hit.count == 1 else {
      return .failure(Wrong("wrote to \(hit.count) memories in one access"))
    }
    let value = memory.get(hit[0], word)
    guard value == expected(hit[0]) else {
      return .failure(Wrong("wrote \(hex(value)) to the memory of \(Reach.memory(hit[0]))"))
    }
    return .success(.memory(hit[0]))
  }
}
