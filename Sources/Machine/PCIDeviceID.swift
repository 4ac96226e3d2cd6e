// SPDX-License-Identifier: Apache-2.0
//
// What a PCI driver knows a device by: what is written to `new_id` and `remove_id`. Linux:
// `struct pci_device_id`.

/// An id, or a pattern of ids.
public struct PCIDeviceID: Hashable, Sendable, CustomStringConvertible {
  public var vendor: UInt32
  public var device: UInt32
  /// All ones is any, as in the three before and after.
  public var subsystemVendor: UInt32
  public var subsystemDevice: UInt32
  public var classCode: UInt32
  /// The bits of the class that count.
  public var classMask: UInt32
  /// Whether all seven fields were given, a driver's own datum among them.
  private(set) var hasDatum = false

  public static let any = UInt32.max

  public init(
    vendor: UInt32, device: UInt32, subsystemVendor: UInt32 = any,
    subsystemDevice: UInt32 = any, classCode: UInt32 = 0, classMask: UInt32 = 0
  ) {
    self.vendor = vendor
    self.device = device
    self.subsystemVendor = subsystemVendor
    self.subsystemDevice = subsystemDevice
    self.classCode = classCode
    self.classMask = classMask
  }

  /// Reads what is written to `new_id`: two to seven numbers in hexadecimal, with spaces between.
  /// What follows something that is no number is not looked at, as `sscanf` has it.
  public init?(_ text: String) {
    var fields: [UInt32] = []
    for word in text.split(whereSeparator: { " \t\n".contains($0) }).prefix(7) {
      let digits = word.lowercased().hasPrefix("0x") ? word.dropFirst(2) : word
      let number = digits.prefix { $0.isHexDigit }
      guard let value = UInt32(number.suffix(8), radix: 16) else { break }
      fields.append(value)
      if number.count < digits.count { break }
    }
    guard fields.count >= 2 else { return nil }
    func field(_ index: Int, _ otherwise: UInt32) -> UInt32 {
      index < fields.count ? fields[index] : otherwise
    }
    self.init(
      vendor: fields[0], device: fields[1], subsystemVendor: field(2, Self.any),
      subsystemDevice: field(3, Self.any), classCode: field(4, 0), classMask: field(5, 0))
    hasDatum = fields.count == 7
  }

  /// Whether a device's own id fits. Linux: `pci_match_one_device`.
  func matches(_ other: PCIDeviceID) -> Bool {
    func fits(_ wanted: UInt32, _ value: UInt32) -> Bool {
      wanted == Self.any || wanted == value
    }
    return fits(vendor, other.vendor) && fits(device, other.device)
      && fits(subsystemVendor, other.subsystemVendor)
      && fits(subsystemDevice, other.subsystemDevice)
      && (classCode ^ other.classCode) & classMask == 0
  }

  public var description: String { "\(padded(vendor, 4)):\(padded(device, 4))" }
}
