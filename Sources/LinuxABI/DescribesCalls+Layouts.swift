// SPDX-License-Identifier: Apache-2.0
//
// Calls of our files in words, from the layout tables: no file keeps names of its own.

import CLinuxABI
import IOMMU

/// A file whose commands are in one of the layout tables.
protocol HasLayouts: DescribesCalls {
  static var face: StructLayout.Face { get }
  /// What an argument is that is the address of something else than a structure; nil where it is
  /// none.
  func argument(
    of command: UInt32, at address: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> (name: String, value: String)?
}

extension HasLayouts {
  func argument(
    of command: UInt32, at address: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> (name: String, value: String)? { nil }
}

extension HasLayouts {
  func describe(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) -> CallFields {
    guard let layout = StructLayout.of(command, on: Self.face) else {
      return CallFields(
        name: hex(command), fields: [("argument", hex(argument))])
    }
    guard layout.size > 0 else {
      if let field = (try? self.argument(of: command, at: argument, by: caller)) ?? nil {
        return CallFields(name: layout.name, fields: [field])
      }
      // A value, or nothing.
      return CallFields(
        name: layout.name, fields: argument == 0 ? [] : [("argument", hex(argument))])
    }
    // What the caller has of it: every structure but KVM's starts with its own size, and may end
    // its mapping, so field by field.
    let size =
      Self.face == .kvm && layout.command & 0xFF00_0000 != 0
      ? UInt32(layout.size) : (try? caller.load(UInt32(0), from: argument, size: 4)) ?? 0
    let fields = layout.fields.compactMap { field -> (name: String, value: String)? in
      guard field.offset + field.size <= size else { return nil }
      var value: UInt64
      do throws(IOMMUError) {
        value = try caller.load(
          UInt64(0), from: argument &+ UInt64(field.offset), size: min(field.size, 8))
      } catch {
        return nil
      }
      if field.size < 8 { value &= (1 << UInt64(field.size * 8)) - 1 }
      return (field.name, field.text(value))
    }
    guard !fields.isEmpty else {
      return CallFields(name: layout.name, fields: [("argument", hex(argument))])
    }
    return CallFields(name: layout.name, fields: fields)
  }
}

extension IOMMUFile: HasLayouts {
  static let face = StructLayout.Face.iommufd
}

extension IOASIDFile: HasLayouts {
  static let face = StructLayout.Face.ioasid
}

extension VFIODeviceFile: HasLayouts {
  static let face = StructLayout.Face.vfioDevice
}

extension VFIOGroupFile: HasLayouts {
  static let face = StructLayout.Face.vfioGroup

  func argument(
    of command: UInt32, at address: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> (name: String, value: String)? {
    switch command {
    case VFIO_GROUP_SET_CONTAINER:
      ("container", "\(try caller.load(Int32.self, from: address, zero: 0))")
    case VFIO_GROUP_GET_DEVICE_FD:
      ("name", try caller.text(at: address))
    default: nil
    }
  }
}

extension VFIOContainerFile: HasLayouts {
  static let face = StructLayout.Face.vfioContainer
}

extension VirtualMachineSystemFile: HasLayouts {
  static let face = StructLayout.Face.kvm
}

extension VirtualMachineFile: HasLayouts {
  static let face = StructLayout.Face.kvm
}

extension VirtualMachineVFIOFile: HasLayouts {
  static let face = StructLayout.Face.kvm
}
