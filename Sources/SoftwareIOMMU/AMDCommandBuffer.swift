// SPDX-License-Identifier: Apache-2.0
//
// The command buffer of a guest's AMD IOMMU: a ring in the guest's memory, read through the parent
// (MODEL G1). AMD 48882, sections 2.4 (commands), 2.4.9 (restarting), 2.5.6 and 2.5.7 (events of
// commands); MMIO 0008h, 0018h, 2000h, 2008h, 2020h.

import HardwareTables
import IOMMU
import PageTables

/// What a guest writes to its command buffer's registers, and what becomes of the commands.
/// Thread-safe: whoever writes the tail carries the commands out, one thread at a time.
///
/// Each command is done when the next one begins: what it invalidates no DMA uses any more (MODEL
/// G2). COMPLETE_PPR_REQUEST and PREFETCH_IOMMU_PAGES change nothing: page requests are answered
/// where they were delivered, and nothing is fetched ahead.
public final class AMDCommandBuffer: Sendable {
  /// What the guest is to be told of.
  public enum Notice: Hashable, Sendable {
    /// ComWaitInt: a COMPLETION_WAIT asked for an interrupt.
    case completionWait
    /// An entry for its event log, 16 bytes: ILLEGAL_COMMAND_ERROR or COMMAND_HARDWARE_ERROR. The
    /// buffer has stopped.
    case event([UInt8])
  }

  private struct State: Sendable {
    var base: UInt64 = 0
    /// In bytes, a power of two.
    var size: UInt64 = 0
    var head: UInt64 = 0
    var tail: UInt64 = 0
    /// CmdBufEn and CmdBufRun.
    var isEnabled = false
    var isRunning = false
  }

  private let owner: AMDVirtualIOMMU
  private let notify: @Sendable (Notice) -> Void
  private let state = RankedMutex(.virtualQueue, State())

  /// - Parameter notify: Called without locks held, by whoever wrote the register.
  public init(of owner: AMDVirtualIOMMU, notify: @escaping @Sendable (Notice) -> Void) {
    self.owner = owner
    self.notify = notify
  }

  /// The base address register (0008h): ComBase in bits 51 to 12, guest-physical, and ComLen in
  /// bits 59 to 56, 8 to 15: log 2 of the number of commands. Other lengths have no commands.
  /// Head and tail become 0.
  public func setBase(_ register: UInt64) {
    state.withLock { state in
      let length = register >> 56 & 15
      state.base = register & 0x000F_FFFF_FFFF_F000
      state.size = length >= 8 ? 16 << length : 0
      state.head = 0
      state.tail = 0
    }
  }

  /// CmdBufEn (0018h, bit 12). From clear to set the buffer runs, again where it had stopped.
  public func setEnabled(_ isEnabled: Bool) {
    advance { state in
      if isEnabled, !state.isEnabled { state.isRunning = true }
      if !isEnabled { state.isRunning = false }
      state.isEnabled = isEnabled
    }
  }

  /// The tail register (2008h), in bytes: the commands before it are carried out.
  public func setTail(_ register: UInt64) {
    advance { $0.tail = $0.size == 0 ? 0 : register & ($0.size - 1) & ~15 }
  }

  /// The head register (2000h), in bytes: where it stopped the offending command.
  public var head: UInt64 { state.withLock { $0.head } }

  /// CmdBufRun (2020h, bit 4).
  public var isRunning: Bool { state.withLock { $0.isRunning } }

  private func advance(_ change: (inout State) -> Void) {
    let notices = state.withLock { state in
      change(&state)
      return run(&state)
    }
    for notice in notices { notify(notice) }
  }

  /// Once around the ring at most.
  private func run(_ state: inout State) -> [Notice] {
    var interrupts = false
    var event: AMDEvent?
    while state.isRunning, state.size > 0, state.head != state.tail {
      let place = state.base &+ state.head
      guard let words = owner.service.load(place) else {
        event = AMDEvent(.commandHardwareError, type: 1, address: place)
        break
      }
      do throws(AMDCommandError) {
        guard carryOut(try AMDCommand(decoding: words, owner.iommu), &interrupts) else {
          event = AMDEvent(.commandHardwareError, type: 1, address: place)
          break
        }
      } catch {
        event = AMDEvent(.illegalCommand, address: place)
        break
      }
      state.head = (state.head + 16) & (state.size - 1)
    }
    var notices: [Notice] = interrupts ? [.completionWait] : []
    if let event {
      state.isRunning = false
      notices.append(.event(event.words.littleEndianBytes))
    }
    return notices
  }

  /// - Returns: False where what it was to write cannot be written.
  private func carryOut(_ command: AMDCommand, _ interrupts: inout Bool) -> Bool {
    switch command {
    case .completionWait(let wait):
      if let address = wait.storeAddress, !owner.service.store(wait.data, at: address) {
        return false
      }
      if wait.interrupts { interrupts = true }
    case .invalidateDeviceTableEntry(let device):
      // The entry was given when the device was attached; its guest CR3 entries were read.
      if let device = owner.devices[UInt64(device)] {
        owner.parent.table.forget(.configuration) { $0.source.requester == device }
      }
    case .invalidatePages(_, let pages, let directories):
      // PDE is for all above the leaves: of a guest's tables for the guest CR3 entry too.
      // What devices keep is INVALIDATE_IOTLB_PAGES'.
      owner.parent.table.forget(directories ? .configuration : .iotlb(Self.range(pages))) {
        Self.isOne($0.source, of: pages)
      }
    case .invalidateIOTLB(let device, _, _, let pages):
      if let device = owner.devices[UInt64(device)] {
        owner.parent.table.forget(.translations(Self.range(pages))) {
          $0.source.requester == device && Self.isOne($0.source, of: pages)
        }
      }
    case .prefetch(let device, _, let pages, true):
      if let device = owner.devices[UInt64(device)] {
        owner.parent.table.forget(.iotlb(Self.range(pages))) { $0.source.requester == device }
      }
    case .invalidateAll: owner.parent.table.forget(.configuration)
    case .prefetch, .invalidateInterruptTable, .completePageRequest: break
    }
    return true
  }

  private static func range(_ pages: AMDCommand.Pages) -> IOVARange {
    IOVARange(pages.address, shift: Int(pages.sizeShift))
  }

  /// Whether a source may have what a command is about. Requests without a PASID may use the
  /// guest's table of PASID 0; what only the host translates is everybody's.
  private static func isOne(
    _ source: SoftwareIOMMU.Source, of pages: AMDCommand.Pages
  ) -> Bool {
    guard let pasid = pages.pasid else { return true }
    return (source.pasid?.rawValue ?? 0) == pasid
  }
}
