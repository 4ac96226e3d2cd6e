// SPDX-License-Identifier: Apache-2.0
//
// A device that works for many address spaces at once: each command names its PASID. It comes with
// a shared work queue, whose portal takes 64-byte commands from any CPU (kinds 7 and 8 of MODEL
// E2), or with a dedicated one, which is programmed by registers (kinds 5 and 6).

import IOMMU
import VFIO

/// A work-queue engine, to plug into a `PCIFunction`. Thread-safe.
///
/// BAR 0 has two pages: registers, and the portal. A command is eight little-endian words: PASID
/// (bits 0 to 19), operation (bits 32 to 39: 0 nothing, 1 copy, 2 fill) and flags (bit 40: write a
/// completion); address of the completion, 8 bytes; source, or a fill's pattern; destination;
/// length in bytes (at most 1 MiB); three words of zero. All addresses are in the PASID's space.
/// A completion is a status in bits 0 to 7 (`WorkStatus`) and the bytes that were done above.
public final class WorkQueueEngine: PCIDeviceModel {
  /// What the machine file may say of an engine.
  public struct Configuration: Hashable, Sendable {
    /// Whether it has a portal, or a dedicated queue.
    public var isShared: Bool
    /// Commands that wait at most, 1 to 64.
    public var depth: Int

    public init(isShared: Bool = true, depth: Int = 16) {
      self.isShared = isShared
      self.depth = min(max(depth, 1), 64)
    }
  }

  /// Registers of BAR 0's first page, 4 or 8 bytes.
  public enum Register {
    /// Read only: the depth in bits 0 to 7; bit 31, whether the queue is shared.
    public static let capability: UInt64 = 0x00
    /// Read only: commands that wait or are in hand.
    public static let occupancy: UInt64 = 0x04
    /// Bit 0: hold. Commands are taken and wait.
    public static let control: UInt64 = 0x08
    /// Read only: commands that failed, or that a dedicated queue had no room for.
    public static let errors: UInt64 = 0x0C
    /// Of a dedicated queue: the PASID that its commands are for.
    public static let pasid: UInt64 = 0x10
    /// Of a dedicated queue, 64 bytes: writing the last word submits all of them.
    public static let command: UInt64 = 0x40
  }

  /// Where the portal of a shared queue is.
  public static let portalOffset: UInt64 = 0x1000

  private let configuration: Configuration
  let queue: WorkQueue
  private let function = Guarded<FunctionPort?>(nil)

  private struct Registers: Sendable {
    var pasid: UInt32 = 0
    var command = InlineArray<8, UInt64>(repeating: 0)
  }
  private let registers = Guarded(Registers())

  public init(configuration: Configuration = Configuration()) {
    self.configuration = configuration
    queue = WorkQueue(depth: configuration.depth)
  }

  deinit { queue.stop() }

  public let identity = PCIIdentity(
    vendor: 0x1234, device: 0x0E40, classCode: 0x08_8000, revision: 0x01)
  public let bars = [BAR(index: 0, size: 8 << 10, is64Bit: true)]
  public let msix: MSIXLayout? = nil
  public let configRegisters: [ConfigRegister] = []

  public var portal: PortalLayout? {
    configuration.isShared ? PortalLayout(bar: 0, offset: Self.portalOffset) : nil
  }

  public func connect(to function: FunctionPort) {
    self.function.withLock { $0 = function }
    queue.connect(to: function)
  }

  public func receive(_ command: WorkCommand) -> DeferrableWrite { queue.add(command) }

  public func drain(_ pasid: PASID) { queue.drain(pasid) }

  public func reset() {
    registers.withLock { $0 = Registers() }
    queue.reset()
  }

  public func remove() { queue.stop() }

  // MARK: Registers

  public func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 {
    guard bar == 0, width >= 4 else { return 0 }
    switch offset {
    case Register.capability:
      return UInt64(configuration.depth) | (configuration.isShared ? 1 << 31 : 0)
        | (width == 8 ? UInt64(queue.occupancy) << 32 : 0)
    case Register.occupancy: return UInt64(queue.occupancy)
    case Register.control:
      return (queue.isHeld ? 1 : 0) | (width == 8 ? UInt64(queue.errors) << 32 : 0)
    case Register.errors: return UInt64(queue.errors)
    case Register.pasid where !configuration.isShared:
      return UInt64(registers.withLock { $0.pasid })
    default: return 0
    }
  }

  public func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {
    guard bar == 0, width >= 4 else { return }
    switch offset {
    case Register.control: queue.setHeld(value & 1 != 0)
    case Register.pasid where !configuration.isShared:
      registers.withLock { $0.pasid = UInt32(truncatingIfNeeded: value) & 0xF_FFFF }
    case Register.command..<Register.command + 64 where !configuration.isShared:
      writeCommand(offset - Register.command, width, value)
    default: break
    }
  }

  /// A dedicated queue's commands are for the PASID that is programmed, whatever they say. The
  /// mediation of a slice is here: what is programmed is virtual (MODEL E2, kind 6).
  private func writeCommand(_ offset: UInt64, _ width: Int, _ value: UInt64) {
    let index = Int(offset / 8)
    let whole = registers.withLock { registers -> (UInt32, InlineArray<8, UInt64>)? in
      if width == 8 {
        registers.command[index] = value
      } else {
        let shift = offset % 8 * 8
        registers.command[index] &= ~(0xFFFF_FFFF << shift)
        registers.command[index] |= (value & 0xFFFF_FFFF) << shift
      }
      return offset + UInt64(width) == 64 ? (registers.pasid, registers.command) : nil
    }
    guard let (virtual, words) = whole else { return }
    let function = self.function.withLock { $0 }
    guard let physical = function?.physicalPASID(for: PASID(rawValue: virtual)) else {
      queue.countError()
      return
    }
    var command = WorkCommand(words: words)
    command.pasid = physical
    if queue.add(command) == .retry { queue.countError() }
  }
}

/// How a command ended: bits 0 to 7 of its completion.
public enum WorkStatus: UInt8, Sendable {
  case success = 1
  /// It has an operation or flags that are not known, is too long, or is not zero at its end.
  case badCommand = 2
  case sourceFault = 3
  case destinationFault = 4
}
