// SPDX-License-Identifier: Apache-2.0
//
// MODEL C4, J1: a BAR that is plain memory: what may be mapped of it, when it answers, what a
// reset leaves of it, and DMA of a device into it.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftDevices
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOMemoryTests {
  static let size: UInt64 = 64 << 10
  static let bar2: UInt64 = EngineRig.regionBase | 2 << 40
  let rig: EngineRig

  init() throws {
    rig = try EngineRig(configuration: CopyEngine.Configuration(localMemory: Self.size))
  }

  private func map(
    _ offset: UInt64, _ length: UInt64, isShared: Bool = true, executable: Bool = false
  ) -> Int32 {
    rig.caller.mmap(
      rig.file,
      MapRequest(offset: offset, length: length, isExecutable: executable, isShared: isShared))
  }

  private var memory: any DeviceMemory {
    get throws { try #require(rig.vfio.function.memory(ofBAR: 2)) }
  }

  @Test("J1: GET_REGION_INFO says of a memory BAR, and of no other, that it can be mapped")
  func info() {
    rig.bind()
    for index in UInt32(0)..<8 {
      var info = vfio_region_info()
      info.argsz = 32
      info.index = index
      #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, &info) == 0)
      let expected: UInt64? = [0: 16 << 10, 2: Self.size, 7: 4096][index]
      #expect(info.size == expected ?? 0)
      #expect(info.flags == (index == 2 ? 7 : expected == nil ? 0 : 3))
      // Registers lie after all memory: the file has no page there.
      let slot = UInt64(index < 6 && index != 2 && expected != nil ? index + 16 : index)
      #expect(info.offset == EngineRig.regionBase | slot << 40)
    }
  }

  @Test("J1: regions are where Linux has them, too: region n at n << 40")
  func linuxOffsets() throws {
    rig.bind()
    #expect(rig.pwrite(2 << 40 | 16, UInt64(0x1234)) == 8)
    #expect(rig.pread(Self.bar2 + 16) == UInt64(0x1234))
    #expect(rig.pread(7 << 40) == UInt16(0x8086))
    #expect(rig.pread(0x08) == rig.pread(rig.registerBase + 0x08, UInt8.self))
    #expect(rig.pread(3 << 40, UInt8.self) == nil && rig.pread(9 << 40, UInt8.self) == nil)
    let file = try #require(rig.file as? any RegisterFile)
    #expect(file.mapOffset(0x1000) == 0x1000, "not before the carrier offers it")
    file.offerRegisters()
    #expect(file.mapOffset(0x1000) == rig.registerBase + 0x1000)
    #expect(file.mapOffset(2 << 40 | 0x2000) == Self.bar2 + 0x2000)
    #expect(file.mapOffset(Self.bar2) == Self.bar2)
    #expect(file.mapOffset(9 << 40) == 9 << 40 && file.mapOffset(1 << 46) == 1 << 46)
  }

  @Test("J1: the BAR with the MSI-X table says that it can be mapped whole, where it can")
  func mappableTable() throws {
    rig.bind()
    let file = try #require(rig.file as? any RegisterFile)
    #expect(
      file.registers(at: Self.bar2) == nil && file.registers(at: EngineRig.regionBase) == nil)
    #expect(file.registers(at: rig.registerBase + 8)?.offset == 8)
    #expect(map(rig.registerBase, 4096) == -EINVAL, "not before the carrier offers it")
    file.offerRegisters()
    #expect(map(rig.registerBase, 4096) == 0 && map(rig.registerBase, 16 << 10) == 0)
    #expect(map(rig.registerBase, 20 << 10) == -EINVAL)
    var info = vfio_region_info()
    info.argsz = 32
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, &info) == 0)
    #expect(info.flags == 0xF && info.argsz == 40 && info.cap_offset == 0)
    let place: UInt64 = 0x3000
    info.argsz = 40
    rig.caller.put(info, at: place)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, at: place) == 0)
    #expect(rig.caller.get(vfio_region_info.self, at: place).cap_offset == 32)
    #expect(rig.caller.get(UInt64.self, at: place + 32) == 0x1_0003)
  }

  @Test(
    "C4: a memory BAR is mapped after the bind only, shared, and not beyond its end: EINVAL")
  func maps() {
    #expect(map(Self.bar2, 4096) == -EINVAL, "before the bind")
    rig.bind()
    #expect(map(Self.bar2, 4096) == 0)
    #expect(map(Self.bar2, Self.size) == 0)
    #expect(map(Self.bar2 + 4096, Self.size - 4096) == 0)
    #expect(map(Self.bar2, 4096, executable: true) == 0)
    #expect(map(Self.bar2, Self.size + 4096) == -EINVAL)
    #expect(map(Self.bar2 + 4096, Self.size) == -EINVAL)
    #expect(map(Self.bar2 + Self.size, 4096) == -EINVAL)
    #expect(map(Self.bar2, 4096, isShared: false) == -EINVAL)
    #expect(map(Self.bar2, .max - 4095) == -EINVAL)
    for other in [0, 1, 3, 6, 7, 8, 9] as [UInt64] {
      #expect(map(EngineRig.regionBase | other << 40, 4096) == -EINVAL, "region \(other)")
    }
    #expect(map(0, 4096) == -EINVAL)
    rig.config(4, UInt16(0))
    #expect(map(Self.bar2, 4096) == 0, "what is mapped while decoding is off faults later")
  }

  @Test("J1: pread and pwrite see the bytes of a memory BAR; EIO while it does not decode")
  func bytes() throws {
    rig.bind()
    #expect(rig.pread(Self.bar2) == UInt64(0))
    #expect(rig.pwrite(Self.bar2 + 4093, UInt64(0x1122_3344_5566_7788)) == 8)
    #expect(rig.pread(Self.bar2 + 4096) == UInt32(0x2233_4455))
    var last = [UInt8](repeating: 9, count: 16)
    let count = try last.withUnsafeMutableBytes {
      try rig.file.read(at: Self.bar2 + Self.size - 3, into: $0)
    }
    #expect(count == 3, "a region ends short")
    #expect(rig.pwrite(Self.bar2 + Self.size, UInt8(1)) == -Int(EINVAL))
    rig.config(4, UInt16(0))
    #expect(rig.pwrite(Self.bar2, UInt8(1)) == -Int(EIO))
    #expect(rig.pread(Self.bar2, UInt8.self) == nil)
    rig.config(4, UInt16(2))
    #expect(rig.pread(Self.bar2 + 4096) == UInt32(0x2233_4455), "contents outlive decoding")
    rig.config(0xE4, UInt16(3))
    #expect(rig.pwrite(Self.bar2, UInt8(1)) == -Int(EIO), "in D3hot")
    rig.config(0xE4, UInt16(0))
    #expect(rig.pread(Self.bar2 + 4096) == UInt32(0x2233_4455))
  }

  @Test("C4: a reset clears a memory BAR and leaves it decoding; the next user finds zeros")
  func resets() throws {
    rig.bind()
    let memory = try memory
    #expect(rig.pwrite(Self.bar2, UInt64(1)) == 8)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_RESET, at: 0) == 0)
    #expect(rig.pread(Self.bar2) == UInt64(0))
    #expect(memory.isGiven)
    #expect(rig.pwrite(Self.bar2, UInt64(2)) == 8)
    rig.config(0x99, UInt8(0x80))
    #expect(rig.pread(Self.bar2) == UInt64(0), "by the capability's reset bit too")
    #expect(rig.pwrite(Self.bar2, UInt64(3)) == 8)
    rig.caller.close(rig.devicefd)
    #expect(!memory.isGiven, "closing takes it")
    #expect(rig.vfio.function.memory(ofBAR: 2) == nil)
    let second = try rig.node.open(flags: 2, by: rig.caller)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = rig.iommufd
    #expect(rig.caller.ioctl(second, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    var value: UInt64 = 9
    #expect(
      try withUnsafeMutableBytes(of: &value) { try second.read(at: Self.bar2, into: $0) } == 8)
    #expect(value == 0)
    #expect(!memory.isGiven, "the first user's memory does not come back")
    second.close()
  }

  @Test("C4: removal takes the memory from a user who is still there")
  func removal() throws {
    rig.bind()
    let memory = try memory
    rig.vfio.function.remove()
    #expect(!memory.isGiven)
    #expect(rig.pwrite(Self.bar2, UInt8(1)) == -Int(EIO))
  }

  // MARK: Peer to peer

  /// Maps the BAR at `iova` as a container does.
  private func mapMemory(at iova: UInt64) throws {
    let file = try #require(rig.iommuFile as? IOMMUFile)
    _ = try file.context.map(
      memory, start: 0, length: Self.size, into: ObjectID(rig.ioas), permissions: .readWrite,
      at: .fixed(IOVA(iova)))
  }

  /// Copies 4 KiB, waits, and says what CHANERR is.
  private func copy(from source: UInt64, to destination: UInt64) -> UInt32 {
    rig.descriptor(
      at: 0x10_0000, size: 4096, source: source, destination: destination, next: 0)
    rig.start(0x10_0000, count: 1)
    rig.wait()
    return rig.errors
  }

  @Test("J1: DMA reaches a memory BAR that is mapped, and fails while the BAR is taken")
  func peerToPeer() throws {
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x10_0000) == 0)
    try mapMemory(at: 0x80_0000)
    rig.caller.put(UInt64(0x1234_5678_9ABC_DEF0), at: 0x11_0000)
    #expect(copy(from: 0x11_0000, to: 0x80_1000) == 0)
    #expect(rig.pread(Self.bar2 + 0x1000) == UInt64(0x1234_5678_9ABC_DEF0))
    #expect(rig.pwrite(Self.bar2 + 0x2008, UInt64(77)) == 8)
    #expect(copy(from: 0x80_2000, to: 0x12_0000) == 0)
    #expect(rig.caller.get(UInt64.self, at: 0x12_0008) == 77)
    // The mapping stays while the memory is taken; DMA to it is an error, then works again.
    try memory.take()
    #expect(copy(from: 0x11_0000, to: 0x80_1000) != 0)
    try memory.give()
    #expect(copy(from: 0x11_0000, to: 0x80_3000) == 0)
    #expect(rig.pread(Self.bar2 + 0x3000) == UInt64(0x1234_5678_9ABC_DEF0))
    #expect(rig.unmap(0x80_0000, length: Self.size) == 0)
    #expect(copy(from: 0x11_0000, to: 0x80_1000) != 0)
  }

  @Test("C4: memory is taken, given and cleared while DMA, reads and writes go on")
  func concurrency() async throws {
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x10_0000) == 0)
    try mapMemory(at: 0x80_0000)
    // A ring of copies into the BAR and out of it; some fail while it is taken.
    for index in UInt64(0)..<16 {
      let toBAR = index % 2 == 0
      rig.descriptor(
        at: 0x10_0000 + index * 64, size: 4096,
        source: toBAR ? 0x11_0000 : 0x80_0000, destination: toBAR ? 0x80_1000 : 0x12_0000,
        next: 0x10_0000 + (index + 1) % 16 * 64)
    }
    let memory = try memory
    let toggling = Task.detached {
      for round in 0..<200 {
        memory.take()
        if round % 3 == 0 { memory.clear() }
        memory.give()
        // Not Task.yield: that waits for what else the pool has to do, each time.
        sched_yield()
      }
    }
    for round in UInt64(0)..<50 {
      rig.start(0x10_0000, count: 16)
      var value = round
      let isRead = withUnsafeMutableBytes(of: &value) { memory.read(at: 0x2000, into: $0) }
      #expect(!isRead || value == 0, "nobody writes there")
      rig.wait()
      #expect(rig.errors & ~0x300 == 0, "data errors only")
    }
    await toggling.value
    rig.start(0x10_0000, count: 16)
    rig.wait()
    #expect(rig.errors == 0)
    #expect(rig.pread(Self.bar2 + 0x1000) == rig.caller.get(UInt64.self, at: 0x11_0000))
  }

  @Test("J1: memory that does not decode cannot be mapped for DMA, nor beyond its end: EFAULT")
  func peerToPeerErrors() throws {
    try rig.connect()
    let memory = try memory
    memory.take()
    #expect(throws: IOMMUError.self) { try mapMemory(at: 0x80_0000) }
    memory.give()
    let file = try #require(rig.iommuFile as? IOMMUFile)
    do throws(IOMMUError) {
      _ = try file.context.map(
        memory, start: 4096, length: Self.size, into: ObjectID(rig.ioas),
        permissions: .readWrite, at: .fixed(IOVA(0x80_0000)))
      Issue.record("it was mapped")
    } catch {
      #expect(error.errno == .badAddress)
    }
    try mapMemory(at: 0x80_0000)
  }
}

extension EngineRig {
  fileprivate func pread<T: FixedWidthInteger>(_ offset: UInt64, _ type: T.Type) -> T? {
    pread(offset)
  }
}
