// SPDX-License-Identifier: Apache-2.0
//
// I/O commands (NVM Express 1.4, 6): what they check, and in what order data moves.

import IOMMU
import VFIO

extension NVMeEngine {
  /// Carries an I/O command out.
  /// - Returns: The stores that are to be flushed before it completes.
  func transfer(_ command: NVMeCommand) throws(NVMeStatus) -> Range<Int> {
    // No fused commands.
    guard command.fuse == 0, command.dataPointer != 3 else { throw .invalidField }
    switch NVMeCommand.NVM(rawValue: command.opcode) {
    case .read: try read(command)
    case .write:
      try write(command)
      return settled(command, forced: command.forcesUnitAccess)
    case .flush: return try flushed(command)
    case .compare: try compare(command)
    case .writeZeroes:
      try writeZeroes(command)
      return settled(command, forced: command.forcesUnitAccess)
    case .manageDataset:
      if try manageDataset(command) { return settled(command) }
    case .verify: try verify(command)
    case nil: throw .invalidOpcode
    }
    return Self.none
  }

  /// Where a command's blocks are, in bytes.
  private struct Extent {
    var store: BlockStore
    var offset: UInt64
    var count: UInt64
  }

  private func extent(
    _ command: NVMeCommand, writes: Bool = false
  ) throws(NVMeStatus) -> Extent {
    let store = try store(command.namespace)
    if writes, store.isReadOnly { throw .writeProtected }
    return try extent(store, first: command.firstBlock, count: command.blockCount)
  }

  private func extent(
    _ store: BlockStore, first: UInt64, count: UInt64
  ) throws(NVMeStatus) -> Extent {
    guard first <= store.blockCount, count <= store.blockCount - first else {
      throw .outOfRange
    }
    let size = UInt64(store.blockSize)
    return Extent(store: store, offset: first * size, count: count * size)
  }

  /// Bytes of a transfer.
  private func length(_ extent: Extent) throws(NVMeStatus) -> Int {
    guard extent.count <= UInt64(data.limit) else { throw .invalidField }
    return Int(extent.count)
  }

  /// No stores.
  private static var none: Range<Int> { 0..<0 }

  /// The store of a command's namespace, which there is.
  private func storeIndex(_ command: NVMeCommand) -> Range<Int> {
    let index = Int(command.namespace) - 1
    return index..<index + 1
  }

  /// Without a volatile cache each write lasts when it completes.
  private func settled(_ command: NVMeCommand, forced: Bool = false) -> Range<Int> {
    forced || !features.writeCache ? storeIndex(command) : Self.none
  }

  private func read(_ command: NVMeCommand) throws(NVMeStatus) {
    let extent = try extent(command)
    let count = try length(extent)
    try data.locate(command, count: count, pageShift: pageShift, isRead: true)
    try data.read(extent.store, at: extent.offset, count: count)
    try data.send()
    health.readBytes &+= extent.count
    health.readCommands &+= 1
  }

  private func write(_ command: NVMeCommand) throws(NVMeStatus) {
    let extent = try extent(command, writes: true)
    let count = try length(extent)
    try data.locate(command, count: count, pageShift: pageShift, isRead: false)
    try data.receive()
    try data.write(extent.store, at: extent.offset, count: count)
    health.writtenBytes &+= extent.count
    health.writeCommands &+= 1
  }

  private func flushed(_ command: NVMeCommand) throws(NVMeStatus) -> Range<Int> {
    guard command.namespace != Self.everyNamespace else { return stores.indices }
    _ = try store(command.namespace)
    return storeIndex(command)
  }

  private func compare(_ command: NVMeCommand) throws(NVMeStatus) {
    let extent = try extent(command)
    let count = try length(extent)
    try data.locate(command, count: count, pageShift: pageShift, isRead: false)
    try data.receive()
    health.readBytes &+= extent.count
    health.readCommands &+= 1
    guard try data.isEqual(extent.store, at: extent.offset, count: count) else {
      throw .compareFailure
    }
  }

  private func writeZeroes(_ command: NVMeCommand) throws(NVMeStatus) {
    let extent = try extent(command, writes: true)
    try extent.store.deallocate(at: extent.offset, count: extent.count)
    health.writeCommands &+= 1
  }

  /// Reads the blocks, and transfers none.
  private func verify(_ command: NVMeCommand) throws(NVMeStatus) {
    let extent = try extent(command)
    var done: UInt64 = 0
    while done < extent.count {
      let piece = min(UInt64(data.limit), extent.count - done)
      try data.read(extent.store, at: extent.offset + done, count: Int(piece))
      done += piece
    }
  }

  /// Ranges of blocks that may go, or hints that change nothing.
  /// - Returns: Whether anything was written.
  private func manageDataset(_ command: NVMeCommand) throws(NVMeStatus) -> Bool {
    let store = try store(command.namespace)
    let ranges = Int(command.dword(10) & 0xFF) + 1
    let deallocates = command.dword(11) & 4 != 0
    if deallocates, store.isReadOnly { throw .writeProtected }
    try data.locate(command, count: ranges * 16, pageShift: pageShift, isRead: false)
    try data.receive()
    // All of them, before any of it is done.
    var extents: [Extent] = []
    extents.reserveCapacity(ranges)
    for index in 0..<ranges {
      extents.append(
        try extent(
          store, first: data.word(index * 2 + 1), count: data.word(index * 2) >> 32))
    }
    guard deallocates else { return false }
    for extent in extents { try store.deallocate(at: extent.offset, count: extent.count) }
    return true
  }
}
