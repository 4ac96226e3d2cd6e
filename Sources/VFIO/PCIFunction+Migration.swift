// SPDX-License-Identifier: Apache-2.0
//
// What a function does in each step of a migration (MODEL J1). The model stops, saves and loads;
// its own configuration registers, its memory BARs and its pending vectors are moved here.
// Facts: Linux 6.12, include/uapi/linux/vfio.h and vfio/pci/mlx5/main.c.

import IOMMU
import SystemPackage

/// How far a function's migration is.
struct MigrationProgress: Sendable {
  var state = MigrationState.running
  var session: MigrationData?
  /// Stands still because it was told to (`PCIFunction.stick`).
  var isStuck = false
}

extension PCIFunction {
  /// What the function's migration offers; nil where there is none.
  ///
  /// A model's `quiesce` stops all DMA, so its function is as good as peerless.
  public var migrationFlags: MigrationFlags? {
    model.migration == nil ? nil : [.stopCopy, .peerless, .preCopy]
  }

  /// Linux: a GET of `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
  public var migrationState: MigrationState { progress.withLock { $0.state } }

  /// Goes to a state, by way of others where that takes several steps.
  ///
  /// Linux: a SET of `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
  /// - Returns: The session that the last step began; nil where it began none.
  /// - Throws: `EINVAL` for a state that the device cannot go to; then it is where it was.
  ///   `EINVAL` too for a state that was written and is none; then it is in `.error`.
  public func setMigrationState(_ number: UInt32) throws(IOMMUError) -> MigrationData? {
    guard let migration = model.migration, let flags = migrationFlags else {
      throw IOMMUError(.inappropriateIOCTLForDevice, "\(name) cannot migrate")
    }
    return try progress.withLock { (progress) throws(IOMMUError) in
      guard progress.state.rawValue != number else { return nil }
      guard !progress.isStuck else {
        throw IOMMUError(.ioError, "\(name) does not answer; reset it")
      }
      guard let target = MigrationState(rawValue: number),
        let path = progress.state.path(to: target, with: flags)
      else {
        throw IOMMUError(
          .invalidArgument,
          "\(name) cannot go from state \(progress.state) to "
            + (MigrationState(rawValue: number).map { "\($0)" } ?? "\(number)")
            + (progress.state == .error ? "; reset it" : ""))
      }
      var session: MigrationData?
      for next in path { session = try step(&progress, to: next, migration) }
      return session
    }
  }

  private func step(
    _ progress: inout MigrationProgress, to next: MigrationState,
    _ migration: any DeviceMigration
  ) throws(IOMMUError) -> MigrationData? {
    let state = progress.state
    if next.isQuiet, !state.isQuiet { migration.quiesce() }
    var began: MigrationData?
    switch (state.isSaving, next.isSaving) {
    case (false, true):
      let session = MigrationData(.saving, device: sessionDevice(migration))
      if next != .stopCopy { session.addPreliminary(image(migration)) }
      progress.session = session
      began = session
    case (true, false):
      progress.session?.end()
      progress.session = nil
    default: break
    }
    if next == .stopCopy { progress.session?.complete(rest(migration)) }
    if next == .resuming {
      let session = MigrationData(.resuming, device: sessionDevice(migration))
      progress.session = session
      began = session
    }
    if state == .resuming {
      let session = progress.session
      progress.session = nil
      defer { session?.end() }
      do throws(IOMMUError) {
        try load(session?.image() ?? [], migration)
      } catch {
        progress.state = .error
        throw error
      }
    }
    if !next.isQuiet, state.isQuiet {
      migration.resume()
      interrupts.raisePending()
    }
    progress.state = next
    return began
  }

  /// The function was reset, or changes hands: it runs, and sessions are over.
  func resetMigration(_ progress: inout MigrationProgress) {
    progress.session?.end()
    if progress.state.isQuiet || progress.isStuck { model.migration?.resume() }
    progress = MigrationProgress()
  }

  /// What is left to read of a session while the device runs.
  ///
  /// Linux: `VFIO_MIG_GET_PRECOPY_INFO`. Where all was read and the device's state is another one
  /// by now, that is there to read from here on.
  /// - Throws: `EINVAL` in any other state; `ENODEV` where the session is over.
  public func preCopyBytes(
    of session: MigrationData
  ) throws(IOMMUError) -> (initial: Int, dirty: Int) {
    try progress.withLock { (progress) throws(IOMMUError) in
      guard progress.state == .preCopy || progress.state == .preCopyPeerless else {
        throw IOMMUError(
          .invalidArgument, "\(name) is in state \(progress.state), and not in a pre-copy state"
        )
      }
      if progress.session === session, let migration = model.migration,
        try session.preliminaryBytes() == (0, 0)
      {
        session.addPreliminary(image(migration))
      }
      return try session.preliminaryBytes()
    }
  }

  /// Bytes that a whole session in `.stopCopy` has, as far as is known now.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`.
  public var migrationDataSize: UInt64 {
    guard let migration = model.migration else { return 0 }
    let state = MigrationRecord.headSize + image(migration).count
    return bars.filter(\.isMemory).reduce(UInt64(state)) { sum, bar in
      let pieces = (bar.size - 1) / UInt64(MigrationRecord.memoryPiece) + 1
      return sum + bar.size + pieces * UInt64(MigrationRecord.headSize + 16)
    }
  }

  // MARK: What is moved

  private func sessionDevice(_ migration: any DeviceMigration) -> MigrationData.Device {
    let registers = 4 + model.configRegisters.count * 8
    let vectors = 4 + messageLimit * 4
    // The function holds its session, and whoever reads or writes one holds the function.
    return MigrationData.Device(
      origin: origin(migration), limit: 4 + migration.stateLimit + registers + vectors,
      store: { [unowned self] (bytes) throws(IOMMUError) in try storeMemory(bytes) })
  }

  /// Vectors of MSI-X or of MSI, whichever are more.
  private var messageLimit: Int {
    max(interrupts.count(of: .msix), interrupts.count(of: .msi))
  }

  private func origin(_ migration: any DeviceMigration) -> MigrationRecord.Origin {
    MigrationRecord.Origin(
      vendor: model.identity.vendor, device: model.identity.device,
      version: migration.stateVersion)
  }

  /// The model's state, its registers in configuration space and its pending vectors.
  private func image(_ migration: any DeviceMigration) -> [UInt8] {
    var image = DeviceStateWriter()
    let state = migration.saveState()
    image.append(UInt32(state.count))
    image.append(state)
    image.append(UInt32(model.configRegisters.count))
    for register in model.configRegisters {
      image.append(UInt32(register.offset))
      image.append(config.value(at: register.offset))
    }
    let pending = interrupts.pendingVectors
    image.append(UInt32(pending.count))
    for vector in pending { image.append(UInt32(vector)) }
    return image.bytes
  }

  private func load(_ image: [UInt8], _ migration: any DeviceMigration) throws(IOMMUError) {
    var reader = DeviceStateReader(image)
    let state = try reader.read(count: Int(try reader.read(UInt32.self)))
    guard try reader.read(UInt32.self) == UInt32(model.configRegisters.count) else {
      throw DeviceStateReader.invalid("it has other registers in configuration space")
    }
    var values: [(offset: Int, value: UInt32)] = []
    for register in model.configRegisters {
      guard try reader.read(UInt32.self) == UInt32(register.offset) else {
        throw DeviceStateReader.invalid("it has other registers in configuration space")
      }
      values.append((register.offset, try reader.read()))
    }
    var pending: Set<Int> = []
    for _ in 0..<(try reader.read(UInt32.self)) {
      let vector = Int(try reader.read(UInt32.self))
      guard vector < messageLimit else {
        throw DeviceStateReader.invalid("it has an interrupt vector \(vector)")
      }
      pending.insert(vector)
    }
    try reader.finish()
    try migration.loadState(Array(state))
    for (offset, value) in values { config.change { $0.set32(value, at: offset) } }
    interrupts.setPending(pending)
  }

  /// Gives one record after the other: the memory BARs, then the state.
  private func rest(
    _ migration: any DeviceMigration
  ) -> @Sendable () throws(IOMMUError) -> [UInt8]? {
    let origin = origin(migration)
    let memories = bars.filter(\.isMemory)
    let place = Guarded((bar: 0, offset: UInt64(0), isOver: false))
    return { [unowned self] () throws(IOMMUError) in
      let next = place.withLock { place -> (bar: BAR, offset: UInt64)? in
        guard place.bar < memories.count else { return nil }
        let bar = memories[place.bar]
        defer {
          place.offset += UInt64(MigrationRecord.memoryPiece)
          if place.offset >= bar.size { place = (place.bar + 1, 0, false) }
        }
        return (bar, place.offset)
      }
      if let next {
        let payload = try loadMemory(next.bar, at: next.offset)
        return MigrationRecord.encode(.memory, payload, of: origin)
      }
      guard
        place.withLock({ place in
          defer { place.isOver = true }
          return !place.isOver
        })
      else { return nil }
      return MigrationRecord.encode(.final, image(migration), of: origin)
    }
  }
}
