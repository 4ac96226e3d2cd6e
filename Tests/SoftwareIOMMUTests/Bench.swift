// SPDX-License-Identifier: Apache-2.0
//
// A machine of one IOMMU for tests: memory of our own or behind calls, pinned by hand.

import IOMMU
import PageTables
import Synchronization
import Testing

@testable import SoftwareIOMMU

/// Page-aligned memory of this process, zeroed.
final class Buffer: @unchecked Sendable {
  // Unchecked: tests order their accesses through the IOMMU, which is what they test.
  let bytes: UnsafeMutableRawBufferPointer

  init(_ count: Int, alignment: Int = 4096) {
    bytes = .allocate(byteCount: count, alignment: alignment)
    bytes.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit { bytes.deallocate() }

  func fill(_ value: UInt8) { for index in bytes.indices { bytes[index] = value } }

  subscript(index: Int) -> UInt8 {
    get { bytes[index] }
    set { bytes[index] = newValue }
  }

  /// As a pinned run.
  func run(identity: UInt64 = 0) -> PinnedRun {
    PinnedRun(
      length: UInt64(bytes.count),
      backing: .local(base: UInt(bitPattern: bytes.baseAddress!), owner: self),
      identity: MemoryIdentity(space: 1, object: identity, offset: 0))
  }
}

/// Memory behind calls, which can go away.
final class FarMemory: RemoteMemory {
  let buffer: Buffer
  let base: UInt64
  private let state = Guarded((gone: false, calls: 0))

  init(_ count: Int, base: UInt64) {
    buffer = Buffer(count)
    self.base = base
  }

  func vanish() { state.withLock { $0.gone = true } }
  var calls: Int { state.withLock { $0.calls } }

  private func place(_ address: UInt64, _ count: Int) -> Int? {
    let gone = state.withLock { state in
      state.calls += 1
      return state.gone
    }
    let offset = Int(address - base)
    return gone || offset < 0 || offset + count > buffer.bytes.count ? nil : offset
  }

  func read(at address: UInt64, into out: UnsafeMutableRawBufferPointer) -> Bool {
    guard let offset = place(address, out.count) else { return false }
    out.copyMemory(
      from: UnsafeRawBufferPointer(rebasing: buffer.bytes[offset..<offset + out.count]))
    return true
  }

  func write(at address: UInt64, from bytes: UnsafeRawBufferPointer) -> Bool {
    guard let offset = place(address, bytes.count) else { return false }
    (buffer.bytes.baseAddress! + offset).copyMemory(
      from: bytes.baseAddress!, byteCount: bytes.count)
    return true
  }

  func run() -> PinnedRun {
    PinnedRun(
      length: UInt64(buffer.bytes.count), backing: .remote(self, address: base),
      identity: MemoryIdentity(space: 0, object: 1, offset: base))
  }
}

/// Counts.
final class Counter: EventSignal {
  private let value = Atomic(0)
  func signal() { value.add(1, ordering: .relaxed) }
  var count: Int { value.load(ordering: .relaxed) }
}

struct Bench {
  let memory = PhysicalMemory()
  let events = EventLog()
  let iommu: SoftwareIOMMU
  static let device = RequesterID(bus: 0xE0, device: 4, function: 0)
  static let neighbour = RequesterID(bus: 0xE0, device: 4, function: 1)

  init(_ configuration: SoftwareIOMMU.Configuration = .init()) {
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: configuration, memory: memory, events: events)
  }

  var port: DMAPort { iommu.port(for: Self.device) }

  func domain() throws -> any PagingDomain {
    try iommu.makePagingDomain(for: Self.device, attributes: [])
  }

  /// A domain that the device is attached to.
  func attachedDomain() throws -> any PagingDomain {
    let domain = try domain()
    try iommu.setContext(of: Self.device, pasid: nil, to: .paging(domain))
    return domain
  }

  func pin(_ run: PinnedRun, at iova: UInt64) throws -> PhysicalAddress {
    try memory.insert(run, congruentTo: iova)
  }
}

let formats: [SoftwareIOMMU.Configuration] = [
  .init(levels: 3), .init(levels: 4), .init(levels: 5), .init(stage: .first),
  .init(stage: .first, levels: 5), .init(architecture: .amd),
  .init(architecture: .amd, addressBits: 64), .init(architecture: .amd, stage: .first),
  .init(architecture: .smmuV3), .init(architecture: .smmuV3, addressBits: 39),
  .init(architecture: .smmuV3, stage: .second),
  .init(architecture: .smmuV3, stage: .second, addressBits: 40),
  .init(architecture: .riscv, levels: 3), .init(architecture: .riscv),
  .init(architecture: .riscv, levels: 5), .init(architecture: .riscv, stage: .second),
]

/// Of every format one that keeps dirty bits, and one that does without.
let trackingFormats: [SoftwareIOMMU.Configuration] =
  SoftwareIOMMU.Architecture.allCases.flatMap { architecture in
    SoftwareIOMMU.Stage.allCases.flatMap { stage in
      [true, false].map { hasBits in
        .init(
          architecture: architecture, stage: stage, tracksDirty: hasBits,
          tracksDirtyInSoftware: !hasBits)
      }
    }
  }

extension SoftwareIOMMU.Configuration {
  /// Whether addresses of its tables are extended by sign.
  var isCanonical: Bool { stage == .first && architecture != .smmuV3 }

  /// Whether what can be written can be read.
  var readsWhatItWrites: Bool { stage == .first || architecture == .riscv }

  /// Of the addresses that may be mapped.
  var apertureBits: Int {
    if isCanonical { return addressBits - 1 }
    return architecture == .riscv ? addressBits + 2 : addressBits
  }
}

/// The reason of the fault that an access throws; nil where it succeeds.
func reason(_ access: () throws(DMAFault) -> Void) -> DMAFault.Reason? {
  do throws(DMAFault) {
    try access()
    return nil
  } catch {
    return error.reason
  }
}
