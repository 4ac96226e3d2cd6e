// SPDX-License-Identifier: Apache-2.0
//
// The translations that one port remembers: two direct-mapped arrays, one for pages of 4 KiB
// and one for granules of 2 MiB. Leaves of other sizes are kept in the largest of the two
// that divides them.

/// One port's translation cache. Used by the port's thread only.
///
/// An entry is two words. The tag is the page number above a generation of 12 bits, so that
/// everything is forgotten by counting on. The value is what is added (wrapping) to a bus
/// address, a multiple of 8, with flags in the low bits; it is never zero in a live entry.
@safe
struct IOTLB: ~Copyable {
  /// Flags of a value: as `Permissions`, and whether the sum is an address of this process
  /// rather than a physical one.
  static let readFlag: UInt64 = 1
  static let writeFlag: UInt64 = 2
  static let localFlag: UInt64 = 4
  static let accessFlags: UInt64 = 3
  static let flags: UInt64 = 7

  static let smallShift: UInt64 = 12
  static let largeShift: UInt64 = 21
  /// Entries of each array, a power of two: 64 KiB and 256 KiB.
  static let smallCount = 1 << 12
  static let largeCount = 1 << 14

  private struct Slot {
    var tag: UInt64
    var value: UInt64
  }

  /// One array.
  @safe
  struct Way: ~Copyable {
    private let slots: UnsafeMutablePointer<Slot>
    private let mask: UInt64
    private let shift: UInt64
    /// 1 to 4095. Zeroed slots are of generation 0: empty.
    private var generation: UInt64 = 1
    /// Whether anything was put in since everything was forgotten.
    private(set) var isUsed = false

    init(count: Int, shift: UInt64) {
      // SAFETY: `count` slots, initialized here, freed in deinit; `index` stays below count.
      unsafe slots = .allocate(capacity: count)
      unsafe slots.initialize(repeating: Slot(tag: 0, value: 0), count: count)
      mask = UInt64(count - 1)
      self.shift = shift
    }

    deinit { unsafe slots.deallocate() }

    @inline(__always)
    private func index(_ page: UInt64) -> Int {
      // Neighbours do not collide; tables far apart are spread by their higher bits.
      Int(truncatingIfNeeded: (page ^ page >> 15) & mask)
    }

    @inline(__always)
    private func tag(_ page: UInt64) -> UInt64 { page << 12 | generation }

    /// The value for an address; 0 where there is none.
    @inline(__always)
    func find(_ address: UInt64) -> UInt64 {
      let page = address >> shift
      // SAFETY: see init.
      let slot = unsafe slots[index(page)]
      return slot.tag == tag(page) ? slot.value : 0
    }

    mutating func insert(_ address: UInt64, _ value: UInt64) {
      let page = address >> shift
      isUsed = true
      unsafe slots[index(page)] = Slot(tag: tag(page), value: value)
    }

    /// Forgets what lies in a range, both ends inclusive.
    mutating func forget(first: UInt64, last: UInt64) {
      guard isUsed else { return }
      let firstPage = first >> shift
      let lastPage = last >> shift
      if lastPage &- firstPage >= 64 { return forgetAll() }
      for page in firstPage...lastPage where unsafe slots[index(page)].tag == tag(page) {
        unsafe slots[index(page)] = Slot(tag: 0, value: 0)
      }
    }

    mutating func forgetAll() {
      guard isUsed else { return }
      isUsed = false
      generation += 1
      if generation == 1 << 12 {
        generation = 1
        unsafe slots.update(repeating: Slot(tag: 0, value: 0), count: Int(mask) + 1)
      }
    }
  }

  var small = Way(count: smallCount, shift: smallShift)
  var large = Way(count: largeCount, shift: largeShift)
}
