// SPDX-License-Identifier: Apache-2.0
//
// What an instruction needs of its surroundings: memory, vector registers, and ways to fail.

/// Who carries an instruction's accesses out: decides for each address whether it is a device's
/// register or the program's own memory.
///
/// Accesses come in the order in which the processor makes them, each once, with the width of
/// the operand.
public protocol InstructionMemory {
  /// Loads 1, 2, 4 or 8 bytes, little-endian, zero-extended. They need not be aligned.
  mutating func load(_ address: UInt64, _ byteCount: Int) throws(AccessFault) -> UInt64
  /// Stores the low 1, 2, 4 or 8 bytes.
  mutating func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64) throws(AccessFault)
  /// Loads 16, 32 or 64 bytes into the first of `value`.
  mutating func load(
    _ address: UInt64, _ byteCount: Int, into value: inout VectorValue) throws(AccessFault)
  /// Stores the first 16, 32 or 64 bytes of `value`.
  mutating func store(
    _ address: UInt64, _ byteCount: Int, from value: VectorValue) throws(AccessFault)
  /// ENQCMD: offers 64 bytes to what lies at `address`, which is a multiple of 64. The first
  /// four bytes are zero: the thread's PASID goes there (bits 0 to 19).
  /// - Returns: Whether it was taken; if not, the program is told to try again.
  mutating func enqueue(
    _ address: UInt64, _ command: VectorValue
  ) throws(AccessFault) -> Bool
}

/// A vector register's 64 bytes, or as many bytes of memory. Word 0 has the lowest.
public struct VectorValue: Sendable, Equatable {
  public var words: InlineArray<8, UInt64>

  /// All zero.
  public init() { words = InlineArray(repeating: 0) }

  public static func == (left: VectorValue, right: VectorValue) -> Bool {
    for index in 0..<8 where left.words[index] != right.words[index] { return false }
    return true
  }

  /// 1, 2, 4 or 8 bytes from `offset` on, which is a multiple of their count.
  func element(_ offset: Int, _ byteCount: Int) -> UInt64 {
    (words[offset &>> 3] &>> UInt64((offset & 7) * 8)) & Width.mask(byteCount)
  }

  mutating func setElement(_ offset: Int, _ byteCount: Int, _ value: UInt64) {
    let shift = UInt64((offset & 7) * 8)
    let mask = Width.mask(byteCount)
    words[offset &>> 3] = words[offset &>> 3] & ~(mask &<< shift) | (value & mask) &<< shift
  }

  /// Clears from byte `offset` on, a multiple of 8.
  mutating func clear(from offset: Int) {
    for index in (offset &>> 3)..<8 { words[index] = 0 }
  }
}

/// A thread's vector registers, fetched when an instruction first asks for one.
public protocol VectorState {
  /// All 64 bytes of register `number`, 0 to 31. What the processor lacks reads as zero.
  mutating func read(_ number: Int) -> VectorValue
  /// Replaces all 64 bytes.
  mutating func write(_ number: Int, _ value: VectorValue)
  /// Mask register k`number`, 0 to 7. Asked for by AVX-512 instructions only.
  mutating func readMask(_ number: Int) -> UInt64
  mutating func writeMask(_ number: Int, _ value: UInt64)
  /// MXCSR: how numbers are rounded, and what has come up.
  mutating func readStatus() -> UInt32
  mutating func writeStatus(_ value: UInt32)
}

/// An access that was refused: the tracer gives the program the signal that this is.
public struct AccessFault: Error, Equatable, Sendable {
  /// The first byte of the access, or, where who refused knows it, of the page that is missing.
  public var address: UInt64
  public var isStore: Bool

  public init(address: UInt64, isStore: Bool) {
    self.address = address
    self.isStore = isStore
  }
}

/// Why an instruction did not run to its end. Its registers are as before, but for the progress
/// of one that repeats.
public enum ExecutionFault: Error, Equatable, Sendable {
  case access(AccessFault)
  /// #GP: an operand that has to be aligned is not, or the instruction is the kernel's. SIGSEGV
  /// with address 0.
  case generalProtection
  /// #DE: SIGFPE, FPE_INTDIV.
  case divideError
  /// #XM: SIGFPE, FPE_FLTRES, for who asks to be told of rounding. MXCSR says it.
  case inexact
}

/// Bytes that are no instruction that touches memory, or none that is known here.
public struct DecodeError: Error, Equatable, Sendable, CustomStringConvertible {
  public enum Reason: Sendable {
    /// The bytes end inside the instruction: more are needed (there are never more than 15).
    case truncated
    /// Not an instruction of this module's.
    case unknown
  }

  public let reason: Reason
  /// Number of bytes that were given, at most 15.
  public let byteCount: Int
  let bytes: InlineArray<15, UInt8>

  public subscript(index: Int) -> UInt8 { bytes[index] }

  public static func == (left: DecodeError, right: DecodeError) -> Bool {
    left.description == right.description
  }

  /// The bytes in hexadecimal, as a disassembler prints them.
  public var description: String {
    var text = reason == .truncated ? "incomplete instruction:" : "unknown instruction:"
    for index in 0..<byteCount {
      text += bytes[index] < 16 ? " 0" : " "
      text += String(bytes[index], radix: 16)
    }
    return text
  }
}
