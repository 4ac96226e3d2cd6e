// SPDX-License-Identifier: Apache-2.0
//
// Making and freeing an ioasid, and what is mapped in it (MODEL B1, B5, B7, K1). Those that others
// fill: IOASIDCall+Sources.swift.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

extension IOASIDCall {
  /// - Returns: The ioasid.
  func alloc() throws(IOMMUError) -> Int {
    let cmd = try load(
      ioasid_alloc(),
      knownFlags: IOASID_ALLOC_ENFORCE_SNOOP | IOASID_ALLOC_USER_PAGE_TABLE
        | IOASID_ALLOC_USER_PASID_TABLE | IOASID_ALLOC_PARENT,
      argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    if cmd.flags & (IOASID_ALLOC_USER_PAGE_TABLE | IOASID_ALLOC_USER_PASID_TABLE) != 0 {
      return try allocUserTable(cmd)
    }
    switch cmd.type {
    case IOASID_TYPE_KERNEL_TYPE1V2: return try allocMapped(cmd)
    case IOASID_TYPE_PROCESS_PAGE_TABLE: return try allocProcessTable(cmd)
    case IOASID_TYPE_VM_MEMORY: return try allocVMMemory(cmd)
    default:
      if let format = UserTable.Format(rawValue: cmd.type) {
        throw IOMMUError(
          .invalidArgument,
          "type \(cmd.type), \(format), goes with \(Self.flag(for: format)) and PARENT")
      }
      throw IOMMUError(
        .invalidArgument,
        "type \(cmd.type) is none; a space that map calls fill has type "
          + "\(IOASID_TYPE_KERNEL_TYPE1V2), a process's page table "
          + "\(IOASID_TYPE_PROCESS_PAGE_TABLE), a VM's memory \(IOASID_TYPE_VM_MEMORY)")
    }
  }

  private func allocMapped(_ cmd: ioasid_alloc) throws(IOMMUError) -> Int {
    guard cmd.table == 0 else {
      throw IOMMUError(
        .invalidArgument, "a table's address, \(hex(cmd.table)), goes with a user's table only")
    }
    let hasParent = cmd.flags & IOASID_ALLOC_PARENT != 0
    if !hasParent { try requireZero(cmd.parent, "parent, without its flag,") }
    let attributes = Self.attributes(cmd)
    let id =
      hasParent
      // A change to the parent is carried through: the caller's own calls make it.
      ? try context.allocateIOAS(
        nestedOn: ObjectID(cmd.parent), parentChanges: .carriedThrough, attributes: attributes)
      : try context.allocateIOAS(attributes)
    return Int(id.rawValue)
  }

  static func attributes(_ cmd: ioasid_alloc) -> AddressSpaceAttributes {
    AddressSpaceAttributes(
      snoop: cmd.flags & IOASID_ALLOC_ENFORCE_SNOOP != 0 ? .enforced : .automatic,
      addressBits: cmd.addr_width == 0 ? nil : Int(cmd.addr_width), allowsPASIDs: true)
  }

  func free() throws(IOMMUError) {
    let ioasid = try ioasid(argument)
    if context.process(of: ioasid) == nil { try context.requireAddressSpace(ioasid) }
    do throws(IOMMUError) {
      try context.destroy(ioasid)
    } catch {
      guard error.errno == .resourceBusy else { throw error }
      throw IOMMUError(
        .resourceBusy,
        "ioasid \(ioasid) is in use by \(context.users(of: ioasid, spacesCalled: "ioasid"))")
    }
  }

  /// The argument itself.
  private func ioasid(_ value: UInt64) throws(IOMMUError) -> ObjectID {
    guard let number = UInt32(exactly: value) else {
      throw IOMMUError(.noSuchFileOrDirectory, "there is no ioasid \(hex(value))")
    }
    return ObjectID(number)
  }

  func map() throws(IOMMUError) {
    let cmd = try load(ioasid_dma_map(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    let map = cmd.map
    guard map.argsz >= 32 else {
      throw IOMMUError(.invalidArgument, "the map's argsz is \(map.argsz); it has 32 bytes")
    }
    let known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
    guard map.flags & ~known == 0, map.flags & known != 0 else {
      throw IOMMUError(
        .invalidArgument, "the map's flags are \(hex(map.flags)); READ (1), WRITE (2) or both")
    }
    var permissions: Permissions = []
    if map.flags & VFIO_DMA_MAP_FLAG_READ != 0 { permissions.insert(.read) }
    if map.flags & VFIO_DMA_MAP_FLAG_WRITE != 0 { permissions.insert(.write) }
    let ioasid = ObjectID(cmd.ioasid)
    try refuseProcessTable(ioasid, .notPermitted)
    let placement = Placement.fixed(IOVA(map.iova))
    if try context.nesting(of: ioasid) != nil {
      try context.map(
        parentIOVA: IOVA(map.vaddr), length: map.size, into: ioasid, permissions: permissions,
        at: placement)
    } else {
      let (owner, right) = try caller.memoryOwner()
      try context.map(
        caller.memory(), start: map.vaddr, length: map.size, into: ioasid,
        permissions: permissions, at: placement,
        account: owner.account(right == .unlimited ? .none : .user))
    }
  }

  func unmap() throws(IOMMUError) {
    var cmd = try load(ioasid_dma_unmap(), knownFlags: 0, argsz: \.argsz, flags: \.flags)
    try requireZero(cmd.reserved, "reserved")
    guard cmd.unmap_argsz >= 24 else {
      throw IOMMUError(
        .invalidArgument, "the unmap's argsz is \(cmd.unmap_argsz); it has 24 bytes")
    }
    try requireZero(cmd.unmap_flags, "the unmap's flags")
    try refuseProcessTable(ObjectID(cmd.ioasid), .notPermitted)
    cmd.size = try context.unmapWhole(
      IOVA(cmd.iova), length: cmd.size, from: ObjectID(cmd.ioasid))
    try caller.store(cmd, to: argument)
  }
}
