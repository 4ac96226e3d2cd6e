// SPDX-License-Identifier: Apache-2.0
//
// /dev/vfio/devices/vfioN: the device-centric node (MODEL C6), and what an open of it answers.
// The policy is VFIO's; here are the numbers, the structures' checks and the file offsets.

import CLinuxABI
import IOMMU
import Synchronization
import SystemPackage
import VFIO

/// Where regions lie in the offsets of a device file. A client takes them from GET_REGION_INFO.
///
/// Linux has region n at n << 40, and so BAR 0 at the offset that most files are read and mapped at. Here
/// a high bit tells them from the offsets of any file: a call is known by it, whatever descriptor it
/// names. Where a descriptor is known by its number, Linux's own offsets work as well
/// (`VFIODeviceFile.told`).
enum RegionWindow {
  static let base: UInt64 = 1 << 45
  /// One past the last offset.
  static let end: UInt64 = 1 << 46
  /// Slots of regions are 2⁴⁰ bytes apart.
  static let shift: UInt64 = 40
  /// The first slot for registers of a device that has memory too.
  static let registers: UInt64 = 16

  /// - Parameter isAfterMemory: Whether it has to lie after all of the device's memory: the file
  ///   has pages up to where that ends, and mapped registers have none.
  static func offset(of index: UInt32, isAfterMemory: Bool = false) -> UInt64 {
    base | (UInt64(index) + (isAfterMemory ? registers : 0)) << shift
  }

  /// The region and the offset in it; nil outside the window.
  static func locate(
    _ offset: UInt64
  ) -> (index: UInt32, offset: UInt64, isAfterMemory: Bool)? {
    guard (base..<end).contains(offset) else { return nil }
    let slot = (offset - base) >> shift
    return (
      UInt32(slot % registers), offset & ((1 << shift) - 1), slot >= registers
    )
  }
}

extension PCIRegion {
  /// Linux: `VFIO_PCI_…_REGION_INDEX`; nil from VFIO_PCI_NUM_REGIONS up.
  init?(index: UInt32) {
    switch index {
    case VFIO_PCI_BAR0_REGION_INDEX...VFIO_PCI_BAR5_REGION_INDEX: self = .bar(Int(index))
    case VFIO_PCI_ROM_REGION_INDEX: self = .rom
    case VFIO_PCI_CONFIG_REGION_INDEX: self = .config
    case VFIO_PCI_VGA_REGION_INDEX: self = .vga
    default: return nil
    }
  }
}

/// The node of one device.
public final class VFIODeviceNode: DeviceNode {
  /// Linux gives "vfio-dev" a dynamic major, from 511 down; here it is always this one.
  public static let major: UInt32 = 511

  public let path: String
  public let number: DeviceNumber
  public let device: VFIODevice

  public init(device: VFIODevice) {
    self.device = device
    path = "/dev/vfio/devices/vfio\(device.index)"
    number = Self.number(of: device)
  }

  /// What `fstat` shows of any file of a device.
  static func number(of device: VFIODevice) -> DeviceNumber {
    DeviceNumber(major: major, minor: device.index)
  }

  /// Any number of opens succeed; one of them can be bound.
  /// - Throws: `ENODEV` where vfio-pci has given the device up.
  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    let session = device.open()
    try device.checkRegistration()
    return VFIODeviceFile(session: session, number: number)
  }
}

/// An open device: its node, or what its group gave.
final class VFIODeviceFile: OpenFile {
  let session: DeviceSession
  let number: DeviceNumber
  /// Whether who carries the calls carries out touches of mapped registers.
  let mapsRegisters = Atomic(false)

  init(session: DeviceSession, number: DeviceNumber) {
    self.session = session
    self.number = number
  }

  var function: PCIFunction { session.device.function }
  var name: String { "vfio-device \(function.name)" }
  /// Linux: `vfio_device_cdev_opened`.
  var isBoundByNode: Bool { !session.isThroughGroup }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    if command == VFIO_DEVICE_BIND_IOMMUFD {
      try bind(argument, caller)
      return 0
    }
    if command == VFIO_DEVICE_BIND_IOMMU_FD {
      try bindIOMMUFD(argument, caller)
      return 0
    }
    try session.checkAccess()
    return try function.whileAwake { () throws(IOMMUError) in
      try perform(command, argument, caller)
    }
  }

  private func perform(
    _ command: UInt32, _ argument: UInt64, _ caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_DETACH_IOMMUFD_PT,
      VFIO_DEVICE_ATTACH_IOASID, VFIO_DEVICE_DETACH_IOASID:
      break
    default: try function.checkLink()
    }
    switch command {
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT: try attach(argument, caller)
    case VFIO_DEVICE_DETACH_IOMMUFD_PT: try detach(argument, caller)
    case VFIO_DEVICE_ATTACH_IOASID: try attachIOASID(argument, caller)
    case VFIO_DEVICE_DETACH_IOASID: try detachIOASID(argument, caller)
    case VFIO_DEVICE_FEATURE: try feature(argument, caller)
    case VFIO_DEVICE_GET_INFO: try getInfo(argument, caller)
    case VFIO_DEVICE_GET_REGION_INFO: try getRegionInfo(argument, caller)
    case VFIO_DEVICE_GET_IRQ_INFO: try getInterruptInfo(argument, caller)
    case VFIO_DEVICE_SET_IRQS: try setInterrupts(argument, caller)
    case VFIO_DEVICE_RESET: try reset()
    case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: try getHotResetInfo(argument, caller)
    case VFIO_DEVICE_PCI_HOT_RESET: try hotReset(argument, caller)
    default:
      // VFIO_DEVICE_IOEVENTFD among them: it comes with mapped registers (J1). Kernels
      // without it answer the same.
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command))")
    }
    return 0
  }

  private func reset() throws(IOMMUError) {
    guard function.canReset else {
      throw IOMMUError(
        .invalidArgument,
        "\(function.name) has no reset of its own, as VFIO_DEVICE_GET_INFO says; ask for a hot reset"
      )
    }
    function.reset()
  }

  func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    // SAFETY: the carrier's buffer is passed on unchanged, for the length of the call.
    try unsafe read(at: offset, into: buffer, isMapped: false)
  }

  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int {
    // SAFETY: as in `read`.
    try unsafe write(at: offset, from: buffer, isMapped: false)
  }

  func load(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    // SAFETY: as in `read`.
    try unsafe read(at: offset, into: buffer, isMapped: true)
  }

  func store(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int {
    // SAFETY: as in `read`.
    try unsafe write(at: offset, from: buffer, isMapped: true)
  }

  private func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer, isMapped: Bool
  ) throws(IOMMUError) -> Int {
    try session.checkAccess()
    guard buffer.count > 0 else { return 0 }
    let (region, offset) = try locate(told(offset))
    return try function.whileAwake { () throws(IOMMUError) in
      // SAFETY: the carrier's buffer is passed on unchanged, for the length of the call.
      try unsafe function.read(region, at: offset, into: buffer, isMapped: isMapped)
    }
  }

  private func write(
    at offset: UInt64, from buffer: UnsafeRawBufferPointer, isMapped: Bool
  ) throws(IOMMUError) -> Int {
    try session.checkAccess()
    guard buffer.count > 0 else { return 0 }
    let (region, offset) = try locate(told(offset))
    if let portal = function.portal(in: region, at: offset) {
      // SAFETY: the bytes are copied here, once; the client may change them meanwhile.
      return try function.submit(
        unsafe [UInt8](buffer), at: offset, to: portal, from: session.virtualMachine)
    }
    return try function.whileAwake { () throws(IOMMUError) in
      // SAFETY: as in `read`.
      try unsafe function.write(region, at: offset, from: buffer, isMapped: isMapped)
    }
  }

  /// The offset that GET_REGION_INFO tells of a place, where `offset` is the one that Linux happens to
  /// have it at (VFIO_PCI_INDEX_TO_OFFSET): some programs do not ask. Others stay as they are.
  func told(_ offset: UInt64) -> UInt64 {
    guard offset < RegionWindow.base else { return offset }
    let index = UInt32(offset >> RegionWindow.shift)
    guard let region = PCIRegion(index: index) else { return offset }
    return self.offset(of: region, index: index) | offset & ((1 << RegionWindow.shift) - 1)
  }

  func locate(
    _ offset: UInt64
  ) throws(IOMMUError) -> (region: PCIRegion, offset: UInt64) {
    guard let place = RegionWindow.locate(offset), let region = PCIRegion(index: place.index),
      place.isAfterMemory == isAfterMemory(region)
    else {
      throw IOMMUError(
        .invalidArgument,
        "file offset \(hex(offset)) is in no region; GET_REGION_INFO says where they are"
      )
    }
    return (region, place.offset)
  }

  func close() { session.close() }
}
