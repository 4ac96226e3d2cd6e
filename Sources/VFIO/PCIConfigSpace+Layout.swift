// SPDX-License-Identifier: Apache-2.0
//
// What stands where in configuration space: the type 0 header, the BARs, and the list of
// capabilities with their registers (PCI Express Base Specification, chapter 7), each with
// the bits that vfio-pci lets a user write.

import IOMMU

/// Offsets in the type 0 header.
enum Header {
  static let vendor = 0x00
  static let device = 0x02
  static let command = 0x04
  static let status = 0x06
  static let revision = 0x08
  static let cacheLineSize = 0x0C
  static let bars = 0x10
  static let subsystemVendor = 0x2C
  static let subsystem = 0x2E
  static let capabilities = 0x34
  static let interruptLine = 0x3C
  static let interruptPin = 0x3D
  /// In the status register.
  static let interruptStatus: UInt16 = 0x0008
}

/// Bits of the command register.
enum Command {
  static let memory: UInt16 = 0x0002
  static let master: UInt16 = 0x0004
  static let interruptDisable: UInt16 = 0x0400
  /// Parity and system errors beside the above. I/O space is hardwired off: there is none.
  static let writable: UInt16 = memory | master | interruptDisable | 0x0140
}

/// Offsets in the PCI Express capability.
enum Express {
  static let control = 0x08
  static let size = 0x3C
  /// In the device capabilities.
  static let functionReset: UInt32 = 1 << 28
}

enum PowerManagement {
  static let control = 0x04
  static let size = 0x08
  /// D0 finds the function as D3hot left it.
  static let noSoftReset: UInt16 = 0x0008
}

/// What resets a function alone.
struct ResetKinds: OptionSet, Sendable {
  let rawValue: UInt8
  /// The bit in the PCI Express capability.
  static let function = ResetKinds(rawValue: 1)
  /// The way from D3hot to D0.
  static let power = ResetKinds(rawValue: 2)
}

/// Where each capability starts; 0 where it is missing.
struct CapabilityLayout: Sendable {
  var msix = 0
  var msi = 0
  var express = 0
  var power = 0
}

extension PCIConfigSpace.Storage {
  mutating func writeHeader(_ identity: PCIIdentity, interruptPin: UInt8) {
    set16(identity.vendor, at: Header.vendor)
    set16(identity.device, at: Header.device)
    set32(identity.classCode << 8 | UInt32(identity.revision), at: Header.revision)
    set16(identity.subsystemVendor, at: Header.subsystemVendor)
    set16(identity.subsystem, at: Header.subsystem)
    setWritable16(Command.writable, at: Header.command)
    set16(0x0010, at: Header.status)
    writable[Header.cacheLineSize] = 0xFF
    writable[Header.interruptLine] = 0xFF
    bytes[Header.interruptPin] = interruptPin
  }

  /// A BAR: its address bits are writable, so writing all ones and reading gives the size.
  mutating func write(_ bar: BAR, at address: UInt64) {
    let offset = Header.bars + bar.index * 4
    let mask = ~(bar.size - 1)
    let flags: UInt32 = (bar.is64Bit ? 4 : 0) | (bar.isPrefetchable ? 8 : 0)
    set32(UInt32(truncatingIfNeeded: address & mask) | flags, at: offset)
    setWritable32(UInt32(truncatingIfNeeded: mask), at: offset)
    guard bar.is64Bit else { return }
    set32(UInt32(truncatingIfNeeded: (address & mask) >> 32), at: offset + 4)
    setWritable32(UInt32(truncatingIfNeeded: mask >> 32), at: offset + 4)
  }

  mutating func write(_ register: ConfigRegister) {
    precondition(
      register.offset >= 0x40 && register.offset <= PCIConfigSpace.size - 4
        && register.offset % 4 == 0, "a device's own register lies behind the header")
    set32(register.initialValue, at: register.offset)
    setWritable32(register.writable, at: register.offset)
    for index in 0..<4 {
      clearedByOne[register.offset + index] =
        UInt8(truncatingIfNeeded: register.clearedByOne >> UInt32(8 * index))
    }
  }

  /// Writes the list: MSI-X, PCI Express, power management, MSI; and advanced error reporting as
  /// the extended list. Offsets are those of Intel's copy engine.
  mutating func writeCapabilities(
    msix: MSIXLayout?, msi: MSILayout?, resets: ResetKinds
  ) -> CapabilityLayout {
    var layout = CapabilityLayout()
    var link = Header.capabilities
    func place(_ id: UInt8, at offset: Int, in storage: inout Self) -> Int {
      storage.bytes[link] = UInt8(offset)
      storage.bytes[offset] = id
      link = offset + 1
      return offset
    }
    if let msix {
      layout.msix = place(0x11, at: 0x80, in: &self)
      set16(UInt16(msix.vectors - 1), at: layout.msix + 2)
      set32(msix.tableOffset | UInt32(msix.tableBAR), at: layout.msix + 4)
      set32(msix.pendingOffset | UInt32(msix.pendingBAR), at: layout.msix + 8)
    }
    layout.express = place(0x10, at: 0x90, in: &self)
    writeExpress(at: layout.express, canReset: resets.contains(.function))
    layout.power = place(0x01, at: 0xE0, in: &self)
    // Version 3; the bits for power-management events stay clear, as vfio-pci hides them.
    set16(0x0003, at: layout.power + 2)
    set16(
      resets.contains(.power) ? 0 : PowerManagement.noSoftReset,
      at: layout.power + PowerManagement.control)
    if let msi {
      layout.msi = place(0x05, at: 0x50, in: &self)
      writeMSI(msi, at: layout.msi)
    }
    writeErrorReporting(at: 0x100)
    return layout
  }

  private mutating func writeExpress(at offset: Int, canReset: Bool) {
    // Version 2, endpoint.
    set16(0x0002, at: offset + 0x02)
    // Device capabilities: 256-byte payload, extended tags, role-based errors.
    set32(0x0000_8021 | (canReset ? Express.functionReset : 0), at: offset + 0x04)
    set16(0x2910, at: offset + Express.control)
    // All but phantom functions, auxiliary power and the reset bit, which reads as 0.
    setWritable16(0x79FF, at: offset + Express.control)
    // Link: 16 GT/s, 16 lanes, trained.
    set32(0x0000_0104, at: offset + 0x0C)
    set16(0x1104, at: offset + 0x12)
    // Completion timeouts: range A to D, and they can be disabled.
    set32(0x0000_001F, at: offset + 0x24)
    setWritable16(0x001F, at: offset + 0x28)
  }

  private mutating func writeErrorReporting(at offset: Int) {
    set32(0x0001_0001, at: offset)
    let uncorrectable: UInt32 = 0x01FF_F030
    let correctable: UInt32 = 0x0000_F1C1
    setClearedByOne32(uncorrectable, at: offset + 0x04)
    setWritable32(uncorrectable, at: offset + 0x08)
    set32(0x0006_2030, at: offset + 0x0C)
    setWritable32(uncorrectable, at: offset + 0x0C)
    setClearedByOne32(correctable, at: offset + 0x10)
    set32(0x0000_2000, at: offset + 0x14)
    setWritable32(correctable, at: offset + 0x14)
  }

  mutating func setWritable16(_ mask: UInt16, at offset: Int) {
    writable[offset] = UInt8(truncatingIfNeeded: mask)
    writable[offset + 1] = UInt8(truncatingIfNeeded: mask >> 8)
  }

  mutating func setWritable32(_ mask: UInt32, at offset: Int) {
    setWritable16(UInt16(truncatingIfNeeded: mask), at: offset)
    setWritable16(UInt16(truncatingIfNeeded: mask >> 16), at: offset + 2)
  }

  private mutating func setClearedByOne32(_ mask: UInt32, at offset: Int) {
    for index in 0..<4 {
      clearedByOne[offset + index] = UInt8(truncatingIfNeeded: mask >> UInt32(8 * index))
    }
  }
}
