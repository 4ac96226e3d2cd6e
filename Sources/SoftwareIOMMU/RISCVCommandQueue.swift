// SPDX-License-Identifier: Apache-2.0
//
// The command queue of a guest's RISC-V IOMMU: a ring in the guest's memory, read through the
// parent (MODEL G1). RISC-V IOMMU 1.0, sections 3.1 (commands), 5.6 to 5.8 (cqb, cqh, cqt), 5.15
// (cqcsr).

import HardwareTables
import IOMMU
import PageTables

/// What a guest writes to its command queue's registers, and what becomes of the commands.
/// Thread-safe: whoever writes the tail carries the commands out, one thread at a time.
///
/// Each command is done when the next one begins: what it invalidates no DMA uses any more (MODEL
/// G2), so that a fence has nothing to wait for. Of a device that did not confirm an ATS.INVAL in
/// time the next fence tells, and is carried out once `cmd_to` is cleared. ATS.PRGR changes nothing:
/// page requests are answered where they were delivered.
public final class RISCVCommandQueue: Sendable {
  /// Bits of `cqcsr`, but for those that software alone writes.
  public struct Status: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// cqmf: a command could not be read, or a fence's data not be written.
    public static let memoryFault = Status(rawValue: 1 << 8)
    /// cmd_to: a device did not confirm an invalidation in time; the head stays at the fence after
    /// it.
    public static let timeout = Status(rawValue: 1 << 9)
    /// cmd_ill: an illegal command.
    public static let illegal = Status(rawValue: 1 << 10)
    /// fence_w_ip: an IOFENCE.C asked for a wired interrupt.
    public static let fenceInterrupt = Status(rawValue: 1 << 11)

    static let errors: Status = [.memoryFault, .timeout, .illegal]
  }

  private struct State: Sendable {
    var base: UInt64 = 0
    var count: UInt32 = 0
    var head: UInt32 = 0
    var tail: UInt32 = 0
    var isOn = false
    var status: Status = []
    /// A device did not confirm in time, and no fence has told of it.
    var isOverdue = false
  }

  private let owner: RISCVVirtualIOMMU
  private let directory: RISCVDeviceDirectory
  private let notify: @Sendable (Status) -> Void
  private let state = RankedMutex(.virtualQueue, State())

  /// - Parameters:
  ///   - hasWiredInterrupts: `fctl.WSI` as the guest has set it; without it a fence that asks for
  ///     a wired interrupt is illegal.
  ///   - notify: Called without locks held, by whoever wrote the register, when bits of the status
  ///     have come to be set: the interrupt, where the guest's `cie` lets it.
  public init(
    of owner: RISCVVirtualIOMMU, hasWiredInterrupts: Bool = false,
    notify: @escaping @Sendable (Status) -> Void
  ) {
    self.owner = owner
    self.notify = notify
    var iommu = owner.iommu
    iommu.hasWiredInterrupts = hasWiredInterrupts
    directory = RISCVDeviceDirectory(mode: .threeLevels, root: 0, iommu: iommu)
  }

  /// `cqb`: LOG2SZ-1 in bits 4 to 0, the ring's page number, guest-physical, in bits 53 to 10.
  /// Head and tail become 0.
  public func setBase(_ register: UInt64) {
    state.withLock { state in
      let shift = min(register & 31 + 1, 31)
      state.base = ((register >> 10) & 0x0FFF_FFFF_FFFF) << 12
      state.count = 1 << UInt32(shift)
      state.head = 0
      state.tail = 0
    }
  }

  /// `cqen`; the head becomes 0 and all bits of the status are cleared where it turns on.
  public func setEnabled(_ isEnabled: Bool) {
    advance { state in
      if isEnabled, !state.isOn {
        state.head = 0
        state.status = []
        state.isOverdue = false
      }
      state.isOn = isEnabled
    }
  }

  /// `cqt`: the index after the last command. The commands before it are carried out, unless a bit
  /// of an error is set.
  public func setTail(_ register: UInt32) {
    advance { $0.tail = $0.count == 0 ? 0 : register & ($0.count - 1) }
  }

  /// Clears bits of `cqcsr` (RW1C); without errors it goes on where it was.
  public func clear(_ bits: Status) { advance { $0.status.subtract(bits) } }

  /// `cqh`: where it stopped the index of the offending command.
  public var head: UInt32 { state.withLock { $0.head } }
  public var status: Status { state.withLock { $0.status } }
  /// `cqon`.
  public var isOn: Bool { state.withLock { $0.isOn } }

  private func advance(_ change: (inout State) -> Void) {
    let news = state.withLock { state -> Status in
      change(&state)
      let before = state.status
      run(&state)
      return state.status.subtracting(before)
    }
    if !news.isEmpty { notify(news) }
  }

  /// Once around the ring at most.
  private func run(_ state: inout State) {
    while state.isOn, state.status.isDisjoint(with: .errors), state.head != state.tail {
      guard let words = owner.service.load(state.base &+ UInt64(state.head) * 16) else {
        state.status.insert(.memoryFault)
        return
      }
      do throws(RISCVCommandError) {
        let command = try RISCVCommand(decoding: words, directory: directory)
        if case .fence = command, state.isOverdue {
          state.isOverdue = false
          state.status.insert(.timeout)
          return
        }
        guard carryOut(command, &state) else {
          state.status.insert(.memoryFault)
          return
        }
      } catch {
        state.status.insert(.illegal)
        return
      }
      state.head = (state.head + 1) & (state.count - 1)
    }
  }

  /// - Returns: False where what it was to write cannot be written.
  private func carryOut(_ command: RISCVCommand, _ state: inout State) -> Bool {
    switch command {
    case .invalidateFirstStage(_, _, let address):
      // Whatever the GSCID and PSCID: a global entry has none. What devices keep is ATS.INVAL's.
      owner.parent.table.forget(.iotlb(address.map { IOVARange($0, shift: 12) } ?? .all))
    case .invalidateSecondStage: owner.parent.table.forget(.iotlb(.all))
    case .fence(let fence):
      if let address = fence.address, !owner.service.store(fence.data, at: address) {
        return false
      }
      if fence.signals { state.status.insert(.fenceInterrupt) }
    case .invalidateDevice(nil): owner.parent.table.forget(.configuration)
    case .invalidateDevice(let device?):
      if let device = owner.devices[UInt64(device)] {
        owner.parent.table.forget(.configuration) { $0.source.requester == device }
      }
    case .invalidateProcess(let device, let process):
      // Transactions without a process may be those of process 0 (DPE).
      if let device = owner.devices[UInt64(device)] {
        owner.parent.table.forget(.configuration) {
          $0.source.requester == device && ($0.source.pasid?.rawValue ?? 0) == process
        }
      }
    case .invalidateDeviceTLB(let destination, let payload):
      let number = UInt64(destination.segment ?? 0) << 16 | UInt64(destination.requester)
      if let device = owner.devices[number] {
        let isConfirmed = owner.parent.table.forget(.translations(Self.range(payload))) {
          $0.source.requester == device
            && (destination.process == nil || payload & 1 != 0
              || $0.source.pasid?.rawValue == destination.process)
        }
        if !isConfirmed { state.isOverdue = true }
      }
    case .pageGroupResponse: break
    }
    return true
  }

  /// The body of an invalidation request (PCI Express, 10.3.1): with S (bit 11) clear one page,
  /// else the lowest clear bit from bit 12 on says how many.
  private static func range(_ payload: UInt64) -> IOVARange {
    guard payload & 1 << 11 != 0 else { return IOVARange(payload & ~0xFFF, shift: 12) }
    let ones = (~(payload | 0xFFF)).trailingZeroBitCount
    return IOVARange(payload & ~0xFFF, shift: min(ones + 1, 64))
  }
}
