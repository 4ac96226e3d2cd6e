// SPDX-License-Identifier: Apache-2.0
//
// SR-IOV: a physical function that can make virtual ones of itself, each with a requester id and
// BARs of its own (PCI Express Base Specification, chapter 9). What the capability says is here;
// who makes and removes the functions is the machine's matter.

import IOMMU

/// What a physical function's SR-IOV capability says.
public struct SRIOVLayout: Hashable, Sendable {
  /// TotalVFs: the most there can be.
  public var total: UInt16
  /// First VF Offset and VF Stride: the requester id of number n is the physical function's plus
  /// `firstOffset + n × stride`.
  public var firstOffset: UInt16
  public var stride: UInt16
  /// VF Device ID.
  public var deviceID: UInt16
  /// The BARs of each virtual function.
  public var bars: [BAR]
  /// Where those of number 0 are, in the order of `bars`. Those of the others follow, one after
  /// the other.
  public var barAddresses: [UInt64]

  public init(
    total: UInt16, firstOffset: UInt16, stride: UInt16 = 1, deviceID: UInt16, bars: [BAR],
    barAddresses: [UInt64]
  ) {
    self.total = total
    self.firstOffset = firstOffset
    self.stride = stride
    self.deviceID = deviceID
    self.bars = bars
    self.barAddresses = barAddresses
  }

  /// The requester id of a virtual function.
  public func requester(of number: UInt16, under physical: RequesterID) -> RequesterID {
    RequesterID(
      rawValue: physical.rawValue &+ UInt32(firstOffset) &+ UInt32(number) &* UInt32(stride))
  }

  /// Where the BARs of a virtual function are, in the order of `bars`.
  public func barAddresses(of number: UInt16) -> [UInt64] {
    zip(bars, barAddresses).map { $1 &+ UInt64(number) &* $0.size }
  }
}

/// Offsets in the SR-IOV capability.
enum SRIOV {
  static let offset = 0x200
  static let control = 0x08
  static let initialVFs = 0x0C
  static let totalVFs = 0x0E
  static let numVFs = 0x10
  static let firstOffset = 0x14
  static let stride = 0x16
  static let deviceID = 0x1A
  static let supportedPageSizes = 0x1C
  static let systemPageSize = 0x20
  static let bars = 0x24
  /// VF Enable and VF MSE.
  static let enabled: UInt16 = 0x0009
}

extension PCIConfigSpace.Storage {
  /// Writes the capability, the second of the extended list. A user reads it; what it does is
  /// asked for elsewhere.
  mutating func writeSRIOV(_ layout: SRIOVLayout) {
    let start = SRIOV.offset
    set32(value32(at: 0x100) & 0x000F_FFFF | UInt32(start) << 20, at: 0x100)
    set32(0x0001_0010, at: start)
    set16(layout.total, at: start + SRIOV.initialVFs)
    set16(layout.total, at: start + SRIOV.totalVFs)
    set16(layout.firstOffset, at: start + SRIOV.firstOffset)
    set16(layout.stride, at: start + SRIOV.stride)
    set16(layout.deviceID, at: start + SRIOV.deviceID)
    // 4, 8, 64, 256 KiB, 1 and 4 MiB; 4 KiB is what the system has.
    set32(0x0000_0553, at: start + SRIOV.supportedPageSizes)
    set32(0x0000_0001, at: start + SRIOV.systemPageSize)
    for (bar, address) in zip(layout.bars, layout.barAddresses) {
      let register = start + SRIOV.bars + bar.index * 4
      let flags: UInt32 = (bar.is64Bit ? 4 : 0) | (bar.isPrefetchable ? 8 : 0)
      set32(UInt32(truncatingIfNeeded: address) | flags, at: register)
      if bar.is64Bit { set32(UInt32(truncatingIfNeeded: address >> 32), at: register + 4) }
    }
  }

  /// NumVFs, with VF Enable and VF MSE.
  mutating func setEnabledVFs(_ count: UInt16) {
    set16(count, at: SRIOV.offset + SRIOV.numVFs)
    set16(count > 0 ? SRIOV.enabled : 0, at: SRIOV.offset + SRIOV.control)
  }
}

extension PCIConfigSpace {
  /// Says how many virtual functions there are. Resets keep it: Linux puts it back after each.
  /// With some of them the function has power.
  func setEnabledVFs(_ count: UInt16) {
    change { state in
      state.enabledVFs = count
      state.setEnabledVFs(count)
      if count > 0 { state.bytes[layout.power + PowerManagement.control] &= ~3 }
    }
  }

  /// Configuration space as a virtual function's hardware has it, for whom VFIO fills in the rest:
  /// no ids, no BARs, no memory enable.
  public var virtualFunctionContents: [UInt8] {
    var bytes = contents
    bytes.replaceSubrange(Header.vendor..<Header.command, with: [0xFF, 0xFF, 0xFF, 0xFF])
    bytes[Header.command] &= ~UInt8(Command.memory)
    bytes.replaceSubrange(
      Header.bars..<Header.bars + 24, with: [UInt8](repeating: 0, count: 24))
    return bytes
  }
}

extension PCIFunction {
  /// The virtual functions that there are, by number.
  public var virtualFunctions: [PCIFunction] { virtuals.withLock { $0 } }

  /// Says what virtual functions there are from now on, all of them or none, and shows it in the
  /// capability. A reset of this function resets them too.
  public func setVirtualFunctions(_ functions: [PCIFunction]) {
    virtuals.withLock { $0 = functions }
    config.setEnabledVFs(UInt16(clamping: functions.count))
    carryOut(.control)
  }
}
