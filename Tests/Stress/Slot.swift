// SPDX-License-Identifier: Apache-2.0
//
// A range of IOVA that one worker maps and unmaps in turn, and what is in its memory: stamps
// that say which mapping it is, poison once it is unmapped.

import IOMMU
import Synchronization

/// What a word of a page means.
enum Word: Equatable {
  /// Written before a map: which slot, and which mapping of it.
  case stamp(slot: Int, generation: UInt64)
  /// Written by the DMA of a lane.
  case lane(Int, UInt64)
  /// Written after an unmap has returned: no DMA may ever see or change it.
  case poison
  case unknown(UInt64)

  static let poisonValue: UInt64 = 0xDEAD_DEAD_DEAD_DEAD

  init(_ value: UInt64) {
    switch value >> 56 {
    case 0xDE where value == Self.poisonValue: self = .poison
    case 0x5A:
      self = .stamp(slot: Int(value >> 40 & 0xffff), generation: value & 0xff_ffff_ffff)
    case 0x1A: self = .lane(Int(value >> 40 & 0xffff), value & 0xff_ffff_ffff)
    default: self = .unknown(value)
    }
  }

  var value: UInt64 {
    switch self {
    case .stamp(let slot, let generation): 0x5A << 56 | UInt64(slot) << 40 | generation
    case .lane(let lane, let count): 0x1A << 56 | UInt64(lane) << 40 | count & 0xff_ffff_ffff
    case .poison: Self.poisonValue
    case .unknown(let value): value
    }
  }
}

/// What of a page is used: words that devices only read, then two words for each lane.
enum PageLayout {
  static let stamps = 8
  static let words = 32
  static let lanes = (words - stamps) / 2
  static let size: UInt64 = 4096

  /// Offset of a lane's words in a page, in bytes.
  static func offset(lane: Int) -> UInt64 { UInt64(stamps + 2 * lane) * 8 }
}

/// One place in one address space.
///
/// Its two extents of memory are mapped in turn, so that a stale translation shows poison.
final class Slot: Sendable {
  /// The stamp's number: the space's times the places of a space, plus the place's.
  let number: Int
  let space: ObjectID
  let iova: UInt64
  /// In pages.
  let pages: Int
  /// Every how many pages one is used.
  let step: Int
  /// First byte of each extent in the arena.
  let extents: [UInt64]
  /// The latest mapping that was begun, and the latest that has been unmapped.
  let begun = Atomic<UInt64>(0)
  let ended = Atomic<UInt64>(0)

  init(number: Int, space: ObjectID, iova: UInt64, pages: Int, step: Int, extents: [UInt64]) {
    self.number = number
    self.space = space
    self.iova = iova
    self.pages = pages
    self.step = step
    self.extents = extents
  }

  var length: UInt64 { UInt64(pages) * PageLayout.size }
  var range: ClosedRange<UInt64> { iova...iova + (length - 1) }

  /// The extent of a mapping.
  func extent(_ generation: UInt64) -> UInt64 { extents[Int(generation % 2)] }

  /// Offsets of the pages that are used.
  var usedPages: StrideTo<UInt64> {
    stride(from: 0, to: length, by: UInt64.Stride(step) * UInt64.Stride(PageLayout.size))
  }

  /// Whether somebody has it mapped, as far as its worker knows.
  var isMapped: Bool {
    begun.load(ordering: .acquiring) != ended.load(ordering: .acquiring)
  }
}

extension LocalMemory {
  /// Fills the words of an extent's pages.
  func fill(_ slot: Slot, extent: UInt64, with word: Word) {
    withUnsafeMutableBytes { bytes in
      for page in slot.usedPages {
        for index in 0..<PageLayout.words {
          bytes.storeBytes(
            of: word.value, toByteOffset: Int(extent + page) + index * 8, as: UInt64.self)
        }
      }
    }
  }

  /// The first word of an extent that is not poison.
  func firstUnpoisoned(_ slot: Slot, extent: UInt64) -> (offset: UInt64, word: Word)? {
    withUnsafeMutableBytes { bytes in
      for page in slot.usedPages {
        for index in 0..<PageLayout.words {
          let offset = extent + page + UInt64(index * 8)
          let value = bytes.load(fromByteOffset: Int(offset), as: UInt64.self)
          if value != Word.poisonValue { return (offset, Word(value)) }
        }
      }
      return nil
    }
  }
}
