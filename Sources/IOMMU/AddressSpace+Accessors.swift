// SPDX-License-Identifier: Apache-2.0
//
// What accessors do in an address space: pins that an unmap takes back, reads and writes that
// hold the map while they copy (MODEL D2, kind 3).

import PageTables
import SystemPackage

/// Memory that an accessor has pinned.
struct AccessPin: Sendable {
  struct Key: Hashable, Sendable {
    let accessor: ObjectIdentifier
    let id: UInt32
  }

  /// The IOVA range, closed, in bytes.
  let range: ClosedRange<UInt64>
  /// What is pinned for it, once each.
  let parts: [Part]
  /// Whether an unmap of it is refused, instead of ending the pin.
  var isLocked = false
  /// Told where an unmap ends the pin.
  var notice: (any EventSignal)?

  struct Part: Sendable {
    let pages: Pages
    /// In the pages, in bytes.
    let start: UInt64
    let length: UInt64
  }
}

extension AddressSpace {
  /// - Throws: `EADDRINUSE` where the accessor pins and an area is not aligned to host pages.
  func addAccessor(pinsMemory: Bool) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      try refuseDummyRoot(state, "attached to")
      guard pinsMemory else { return }
      let alignment = max(state.alignment, Pages.hostPage)
      if alignment != state.alignment { try checkAligned(to: alignment, in: state) }
      state.pinningAccessors += 1
      state.alignment = alignment
    }
  }

  /// Ends all pins of an accessor and forgets it.
  func removeAccessor(_ accessor: ObjectIdentifier, pinsMemory: Bool) {
    state.withLock { state in
      for (key, pin) in state.accessPins where key.accessor == accessor {
        release(pin)
        if pin.isLocked { state.lockedPins -= 1 }
        state.accessPins[key] = nil
      }
      guard pinsMemory else { return }
      state.pinningAccessors -= 1
      state.alignment = minimumAlignment(in: state)
    }
  }

  /// Refuses to unmap an area that a locked pin touches.
  ///
  /// Linux: `iopt_area.num_locks`.
  /// - Throws: `EBUSY`.
  @inline(__always)
  func checkUnlocked(
    first: UInt64, last: UInt64, in state: borrowing State
  ) throws(IOMMUError) {
    if state.lockedPins > 0 { try findLock(in: first...last, state) }
  }

  private func findLock(
    in range: ClosedRange<UInt64>, _ state: borrowing State
  ) throws(IOMMUError) {
    for pin in state.accessPins.values where pin.isLocked && pin.range.overlaps(range) {
      throw IOMMUError(
        .resourceBusy,
        "the mapping \(hex(range.lowerBound))...\(hex(range.upperBound)) of IOAS \(id) holds a "
          + "hardware queue; destroy that first")
    }
  }

  private func release(_ pin: AccessPin) {
    for part in pin.parts { release(part) }
  }

  private func release(_ part: AccessPin.Part) {
    part.pages.unpin(start: part.start, length: part.length, in: memory)
  }

  /// Ends every pin that touches a range. Called before what is mapped there goes.
  func releasePins(touching range: ClosedRange<UInt64>, in state: inout State) {
    guard !state.accessPins.isEmpty else { return }
    for (key, pin) in state.accessPins where pin.range.overlaps(range) {
      release(pin)
      state.accessPins[key] = nil
      pin.notice?.signal()
    }
  }

  func holds(_ key: AccessPin.Key) -> Bool {
    state.withLock { $0.accessPins[key] != nil }
  }

  /// - Returns: False where there is no such pin.
  func unpin(_ key: AccessPin.Key) -> Bool {
    state.withLock { state in
      guard let pin = state.accessPins.removeValue(forKey: key) else { return false }
      release(pin)
      return true
    }
  }

  /// Pins the host pages around a range. See `Accessor.pin`.
  func pin(
    _ iova: IOVA, length: UInt64, for access: Permissions, as key: AccessPin.Key,
    isLocked: Bool = false, notice: (any EventSignal)? = nil
  ) throws(IOMMUError) -> [Accessor.Pin.Run] {
    guard isLocked else {
      return try pinNow(iova, length, access, key, isLocked: false, notice: notice)
    }
    return try whileSlotsStay { () throws(IOMMUError) in
      try pinNow(iova, length, access, key, isLocked: true, notice: notice)
    }
  }

  private func pinNow(
    _ iova: IOVA, _ length: UInt64, _ access: Permissions, _ key: AccessPin.Key, isLocked: Bool,
    notice: (any EventSignal)?
  ) throws(IOMMUError) -> [Accessor.Pin.Run] {
    let range = try accessRange(iova, length)
    // What a pin keeps mapped is looked for first when a parent changes, and must not come
    // between.
    return try withTree { (state) throws(IOMMUError) in
      try check(state)
      var pinned: [AccessPin.Part] = []
      var runs: [Accessor.Pin.Run] = []
      do throws(IOMMUError) {
        try forEachPart(of: range, for: access, inWholePages: true, in: state) {
          (pages, start, length) throws(IOMMUError) in
          let mask = Pages.hostPage - 1
          try refuseBuffer(pages)
          let whole = (length + mask) & ~mask
          let placed = try pages.pin(start: start, length: whole, in: memory)
          pinned.append(AccessPin.Part(pages: pages, start: start, length: whole))
          try placed.forEachSegment(start: start, length: whole) { (_, address, length) in
            runs.append(Accessor.Pin.Run(address: address, length: length))
          }
        }
        try FailurePoint.pass(.accessorPin)
      } catch {
        for part in pinned { release(part) }
        throw error
      }
      state.accessPins[key] = AccessPin(
        range: range, parts: pinned, isLocked: isLocked, notice: notice)
      if isLocked { state.lockedPins += 1 }
      return runs
    }
  }

  /// How much of a range the mappings let an access have, in bytes. See `Accessor.reach`.
  func reach(_ iova: IOVA, count: Int, for access: Permissions) -> UInt64 {
    state.withLock { state in
      var reached: UInt64 = 0
      do throws(IOMMUError) {
        try forEachPart(of: accessRange(iova, UInt64(count)), for: access, in: state) {
          (_, _, length) throws(IOMMUError) in reached += length
        }
      } catch {
        return reached
      }
      return reached
    }
  }

  /// Copies out. See `Accessor.read`.
  func read(_ iova: IOVA, count: Int) throws(IOMMUError) -> [UInt8] {
    try FailurePoint.pass(.scratch)
    var bytes = [UInt8](repeating: 0, count: count)
    try forEachSegment(iova, count: count, for: .read) {
      (done, address, length) throws(IOMMUError) in
      guard memory.copyOut(of: address, length: length, into: &bytes, at: done) else {
        throw gone(iova.rawValue + UInt64(done))
      }
    }
    return bytes
  }

  /// Copies in. See `Accessor.write`.
  func write(_ bytes: [UInt8], to iova: IOVA) throws(IOMMUError) {
    try forEachSegment(iova, count: bytes.count, for: .write) {
      (done, address, length) throws(IOMMUError) in
      guard memory.copyIn(to: address, length: length, from: bytes, at: done) else {
        throw gone(iova.rawValue + UInt64(done))
      }
    }
  }

  private func gone(_ iova: UInt64) -> IOMMUError {
    IOMMUError(.badAddress, "the memory mapped at IOVA \(hex(iova)) in IOAS \(id) is gone")
  }

  /// Calls `body` for each physically contiguous part of a range, pinned for as long.
  private func forEachSegment(
    _ iova: IOVA, count: Int, for access: Permissions,
    _ body: (_ done: Int, PhysicalAddress, _ length: Int) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    let range = try accessRange(iova, UInt64(count))
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      var done = 0
      try forEachPart(of: range, for: access, in: state) {
        (pages, start, length) throws(IOMMUError) in
        try refuseBuffer(pages)
        try withMemory(pages, start: start, length: length, for: access) {
          (address, length) throws(IOMMUError) in
          try body(done, address, Int(length))
          done += Int(length)
        }
      }
    }
  }

  /// Calls `body` for each physically contiguous part of some memory. What is not pinned is
  /// pinned for as long, on nobody's account, as on Linux: only the part that is needed, so
  /// that the rest need not be there, and only for this access, so that memory that may not be
  /// written can be read.
  private func withMemory(
    _ pages: Pages, start: UInt64, length: UInt64, for access: Permissions,
    _ body: (PhysicalAddress, _ length: UInt64) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    let found: Void? = try pages.withPinned(start: start, length: length) {
      (placed) throws(IOMMUError) in
      try placed.forEachSegment(start: start, length: length) {
        (_, address, length) throws(IOMMUError) in try body(address, length)
      }
    }
    if found != nil { return }
    let part = try Pages(
      source: pages.source, start: pages.address + start, length: length,
      isWritable: pages.isWritable && access.contains(.write))
    let offset = pages.address + start - part.address
    let placed = try part.pin(start: offset, length: length, in: memory)
    defer { part.unpin(start: offset, length: length, in: memory) }
    try placed.forEachSegment(start: offset, length: length) {
      (_, address, length) throws(IOMMUError) in try body(address, length)
    }
  }

  /// Memory that its exporter can take back is for page tables only, as on Linux.
  private func refuseBuffer(_ pages: Pages) throws(IOMMUError) {
    guard pages.kind != .buffer else {
      throw IOMMUError(
        .invalidArgument, "a DMA-buf is mapped there, which accessors do not reach")
    }
  }

  private func accessRange(
    _ iova: IOVA, _ length: UInt64
  ) throws(IOMMUError) -> ClosedRange<UInt64> {
    guard length > 0 else { throw IOMMUError(.invalidArgument, "an access of no bytes") }
    let (last, overflow) = iova.rawValue.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(.overflow, "IOVA \(iova) + \(hex(length)) bytes passes the last address")
    }
    return iova.rawValue...last
  }

  /// Calls `body` for each area's share of a range, in order.
  /// - Parameter inWholePages: Whether areas must meet where host pages do.
  /// - Throws: `ENOENT` at the first byte that is not mapped, `EINVAL` where areas do not meet,
  ///   `EPERM`; as on Linux in this order.
  private func forEachPart(
    of range: ClosedRange<UInt64>, for access: Permissions, inWholePages: Bool = false,
    in state: borrowing State,
    _ body: (Pages, _ start: UInt64, _ length: UInt64) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    var cursor = range.lowerBound
    var position = state.areas.firstEnding(atOrAfter: cursor)
    let mask = inWholePages ? Pages.hostPage - 1 : 0
    while true {
      guard let here = position, state.areas[here].first <= cursor,
        !state.areas[here].isHole
      else {
        throw IOMMUError(
          .noSuchFileOrDirectory, "IOVA \(hex(cursor)) is not mapped in IOAS \(id)")
      }
      let area = state.areas[here]
      let end = min(area.last, range.upperBound)
      let (start, length) = (area.start + (cursor - area.first), end - cursor + 1)
      guard start & mask == 0, end == range.upperBound || (start + length) & mask == 0 else {
        throw IOMMUError(
          .invalidArgument,
          "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) has no whole pages "
            + "at \(hex(cursor))...\(hex(end))")
      }
      guard area.permissions.contains(access), !access.contains(.write) || area.pages.isWritable
      else {
        throw IOMMUError(
          .notPermitted,
          "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) is "
            + "\(area.permissions)")
      }
      try body(area.pages, start, length)
      if end == range.upperBound { return }
      cursor = end + 1
      position = state.areas.position(after: here)
    }
  }
}
