// SPDX-License-Identifier: Apache-2.0
//
// A machine's mediated devices: made and removed while programs run, by the Swift API and by
// writes to /sys, and seen by programs from one moment to the next (MODEL D2, J2).

import IOMMU
import LinuxABI
import SystemPackage
import VFIO

/// Mediated devices of a machine. Thread-safe.
public final class MediatedDevices: Sendable {
  /// The devices and their parents.
  public let bus: MediatedBus
  /// Which holds this, by the files that take commands.
  private weak let files: LiveView?
  /// Each device's directory in sysfs, by its address.
  private let places: [RequesterID: String]
  /// One comes or goes at a time, so that devices and view agree. Held while both change; nothing
  /// that the two call comes back here.
  private let changing = Guarded(())

  /// - Parameter places: Paths of the machine's devices in /sys/devices, by address.
  /// - Throws: What showing the parents' types throws.
  init(
    bus: MediatedBus, files: LiveView, places: [RequesterID: String]
  ) throws(IOMMUError) {
    self.bus = bus
    self.files = files
    self.places = places
    guard !bus.parents.isEmpty else { return }
    var builder = SysfsBuilder()
    builder.mediatedBus()
    for parent in bus.parents {
      guard let place = places[parent.device.address] else { continue }
      builder.mediatedParent(parent, at: place, devices: self)
    }
    try files.change(View.Change(added: builder.view.entries))
  }

  /// By name.
  public var instances: [MediatedInstance] { bus.instances }

  /// The parent of an address; nil where the device there is none.
  public func parent(_ address: RequesterID) -> MediatedParent? {
    bus.parents.first { $0.device.address == address }
  }

  /// Makes a mediated device, with its nodes and its place in /sys.
  /// - Parameters:
  ///   - type: Without the driver's name: `pasid`.
  ///   - parent: The address of the device that it is a slice of.
  /// - Throws: `ENODEV` where that is none; what `MediatedBus.create` throws.
  @discardableResult
  public func create(
    _ type: String, on parent: RequesterID, uuid: UUID
  ) throws(IOMMUError) -> MediatedInstance {
    try changing.withLock { _ throws(IOMMUError) in
      guard let home = self.parent(parent), let place = places[parent] else {
        throw IOMMUError(.noSuchDevice, "\(parent) is shared out by no mediating driver")
      }
      let instance = try bus.create(type, on: home, uuid: uuid)
      do throws(IOMMUError) {
        try show(MediatedView(instance, parent: place, devices: self).arrival)
      } catch {
        // It was not seen by anybody, so nothing can be in the way.
        try? bus.remove(uuid)
        throw error
      }
      return instance
    }
  }

  /// Takes a mediated device away, with its nodes and its place in /sys.
  /// - Throws: What `MediatedBus.remove` throws: `EBUSY` while it is in use.
  public func remove(_ uuid: UUID) throws(IOMMUError) {
    try changing.withLock { _ throws(IOMMUError) in
      let instance = bus.instances.first { $0.uuid == uuid }
      try bus.remove(uuid)
      guard let instance, let place = places[instance.parent.device.address] else { return }
      try show(MediatedView(instance, parent: place, devices: self).departure)
    }
  }

  private func show(_ change: View.Change) throws(IOMMUError) {
    guard let files else { throw IOMMUError(.noSuchDevice, "the machine is gone") }
    try files.change(change)
  }

  // MARK: What is written to /sys

  /// Linux: `create_store`: a UUID, and one more byte at the most.
  /// - Throws: `EINVAL` for anything else.
  func create(_ type: String, on parent: RequesterID, text: String) throws(IOMMUError) {
    let bytes = text.utf8
    guard (UUID.textLength...UUID.textLength + 1).contains(bytes.count),
      let uuid = UUID(String(decoding: bytes.prefix(UUID.textLength), as: UTF8.self))
    else {
      throw IOMMUError(
        .invalidArgument,
        "'\(attributeValue(text))' is no UUID of \(UUID.textLength) characters")
    }
    try create(type, on: parent, uuid: uuid)
  }

  /// Linux: `remove_store`: a number; 0 does nothing.
  /// - Throws: `EINVAL` for anything else.
  func remove(_ uuid: UUID, text: String) throws(IOMMUError) {
    guard let number = Self.number(attributeValue(text)) else {
      throw IOMMUError(
        .invalidArgument, "'\(attributeValue(text))' is no number; 1 removes \(uuid)")
    }
    if number != 0 { try remove(uuid) }
  }

  /// As `kstrtoul` reads it: decimal, hexadecimal after 0x, octal after 0.
  private static func number(_ text: String) -> UInt64? {
    let digits = text.hasPrefix("+") ? text.dropFirst() : text[...]
    guard let first = digits.utf8.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-")
    else { return nil }
    if digits.hasPrefix("0x") || digits.hasPrefix("0X") {
      let rest = digits.dropFirst(2)
      guard let first = rest.utf8.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-")
      else { return nil }
      return UInt64(rest, radix: 16)
    }
    return UInt64(digits, radix: digits.hasPrefix("0") ? 8 : 10)
  }
}
