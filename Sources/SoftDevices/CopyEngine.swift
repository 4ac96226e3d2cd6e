// SPDX-License-Identifier: Apache-2.0
//
// The DMA copy engine: Intel I/OAT version 3.3 with one channel (MODEL J1's first device). What
// drivers see of it: identity, configuration registers, BAR 0. CopyChannel is its state
// machine, CopyEngineCore its thread.

import VFIO

/// A copy engine, to plug into a `PCIFunction`. Thread-safe.
public final class CopyEngine: PCIDeviceModel {
  /// What the machine file may say of an engine.
  public struct Configuration: Hashable, Sendable {
    /// VER: 0x32, 0x33 or 0x34.
    public var version: UInt8
    /// Log2 of the longest transfer in bytes, 12 to 24.
    public var transferCapacity: UInt8
    /// Whether the engine fills blocks too (DMACAPABILITY 0x40).
    public var canFill: Bool
    /// Memory of its own behind BAR 2, in bytes, a power of two of at least 4 KiB; 0 for none.
    /// Programs map it, and other devices' DMA may reach it; the engine itself does not touch it.
    public var localMemory: UInt64
    /// Whether a descriptor can name a PASID for its data (DMACAPABILITY 0x8000_0000).
    public var takesPASIDs: Bool

    public init(
      version: UInt8 = 0x33, transferCapacity: UInt8 = 20, canFill: Bool = false,
      localMemory: UInt64 = 0, takesPASIDs: Bool = false
    ) {
      self.version = version
      self.transferCapacity = transferCapacity
      self.canFill = canFill
      self.localMemory = localMemory
      self.takesPASIDs = takesPASIDs
    }
  }

  /// Offsets in configuration space.
  enum Config {
    static let dmaControl = 0x48
    static let uncorrectableErrors = 0x148
    static let channelErrors = 0x180
    static let channelErrorMask = 0x184
  }

  let core: CopyEngineCore

  public convenience init(configuration: Configuration = Configuration()) {
    self.init(configuration, engine: nil)
  }

  /// - Parameter engine: What carries the descriptors out, where others share it.
  init(_ configuration: Configuration, engine: SharedCopyEngine?) {
    core = CopyEngineCore(configuration: configuration, engine: engine)
    var bars = [BAR(index: 0, size: 16 << 10, is64Bit: true)]
    if configuration.localMemory > 0 {
      bars.append(
        BAR(index: 2, size: configuration.localMemory, isPrefetchable: true, isMemory: true))
    }
    self.bars = bars
    // A slice's interrupts are its parent's to send.
    msi = engine == nil ? MSILayout(vectors: 1) : nil
    interruptPin = engine == nil ? 1 : 0
  }

  deinit { core.stop() }

  public let identity = PCIIdentity(
    vendor: 0x8086, device: 0x2021, classCode: 0x08_8000, revision: 0x04)

  /// Registers, and the memory where it has some.
  public let bars: [BAR]

  public let msix: MSIXLayout? = MSIXLayout(
    vectors: 1, tableBAR: 0, tableOffset: 0x2000, pendingBAR: 0, pendingOffset: 0x3000)

  public let msi: MSILayout?
  public let interruptPin: UInt8

  public let configRegisters = [
    ConfigRegister(offset: Config.dmaControl, writable: 0xFFFF_FFFF),
    ConfigRegister(offset: Config.uncorrectableErrors, clearedByOne: 0xFFFF_FFFF),
    ConfigRegister(offset: Config.channelErrors, clearedByOne: 0xFFFF_FFFF),
    ConfigRegister(offset: Config.channelErrorMask, writable: 0xFFFF_FFFF),
  ]

  public func connect(to function: FunctionPort) { core.connect(to: function) }

  public func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 {
    guard bar == 0 else { return 0 }
    return core.read { state in
      var value: UInt64 = 0
      for register in CopyRegister.all where register.meets(offset, width) {
        value |= register.place(state.read(register), at: offset)
        state.noteRead(register)
      }
      return value & Self.mask(width)
    }
  }

  public func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {
    guard bar == 0 else { return }
    core.change { state in
      var actions: CopyChannel.Actions = []
      for register in CopyRegister.all where register.meets(offset, width) {
        let written = register.extract(value & Self.mask(width), from: offset)
        let bits = register.extract(Self.mask(width), from: offset)
        actions.formUnion(state.write(register, written, bits: bits))
      }
      return actions
    }
  }

  public func reset() { core.reset() }

  public func remove() { core.stop() }

  public var migration: (any DeviceMigration)? { core }

  private static func mask(_ width: Int) -> UInt64 {
    width >= 8 ? .max : 1 << UInt64(width * 8) - 1
  }
}
