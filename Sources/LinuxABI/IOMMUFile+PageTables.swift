// SPDX-License-Identifier: Apache-2.0
//
// HWPT_ALLOC and HWPT_INVALIDATE, and how a driver reads the structures of a client that only
// it understands.

import CLinuxABI
import IOMMU
import SystemPackage

/// A structure in a client's memory. Valid for the length of the call.
struct ClientMemory: UserMemory {
  let caller: any Caller
  let address: UInt64

  func read(at offset: UInt64, count: Int) throws(IOMMUError) -> [UInt8] {
    try caller.bytes(at: address &+ offset, count: count)
  }

  func write(_ bytes: [UInt8], at offset: UInt64) throws(IOMMUError) {
    try caller.store(bytes: bytes, to: address &+ offset)
  }

  func isZero(at offset: UInt64, count: UInt64) throws(IOMMUError) -> Bool {
    try caller.isZero(at: address &+ offset, count: count)
  }
}

extension Invocation {
  /// What a client hands to the driver; nil where it hands over nothing.
  func userData(type: UInt32, length: UInt32, address: UInt64) -> UserData? {
    length == 0
      ? nil
      : UserData(
        type: UserData.type(ofClient: type), length: length,
        memory: ClientMemory(caller: caller, address: address))
  }
}

extension Command {
  /// HWPT_ALLOC: from an IOAS a kernel-managed table, from such a table a nested one.
  @Sendable
  static func hwptAlloc(call: Invocation, cmd: inout iommu_hwpt_alloc) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    guard (cmd.data_type == IOMMU_HWPT_DATA_NONE) == (cmd.data_len == 0) else {
      throw IOMMUError(
        .invalidArgument,
        "data_type \(cmd.data_type) and data_len \(cmd.data_len) contradict each other")
    }
    let faults = cmd.flags & IOMMU_HWPT_FAULT_ID_VALID != 0
    let id = try call.context.allocateHWPT(
      for: ObjectID(cmd.dev_id), from: ObjectID(cmd.pt_id),
      attributes: PagingAttributes(rawValue: cmd.flags & ~IOMMU_HWPT_FAULT_ID_VALID),
      data: call.userData(type: cmd.data_type, length: cmd.data_len, address: cmd.data_uptr),
      faultQueue: faults ? ObjectID(cmd.fault_id) : nil)
    cmd.out_hwpt_id = id.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try call.context.destroy(id) }
  }

  /// HWPT_INVALIDATE of a user-managed table. The count of entries that were handled is
  /// written back whatever happens.
  @Sendable
  static func hwptInvalidate(
    call: Invocation, cmd: inout iommu_hwpt_invalidate
  ) throws(IOMMUError) {
    var handled: UInt32 = 0
    var failure: IOMMUError?
    do throws(IOMMUError) {
      (handled, failure) = try invalidate(call, cmd)
    } catch {
      failure = error
    }
    cmd.entry_num = handled
    try call.respond(with: cmd)
    if let failure { throw failure }
  }

  private static func invalidate(
    _ call: Invocation, _ cmd: iommu_hwpt_invalidate
  ) throws(IOMMUError) -> (handled: UInt32, failure: IOMMUError?) {
    try requireZero(cmd.__reserved, "__reserved")
    // Linux's limits on one call: entries of a page, 2^19 of them.
    if cmd.entry_num > 0,
      cmd.data_uptr == 0 || cmd.entry_len == 0 || cmd.entry_len > 4096
        || cmd.entry_num > 1 << 19
    {
      throw IOMMUError(
        .invalidArgument,
        "\(cmd.entry_num) entries of \(cmd.entry_len) bytes at \(hex(cmd.data_uptr)) "
          + "cannot be read")
    }
    return try call.context.invalidate(
      ObjectID(cmd.hwpt_id),
      UserDataArray(
        type: cmd.data_type, entryLength: cmd.entry_len, count: cmd.entry_num,
        memory: ClientMemory(caller: call.caller, address: cmd.data_uptr)))
  }
}
