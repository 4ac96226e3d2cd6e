// SPDX-License-Identifier: Apache-2.0
//
// /dev/ioasid: the calls of the 2021 proposal, a second face of the objects behind /dev/iommu
// (MODEL K1). Here are the node, an open of it, and what it answers about itself.

import CLinuxABI
import IOMMU
import SystemPackage

/// The node `/dev/ioasid`. Every open is a context of its own (MODEL A1); an ioasid is the id of
/// an address space in it.
public final class IOASIDNode: DeviceNode {
  public let path = "/dev/ioasid"
  public let number = DeviceNumber(major: 10, minor: 126)
  private let system: IOMMUSystem

  /// - Parameter system: Whose devices and memory the contexts work with.
  public init(system: IOMMUSystem) { self.system = system }

  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    IOASIDFile(context: Context(system: system), number: number)
  }
}

/// An open `/dev/ioasid`.
final class IOASIDFile: ContextFile {
  let name = "ioasid"
  let number: DeviceNumber
  let context: Context

  init(context: Context, number: DeviceNumber) {
    self.context = context
    self.number = number
  }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    let call = IOASIDCall(context: context, caller: caller, argument: argument)
    switch command {
    case IOASID_CHECK_EXTENSION: return has(argument) ? 1 : 0
    case IOASID_DEVICE_GET_INFO: try call.deviceInfo()
    case IOASID_ALLOC: return try call.alloc()
    case IOASID_FREE: try call.free()
    case IOASID_MAP_DMA: try call.map()
    case IOASID_UNMAP_DMA: try call.unmap()
    case IOASID_INVALIDATE_CACHE: try call.invalidate()
    case IOASID_PAGE_FAULT_FD: return try call.pageFaultDescriptor()
    case IOASID_PAGE_RESPONSE: try call.respondToPageFault()
    case IOASID_BIND_PGTABLE: try call.bindPageTable()
    case IOASID_UNBIND_PGTABLE: try call.unbindPageTable()
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "/dev/ioasid has no command \(hex(command))")
    }
    return 0
  }

  private func has(_ extension: UInt64) -> Bool {
    switch `extension` {
    case UInt64(IOASID_EXT_MAP_TYPE1V2), UInt64(IOASID_EXT_NO_SNOOP_DMA),
      UInt64(IOASID_EXT_MULTI_DEVICE_GROUP), UInt64(IOASID_EXT_NESTING),
      UInt64(IOASID_EXT_PROCESS_PAGE_TABLE), UInt64(IOASID_EXT_VM_MEMORY):
      true
    case UInt64(IOASID_EXT_USER_PAGE_TABLE):
      context.machineUserTables.contains { !$0.format.isPASIDTable }
    case UInt64(IOASID_EXT_USER_PASID_TABLE):
      context.machineUserTables.contains { $0.format.isPASIDTable }
    // Dirty pages are read through /dev/iommu; the proposal has no call for them.
    default:
      false
    }
  }

  func close() { context.close() }
}

/// One call of /dev/ioasid.
struct IOASIDCall {
  let context: Context
  let caller: any Caller
  let argument: UInt64

  /// Copies a structure in, and checks the two fields that all of them begin with.
  /// - Throws: `EFAULT`, `EINVAL`.
  func load<Structure>(
    _ zero: Structure, size: Int = MemoryLayout<Structure>.size, knownFlags: UInt32,
    argsz: KeyPath<Structure, UInt32>, flags: KeyPath<Structure, UInt32>
  ) throws(IOMMUError) -> Structure {
    let structure = try caller.load(zero, from: argument, size: size)
    try checkHead(
      argsz: structure[keyPath: argsz], atLeast: size, flags: structure[keyPath: flags],
      known: knownFlags)
    return structure
  }

  func requireZero(_ value: UInt32, _ field: String) throws(IOMMUError) {
    guard value == 0 else {
      throw IOMMUError(.invalidArgument, "\(field) is \(hex(value)) and must be 0")
    }
  }
}
