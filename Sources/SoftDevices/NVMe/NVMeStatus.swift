// SPDX-License-Identifier: Apache-2.0
//
// How a command ended: the status field of a completion (NVM Express 1.4, 4.6.1).

/// Status code, its type, and whether trying again is of no use. Thrown by what carries commands
/// out.
public struct NVMeStatus: Error, Hashable, Sendable {
  /// Bits 14 to 0: do not retry, more, delay, type, code. The phase is not in it.
  public var field: UInt16

  private static let doNotRetry: UInt16 = 1 << 14
  /// The error log has an entry about it.
  static let more: UInt16 = 1 << 13

  /// - Parameters:
  ///   - code: The type in bits 10 to 8, the code below.
  ///   - isFinal: Whether the same command fails again.
  init(_ code: UInt16, isFinal: Bool = true) {
    field = code | (isFinal ? Self.doNotRetry : 0)
  }

  /// - Parameter field: As the property.
  init(field: UInt16) { self.field = field & 0x7FFF }

  /// Type and code.
  public var code: UInt16 { field & 0x7FF }

  public static let success = NVMeStatus(0x000, isFinal: false)
  // Generic.
  public static let invalidOpcode = NVMeStatus(0x001)
  public static let invalidField = NVMeStatus(0x002)
  public static let dataTransferError = NVMeStatus(0x004, isFinal: false)
  public static let internalError = NVMeStatus(0x006, isFinal: false)
  public static let abortRequested = NVMeStatus(0x007, isFinal: false)
  public static let invalidNamespace = NVMeStatus(0x00B)
  public static let commandSequence = NVMeStatus(0x00C)
  public static let invalidSGLSegment = NVMeStatus(0x00D)
  public static let invalidSGLCount = NVMeStatus(0x00E)
  public static let invalidSGLLength = NVMeStatus(0x00F)
  public static let invalidSGLType = NVMeStatus(0x011)
  public static let invalidPRPOffset = NVMeStatus(0x013)
  public static let writeProtected = NVMeStatus(0x020)
  public static let outOfRange = NVMeStatus(0x080)
  public static let capacityExceeded = NVMeStatus(0x081)
  // Of single commands.
  public static let noCompletionQueue = NVMeStatus(0x100)
  public static let invalidQueue = NVMeStatus(0x101)
  public static let invalidQueueSize = NVMeStatus(0x102)
  public static let eventLimit = NVMeStatus(0x105)
  public static let invalidVector = NVMeStatus(0x108)
  public static let invalidLogPage = NVMeStatus(0x109)
  public static let invalidFormat = NVMeStatus(0x10A)
  public static let invalidQueueDeletion = NVMeStatus(0x10C)
  public static let notSaveable = NVMeStatus(0x10D)
  public static let notOfNamespace = NVMeStatus(0x10F)
  // Of the medium.
  public static let writeFault = NVMeStatus(0x280, isFinal: false)
  public static let readError = NVMeStatus(0x281, isFinal: false)
  public static let compareFailure = NVMeStatus(0x285)
}
