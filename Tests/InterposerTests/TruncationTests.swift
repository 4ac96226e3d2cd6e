// SPDX-License-Identifier: Apache-2.0
//
// Files that their owner cuts short under DMA: the pages stay the device's, as pinned pages do,
// and what fails is the fault of the side that failed.

import CProcessMemory
import CSyscalls
import Glibc
import IOMMU
import PageTables
import SoftwareIOMMU
import Testing

@testable import Interposer

/// A memfd of some pages.
private final class SharedFile {
  let descriptor: OwnedDescriptor
  let size: UInt64

  init(pages: Int) throws {
    size = UInt64(pages * 4096)
    descriptor = OwnedDescriptor(csys_memfd_create("shared", 0))
    try #require(descriptor.number >= 0 && ftruncate(descriptor.number, off_t(size)) == 0)
    let bytes = [UInt8](repeating: UInt8(ascii: "s"), count: Int(size))
    try #require(pwrite(descriptor.number, bytes, bytes.count, 0) == bytes.count)
  }

  func cut(toPages pages: Int) throws {
    try #require(ftruncate(descriptor.number, off_t(pages * 4096)) == 0)
  }

  func byte(at offset: Int) -> UInt8? {
    var byte: UInt8 = 0
    return pread(descriptor.number, &byte, 1, off_t(offset)) == 1 ? byte : nil
  }
}

/// Private memory that the kernel copies to and from, as it does a client's.
private final class PrivatePages: RemoteMemory, @unchecked Sendable {
  // Unchecked: a test is one thread.
  let bytes: UnsafeMutableRawPointer
  let size: UInt64

  init(pages: Int) {
    size = UInt64(pages * 4096)
    bytes = mmap(nil, Int(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    memset(bytes, Int32(UInt8(ascii: "p")), Int(size))
  }

  deinit { munmap(bytes, Int(size)) }

  /// From here on the page can be reached by nobody.
  func lose(page: Int) { mprotect(bytes + page * 4096, 4096, PROT_NONE) }

  func byte(at offset: Int) -> UInt8 { bytes.load(fromByteOffset: offset, as: UInt8.self) }

  // The kernel stops at whatever is not there, be it on this side or on the other.

  func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    csys_process_vm_readv(getpid(), buffer.baseAddress, address, buffer.count) == buffer.count
  }

  func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    csys_process_vm_writev(getpid(), buffer.baseAddress, address, buffer.count) == buffer.count
  }
}

@Suite("B1: files that are cut short under DMA")
struct TruncationTests {
  private static let pages = 4
  private static let fileIOVA: UInt64 = 0x10_0000
  private static let privateIOVA: UInt64 = 0x20_0000
  private let file: SharedFile
  private let memory: PrivatePages
  private let iommu: SoftwareIOMMU
  private let port: DMAPort

  init() throws {
    // As the supervisor does before it serves.
    try #require(csys_guard_truncation() == 0)
    file = try SharedFile(pages: Self.pages)
    memory = PrivatePages(pages: Self.pages)
    let space = PhysicalMemory()
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(), memory: space, events: EventLog())
    let requester = RequesterID(bus: 0, device: 1, function: 0)
    let domain = try iommu.makePagingDomain(for: requester, attributes: [])
    try iommu.setContext(of: requester, pasid: nil, to: .paging(domain))
    port = iommu.port(for: requester)
    let source = FileMemory(
      OwnedDescriptor(fcntl(file.descriptor.number, F_DUPFD_CLOEXEC, 0)), isForeign: true)
    try source.pin(address: 0, length: file.size, writable: true) { run throws(IOMMUError) in
      let length = run.length
      try domain.map(
        IOVA(Self.fileIOVA), to: space.insert(run, congruentTo: Self.fileIOVA), length: length,
        permissions: .readWrite)
    }
    let run = PinnedRun(
      length: memory.size,
      backing: .remote(memory, address: UInt64(UInt(bitPattern: memory.bytes))),
      identity: MemoryIdentity(space: 0, object: 1, offset: 0))
    try domain.map(
      IOVA(Self.privateIOVA), to: space.insert(run, congruentTo: Self.privateIOVA),
      length: memory.size, permissions: .readWrite)
  }

  private func file(_ offset: Int) -> IOVA { IOVA(Self.fileIOVA + UInt64(offset)) }
  private func memory(_ offset: Int) -> IOVA { IOVA(Self.privateIOVA + UInt64(offset)) }

  /// The fault of a copy; nil where it succeeds.
  private func copy(from source: IOVA, to destination: IOVA, _ length: Int) -> DMAFault? {
    do throws(DMAFault) {
      try port.copy(from: source, to: destination, length: length)
      return nil
    } catch {
      return error
    }
  }

  @Test(
    "B1: a copy of private memory to a file that was cut goes to the pages that were pinned")
  func toCutFile() throws {
    try file.cut(toPages: 1)
    #expect(copy(from: memory(0), to: file(0), 3 * 4096) == nil)
    #expect(file.byte(at: 4095) == UInt8(ascii: "p") && file.byte(at: 4096) == nil)
    // They are the device's alone, and stay so when the file grows again.
    #expect(try port.load(file(4096), as: UInt8.self) == UInt8(ascii: "p"))
    try file.cut(toPages: 4)
    #expect(file.byte(at: 4096) == 0)
    #expect(try port.load(file(4096), as: UInt8.self) == UInt8(ascii: "p"))
  }

  @Test("B1: a copy of a file that was cut to private memory brings zeros, and no fault")
  func fromCutFile() throws {
    try file.cut(toPages: 1)
    #expect(copy(from: file(100), to: memory(0), 2 * 4096) == nil)
    #expect(memory.byte(at: 3995) == UInt8(ascii: "s"))
    #expect(memory.byte(at: 3996) == 0 && memory.byte(at: 8191) == 0)
    #expect(memory.byte(at: 8192) == UInt8(ascii: "p"))
  }

  @Test("B1: between files that were cut a copy goes from orphaned page to orphaned page")
  func withinCutFile() throws {
    try file.cut(toPages: 0)
    try port.store(UInt64(77), at: file(8))
    #expect(copy(from: file(0), to: file(8192), 4096) == nil)
    #expect(try port.load(file(8200), as: UInt64.self) == 77)
  }

  @Test(
    "H2: private memory that is gone is blamed where a copy to a cut file ends, at its first byte",
    arguments: [0, 4])
  func lostSource(pages: Int) throws {
    try file.cut(toPages: pages)
    memory.lose(page: 2)
    let fault = try #require(copy(from: memory(64), to: file(0), 3 * 4096))
    #expect(fault.iova == memory(8192) && fault.access == .read && fault.reason == .memoryGone)
    #expect(try port.load(file(8127), as: UInt8.self) == UInt8(ascii: "p"))
    // Nothing after it was touched.
    #expect(
      try port.load(file(8128), as: UInt8.self) == (pages == 0 ? 0 : UInt8(ascii: "s")))
  }

  @Test(
    "H2: private memory that is gone is blamed where a copy of a cut file ends, at its first byte",
    arguments: [0, 4])
  func lostDestination(pages: Int) throws {
    try file.cut(toPages: pages)
    memory.lose(page: 2)
    let fault = try #require(copy(from: file(0), to: memory(64), 3 * 4096))
    #expect(fault.iova == memory(8192) && fault.access == .write && fault.reason == .memoryGone)
    #expect(memory.byte(at: 8191) == (pages == 0 ? 0 : UInt8(ascii: "s")))
    #expect(memory.byte(at: 63) == UInt8(ascii: "p"))
  }

  @Test("H2: between private pages the one that is gone is blamed, at its first byte")
  func privateOnly() throws {
    memory.lose(page: 2)
    let read = try #require(copy(from: memory(4096), to: memory(0), 2 * 4096))
    #expect(read.iova == memory(8192) && read.access == .read)
    let write = try #require(copy(from: memory(0), to: memory(4096), 2 * 4096))
    #expect(write.iova == memory(8192) && write.access == .write)
    let fill = { () throws(DMAFault) in
      try self.port.fill(self.memory(4000), pattern: 0, length: 3 * 4096)
    }
    let filled = #expect(throws: DMAFault.self) { try fill() }
    #expect(filled?.iova == memory(8192))
    #expect(memory.byte(at: 8191) == 0)
  }

  @Test(
    "B1: pages of a cut file that are touched one by one use up no mappings, and take no other's"
  )
  func manyPages() throws {
    // Each page that is replaced alone makes two mappings more: too many for a process.
    let pages = 100_003
    let before = try neighbours()
    let large = OwnedDescriptor(csys_memfd_create("large", 0))
    try #require(large.number >= 0 && ftruncate(large.number, off_t(pages * 4096)) == 0)
    let mapping = try #require(FileMapping(large.number, Self.request(pages: pages)))
    let after = try neighbours()
    let bytes = try #require(UnsafeMutableRawPointer(bitPattern: mapping.base))
    bytes.storeBytes(of: 1, as: UInt8.self)
    try #require(ftruncate(large.number, 4096) == 0)
    var sum = 0
    for page in stride(from: 2, to: pages, by: 2) {
      sum += Int(bytes.load(fromByteOffset: page * 4096, as: UInt8.self))
    }
    #expect(sum == 0)
    #expect(bytes.load(as: UInt8.self) == 1, "the page that is left is the file's")
    for neighbour in before + after {
      let byte = UnsafeRawPointer(bitPattern: neighbour.base)?.load(as: UInt8.self)
      #expect(byte == UInt8(ascii: "s"))
    }
    let maps = System.contents("/proc/self/maps") ?? []
    #expect(maps.count { $0 == UInt8(ascii: "\n") } < 20_000)
  }

  private static func request(pages: Int) -> FileMapping.Request {
    .init(offset: 0, length: UInt64(pages * 4096), writable: true, pageSize: 4096)
  }

  /// Mappings of the file, one after another.
  private func neighbours() throws -> [FileMapping] {
    try (0..<20).map { _ in
      try #require(FileMapping(file.descriptor.number, Self.request(pages: 1)))
    }
  }
}
