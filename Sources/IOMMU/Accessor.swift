// SPDX-License-Identifier: Apache-2.0
//
// How a software device reaches an address space: no routing, no IOMMU; it reads, writes and
// pins by IOVA (Linux: `struct iommufd_access`; MODEL D2, kind 3).

import PageTables
import Synchronization
import SystemPackage

/// A software device's way into one address space of a context. Thread-safe.
///
/// Memory never goes away under it: an unmap first takes back the pins that touch what goes
/// (the calls run one way, MODEL A4: it is not asked, but `notice` tells), and a read or write
/// holds the map.
/// It keeps its context alive until it is closed.
public final class Accessor: Sendable {
  /// Whether it may pin: then everything in its address space is aligned to host pages.
  public let pinsMemory: Bool
  /// Signalled where an unmap takes pins back, before their memory goes. It must not block and
  /// must call nothing.
  private let notice: (any EventSignal)?
  public let context: Context
  private let record: Record

  /// What stands for it in the context's table: in use for as long as the accessor is open.
  final class Record: ForeignObject {
    let id: ObjectID
    let kind = "an accessor"
    /// The address space that the accessor is on; 0 for none. For sentences.
    private let spaceID = Atomic<UInt32>(0)

    init(id: ObjectID) { self.id = id }

    fileprivate(set) var space: ObjectID? {
      get {
        let id = spaceID.load(ordering: .relaxed)
        return id == 0 ? nil : ObjectID(id)
      }
      set { spaceID.store(newValue?.rawValue ?? 0, ordering: .relaxed) }
    }

    func destroy() {}
  }

  private struct State: Sendable {
    var space: AddressSpace?
    var isClosed = false
    var nextPin: UInt32 = 0
  }

  private let state = RankedMutex(.accessor, State())

  /// Memory that was pinned.
  public struct Pin: Sendable {
    /// Names the pin in its accessor.
    public let id: UInt32
    /// Where the whole host pages around the range are, in order.
    public let runs: [Run]

    public struct Run: Sendable {
      public let address: PhysicalAddress
      /// In bytes.
      public let length: UInt64
    }
  }

  /// - Parameter notice: Told of pins that an unmap ends; `isPinned` says which.
  /// - Throws: `EBADF` where the context was closed, `ENOMEM`.
  public init(
    context: Context, pinsMemory: Bool, notice: (any EventSignal)? = nil
  ) throws(IOMMUError) {
    self.context = context
    self.pinsMemory = pinsMemory
    self.notice = notice
    try context.addHolder()
    do throws(IOMMUError) {
      record = try context.insert { Record(id: $0) }
    } catch {
      context.dropHolder()
      throw error
    }
    context.addUser(of: record.id)
  }

  deinit { close() }

  /// Names the accessor in its context. It cannot be destroyed by that name.
  public var id: ObjectID { record.id }

  /// The address space that it is on; nil for none.
  public var addressSpace: ObjectID? { state.withLock { $0.space?.id } }

  /// Moves the accessor to an address space, its first or another. Pins in the old one end.
  ///
  /// Linux: `iommufd_access_attach`, `iommufd_access_replace`.
  /// - Throws: `ENOENT`; `EADDRINUSE` where something is mapped that is not aligned to host
  ///   pages and the accessor pins. The old space stays then.
  public func attach(to ioas: ObjectID) throws(IOMMUError) {
    try context.configuration.withLock { (_) throws(IOMMUError) in
      try state.withLock { (state) throws(IOMMUError) in
        guard !state.isClosed else {
          throw IOMMUError(.badFileDescriptor, "the accessor was closed")
        }
        let space = try context.addressSpace(ioas)
        guard space !== state.space else { return }
        try space.addAccessor(pinsMemory: pinsMemory)
        context.addUser(of: space.id)
        leave(&state)
        state.space = space
        record.space = space.id
      }
    }
  }

  /// Takes the accessor off its address space; pins in it end. Nothing where it is on none.
  ///
  /// Linux: `iommufd_access_detach`.
  public func detach() { state.withLock { leave(&$0) } }

  private func leave(_ state: inout State) {
    guard let space = state.space else { return }
    space.removeAccessor(ObjectIdentifier(self), pinsMemory: pinsMemory)
    context.dropUser(of: space.id)
    state.space = nil
    record.space = nil
  }

  /// Ends the accessor and all of its pins, as its last reference does. Calling it again does
  /// nothing.
  public func close() {
    let wasOpen = state.withLock { state in
      defer { state.isClosed = true }
      leave(&state)
      return !state.isClosed
    }
    guard wasOpen else { return }
    context.dropUser(of: record.id)
    do throws(IOMMUError) {
      try context.destroy(record.id)
    } catch {
      assertionFailure("accessor \(record.id): \(error)")
    }
    context.dropHolder()
  }

  private func withSpace<Result>(
    _ body: (AddressSpace, inout State) throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    try state.withLock { (state) throws(IOMMUError) in
      guard let space = state.space else {
        throw IOMMUError(.noSuchFileOrDirectory, "the accessor is on no address space")
      }
      return try body(space, &state)
    }
  }

  /// Pins a range, until `unpin`, or an unmap of anything in it.
  ///
  /// Linux: `iommufd_access_pin_pages`.
  /// - Parameters:
  ///   - length: In bytes. Areas after the first must begin, and all but the last end, on
  ///     a page of memory.
  ///   - access: `.read` or `.write`.
  /// - Throws: `EINVAL`, `EOVERFLOW`; `ENOENT` where a byte is not mapped; `EPERM` where the
  ///   mapping does not allow the access; `EFAULT` where the memory is not there.
  public func pin(
    _ iova: IOVA, length: UInt64, for access: Permissions
  ) throws(IOMMUError) -> Pin {
    guard pinsMemory else {
      throw IOMMUError(.invalidArgument, "the accessor was not made for pinning")
    }
    return try withSpace { (space, state) throws(IOMMUError) in
      let id = state.nextPin
      let runs = try space.pin(
        iova, length: length, for: access,
        as: AccessPin.Key(accessor: ObjectIdentifier(self), id: id), notice: notice)
      state.nextPin &+= 1
      return Pin(id: id, runs: runs)
    }
  }

  /// Whether a pin still holds its memory: it was not unpinned, and no unmap ended it.
  public func isPinned(_ id: UInt32) -> Bool {
    let key = AccessPin.Key(accessor: ObjectIdentifier(self), id: id)
    return state.withLock { $0.space?.holds(key) ?? false }
  }

  /// - Throws: `ENOENT` where there is no such pin: it ended with an unmap, or never was.
  public func unpin(_ id: UInt32) throws(IOMMUError) {
    let key = AccessPin.Key(accessor: ObjectIdentifier(self), id: id)
    let found = state.withLock { $0.space?.unpin(key) ?? false }
    guard found else {
      throw IOMMUError(.noSuchFileOrDirectory, "the accessor has no pin \(id)")
    }
  }

  /// Ends a pin that was refused after all, as if it had never been: the next has its id.
  public func takeBack(_ pin: Pin) {
    let key = AccessPin.Key(accessor: ObjectIdentifier(self), id: pin.id)
    state.withLock { state in
      _ = state.space?.unpin(key)
      if state.nextPin == pin.id &+ 1 { state.nextPin = pin.id }
    }
  }

  /// How many bytes from an address on the mappings let an access have, for who reports where one
  /// failed: 0 on no address space, `count` where no mapping stands in the way.
  package func reach(_ iova: IOVA, count: Int, for access: Permissions) -> UInt64 {
    state.withLock { $0.space?.reach(iova, count: count, for: access) ?? 0 }
  }

  /// Copies memory out of the address space. Linux: `iommufd_access_rw`.
  /// - Throws: As `pin`; on a failure in the middle nothing is returned.
  public func read(_ iova: IOVA, count: Int) throws(IOMMUError) -> [UInt8] {
    try withSpace { (space, _) throws(IOMMUError) in try space.read(iova, count: count) }
  }

  /// Copies bytes into memory of the address space. Linux: `iommufd_access_rw`.
  /// - Throws: As `pin`; what was written before a failure stays.
  public func write(_ bytes: [UInt8], to iova: IOVA) throws(IOMMUError) {
    try withSpace { (space, _) throws(IOMMUError) in try space.write(bytes, to: iova) }
  }
}
