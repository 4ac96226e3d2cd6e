// SPDX-License-Identifier: Apache-2.0
//
// The MSI-X table and the pending bits as the device has them in a BAR (PCI Express Base
// Specification, 7.7.2). Linux lets a program map them: what it writes there is what the device
// goes by, and the IOMMU judges the messages.

import IOMMU

/// An entry of the table. As after power-on: masked.
struct TableEntry: Hashable, Sendable {
  private var address: UInt64 = 0
  /// The data, and the vector control above it.
  private var upper: UInt64 = Self.mask

  private static let mask: UInt64 = 1 << 32

  init() {}

  /// One that is not masked.
  init(_ message: InterruptMessage) {
    address = message.address
    upper = UInt64(message.data)
  }

  var isMasked: Bool {
    get { upper & Self.mask != 0 }
    set { upper = upper & ~Self.mask | (newValue ? Self.mask : 0) }
  }

  /// A message is 4 bytes, at a multiple of 4.
  var message: InterruptMessage {
    InterruptMessage(address: address & ~3, data: UInt32(truncatingIfNeeded: upper))
  }

  /// Its two words: the address; the data and the vector control, of which the mask bit is all
  /// that there is.
  subscript(word: Int) -> UInt64 {
    get { word == 0 ? address : upper }
    set {
      if word == 0 { address = newValue } else { upper = newValue & 0x1_FFFF_FFFF }
    }
  }

  /// In bytes.
  static let size: UInt64 = 16
}

extension InterruptVectors {
  /// A vector of MSI-X, with the state's lock held.
  func raiseEntry(_ vector: Int, _ state: inout State) {
    guard state.table.indices.contains(vector) else { return }
    guard !state.table[vector].isMasked else {
      state.pending.insert(vector)
      return
    }
    send(state.table[vector].message)
  }

  /// Bit n is set where vector n was raised while masked; 64 vectors a word.
  func pendingBits(word: Int) -> UInt64 {
    state.withLock { state in
      guard state.mode != .msi else { return 0 }
      return state.pending.reduce(0) { bits, vector in
        vector / 64 == word ? bits | 1 << UInt64(vector % 64) : bits
      }
    }
  }

  /// Reads from the table.
  /// - Parameters:
  ///   - offset: In bytes from its start, a multiple of `width`; the access lies inside.
  ///   - width: 1, 2, 4 or 8 bytes.
  func readTable(at offset: UInt64, width: Int) -> UInt64 {
    let vector = Int(offset / TableEntry.size)
    return state.withLock { state in
      guard vector < state.table.count else { return 0 }
      return state.table[vector][Int(offset / 8 % 2)] >> (offset % 8 * 8)
    }
  }

  /// As `readTable`. An entry that is masked no more raises what was pending.
  func writeTable(at offset: UInt64, width: Int, value: UInt64) {
    let vector = Int(offset / TableEntry.size)
    let word = Int(offset / 8 % 2)
    let bits = width == 8 ? UInt64.max : (1 << UInt64(width * 8) - 1) << (offset % 8 * 8)
    state.withLock { state in
      guard vector < state.table.count else { return }
      state.table[vector][word] =
        state.table[vector][word] & ~bits | value << (offset % 8 * 8) & bits
      guard state.mode == .msix, !state.table[vector].isMasked,
        state.pending.remove(vector) != nil
      else { return }
      send(state.table[vector].message)
    }
  }
}
