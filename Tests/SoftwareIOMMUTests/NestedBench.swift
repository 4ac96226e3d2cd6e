// SPDX-License-Identifier: Apache-2.0
//
// A guest for tests: memory that a parent maps, canaries around it, and tables that the guest
// writes there while devices walk them.

import HardwareTables
import IOMMU
import PageTables
import Synchronization
import Testing

@testable import SoftwareIOMMU

/// A guest's memory on a page table of the engine's, at the same addresses plus `base`.
final class NestedBench: @unchecked Sendable {
  // Unchecked: what is written while devices run is written by atomics; pages are handed out by the
  // test's own thread.
  let bench: Bench
  let parent: any PagingDomain
  let pages: Int
  private let buffer: Buffer
  private var next: UInt64
  /// Guest-physical, of the memory's first byte.
  static let base: UInt64 = 0x10_0000
  static let canary: UInt8 = 0xC5

  /// - Parameter far: Behind calls.
  init(
    _ configuration: SoftwareIOMMU.Configuration, pages: Int = 192,
    attributes: PagingAttributes = .nestParent, far: Bool = false
  ) throws {
    bench = Bench(configuration)
    self.pages = pages
    parent = try bench.iommu.makePagingDomain(for: Bench.device, attributes: attributes)
    let run: PinnedRun
    if far {
      let memory = FarMemory((pages + 2) * 4096, base: 0x7000_0000_0000)
      buffer = memory.buffer
      run = memory.run()
    } else {
      buffer = Buffer((pages + 2) * 4096)
      run = buffer.run()
    }
    for index in 0..<4096 {
      buffer[index] = Self.canary
      buffer[(pages + 1) * 4096 + index] = Self.canary
    }
    next = Self.base
    let physical = try bench.pin(run, at: Self.base)
    first = physical.rawValue + 4096
    try parent.map(
      IOVA(Self.base), to: PhysicalAddress(first), length: UInt64(pages) * 4096,
      permissions: .readWrite)
  }

  /// Physical, of the guest's first page.
  let first: UInt64

  /// A page of zeros, by its guest-physical address.
  func page(count: UInt64 = 1) -> UInt64 {
    next = (next + count * 4096 - 1) / (count * 4096) * (count * 4096)
    defer { next += count * 4096 }
    return next
  }

  private func word(_ address: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>> {
    let offset = Int(address - Self.base) + 4096
    precondition(offset >= 0 && offset + 8 <= buffer.bytes.count)
    return (buffer.bytes.baseAddress! + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  /// A word of the guest's memory.
  subscript(address: UInt64) -> UInt64 {
    get { word(address).pointee.load(ordering: .acquiring) }
    set { word(address).pointee.store(newValue, ordering: .releasing) }
  }

  /// Whether nothing outside of what the parent maps was written.
  var isIntact: Bool {
    (0..<4096).allSatisfy {
      buffer[$0] == Self.canary && buffer[(pages + 1) * 4096 + $0] == Self.canary
    }
  }

  /// Writes the entries of a table that has none but for one page.
  /// - Returns: The address of the leaf's entry.
  @discardableResult
  func map<Format: PageTableFormat>(
    _ iova: UInt64, to target: UInt64, in root: UInt64, levels: Int, as format: Format.Type,
    leafLevel: Int = 1, permissions: Permissions = [.read, .write, .execute],
    _ configuration: Format.Configuration
  ) -> UInt64 {
    var table = root
    for level in stride(from: levels, to: leafLevel, by: -1) {
      let place = table + index(iova, level, levels, format) * 8
      if self[place] == 0 { self[place] = Format.tableEntry(page(), level: level) }
      table = Format.address(self[place], configuration)
    }
    let place = table + index(iova, leafLevel, levels, format) * 8
    self[place] = Format.leafEntry(
      target, shift: Format.shift(level: leafLevel), level: leafLevel,
      permissions: permissions, attributes: [], configuration)
    return place
  }

  private func index<Format: PageTableFormat>(
    _ iova: UInt64, _ level: Int, _ levels: Int, _ format: Format.Type
  ) -> UInt64 {
    let bits = Format.addressBits(levels: levels)
    let offset = bits < 64 ? iova & (1 << UInt64(bits) - 1) : iova
    return offset >> UInt64(Format.shift(level: level))
      & (level == levels ? .max : 1 << UInt64(Format.indexBits) - 1)
  }

  func attach(_ domain: any NestedDomain, pasid: PASID? = nil) throws(IOMMUError) {
    try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .nested(domain))
  }
}

extension NestedBench {
  /// A device writes all the time at IOVA 0x5008, first to the first of two pages, while tables
  /// send it to the other and back: when that is done, nothing of it reaches the page before.
  /// - Parameter change: Sends the device to the page with an index, and invalidates.
  func movePage(
    among targets: [UInt64], behind port: DMAPort, change: (_ new: Int, _ round: UInt64) -> Void
  ) {
    let device = DeviceThread { try? port.store(UInt64(0x11), at: IOVA(0x5008)) }
    defer { device.stop() }
    for round in 0..<200 as Range<UInt64> {
      let (old, new) = (Int(round % 2), Int((round + 1) % 2))
      if round % 4 == 0 { device.wait(rounds: 2) }
      change(new, round)
      self[targets[old] + 8] = round
      if round % 8 == 0 { device.wait(rounds: 2) }
      #expect(self[targets[old] + 8] == round)
    }
    #expect(isIntact)
  }
}

/// The errno of the error that a call throws; nil where it succeeds.
func refusal(_ call: () throws(IOMMUError) -> Void) -> String? {
  do throws(IOMMUError) {
    try call()
    return nil
  } catch {
    return "\(error.errno)"
  }
}

/// Words as bytes, little-endian.
func bytes(_ words: UInt64...) -> [UInt8] {
  words.littleEndianBytes
}
