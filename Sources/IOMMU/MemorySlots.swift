// SPDX-License-Identifier: Apache-2.0
//
// Guest-physical memory as a VM's owner publishes it: slots, what is said of a change to one, and
// who follows them (MODEL B4; Linux: `struct kvm_memory_slot`).

/// A range of guest-physical memory and what is behind it.
///
/// Linux: `struct kvm_userspace_memory_region`.
public struct MemorySlot: Hashable, Sendable {
  /// Names the slot in its VM: 0 to 32763.
  public var number: UInt32
  /// First byte, guest-physical; a multiple of 4 KiB.
  public var guestAddress: UInt64
  /// In bytes, a multiple of 4 KiB. Zero deletes the slot.
  public var byteCount: UInt64
  /// First byte in the memory source; a multiple of 4 KiB.
  public var userAddress: UInt64
  public var flags: Flags

  /// Linux: `KVM_MEM_…`.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The VM's owner wants to know what is written. Linux: `KVM_MEM_LOG_DIRTY_PAGES`. What
    /// devices write is told by the page tables of the spaces that follow (MODEL I1).
    public static let logsDirtyPages = Flags(rawValue: 1)
    /// Devices cannot write it either. Linux: `KVM_MEM_READONLY`.
    public static let readOnly = Flags(rawValue: 2)
  }

  public init(
    number: UInt32, guestAddress: UInt64, byteCount: UInt64, userAddress: UInt64,
    flags: Flags = []
  ) {
    self.number = number
    self.guestAddress = guestAddress
    self.byteCount = byteCount
    self.userAddress = userAddress
    self.flags = flags
  }

  /// Both ends inclusive. Of a slot that a VM has: it is not empty and does not wrap.
  var range: ClosedRange<UInt64> { guestAddress...guestAddress + (byteCount - 1) }
}

/// A slot of a VM with the memory behind it.
public struct PublishedSlot: Sendable {
  public let slot: MemorySlot
  /// Shared by all who follow: pinned and accounted once (MODEL B6).
  let pages: Pages

  /// What the slot's `userAddress` is an address in.
  public var memory: any MemorySource { pages.source }
}

/// What happens to one slot.
public enum MemorySlotChange: Sendable {
  case add(PublishedSlot)
  case remove(PublishedSlot)
  /// To another guest-physical address, which may overlap the old one. The memory is the same.
  case move(from: PublishedSlot, to: PublishedSlot)
  /// Whether dirty pages are logged; nothing else of a slot's flags ever changes.
  case changeFlags(from: PublishedSlot, to: PublishedSlot)
}

/// Somebody below a VM who keeps in step with its slots, as address spaces do.
///
/// Linux: `struct mmu_notifier`, of a VM's slots instead of a process's pages. A change is first
/// prepared by all followers and then committed by all, or aborted by those that prepared it, so
/// that a change that one of them cannot follow happens nowhere. Called with the VM's lock
/// held, one change at a time: it must not call the VM.
public protocol MemorySlotFollower: AnyObject, Sendable {
  /// Does all of a change that can fail. What is removed or moved away may still be used.
  /// - Throws: Why the change cannot be followed; then it has changed nothing.
  func prepare(_ change: MemorySlotChange) throws(IOMMUError)
  /// Finishes a change. When it returns, nothing uses what was removed (MODEL G2).
  func commit(_ change: MemorySlotChange)
  /// Takes back what was prepared.
  func abort(_ change: MemorySlotChange)
  /// The VM is gone: lets go of these slots, all that it had. It is called no more.
  func abandon(_ slots: [PublishedSlot])
}

/// Slots by number and by address, none overlapping another.
struct MemorySlotTable: Sendable {
  private var numbers: [UInt32: PublishedSlot] = [:]
  /// By guest-physical address.
  private(set) var sorted: [PublishedSlot] = []

  subscript(number: UInt32) -> PublishedSlot? { numbers[number] }

  /// A slot other than `number` that shares a byte with a range.
  func overlap(with range: ClosedRange<UInt64>, except number: UInt32) -> MemorySlot? {
    // The slot itself may be the first that is found; no more than two can be looked at in vain.
    var index = firstEnding(atOrAfter: range.lowerBound)
    while index < sorted.count, sorted[index].slot.guestAddress <= range.upperBound {
      if sorted[index].slot.number != number { return sorted[index].slot }
      index += 1
    }
    return nil
  }

  private func firstEnding(atOrAfter address: UInt64) -> Int {
    var low = 0
    var high = sorted.count
    while low < high {
      let middle = (low + high) / 2
      if sorted[middle].slot.range.upperBound < address {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return low
  }

  mutating func insert(_ published: PublishedSlot) {
    numbers[published.slot.number] = published
    sorted.insert(published, at: firstEnding(atOrAfter: published.slot.guestAddress))
  }

  mutating func remove(_ number: UInt32) {
    guard let old = numbers.removeValue(forKey: number) else { return }
    sorted.remove(at: firstEnding(atOrAfter: old.slot.guestAddress))
  }
}
