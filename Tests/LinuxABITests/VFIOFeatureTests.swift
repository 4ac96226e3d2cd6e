// SPDX-License-Identifier: Apache-2.0
//
// J1, I1: DMA logging and low power by VFIO_DEVICE_FEATURE.

import CLinuxABI
import Foundation
import IOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct DMALoggingTests {
  let rig: EngineRig
  private static let ranges: UInt64 = 0x5000
  private static let bitmap: UInt64 = 0x6000

  init() throws {
    rig = try EngineRig()
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x80_0000) == 0)
  }

  private func start(
    _ ranges: [(UInt64, UInt64)], pageSize: UInt64 = 4096, count: UInt32? = nil
  ) -> (result: Int32, pageSize: UInt64) {
    for (index, range) in ranges.enumerated() {
      rig.caller.put(range.0, at: Self.ranges + UInt64(index) * 16)
      rig.caller.put(range.1, at: Self.ranges + UInt64(index) * 16 + 8)
    }
    var control = vfio_device_feature_dma_logging_control()
    control.page_size = pageSize
    control.num_ranges = count ?? UInt32(ranges.count)
    control.ranges = Self.ranges
    let result = rig.feature(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, EngineRig.set, &control)
    return (result, control.page_size)
  }

  private func report(
    _ iova: UInt64, _ length: UInt64, pageSize: UInt64 = 4096, at bitmap: UInt64 = Self.bitmap
  ) -> Int32 {
    var report = vfio_device_feature_dma_logging_report(
      iova: iova, length: length, page_size: pageSize, bitmap: bitmap)
    return rig.feature(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, EngineRig.get, &report)
  }

  private func word(_ index: UInt64 = 0) -> UInt64 {
    rig.caller.get(UInt64.self, at: Self.bitmap + index * 8)
  }

  private func clearBitmap() {
    for index in UInt64(0)..<64 { rig.caller.put(UInt64(0), at: Self.bitmap + index * 8) }
  }

  /// Copies so many bytes from 1 MiB + 64 KiB.
  private func copy(to destination: UInt64, _ length: UInt32) {
    rig.descriptor(
      at: 0x10_0000, size: length, source: 0x11_0000, destination: destination, next: 0x10_0000)
    rig.start(0x10_0000, count: 1)
    rig.wait()
  }

  @Test("I1: pages that DMA wrote are reported once, at any page size, and none that it read")
  func pages() {
    #expect(start([(0x20_0000, 0x40_0000)]) == (0, 4096))
    copy(to: 0x20_1FF8, 0x2010)
    #expect(report(0x20_0000, 0x40_0000) == 0)
    #expect(word() == 0b11110)
    #expect((1..<16).allSatisfy { word($0) == 0 })
    clearBitmap()
    #expect(report(0x20_0000, 0x40_0000) == 0)
    #expect(word() == 0, "reading clears")
    copy(to: 0x40_0000, 8)
    #expect(report(0x20_0000, 0x20_0000) == 0)
    #expect(word(7) == 0)
    #expect(report(0x40_0000, 0x20_0000, pageSize: 0x10_0000) == 0)
    #expect(word() == 1)
    copy(to: 0x40_0000, 8)
    rig.caller.put(UInt64(0x8000), at: Self.bitmap)
    #expect(report(0x3F_0000, 0x20_0000) == 0)
    #expect(word() == 0x1_8000, "bits are set and none is cleared")
    // What is outside of the ranges is not logged.
    copy(to: 0x70_0000, 8)
    clearBitmap()
    #expect(report(0x70_0000, 0x1000) == 0)
    #expect(word() == 0)
  }

  @Test("I1: whatever page is asked for, what was reported takes nothing else with it")
  func parts() {
    #expect(start([(0x20_0000, 0x20_0000)], pageSize: 0x1_0000) == (0, 4096))
    copy(to: 0x21_3000, 8)
    copy(to: 0x21_8000, 8)
    #expect(report(0x21_0000, 0x4000) == 0)
    #expect(word() == 0b1000)
    clearBitmap()
    #expect(report(0x20_0000, 0x2_0000, pageSize: 0x1_0000) == 0)
    #expect(word() == 0b10, "the other page is told later")
    clearBitmap()
    #expect(report(0x20_0000, 0x10_0000) == 0)
    #expect(word() == 0)
    // A page of which a part is asked for is told, and not forgotten.
    copy(to: 0x21_8000, 8)
    #expect(report(0x21_8000, 0x800) == 0)
    #expect(report(0x21_7800, 0x1000) == 0)
    #expect(word() == 1)
    clearBitmap()
    #expect(report(0x21_8000, 0x1000) == 0)
    #expect(word() == 1)
    clearBitmap()
    #expect(report(0x21_8000, 0x1000) == 0)
    #expect(word() == 0)
  }

  @Test("I1: what failed in the middle has its first pages logged")
  func partial() {
    #expect(start([(0, 1 << 40)]) == (0, 4096))
    // 0x90_0000 is where the mapping ends.
    copy(to: 0x8F_E000, 0x4000)
    #expect(rig.errors != 0)
    #expect(report(0x8F_0000, 0x2_0000) == 0)
    #expect(word() & ~UInt64(0xFFFF) == 0)
    #expect(word() & 0xFFFF == 0xC000)
  }

  @Test("I1: START, STOP and REPORT refuse what Linux refuses, in its order")
  func refusals() {
    #expect(report(0, 0x1000) == -EINVAL, "it does not run")
    #expect(start([]).result == -EINVAL)
    #expect(start([(0, 0x1000)], count: 257).result == -E2BIG)
    #expect(start([(0x800, 0x1000)]).result == -EINVAL)
    #expect(start([(0, 0x1800)]).result == -EINVAL)
    #expect(start([(0, 0x1000)], pageSize: 0).result == -EINVAL)
    #expect(start([(~0xFFF, 0x1000)]).result == -EOVERFLOW)
    #expect(start([(0, 0x4000), (0x3000, 0x1000)]).result == -EINVAL)
    var control = vfio_device_feature_dma_logging_control()
    control.page_size = 4096
    control.num_ranges = 1
    control.ranges = 0x10
    let number = VFIO_DEVICE_FEATURE_DMA_LOGGING_START
    #expect(rig.feature(number, EngineRig.set, &control) == -EFAULT)
    #expect(rig.feature(number, EngineRig.get, &control) == -EINVAL)
    #expect(rig.feature(number, EngineRig.set, &control, argsz: 31) == -EINVAL)
    #expect(rig.feature(number, EngineRig.probe | EngineRig.set) == 0)
    #expect(start([(0, 0x4000)], pageSize: 0x1000) == (0, 0x1000))
    #expect(start([(0, 0x4000)]).result == -EINVAL, "it runs")
    #expect(report(0, 0x1000, pageSize: 2048) == -EINVAL)
    #expect(report(0, 0x1000, pageSize: 0x1800) == -EINVAL)
    #expect(report(~0xFFF, 0x1000) == -EOVERFLOW)
    #expect(report(0, 0) == 0)
    let stop = VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
    #expect(rig.feature(stop, EngineRig.get) == -EINVAL)
    #expect(rig.feature(stop, EngineRig.set) == 0)
    #expect(rig.feature(stop, EngineRig.set) == 0, "again: nothing to do")
    #expect(report(0, 0x1000) == -EINVAL)
    #expect(start([(0, 0x800)], pageSize: 0x800) == (0, 4096), "it logs pages of 4 KiB")
  }

  @Test("I1: a bitmap that cannot be written loses no page")
  func badBitmap() {
    #expect(start([(0x20_0000, 0x20_0000)]) == (0, 4096))
    copy(to: 0x20_0000, 8)
    #expect(report(0x20_0000, 0x1000, at: 0x10) == -EFAULT)
    #expect(report(0x20_0000, 0x1000) == 0)
    #expect(word() == 1)
  }
}

@Suite(.timeLimit(.minutes(10))) struct LowPowerTests {
  let rig: EngineRig
  private let entry = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
  private let exit = VFIO_DEVICE_FEATURE_LOW_POWER_EXIT

  init() throws {
    rig = try EngineRig()
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x80_0000) == 0)
  }

  private func enter(wake descriptor: Int32) -> Int32 {
    var structure = vfio_device_low_power_entry_with_wakeup()
    structure.wakeup_eventfd = descriptor
    return rig.feature(
      VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, EngineRig.set, &structure)
  }

  private var decodes: Bool { rig.vfio.function.isMemoryEnabled }

  @Test("J1: a device in low power wakes for each access and sleeps again, until the exit")
  func sleeps() {
    #expect(rig.feature(entry, EngineRig.set) == 0)
    #expect(!decodes, "mappings fault")
    #expect(rig.read(0x08, as: UInt8.self) == 0x33, "pread wakes it up")
    #expect(!decodes)
    #expect(rig.feature(entry, EngineRig.set) == -EINVAL, "once")
    #expect(rig.feature(exit, EngineRig.set) == 0)
    #expect(decodes)
    #expect(rig.feature(exit, EngineRig.set) == 0, "again: nothing to do")
  }

  @Test("J1: with a wakeup the first access signals it once, and the device stays awake")
  func wakeup() {
    let signal = CountingSignal()
    let descriptor = rig.caller.add(signal)
    #expect(enter(wake: descriptor) == 0)
    #expect(signal.count == 0)
    #expect(rig.config(0, as: UInt16.self) == 0x8086)
    #expect(signal.count == 1)
    #expect(decodes)
    #expect(rig.read(0x08, as: UInt8.self) == 0x33)
    #expect(signal.count == 1)
    #expect(enter(wake: descriptor) == 0)
    #expect(rig.feature(exit, EngineRig.set) == 0)
    #expect(signal.count == 2, "the exit is an access too")
    #expect(enter(wake: -1) == -EINVAL)
    #expect(enter(wake: 999) == -EBADF)
    #expect(enter(wake: rig.devicefd) == -EINVAL)
    #expect(decodes)
  }

  @Test("J1: a sleeping device does no DMA; from D3hot it sleeps and comes back in D0")
  func quiet() {
    rig.config(0xE4, UInt8(0x0B))
    #expect(rig.feature(entry, EngineRig.set) == 0)
    #expect(rig.config(0xE4, as: UInt8.self).map { $0 & 3 } == 0)
    #expect(rig.feature(exit, EngineRig.set) == 0)
    rig.descriptor(
      at: 0x10_0000, size: 8, source: 0x20_0000, destination: 0x30_0000, next: 0x10_0000)
    rig.start(0x10_0000, count: 1)
    #expect(rig.wait() == 0x10_0001)
  }

  @Test("J1: GET is EINVAL, PROBE says yes; a close ends it")
  func rules() throws {
    for number in [entry, exit, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP] {
      #expect(rig.feature(number, EngineRig.get, argsz: 16) == -EINVAL)
      #expect(rig.feature(number, EngineRig.probe) == 0)
      #expect(rig.feature(number, EngineRig.probe | EngineRig.set) == 0)
      #expect(rig.feature(number, EngineRig.probe | EngineRig.get) == -EINVAL)
    }
    #expect(
      rig.feature(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, EngineRig.set, argsz: 15)
        == -EINVAL)
    #expect(rig.feature(entry, EngineRig.set) == 0)
    rig.caller.close(rig.devicefd)
    let file = try rig.node.open(flags: 2, by: rig.caller)
    file.close()
    #expect(!rig.vfio.isBound)
  }
}
