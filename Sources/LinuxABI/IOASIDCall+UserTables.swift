// SPDX-License-Identifier: Apache-2.0
//
// Tables that users own (MODEL B2, B9, K1): an ioasid that is made with one, BIND_PGTABLE of the
// first proposal, and INVALIDATE_CACHE (G1).

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

extension IOASIDCall {
  /// - Throws: `EINVAL` for fields that do not go together, and for a table that no IOMMU could
  ///   walk; what `Context.allocateIOAS(of:nestedOn:)` throws.
  func allocUserTable(_ cmd: ioasid_alloc) throws(IOMMUError) -> Int {
    let flags = IOASID_ALLOC_USER_PAGE_TABLE | IOASID_ALLOC_USER_PASID_TABLE
    guard cmd.flags & flags != flags else {
      throw IOMMUError(
        .invalidArgument, "USER_PAGE_TABLE and USER_PASID_TABLE are two kinds of ioasid")
    }
    guard cmd.flags & IOASID_ALLOC_PARENT != 0 else {
      throw IOMMUError(
        .invalidArgument,
        "a table of the user's is not trusted: it needs a parent (PARENT, 8), whose mappings are "
          + "all that it reaches")
    }
    guard cmd.flags & IOASID_ALLOC_ENFORCE_SNOOP == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "ENFORCE_SNOOP does not go with a user's table: what its parent says of snooping holds")
    }
    let table = try Self.table(cmd.type, width: cmd.addr_width, address: cmd.table)
    let isPASIDTable = cmd.flags & IOASID_ALLOC_USER_PASID_TABLE != 0
    guard table.format.isPASIDTable == isPASIDTable else {
      throw IOMMUError(
        .invalidArgument,
        "type \(cmd.type), \(table.format), goes with \(Self.flag(for: table.format))")
    }
    return Int(try context.allocateIOAS(of: table, nestedOn: ObjectID(cmd.parent)).rawValue)
  }

  /// The flag of IOASID_ALLOC that goes with a format.
  static func flag(for format: UserTable.Format) -> String {
    format.isPASIDTable ? "USER_PASID_TABLE" : "USER_PAGE_TABLE"
  }

  private static func table(
    _ type: UInt32, width: UInt32, address: UInt64
  ) throws(IOMMUError) -> UserTable {
    guard let format = UserTable.Format(rawValue: type) else {
      throw IOMMUError(
        .invalidArgument,
        "type \(type) is no format of users' tables; page tables are "
          + "\(IOASID_TYPE_INTEL_FIRST_STAGE) to \(IOASID_TYPE_RISCV_FIRST_STAGE), PASID tables "
          + "\(IOASID_TYPE_ARM_CD_TABLE) to \(IOASID_TYPE_RISCV_PROCESS_DIRECTORY)")
    }
    return UserTable(format: format, width: Int(width), root: address)
  }

  func bindPageTable() throws(IOMMUError) {
    let cmd = try load(ioasid_bind_pgtable(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    let table = try Self.table(cmd.format, width: cmd.addr_width, address: cmd.addr)
    try refuseProcessTable(ObjectID(cmd.ioasid), .invalidArgument)
    try context.bind(table, to: ObjectID(cmd.ioasid))
  }

  func unbindPageTable() throws(IOMMUError) {
    let cmd = try load(ioasid_bind_pgtable(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    try requireZero(cmd.format, "format")
    try requireZero(cmd.addr_width, "addr_width")
    guard cmd.addr == 0 else {
      throw IOMMUError(.invalidArgument, "addr is \(hex(cmd.addr)) and must be 0")
    }
    try refuseProcessTable(ObjectID(cmd.ioasid), .invalidArgument)
    try context.unbindUserTable(of: ObjectID(cmd.ioasid))
  }

  func invalidate() throws(IOMMUError) {
    let cmd = try load(
      ioasid_invalidate_cache(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    let granularity = try granularity(of: cmd)
    let caches = IOASID_CACHE_IOTLB | IOASID_CACHE_DEVICE_TLB | IOASID_CACHE_PASID
    guard cmd.caches != 0, cmd.caches & ~caches == 0 else {
      throw IOMMUError(.invalidArgument, "caches \(hex(cmd.caches)) are none, or unknown ones")
    }
    let ioasid = ObjectID(cmd.ioasid)
    try refuseProcessTable(ioasid, .invalidArgument)
    let request = CacheInvalidation(granularity, of: .init(rawValue: cmd.caches))
    let (_, failure) = try context.invalidate(
      [SpaceInvalidation(request, cookie: cmd.cookie)], of: ioasid)
    if let failure { throw failure }
  }

  /// - Throws: `EINVAL`, and `EOVERFLOW` for a range that passes the last address.
  private func granularity(
    of cmd: ioasid_invalidate_cache
  ) throws(IOMMUError) -> CacheInvalidation.Granularity {
    let pasid = PASID(rawValue: cmd.vpasid)
    switch cmd.granularity {
    case IOASID_INVALIDATE_DEVICE: return .device
    case IOASID_INVALIDATE_PASID: return .pasid(pasid)
    case IOASID_INVALIDATE_RANGE:
      guard cmd.size > 0 else {
        throw IOMMUError(.invalidArgument, "the range has no bytes")
      }
      let (last, overflows) = cmd.addr.addingReportingOverflow(cmd.size - 1)
      guard !overflows else {
        throw IOMMUError(
          .overflow, "\(hex(cmd.size)) bytes from \(hex(cmd.addr)) pass the last address")
      }
      return .range(pasid, cmd.addr...last)
    default:
      throw IOMMUError(
        .invalidArgument,
        "granularity \(cmd.granularity) is none of device (1), PASID (2) and range (3)")
    }
  }
}
