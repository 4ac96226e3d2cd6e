// SPDX-License-Identifier: Apache-2.0
//
// How an SMMUv3's configuration lookups end: Arm System Memory Management Unit Architecture
// version 3 (IHI 0070), section 7.3, events 02h to 0Ah.

/// A transaction that a configuration lookup ended, by the event that is recorded.
public enum SMMUFault: Error, Hashable, Sendable {
  /// C_BAD_STREAMID.
  case badStreamID
  /// F_STE_FETCH: of a stream table entry or a level 1 descriptor at this physical address.
  case streamTableFetch(address: UInt64)
  /// C_BAD_STE.
  case badStreamTableEntry
  /// F_STREAM_DISABLED.
  case streamDisabled
  /// C_BAD_SUBSTREAMID.
  case badSubstreamID(UInt32)
  /// F_CD_FETCH: of a context descriptor or a level 1 descriptor at this physical address.
  case contextFetch(address: UInt64)
  /// C_BAD_CD.
  case badContextDescriptor
  /// F_TRANSLATION of stage 2, CLASS = CD: the descriptor's intermediate physical address.
  case contextTranslation(address: UInt64)

  /// The event's number; of `contextTranslation` that of F_TRANSLATION.
  public var event: SMMUEvent.Code {
    switch self {
    case .badStreamID: .badStreamID
    case .streamTableFetch: .streamTableFetch
    case .badStreamTableEntry: .badStreamTableEntry
    case .streamDisabled: .streamDisabled
    case .badSubstreamID: .badSubstreamID
    case .contextFetch: .contextFetch
    case .badContextDescriptor: .badContextDescriptor
    case .contextTranslation: .translation
    }
  }
}
