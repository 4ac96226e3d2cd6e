// SPDX-License-Identifier: Apache-2.0
//
// An entry of a submission queue: 64 bytes of the program's memory, read by DMA, once (NVM Express
// 1.4, 4.2).

/// One command, as it was when it was fetched.
struct NVMeCommand: Sendable {
  /// In bytes.
  static let size = 64

  /// Little-endian words, in order.
  let words: InlineArray<8, UInt64>

  /// Command dword `number`, 0 to 15.
  func dword(_ number: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: words[number / 2] >> UInt64(number % 2 * 32))
  }

  var opcode: UInt8 { UInt8(truncatingIfNeeded: words[0]) }
  /// 0 for a command of its own.
  var fuse: UInt8 { UInt8(truncatingIfNeeded: words[0] >> 8) & 3 }
  /// Of what kind the data pointer is.
  var dataPointer: UInt8 { UInt8(truncatingIfNeeded: words[0] >> 14) & 3 }
  /// The driver's own name for it.
  var identifier: UInt16 { UInt16(truncatingIfNeeded: words[0] >> 16) }
  var namespace: UInt32 { dword(1) }
  /// PRP entries 1 and 2, or the two halves of an SGL descriptor.
  var pointers: (UInt64, UInt64) { (words[3], words[4]) }

  /// Of commands on a range of blocks: the first.
  var firstBlock: UInt64 { words[5] }
  /// Blocks, at least 1.
  var blockCount: UInt64 { (words[6] & 0xFFFF) + 1 }
  /// Of a write: the data is to be on the medium when it completes.
  var forcesUnitAccess: Bool { words[6] & 1 << 30 != 0 }

  enum Admin: UInt8 {
    case deleteSubmissionQueue = 0x00
    case createSubmissionQueue = 0x01
    case getLogPage = 0x02
    case deleteCompletionQueue = 0x04
    case createCompletionQueue = 0x05
    case identify = 0x06
    case abort = 0x08
    case setFeatures = 0x09
    case getFeatures = 0x0A
    case requestEvent = 0x0C
    case format = 0x80
  }

  enum NVM: UInt8 {
    case flush = 0x00
    case write = 0x01
    case read = 0x02
    case compare = 0x05
    case writeZeroes = 0x08
    case manageDataset = 0x09
    case verify = 0x0C
  }
}
