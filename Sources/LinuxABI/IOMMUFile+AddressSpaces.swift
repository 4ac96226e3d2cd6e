// SPDX-License-Identifier: Apache-2.0
//
// The commands on objects and address spaces: copy-in, the checks of fields in Linux's order,
// the engine's call, copy-out.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

extension Command {
  @Sendable
  static func destroy(call: Invocation, cmd: inout iommu_destroy) throws(IOMMUError) {
    try call.context.destroy(ObjectID(cmd.id))
  }

  @Sendable
  static func ioasAlloc(call: Invocation, cmd: inout iommu_ioas_alloc) throws(IOMMUError) {
    try requireZero(cmd.flags, "flags")
    let id = try call.context.allocateIOAS()
    cmd.out_ioas_id = id.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try call.context.destroy(id) }
  }

  @Sendable
  static func ioasIOVARanges(
    call: Invocation, cmd: inout iommu_ioas_iova_ranges
  ) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    let (ranges, alignment) = try call.context.mappableRanges(of: ObjectID(cmd.ioas_id))
    let room = cmd.num_iovas
    var address = cmd.allowed_iovas
    for range in ranges.prefix(Int(room)) {
      try call.caller.store(
        iommu_iova_range(start: range.lowerBound, last: range.upperBound), to: address)
      address &+= UInt64(MemoryLayout<iommu_iova_range>.size)
    }
    cmd.num_iovas = UInt32(ranges.count)
    cmd.out_iova_alignment = alignment
    try call.respond(with: cmd)
    guard ranges.count <= Int(room) else {
      throw IOMMUError(
        .messageTooLong,
        "IOAS \(cmd.ioas_id) has \(ranges.count) ranges; num_iovas has room for \(room)")
    }
  }

  @Sendable
  static func ioasAllowIOVAs(
    call: Invocation, cmd: inout iommu_ioas_allow_iovas
  ) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    // The id is checked first, as on Linux.
    try call.context.requireAddressSpace(ObjectID(cmd.ioas_id))
    // In order of address; each is checked before the next is read, as on Linux.
    var ranges: [ClosedRange<UInt64>] = []
    var address = cmd.allowed_iovas
    for index in 0..<cmd.num_iovas {
      let range = try call.caller.load(from: address, zero: iommu_iova_range())
      guard range.start < range.last else {
        throw IOMMUError(
          .invalidArgument,
          "allowed range \(index), \(hex(range.start)) to \(hex(range.last)), "
            + "does not end after its start")
      }
      try insert(range.start...range.last, into: &ranges)
      address &+= UInt64(MemoryLayout<iommu_iova_range>.size)
    }
    try call.context.allow(ranges, in: ObjectID(cmd.ioas_id))
  }

  private static func insert(
    _ range: ClosedRange<UInt64>, into ranges: inout [ClosedRange<UInt64>]
  ) throws(IOMMUError) {
    // The first that ends at or after the start.
    var low = 0
    var high = ranges.count
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].upperBound < range.lowerBound {
        low = middle + 1
      } else {
        high = middle
      }
    }
    if low < ranges.count, ranges[low].overlaps(range) {
      throw Context.overlap(ranges[low], range)
    }
    ranges.insert(range, at: low)
  }

  private static let mapFlags =
    IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE

  private static func checkBelowLast(
    _ value: UInt64, _ field: String
  ) throws(IOMMUError) {
    guard value != .max else {
      throw IOMMUError(.overflow, "\(field) \(hex(value)) is too large")
    }
  }

  private static func permissions(_ flags: UInt32) throws(IOMMUError) -> Permissions {
    var permissions: Permissions = []
    if flags & IOMMU_IOAS_MAP_READABLE != 0 { permissions.insert(.read) }
    if flags & IOMMU_IOAS_MAP_WRITEABLE != 0 { permissions.insert(.write) }
    guard !permissions.isEmpty else {
      throw IOMMUError(
        .invalidArgument,
        "flags \(hex(flags)) ask for neither IOMMU_IOAS_MAP_READABLE nor "
          + "IOMMU_IOAS_MAP_WRITEABLE")
    }
    return permissions
  }

  private static func placement(_ flags: UInt32, _ iova: UInt64) -> Placement {
    flags & IOMMU_IOAS_MAP_FIXED_IOVA != 0 ? .fixed(IOVA(iova)) : .anywhere
  }

  @Sendable
  static func ioasMap(call: Invocation, cmd: inout iommu_ioas_map) throws(IOMMUError) {
    try requireOnly(mapFlags, in: cmd.flags)
    try requireZero(cmd.__reserved, "__reserved")
    try checkBelowLast(cmd.iova, "iova")
    try checkBelowLast(cmd.length, "length")
    let permissions = try permissions(cmd.flags)
    let ioas = try call.context.reference(to: ObjectID(cmd.ioas_id))
    let iova = try call.context.map(
      call.caller.memory(), start: cmd.user_va, length: cmd.length, into: ioas,
      permissions: permissions, at: placement(cmd.flags, cmd.iova),
      account: call.file.account(of: call.caller))
    cmd.iova = iova.rawValue
    try respond(call, with: cmd, mapped: cmd.length, at: iova, in: ioas)
  }

  @Sendable
  static func ioasMapFile(call: Invocation, cmd: inout iommu_ioas_map_file) throws(IOMMUError) {
    try requireOnly(mapFlags, in: cmd.flags)
    try checkBelowLast(cmd.iova, "iova")
    try checkBelowLast(cmd.length, "length")
    let permissions = try permissions(cmd.flags)
    let ioas = try call.context.reference(to: ObjectID(cmd.ioas_id))
    let iova = try mapFile(call, cmd, permissions, into: ioas)
    cmd.iova = iova.rawValue
    try respond(call, with: cmd, mapped: cmd.length, at: iova, in: ioas)
  }

  /// The length and the offset are looked at before the descriptor is.
  private static func mapFile(
    _ call: Invocation, _ cmd: iommu_ioas_map_file, _ permissions: Permissions,
    into ioas: IOASReference
  ) throws(IOMMUError) -> IOVA {
    guard cmd.length > 0 else {
      throw IOMMUError(.invalidArgument, "length is 0; a mapping of no bytes cannot be made")
    }
    guard !cmd.start.addingReportingOverflow(cmd.length - 1).overflow else {
      throw IOMMUError(
        .overflow, "start \(hex(cmd.start)) + length \(hex(cmd.length)) is too large")
    }
    let placement = placement(cmd.flags, cmd.iova)
    if let file = try call.caller.openFile(descriptor: cmd.fd) as? BufferFile {
      return try call.context.map(
        file.buffer, offset: cmd.start, length: cmd.length, into: ioas,
        permissions: permissions, at: placement)
    }
    return try call.context.map(
      call.caller.fileMemory(descriptor: cmd.fd).source, start: cmd.start, length: cmd.length,
      into: ioas, permissions: permissions, at: placement, kind: .file,
      account: call.file.account(of: call.caller))
  }

  @Sendable
  static func ioasCopy(call: Invocation, cmd: inout iommu_ioas_copy) throws(IOMMUError) {
    try requireOnly(mapFlags, in: cmd.flags)
    try checkBelowLast(cmd.length, "length")
    try checkBelowLast(cmd.src_iova, "src_iova")
    try checkBelowLast(cmd.dst_iova, "dst_iova")
    let permissions = try permissions(cmd.flags)
    let destination = ObjectID(cmd.dst_ioas_id)
    let iova = try call.context.copy(
      from: ObjectID(cmd.src_ioas_id), IOVA(cmd.src_iova), length: cmd.length,
      into: destination, permissions: permissions, at: placement(cmd.flags, cmd.dst_iova))
    cmd.dst_iova = iova.rawValue
    try respond(
      call, with: cmd, mapped: cmd.length, at: iova,
      in: call.context.reference(to: destination))
  }

  /// Tells the caller where something was mapped; where that fails, it is not mapped.
  private static func respond<Structure>(
    _ call: Invocation, with cmd: Structure, mapped length: UInt64, at iova: IOVA,
    in ioas: IOASReference
  ) throws(IOMMUError) {
    try call.respond(with: cmd) { () throws(IOMMUError) in
      try call.context.unmap(iova.rawValue...iova.rawValue + (length - 1), from: ioas)
    }
  }

  @Sendable
  static func ioasUnmap(call: Invocation, cmd: inout iommu_ioas_unmap) throws(IOMMUError) {
    let ioas = try call.context.reference(to: ObjectID(cmd.ioas_id))
    if cmd.iova == 0, cmd.length == .max {
      cmd.length = try call.context.unmap(0...UInt64.max, from: ioas)
      return try call.respond(with: cmd)
    }
    try checkBelowLast(cmd.iova, "iova")
    try checkBelowLast(cmd.length, "length")
    guard cmd.length > 0 else {
      throw IOMMUError(.invalidArgument, "an unmap of no bytes from IOAS \(ioas.id)")
    }
    let (last, overflow) = cmd.iova.addingReportingOverflow(cmd.length - 1)
    guard !overflow else {
      throw IOMMUError(
        .overflow,
        "iova \(hex(cmd.iova)) + length \(hex(cmd.length)) passes the last "
          + "address")
    }
    cmd.length = try call.context.unmap(cmd.iova...last, from: ioas)
    try call.respond(with: cmd)
  }
}
