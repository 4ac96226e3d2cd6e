// SPDX-License-Identifier: Apache-2.0
//
// What a device model is to the PCI framework: who it says it is, its BARs, its registers and
// its reset. Whoever brings a new device implements `PCIDeviceModel`.

import IOMMU

/// The ids in a function's configuration header.
public struct PCIIdentity: Hashable, Sendable {
  public var vendor: UInt16
  public var device: UInt16
  public var subsystemVendor: UInt16
  public var subsystem: UInt16
  /// Base class, subclass and programming interface: `0x088000`.
  public var classCode: UInt32
  public var revision: UInt8

  public init(
    vendor: UInt16, device: UInt16, subsystemVendor: UInt16? = nil, subsystem: UInt16 = 0,
    classCode: UInt32, revision: UInt8 = 0
  ) {
    self.vendor = vendor
    self.device = device
    self.subsystemVendor = subsystemVendor ?? vendor
    self.subsystem = subsystem
    self.classCode = classCode & 0xFF_FFFF
    self.revision = revision
  }
}

/// A memory base address register.
public struct BAR: Hashable, Sendable {
  /// 0 to 5; a 64-bit BAR takes the next number too.
  public var index: Int
  /// In bytes, a power of two of at least 16.
  public var size: UInt64
  public var is64Bit: Bool
  public var isPrefetchable: Bool
  /// Whether it is plain memory and no registers: programs may map it, and the model is asked
  /// for none of its bytes. Its size is a multiple of 4 KiB then.
  public var isMemory: Bool
  /// Doorbells, in bytes from the start of a BAR of registers: whole pages of 4 KiB of 32-bit
  /// words. They are plain memory while the model has opened them (`FunctionPort.doorbells`), and
  /// registers while not. Nil where the BAR has none; a function has them in one BAR at the most.
  public var doorbells: Range<UInt64>?

  /// - Precondition: `index` and `size` are as their descriptions say.
  public init(
    index: Int, size: UInt64, is64Bit: Bool = true, isPrefetchable: Bool = false,
    isMemory: Bool = false, doorbells: Range<UInt64>? = nil
  ) {
    precondition((0...(is64Bit ? 4 : 5)).contains(index), "a function has BARs 0 to 5")
    precondition(!isMemory || size >= 4096, "memory that is mapped has whole pages")
    precondition(
      size >= 16 && size & (size - 1) == 0 && (is64Bit || size <= 1 << 31),
      "the size of a BAR is a power of two that it can decode")
    if let doorbells {
      precondition(
        !isMemory && !doorbells.isEmpty && doorbells.upperBound <= size
          && (doorbells.lowerBound | doorbells.upperBound) % 4096 == 0,
        "doorbells are whole pages of a BAR of registers")
    }
    self.index = index
    self.size = size
    self.is64Bit = is64Bit
    self.isPrefetchable = isPrefetchable
    self.isMemory = isMemory
    self.doorbells = doorbells
  }
}

/// Where a function keeps its MSI-X table and pending bits. Both are emulated: a model never
/// sees an access to them.
public struct MSIXLayout: Hashable, Sendable {
  /// Vectors, 1 to 2048.
  public var vectors: Int
  public var tableBAR: Int
  /// In bytes from the start of the BAR, a multiple of 8.
  public var tableOffset: UInt32
  public var pendingBAR: Int
  public var pendingOffset: UInt32

  public init(
    vectors: Int, tableBAR: Int, tableOffset: UInt32, pendingBAR: Int, pendingOffset: UInt32
  ) {
    precondition((1...2048).contains(vectors), "MSI-X has 1 to 2048 vectors")
    precondition(tableOffset % 8 == 0 && pendingOffset % 8 == 0, "MSI-X offsets are aligned")
    self.vectors = vectors
    self.tableBAR = tableBAR
    self.tableOffset = tableOffset
    self.pendingBAR = pendingBAR
    self.pendingOffset = pendingOffset
  }

  /// Offsets of the table, `end` exclusive, in its BAR.
  var tableRange: Range<UInt64> {
    UInt64(tableOffset)..<UInt64(tableOffset) + UInt64(vectors) * 16
  }

  var pendingRange: Range<UInt64> {
    UInt64(pendingOffset)..<UInt64(pendingOffset) + UInt64((vectors + 63) / 64) * 8
  }
}

/// How a function raises interrupts by MSI. The capability is emulated: a model never sees an
/// access to it.
public struct MSILayout: Hashable, Sendable {
  /// Messages that it can have: 1, 2, 4, 8, 16 or 32.
  public var vectors: Int
  /// Whether each message can be masked, and is pending meanwhile.
  public var isMaskable: Bool

  /// Where its mask bits and its pending bits are, in bytes from the capability's start: its
  /// addresses have 64 bits.
  static let mask = 0x10
  static let pending = 0x14

  /// Linux: `PCI_MSI_FLAGS_QMASK`.
  var log2: UInt16 { UInt16(vectors.trailingZeroBitCount) }

  public init(vectors: Int, isMaskable: Bool = false) {
    precondition(
      (1...32).contains(vectors) && vectors & (vectors - 1) == 0,
      "MSI has 1 to 32 messages, a power of two")
    self.vectors = vectors
    self.isMaskable = isMaskable
  }
}

/// A 32-bit register of the device's own in configuration space.
public struct ConfigRegister: Hashable, Sendable {
  /// In bytes, a multiple of 4, outside header and capabilities.
  public var offset: Int
  public var initialValue: UInt32
  /// Bits that a write sets or clears.
  public var writable: UInt32
  /// Bits that writing a 1 clears.
  public var clearedByOne: UInt32

  public init(
    offset: Int, initialValue: UInt32 = 0, writable: UInt32 = 0, clearedByOne: UInt32 = 0
  ) {
    self.offset = offset
    self.initialValue = initialValue
    self.writable = writable
    self.clearedByOne = clearedByOne
  }
}

/// The inside of a PCI function. Thread-safe: registers are accessed from any thread.
public protocol PCIDeviceModel: AnyObject, Sendable {
  var identity: PCIIdentity { get }
  /// The MSI-X table and pending bits lie in none that is memory.
  var bars: [BAR] { get }
  /// The function's interrupt line: 1 to 4 for INTA to INTD; 0, unless a model says otherwise,
  /// for none.
  var interruptPin: UInt8 { get }
  /// Nil where the function raises no interrupts by MSI-X.
  var msix: MSIXLayout? { get }
  /// Nil, unless a model says otherwise, where the function raises no interrupts by MSI.
  var msi: MSILayout? { get }
  /// The device's own registers in configuration space.
  var configRegisters: [ConfigRegister] { get }

  /// Plugs the model in. Called once, before anything else.
  func connect(to function: FunctionPort)

  /// One register access, aligned to its width.
  /// - Parameters:
  ///   - bar: Index of the BAR.
  ///   - offset: In bytes; the access lies wholly inside the BAR.
  ///   - width: 1, 2, 4 or 8 bytes.
  /// - Returns: The value in the low bits. Registers that are not there read as 0.
  func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64

  /// As `readRegister`. What is not there or may not be written ignores the write.
  func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64)

  /// Whether the function has a function-level reset (PCI Express); true, unless a model says
  /// otherwise.
  var hasFunctionReset: Bool { get }
  /// Whether the way from D3hot to D0 resets it (No_Soft_Reset is clear); false, unless a model says
  /// otherwise.
  var isResetByPower: Bool { get }

  /// Function-level reset: everything is as after power-on. When it returns, the function does
  /// no DMA and raises no interrupt that it had begun before.
  func reset()

  /// The device is taken out of the machine: as `reset`, and its threads have ended.
  func remove()

  /// The page that commands for a shared work queue are written to; nil, unless a model says
  /// otherwise, for none.
  var portal: PortalLayout? { get }

  /// Takes a command for the queue, or puts it off. Never blocks.
  /// - Parameter command: Its PASID is what the DMA for it is to carry.
  func receive(_ command: WorkCommand) -> DeferrableWrite

  /// Forgets all work of a PASID. When it returns, no DMA that was begun for it goes on.
  /// - Parameter pasid: As DMA carries it.
  func drain(_ pasid: PASID)

  /// What moves the device's state; nil, unless a model says otherwise, for nothing: VFIO then
  /// offers no migration. The same object for the model's life.
  var migration: (any DeviceMigration)? { get }
}

extension PCIDeviceModel {
  public var interruptPin: UInt8 { 0 }
  public var msi: MSILayout? { nil }
  public var hasFunctionReset: Bool { true }
  public var isResetByPower: Bool { false }
  public var portal: PortalLayout? { nil }
  public func receive(_ command: WorkCommand) -> DeferrableWrite { .retry }
  public func drain(_ pasid: PASID) {}
  public var migration: (any DeviceMigration)? { nil }
}
