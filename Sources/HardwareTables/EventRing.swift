// SPDX-License-Identifier: Apache-2.0
//
// Where an IOMMU keeps the records of faults until software takes them, and what it does when
// there is no room (MODEL H2): VT-d revision 4.1, sections 7.2.1 and 11.4.7 (fault recording
// registers); AMD 48882, 2.5.1 and MMIO offset 2020h (event log); Arm IHI 0070, 3.5 and 7.4 (event
// queue); RISC-V IOMMU 1.0, 3.2 and fqcsr (fault queue).

/// A ring of records under one family's rules. Plain data; whoever holds it locks it.
///
/// A record that finds no room is lost, in all four, and a flag says so. VT-d, AMD and RISC-V then
/// record nothing more until software has cleared the flag, whatever room there is; SMMUv3 goes
/// on recording as soon as there is room.
public struct EventRing: Sendable {
  public let family: HardwareFamily
  /// How many records fit. AMD and RISC-V leave one of the ring's entries empty.
  public let capacity: Int
  /// Records that were lost since the ring was made. Not a register: hardware does not count.
  public private(set) var lost: UInt64 = 0
  /// PFO, EventOverflow, OVFLG != OVACKFLG, fqof.
  public private(set) var hasOverflowed = false

  private var slots: [HardwareEvent?]
  /// Where the next record goes, and where the oldest is: indices below the size, doubled for
  /// the wrap bit.
  private var producer = 0
  private var consumer = 0
  /// SMMUv3's OVFLG, which toggles.
  private var overflowFlag = false

  /// - Parameter count: Entries of the ring: for VT-d the fault recording registers, 1 to 256;
  ///   else a power of two, up to 2^15 (AMD) or 2^19. What is none is made the next one that is.
  public init(_ family: HardwareFamily, count: Int) {
    self.family = family
    let least =
      switch family {
      case .intel, .smmuV3: 1
      case .amd: 256
      case .riscv: 2
      }
    let most =
      switch family {
      case .intel: 256
      case .amd: 1 << 15
      case .smmuV3, .riscv: 1 << 19
      }
    var size = Swift.min(Swift.max(count, least), most)
    if family != .intel, size & (size - 1) != 0 {
      size = 1 << (Int.bitWidth - size.leadingZeroBitCount)
    }
    slots = Array(repeating: nil, count: size)
    capacity = family == .amd || family == .riscv ? size - 1 : size
  }

  private var size: Int { slots.count }
  /// Records that wait to be taken.
  public var count: Int { (producer - consumer + 2 * size) % (2 * size) }
  /// Whether the next record would be kept.
  public var hasRoom: Bool { count < capacity && !isStopped }
  /// Whether software has to clear the flag before anything is recorded.
  private var isStopped: Bool { hasOverflowed && family != .smmuV3 }

  /// Keeps a record, or loses it.
  /// - Returns: Whether it was kept.
  @discardableResult
  public mutating func append(_ event: @autoclosure () -> HardwareEvent) -> Bool {
    guard hasRoom else {
      lost &+= 1
      if !hasOverflowed {
        hasOverflowed = true
        overflowFlag.toggle()
      }
      return false
    }
    slots[producer % size] = event()
    producer = (producer + 1) % (2 * size)
    return true
  }

  /// Takes the oldest record: software clears F of its register, or moves the head past it.
  public mutating func takeFirst() -> HardwareEvent? {
    guard count > 0 else { return nil }
    defer {
      slots[consumer % size] = nil
      consumer = (consumer + 1) % (2 * size)
    }
    return slots[consumer % size]
  }

  /// Software has seen that records were lost: it clears PFO or fqof, clears EventOverflow and
  /// enables the event log again, sets OVACKFLG to OVFLG. What waits stays.
  public mutating func acknowledgeOverflow() { hasOverflowed = false }

  /// The registers that software reads.
  public enum Registers: Hashable, Sendable {
    /// FSTS_REG: PFO (bit 0), PPF (bit 1), FRI (bits 15 to 8).
    case intel(status: UInt32)
    /// Head and tail pointers at 2010h and 2018h, in bytes; the status register at 2020h:
    /// EventOverflow (bit 0), EventLogRun (bit 3).
    case amd(head: UInt64, tail: UInt64, status: UInt64)
    /// EVENTQ_PROD and EVENTQ_CONS: index, wrap bit above it, OVFLG and OVACKFLG (bit 31).
    case smmuV3(producer: UInt32, consumer: UInt32)
    /// fqh, fqt and fqcsr: fqen (bit 0), fqof (bit 9), fqon (bit 16).
    case riscv(head: UInt32, tail: UInt32, status: UInt32)
  }

  public var registers: Registers {
    let head = consumer % size
    let tail = producer % size
    switch family {
    case .intel:
      var status: UInt32 = hasOverflowed ? 1 : 0
      // FRI is of use where PPF is set.
      if count > 0 { status |= 2 | UInt32(head) << 8 }
      return .intel(status: status)
    case .amd:
      return .amd(
        head: UInt64(head) * 16, tail: UInt64(tail) * 16, status: hasOverflowed ? 1 : 8)
    case .smmuV3:
      let flag: UInt32 = 1 << 31
      // The wrap bit lies above the index, as the second half of the doubled one does.
      return .smmuV3(
        producer: UInt32(producer) | (overflowFlag ? flag : 0),
        consumer: UInt32(consumer) | (overflowFlag != hasOverflowed ? flag : 0))
    case .riscv:
      return .riscv(
        head: UInt32(head), tail: UInt32(tail),
        status: 1 | 1 << 16 | (hasOverflowed ? 1 << 9 : 0))
    }
  }
}
