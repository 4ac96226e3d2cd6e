// SPDX-License-Identifier: Apache-2.0
//
// GET_HW_INFO, the options and VFIO_IOAS.

import CLinuxABI
import IOMMU
import SystemPackage

extension Command {
  /// GET_HW_INFO. A type that is asked for by flag must be the one that the IOMMU has, if any.
  @Sendable
  static func getHWInfo(call: Invocation, cmd: inout iommu_hw_info) throws(IOMMUError) {
    try requireOnly(IOMMU_HW_INFO_FLAG_INPUT_TYPE, in: cmd.flags)
    let reserved = cmd.__reserved
    try requireZero(reserved.0 | reserved.1 | reserved.2, "__reserved")
    let wanted =
      cmd.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE != 0
      ? cmd.in_data_type : IOMMU_HW_INFO_TYPE_DEFAULT
    let (information, capabilities) = try call.context.hardwareInformation(
      of: ObjectID(cmd.dev_id))
    // Linux asks the IOMMU's driver whether it has the type; one that tells nothing is not asked.
    guard
      [IOMMU_HW_INFO_TYPE_DEFAULT, information.type].contains(wanted)
        || information.type == IOMMU_HW_INFO_TYPE_NONE
    else {
      throw IOMMUError(
        .operationNotSupported,
        "the IOMMU of device \(cmd.dev_id) has information of type \(information.type), not "
          + "\(wanted)")
    }
    try storeHWInfo(information, capacity: cmd.data_len, to: cmd.data_uptr, by: call.caller)
    cmd.data_len = UInt32(information.data.count)
    cmd.out_data_type = information.type
    cmd.out_max_pasid_log2 = capabilities.pasidBits
    cmd.out_capabilities = capabilities.dirtyTracking ? UInt64(IOMMU_HW_CAP_DIRTY_TRACKING) : 0
    if capabilities.lacksATS {
      cmd.out_capabilities |= UInt64(IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED)
    }
    try call.respond(with: cmd)
  }

  /// What the IOMMU has, cut or filled with zeros to what the caller has room for.
  private static func storeHWInfo(
    _ information: HardwareInformation, capacity: UInt32, to address: UInt64,
    by caller: any Caller
  ) throws(IOMMUError) {
    let known = min(information.data.count, Int(capacity))
    if known > 0 { try caller.store(bytes: Array(information.data[..<known]), to: address) }
    var rest = Int(capacity) - known
    var end = address &+ UInt64(known)
    while rest > 0 {
      let step = min(rest, 65_536)
      try caller.store(bytes: [UInt8](repeating: 0, count: step), to: end)
      end &+= UInt64(step)
      rest -= step
    }
  }

  /// OPTION: a value is read or set; a get writes only the value back.
  @Sendable
  static func option(call: Invocation, cmd: inout iommu_option) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    switch cmd.option_id {
    case IOMMU_OPTION_RLIMIT_MODE: try rlimitMode(call, &cmd)
    case IOMMU_OPTION_HUGE_PAGES: try hugePages(call, &cmd)
    default:
      throw IOMMUError(.operationNotSupported, "there is no option \(cmd.option_id)")
    }
    try call.caller.store(cmd.val64, to: call.address &+ 16)
  }

  private static func rlimitMode(
    _ call: Invocation, _ cmd: inout iommu_option
  ) throws(IOMMUError) {
    guard cmd.object_id == 0 else {
      throw IOMMUError(
        .operationNotSupported, "RLIMIT_MODE is an option of the context, not of an object")
    }
    switch UInt32(cmd.op) {
    case IOMMU_OPTION_OP_GET:
      cmd.val64 = call.context.accountsPerProcess ? 1 : 0
    case IOMMU_OPTION_OP_SET:
      guard call.file.trustsCallers || call.caller.maySetResourceLimits else {
        throw IOMMUError(.notPermitted, "setting RLIMIT_MODE needs CAP_SYS_RESOURCE")
      }
      // Linux looks for objects before it looks at the value.
      guard call.context.objectCount > 0 || cmd.val64 <= 1 else {
        throw IOMMUError(.invalidArgument, "RLIMIT_MODE is 0 or 1, not \(cmd.val64)")
      }
      try call.context.setAccountsPerProcess(cmd.val64 == 1)
    default:
      throw unknownOperation(cmd.op)
    }
  }

  private static func hugePages(
    _ call: Invocation, _ cmd: inout iommu_option
  ) throws(IOMMUError) {
    let ioas = ObjectID(cmd.object_id)
    let current = try call.context.largePages(in: ioas)
    switch UInt32(cmd.op) {
    case IOMMU_OPTION_OP_GET:
      cmd.val64 = current ? 1 : 0
    case IOMMU_OPTION_OP_SET:
      guard cmd.val64 <= 1 else {
        throw IOMMUError(.invalidArgument, "HUGE_PAGES is 0 or 1, not \(cmd.val64)")
      }
      try call.context.setLargePages(cmd.val64 == 1, in: ioas)
    default:
      throw unknownOperation(cmd.op)
    }
  }

  private static func unknownOperation(_ operation: UInt16) -> IOMMUError {
    IOMMUError(.operationNotSupported, "an option can be set (0) or got (1), not \(operation)")
  }

  /// VFIO_IOAS: which address space the compatibility calls work on.
  @Sendable
  static func vfioIOAS(call: Invocation, cmd: inout iommu_vfio_ioas) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    switch UInt32(cmd.op) {
    case IOMMU_VFIO_IOAS_GET:
      cmd.ioas_id = try call.context.compatibilityIOAS().rawValue
      try call.respond(with: cmd)
    case IOMMU_VFIO_IOAS_SET:
      try call.context.setCompatibilityIOAS(ObjectID(cmd.ioas_id))
    case IOMMU_VFIO_IOAS_CLEAR:
      try call.context.setCompatibilityIOAS(nil)
    default:
      throw IOMMUError(.operationNotSupported, "VFIO_IOAS has no operation \(cmd.op)")
    }
  }
}
