// SPDX-License-Identifier: Apache-2.0
//
// Configuration space as the user of a device sees it: 4096 bytes, each with the bits that a
// write changes and the bits that a 1 clears. The masks are those of hardware and of Linux's
// vfio-pci together: what vfio-pci does not let through is read-only here.

import IOMMU
import SoftwareIOMMU
import SystemPackage

/// One function's configuration space. Thread-safe.
public final class PCIConfigSpace: Sendable {
  /// In bytes.
  public static let size = 4096

  /// What a write asked for beyond the bytes it changed.
  struct Effects: OptionSet, Sendable {
    let rawValue: UInt8
    /// Memory decoding, bus mastering, the interrupt line or the power state changed.
    static let control = Effects(rawValue: 1)
    /// A function-level reset was asked for, or the way back from D3hot was one.
    static let functionReset = Effects(rawValue: 2)
    /// MSI's control or masks changed.
    static let messages = Effects(rawValue: 4)
  }

  struct Storage: Sendable {
    var bytes = [UInt8](repeating: 0, count: PCIConfigSpace.size)
    var writable = [UInt8](repeating: 0, count: PCIConfigSpace.size)
    var clearedByOne = [UInt8](repeating: 0, count: PCIConfigSpace.size)
    /// Virtual functions that there are.
    var enabledVFs: UInt16 = 0
    var msi = MSIControl()
  }

  /// Where a capability starts; 0 where there is none.
  let layout: CapabilityLayout
  /// What resets the function without its neighbours.
  let resets: ResetKinds
  let initial: Storage
  private let services: TranslationCapabilities
  private let deviceRegisters: [ConfigRegister]
  let state: RankedMutex<Storage>

  /// - Parameters:
  ///   - bars: Their addresses on the bus, in the same order, in `barAddresses`.
  ///   - interruptPin: 1 to 4 for INTA to INTD, 0 for none.
  public init(
    identity: PCIIdentity, bars: [BAR], barAddresses: [UInt64], msix: MSIXLayout? = nil,
    msi: MSILayout? = nil, interruptPin: UInt8 = 0, registers: [ConfigRegister] = [],
    sriov: SRIOVLayout? = nil, services: TranslationCapabilities = TranslationCapabilities(),
    hasFunctionReset: Bool = true, isResetByPower: Bool = false
  ) {
    var storage = Storage()
    storage.writeHeader(identity, interruptPin: interruptPin)
    for (bar, address) in zip(bars, barAddresses) { storage.write(bar, at: address) }
    var resets: ResetKinds = []
    if hasFunctionReset { resets.insert(.function) }
    if isResetByPower { resets.insert(.power) }
    self.resets = resets
    layout = storage.writeCapabilities(msix: msix, msi: msi, resets: resets)
    for register in registers { storage.write(register) }
    if let sriov { storage.writeSRIOV(sriov) }
    storage.write(services)
    self.services = services
    initial = storage
    deviceRegisters = registers
    state = RankedMutex(.configurationSpace, storage)
  }

  // MARK: Access by the user

  /// Reads `count` bytes, which lie inside.
  func read(at offset: Int, count: Int) -> ArraySlice<UInt8> {
    state.withLock { $0.bytes[offset..<offset + count] }
  }

  /// Writes an aligned piece of 1, 2 or 4 bytes.
  func write(_ data: ArraySlice<UInt8>, at offset: Int) -> Effects {
    state.withLock { state in
      let oldCommand = state.value16(at: Header.command)
      var effects: Effects = []
      for (index, byte) in zip(offset..., data) {
        let writable = state.writable[index]
        state.bytes[index] =
          (state.bytes[index] & ~writable | byte & writable)
          & ~(byte & state.clearedByOne[index])
      }
      if state.value16(at: Header.command) != oldCommand { effects.insert(.control) }
      let resetByte = layout.express + Express.control + 1
      // Where there is no such reset, Linux passes over the bit.
      if resets.contains(.function), let byte = data.byte(at: resetByte, of: offset),
        byte & 0x80 != 0
      {
        effects.insert(.functionReset)
      }
      if layout.msi != 0, offset < layout.msi + MessageControl.size,
        offset + data.count > layout.msi
      {
        if data.byte(at: layout.msi + 2, of: offset) != nil {
          state.followMessageControl(at: layout.msi + 2)
        }
        effects.insert(.messages)
      }
      let power = layout.power + PowerManagement.control
      if offset == power, let byte = data.first {
        // D1 and D2 are not offered; asking for them changes nothing, as on Linux; nor does asking
        // for D3hot while there are virtual functions.
        if byte & 3 == 0 || byte & 3 == 3 && state.enabledVFs == 0 {
          // Linux restores configuration space after the way back.
          if state.bytes[power] & 3 == 3, byte & 3 == 0, resets.contains(.power) {
            effects.insert(.functionReset)
          }
          state.bytes[power] = state.bytes[power] & ~3 | byte & 3
          effects.insert(.control)
        }
      }
      return effects
    }
  }

  // MARK: What the function itself knows and changes

  var command: UInt16 { state.withLock { $0.value16(at: Header.command) } }
  var interruptPin: UInt8 { initial.bytes[Header.interruptPin] }
  var isPoweredDown: Bool {
    state.withLock { $0.bytes[layout.power + PowerManagement.control] & 3 == 3 }
  }

  /// Back to D0.
  func powerUp() { state.withLock { $0.bytes[layout.power + PowerManagement.control] &= ~3 } }

  func change(_ body: (inout Storage) -> Void) { state.withLock { body(&$0) } }

  /// All bytes as they are now, with what vfio-pci hides.
  public var contents: [UInt8] {
    var storage = state.withLock { $0 }
    storage.writeHidden(services)
    if layout.msi != 0 {
      let control = storage.value16(at: layout.msi + 2)
      storage.set16(
        control & ~(MessageControl.enable | MessageControl.used)
          | (storage.msi.isEnabled ? MessageControl.enable : 0)
          | storage.msi.used << MessageControl.usedShift, at: layout.msi + 2)
    }
    return storage.bytes
  }

  /// A 32-bit register; 0 where `offset` is not one.
  public func value(at offset: Int) -> UInt32 {
    guard offset >= 0, offset <= Self.size - 4 else { return 0 }
    return state.withLock { $0.value32(at: offset) }
  }

  func setBits(_ bits: UInt32, at offset: Int) {
    guard offset >= 0, offset <= Self.size - 4 else { return }
    state.withLock { $0.set32($0.value32(at: offset) | bits, at: offset) }
  }

  func setMSIXEnabled(_ enabled: Bool) {
    guard layout.msix != 0 else { return }
    state.withLock { state in
      let index = layout.msix + 3
      state.bytes[index] = state.bytes[index] & 0x7F | (enabled ? 0x80 : 0)
    }
  }

  /// The Interrupt Status bit: the function's line is asserted, whether or not it is disabled.
  func setInterruptStatus(_ isPending: Bool) {
    state.withLock { state in
      let status = state.value16(at: Header.status) & ~Header.interruptStatus
      state.set16(status | (isPending ? Header.interruptStatus : 0), at: Header.status)
    }
  }

  /// As after power-on and firmware. What a user finds who has just opened the device has
  /// memory decoding on, and nothing else.
  func resetAll(memoryEnabled: Bool) {
    state.withLock { state in
      let virtual = state.enabledVFs
      state = initial
      if virtual > 0 {
        state.enabledVFs = virtual
        state.setEnabledVFs(virtual)
      }
      if memoryEnabled { state.bytes[Header.command] |= UInt8(Command.memory) }
    }
  }

  /// What a function-level reset leaves: Linux saves and restores the header and the
  /// capabilities around it, so only the device's own registers change.
  func resetDeviceRegisters() {
    state.withLock { state in
      for register in deviceRegisters {
        state.set32(register.initialValue, at: register.offset)
      }
      let power = layout.power + PowerManagement.control
      state.bytes[power] &= ~3
    }
  }
}

extension PCIConfigSpace.Storage {
  func value16(at offset: Int) -> UInt16 {
    UInt16(bytes[offset]) | UInt16(bytes[offset + 1]) << 8
  }

  func value32(at offset: Int) -> UInt32 {
    UInt32(value16(at: offset)) | UInt32(value16(at: offset + 2)) << 16
  }

  mutating func set16(_ value: UInt16, at offset: Int) {
    bytes[offset] = UInt8(truncatingIfNeeded: value)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }

  mutating func set32(_ value: UInt32, at offset: Int) {
    set16(UInt16(truncatingIfNeeded: value), at: offset)
    set16(UInt16(truncatingIfNeeded: value >> 16), at: offset + 2)
  }
}

extension ArraySlice<UInt8> {
  /// The byte that a write at `offset` puts at `index`; nil where it does not reach it.
  fileprivate func byte(at index: Int, of offset: Int) -> UInt8? {
    let position = index - offset
    return position >= 0 && position < count ? self[startIndex + position] : nil
  }
}
