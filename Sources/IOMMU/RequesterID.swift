// SPDX-License-Identifier: Apache-2.0
//
// Routing information: who a DMA request says it comes from (MODEL D2: RID, RID + PASID).

/// A PCI requester id: segment (domain) in bits 16 and up, bus, device, function below.
public struct RequesterID: RawRepresentable, Hashable, Comparable, Sendable {
  public var rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// - Parameters:
  ///   - segment: PCI segment, `0000` in `0000:e0:04.1`.
  ///   - device: 0 to 31; higher bits are ignored.
  ///   - function: 0 to 7; higher bits are ignored.
  public init(segment: UInt16 = 0, bus: UInt8, device: UInt8, function: UInt8) {
    rawValue =
      UInt32(segment) << 16 | UInt32(bus) << 8 | UInt32(device & 31) << 3 | UInt32(function & 7)
  }

  public var segment: UInt16 { UInt16(rawValue >> 16) }
  public var bus: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 8) }
  public var device: UInt8 { UInt8(rawValue >> 3 & 31) }
  public var function: UInt8 { UInt8(rawValue & 7) }

  /// Reads `0000:e0:04.1` or, for segment 0, `e0:04.1`; nil where it is neither.
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard parts.count == 2 || parts.count == 3 else { return nil }
    let slot = parts[parts.count - 1].split(separator: ".", omittingEmptySubsequences: false)
    guard slot.count == 2, slot[0].count == 2, slot[1].count == 1,
      parts[parts.count - 2].count == 2, parts.count == 2 || parts[0].count == 4,
      let segment = parts.count == 3 ? UInt16(parts[0], radix: 16) : 0,
      let bus = UInt8(parts[parts.count - 2], radix: 16),
      let device = UInt8(slot[0], radix: 16), device < 32,
      let function = UInt8(slot[1], radix: 16), function < 8
    else { return nil }
    self.init(segment: segment, bus: bus, device: device, function: function)
  }

  public static func < (left: RequesterID, right: RequesterID) -> Bool {
    left.rawValue < right.rawValue
  }
}

extension RequesterID: CustomStringConvertible {
  /// Segment, bus, device, function as Linux names a PCI function: `0000:e0:04.1`.
  public var description: String {
    func digits(_ value: some BinaryInteger, _ count: Int) -> String {
      let text = String(value, radix: 16)
      return String(repeating: "0", count: max(0, count - text.count)) + text
    }
    return "\(digits(segment, 4)):\(digits(bus, 2)):\(digits(device, 2)).\(function)"
  }
}

/// A process address space id: 20 bits that a DMA request may carry beside its RID.
public struct PASID: RawRepresentable, Hashable, Comparable, Sendable {
  public var rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  public static func < (left: PASID, right: PASID) -> Bool { left.rawValue < right.rawValue }

  /// Nil for PASID 0, which stands for DMA without a PASID. Linux: `IOMMU_NO_PASID`.
  var nonzero: PASID? { rawValue == 0 ? nil : self }
}
