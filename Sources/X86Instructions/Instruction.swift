// SPDX-License-Identifier: Apache-2.0
//
// An instruction that touches memory, decoded: what it does, to which registers and which address.

/// An x86-64 instruction with a memory operand, to be carried out in place of the processor where
/// that memory is a device's registers.
///
/// Semantics are those of Intel's Software Developer's Manual, volume 2. What stays undefined there
/// (some flags) may differ from the processor.
///
/// Why this is no library: Zydis and capstone decode, but executing is the larger part and would
/// be ours anyway; Debian has them as shared libraries of its C library only, where we are also
/// linked statically against another; and their tables of everything are a megabyte, where a few
/// hundred instructions touch registers of devices.
///
/// A value without references: decoding and executing allocate nothing.
public struct Instruction: Sendable {
  /// In bytes, 1 to 15.
  public internal(set) var length = 0
  var operation = Operation.nothing
  var memory = MemoryOperand()
  /// Bytes of the memory operand.
  var width = 0
  /// The register operand, and how many bytes of it.
  var register = RegisterName.accumulator
  var registerWidth = 0
  /// Sign-extended.
  var immediate: UInt64 = 0
  var repetition = Repetition.none
  var vector = VectorForm()

  /// Whether it reads or writes vector or mask registers.
  public var needsVectors: Bool {
    switch operation {
    case .vectorLoad, .vectorStore, .vectorInsert, .vectorBroadcast, .vectorDuplicate,
      .vectorMaskedLoad, .vectorMaskedStore, .storeMaskedBytes, .vectorCombine, .vectorCompare,
      .vectorNarrow, .vectorConvert, .maskLoad, .maskStore:
      true
    default: false
    }
  }

  /// Where it stores to, if it is MOVDIRI, MOVDIR64B, ENQCMD or ENQCMDS, which many processors do not
  /// have: they refuse it before they look at memory. Nil for all others.
  public func portal(_ registers: Registers) -> UInt64? {
    switch operation {
    case .storeDirect: address(registers)
    case .directStore, .enqueue: portalAddress(registers)
    default: nil
    }
  }

  /// Whether it goes on until rcx is zero: execution may stop in between.
  public var repeats: Bool { repetition != .none }
}

/// base + index × 2^shift + displacement in a segment.
struct MemoryOperand: Sendable {
  enum Segment: Sendable { case flat, fs, gs }

  static let none: UInt8 = 0xFF
  static let instructionPointer: UInt8 = 0xFE

  var base = none
  var index = none
  var shift: UInt8 = 0
  var displacement: UInt64 = 0
  var segment = Segment.flat
  /// 0x67: addresses wrap at 4 GiB before the segment's base is added.
  var is32Bit = false
}

enum Repetition: Sendable { case none, whileEqual, whileNotEqual }

/// Where operands are.
enum Form: Sendable { case registerToMemory, memoryToRegister, immediateToMemory }

/// 00 to 3F, and 80 to 83, in the order of their encoding.
enum Arithmetic: UInt8, Sendable {
  case add, or, addWithCarry, subtractWithBorrow, and, subtract, xor, compare
}

/// C0, C1, D0 to D3, in the order of their encoding; 6 is 4.
enum Shift: UInt8, Sendable {
  case rotateLeft, rotateRight, rotateCarryLeft, rotateCarryRight, left, right, left2,
    arithmeticRight
}

enum Count: Sendable { case immediate, inRegister }

/// 0F BA /4 to /7.
enum BitTest: UInt8, Sendable { case test, set, reset, complement }

enum Scan: Sendable { case population, leadingZeros, trailingZeros, forward, reverse }

enum StringOperation: Sendable { case move, store, load, scan, compare }

/// BMI1 and BMI2, with a memory operand.
enum BitManipulation: Sendable {
  case andNot, extract, zeroHigh, shiftLeft, shiftRight, shiftArithmetic, rotate, multiply
  case lowestSet, maskToLowest, resetLowest, deposit, gather
}

enum Operation: Sendable {
  /// Hints: no access at all.
  case nothing
  case load(signExtends: Bool)
  case store, storeImmediate, loadSwapped, storeSwapped
  /// MOVDIRI.
  case storeDirect
  case arithmetic(Arithmetic, Form)
  case test(Form)
  case not, negate, increment, decrement
  case exchange, exchangeAdd, compareExchange, compareExchangePair
  case bitTest(BitTest, Count)
  case shift(Shift, Count)
  case doubleShift(left: Bool, Count)
  case multiply(signed: Bool)
  case divide(signed: Bool)
  case multiplyToRegister, multiplyImmediate
  case push, pop, call, jump
  case loadIf(condition: UInt8)
  case storeCondition(UInt8)
  case scan(Scan)
  case checksum
  case addCarry(overflow: Bool)
  case manipulate(BitManipulation)
  case translate
  case string(StringOperation)
  case directStore
  case enqueue(supervisor: Bool)
  case vectorLoad, vectorStore, vectorInsert, vectorBroadcast, vectorDuplicate
  case vectorMaskedLoad, vectorMaskedStore, storeMaskedBytes
  case vectorCombine(VectorFunction)
  case vectorCompare(VectorComparison)
  case vectorNarrow(Saturation)
  case vectorConvert(signed: Bool)
  case maskLoad, maskStore
}

/// The rest of an instruction on vector registers.
struct VectorForm: Sendable {
  /// Bytes of the register that it writes, 16, 32 or 64.
  var length = 16
  /// First byte of the register that it touches.
  var offset = 0
  /// The register whose other bytes a load keeps (the second operand of VEX).
  var source: UInt8 = 0
  /// Memory has to be aligned to its size.
  var isAligned = false
  /// Without VEX: what lies above 16 bytes is kept. With it, all above the length is cleared.
  var isLegacy = false
  /// Mask register; 0 is none.
  var mask: UInt8 = 0
  /// Elements that are masked out become zero, instead of staying.
  var zeroes = false
  /// Bytes of an element.
  var element = 4
  /// What memory holds stands for as much as the register has.
  var repeats = false
  /// Memory is the left operand, and the immediate the right: shifts.
  var isCounted = false
  /// Of comparisons of strings: which of the four, and whether lengths have 64 bits.
  var opcode: UInt8 = 0
  var isWide = false
}
