// SPDX-License-Identifier: Apache-2.0
//
// What a container maps: VFIO's type1 and type1v2 over one address space of its context (MODEL
// J1). Facts: Linux 7.1, drivers/vfio/vfio_iommu_type1.c; 6.12 says `EINVAL` where this says
// `EOVERFLOW`.

import IOMMU
import PageTables
import SystemPackage

/// The mappings of a container, under its lock. Linux: `struct vfio_iommu`.
struct Type1: Sendable {
  let context: Context
  let space: IOASReference
  let model: VFIOContainer.Model
  /// Linux: `dma_avail`, from the module parameter `dma_entry_limit`.
  var mappingsLeft = Self.mappingLimit
  var tracksDirty = false

  static let mappingLimit: UInt32 = 65_535

  /// What every address and size is a multiple of, in bytes.
  func pageSize() throws(IOMMUError) -> UInt64 {
    try context.commonPageSizes(of: space.id).smallest
  }

  /// The first mapping that shares a byte with a range.
  func mapping(in range: ClosedRange<UInt64>) -> ClosedRange<UInt64>? {
    guard let found = context.firstMapping(endingAtOrAfter: range.lowerBound, in: space),
      found.lowerBound <= range.upperBound
    else { return nil }
    return found
  }

  /// Refuses a range whose ends lie inside mappings.
  /// - Throws: `EINVAL`.
  func checkSplitsNothing(_ range: ClosedRange<UInt64>) throws(IOMMUError) {
    let first = mapping(in: range.lowerBound...range.lowerBound)
    let last = mapping(in: range.upperBound...range.upperBound)
    if let first, first.lowerBound != range.lowerBound { throw splits(first, range) }
    if let last, last.upperBound != range.upperBound { throw splits(last, range) }
  }

  private func splits(
    _ mapping: ClosedRange<UInt64>, _ range: ClosedRange<UInt64>
  ) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "\(hex(range.lowerBound))...\(hex(range.upperBound)) would split the mapping "
        + "\(hex(mapping.lowerBound))...\(hex(mapping.upperBound)); type1v2 takes whole mappings"
    )
  }
}

/// The last byte of `size` bytes, of which there is one.
/// - Throws: `EOVERFLOW` past the last address.
private func lastByte(_ first: UInt64, _ size: UInt64, _ name: String) throws(IOMMUError)
  -> UInt64
{
  let (last, overflow) = first.addingReportingOverflow(size - 1)
  guard !overflow else {
    throw IOMMUError(
      .overflow, "\(name) \(hex(first)) + size \(hex(size)) passes the last address")
  }
  return last
}

extension VFIOContainer {
  /// A range of IOVA, as programs give it. Both ends inclusive, in bytes.
  /// - Throws: `EINVAL` for no bytes, `EOVERFLOW` past the last address.
  public static func range(
    iova: UInt64, size: UInt64
  ) throws(IOMMUError) -> ClosedRange<UInt64> {
    guard size > 0 else {
      throw IOMMUError(.invalidArgument, "size is 0; a range has bytes")
    }
    return try iova...lastByte(iova, size, "iova")
  }

  /// Memory to be mapped, of the process that maps it. Addresses and size in bytes.
  public struct Request: Sendable {
    public var source: any MemorySource
    public var address: UInt64
    public var iova: UInt64
    public var size: UInt64
    public var permissions: Permissions
    /// What pins are charged to (MODEL B6).
    public var account: MemoryAccount?

    public init(
      source: any MemorySource, address: UInt64, iova: UInt64, size: UInt64,
      permissions: Permissions, account: MemoryAccount? = nil
    ) {
      self.source = source
      self.address = address
      self.iova = iova
      self.size = size
      self.permissions = permissions
      self.account = account
    }
  }

  /// What mappings are charged to: the process, as type1 counts, whatever user it has.
  /// - Parameter isUnlimited: Whether the process may lock what it likes (CAP_IPC_LOCK).
  public static func account(of owner: MemoryOwner, isUnlimited: Bool) -> MemoryAccount {
    owner.account(isUnlimited ? .unlimitedContainer : .container)
  }

  /// Maps memory for the devices of all groups, and pins it.
  ///
  /// Linux: `VFIO_IOMMU_MAP_DMA`.
  /// - Throws: `EINVAL` before a model is set, for no bytes, no access, what is off the page size
  ///   or reserved; `EOVERFLOW`; `EEXIST` over a mapping; `ENOSPC` past the limit of mappings;
  ///   `EFAULT` for memory that is not there; `ENOMEM`. Checked in this order.
  public func map(_ request: Request) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try Self.type1(of: state).map(request)
      state.type1?.mappingsLeft -= 1
    }
  }

  /// Unmaps. When it returns, no DMA on any thread uses what was mapped (MODEL G2).
  ///
  /// Linux: `VFIO_IOMMU_UNMAP_DMA`. With type1v2 mappings that lie wholly inside; with type1 in
  /// order until one began before the range, and the last one whole.
  /// - Parameters:
  ///   - iova, size: In bytes.
  ///   - bitmapPageSize: The page size of a dirty bitmap to be told as well; nil is none.
  ///   - tellDirty: Is told each mapping with such a bitmap, all of whose pages count as dirty,
  ///     before it goes. Called with the container's lock held: nobody maps there meanwhile. It
  ///     must not call the container.
  /// - Returns: Bytes unmapped; none is no error.
  /// - Throws: `EINVAL`, `EOVERFLOW`; what `tellDirty` throws, and what came before stays
  ///   unmapped.
  public func unmap(
    iova: UInt64, size: UInt64, bitmapPageSize: UInt64? = nil,
    tellDirty: (ClosedRange<UInt64>) throws(IOMMUError) -> Void = { _ in }
  ) throws(IOMMUError) -> UInt64 {
    try state.withLock { (state) throws(IOMMUError) in
      let type1 = try Self.type1(of: state)
      let page = try type1.pageSize()
      try Self.check(iova: iova, page: page)
      guard size > 0, size & (page - 1) == 0 else {
        throw IOMMUError(
          .invalidArgument, "size \(hex(size)) is no multiple of \(hex(page)), or none at all")
      }
      let range = try Self.range(iova: iova, size: size)
      if let bitmapPageSize { try type1.checkTracking(bitmapPageSize) }
      if type1.model == .type1v2 { try type1.checkSplitsNothing(range) }
      return try Self.unmap(range, &state) { (mapping) throws(IOMMUError) in
        if bitmapPageSize != nil { try tellDirty(mapping) }
      }
    }
  }

  /// Unmaps everything. Linux: `VFIO_DMA_UNMAP_FLAG_ALL`.
  /// - Parameters: `iova` and `size` as the caller gave them: 0.
  /// - Returns: Bytes unmapped.
  /// - Throws: `EINVAL`.
  public func unmapAll(iova: UInt64 = 0, size: UInt64 = 0) throws(IOMMUError) -> UInt64 {
    try state.withLock { (state) throws(IOMMUError) in
      _ = try Self.type1(of: state)
      guard iova == 0, size == 0 else {
        throw IOMMUError(
          .invalidArgument, "iova and size must be 0 with VFIO_DMA_UNMAP_FLAG_ALL")
      }
      return try Self.unmap(0...UInt64.max, &state) { (_) throws(IOMMUError) in }
    }
  }

  private static func check(iova: UInt64, page: UInt64) throws(IOMMUError) {
    guard iova & (page - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument, "iova \(hex(iova)) is no multiple of \(hex(page)) bytes")
    }
  }

  private static func unmap(
    _ range: ClosedRange<UInt64>, _ state: inout State,
    _ willUnmap: (ClosedRange<UInt64>) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> UInt64 {
    var unmapped: UInt64 = 0
    while let type1 = state.type1, let mapping = type1.mapping(in: range) {
      if mapping.lowerBound < range.lowerBound { break }
      try willUnmap(mapping)
      unmapped &+= try type1.context.unmap(mapping, from: type1.space)
      state.type1?.mappingsLeft += 1
    }
    return unmapped
  }
}

extension Type1 {
  fileprivate func map(_ request: VFIOContainer.Request) throws(IOMMUError) {
    let (iova, size) = (request.iova, request.size)
    let range = try VFIOContainer.range(iova: iova, size: size)
    _ = try lastByte(request.address, size, "vaddr")
    guard !request.permissions.isEmpty else {
      throw IOMMUError(
        .invalidArgument,
        "flags ask for neither VFIO_DMA_MAP_FLAG_READ nor VFIO_DMA_MAP_FLAG_WRITE")
    }
    let page = try pageSize()
    guard (iova | size | request.address) & (page - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "vaddr \(hex(request.address)), iova \(hex(iova)) and size \(hex(size)) must be "
          + "multiples of \(hex(page)) bytes")
    }
    if let other = mapping(in: range) {
      throw IOMMUError(
        .fileExists,
        "iova \(hex(iova))...\(hex(range.upperBound)) touches the mapping "
          + "\(hex(other.lowerBound))...\(hex(other.upperBound)); unmap that first")
    }
    guard mappingsLeft > 0 else {
      throw IOMMUError(
        .noSpace,
        "the container has \(Self.mappingLimit) mappings, which is the limit; map larger ranges"
      )
    }
    // What the process has mapped of devices is reached too, and is on nobody's account.
    let source = request.source.includingDevices
    let isDevice = source.isDeviceMemory(address: request.address, length: size)
    do throws(IOMMUError) {
      try context.map(
        source, start: request.address, length: size, into: space.id,
        permissions: request.permissions, at: .fixed(IOVA(iova)),
        account: isDevice ? nil : request.account)
    } catch {
      throw translate(error, range)
    }
  }

  /// The space's errors in type1's words.
  private func translate(_ error: IOMMUError, _ range: ClosedRange<UInt64>) -> IOMMUError {
    switch error.errno {
    case .invalidArgument:
      IOMMUError(
        .invalidArgument,
        "iova \(hex(range.lowerBound))...\(hex(range.upperBound)) does not lie in a range that "
          + "VFIO_IOMMU_GET_INFO lists: a device or its IOMMU reserves some of it")
    // The memory's end would be past the last address by one: nothing is there.
    case .overflow: IOMMUError(.badAddress, error.reason)
    default: error
    }
  }
}
