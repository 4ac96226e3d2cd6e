// SPDX-License-Identifier: Apache-2.0
//
// What a driver that gives slices of its device to users is to the framework (MODEL J2). Linux:
// `struct mdev_driver` and `struct mdev_type`.

import IOMMU

/// A kind of slice that a device can be cut into.
public struct MediatedType: Hashable, Sendable {
  /// sysfs names it after the driver and this: `ioat-mdev-pasid`.
  public var name: String
  /// For a person, in one line.
  public var title: String
  public var summary: String
  /// What a user has to speak to a slice.
  public var deviceAPI: String

  public init(name: String, title: String, summary: String, deviceAPI: String = "vfio-pci") {
    self.name = name
    self.title = title
    self.summary = summary
    self.deviceAPI = deviceAPI
  }
}

/// A slice, as its driver made it.
public struct MediatedSlice: Sendable {
  public var function: PCIFunction
  /// Its own, with no device else in it.
  public var group: DeviceGroup

  public init(function: PCIFunction, group: DeviceGroup) {
    self.function = function
    self.group = group
  }
}

/// A host's driver that shares its device out. Thread-safe; it calls nothing of the framework's.
public protocol MediatingDriver: AnyObject, Sendable {
  /// `ioat-mdev`.
  var name: String { get }
  /// In the order in which a person is told of them; names are unique.
  var types: [MediatedType] { get }

  /// How many more slices of a type there can be now.
  func availableInstances(of type: MediatedType) -> Int

  /// Makes a slice; nobody can use it yet.
  /// - Throws: `EUSERS` where none is left.
  func makeSlice(of type: MediatedType, uuid: UUID) throws(IOMMUError) -> MediatedSlice

  /// Takes a slice away; when it returns, nothing of it goes on.
  /// - Throws: `EBUSY` while a context owns it; then it is as it was.
  func removeSlice(_ uuid: UUID) throws(IOMMUError)

  /// What the driver counted for a slice, by name; for a slice that is not there, nothing.
  func statistics(of uuid: UUID) -> [(name: String, value: UInt64)]
}

extension MediatingDriver {
  public func statistics(of uuid: UUID) -> [(name: String, value: UInt64)] { [] }
}
