// SPDX-License-Identifier: Apache-2.0
//
// MIGRATION, MIG_DEVICE_STATE and MIG_DATA_SIZE, and the descriptor by which a device's state is
// read and written. Facts: Linux 6.12, vfio_main.c and vfio/pci/mlx5/main.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  var canMigrate: Bool { function.migrationFlags != nil }

  func getMigration(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_feature_migration>.size
    guard
      try call.begins(VFIO_DEVICE_FEATURE_GET, size: size, named: "what a migration offers")
    else { return }
    try call.caller.store(
      vfio_device_feature_migration(flags: function.migrationFlags?.rawValue ?? 0),
      to: call.data)
  }

  func getDataSize(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_feature_mig_data_size>.size
    guard try call.begins(VFIO_DEVICE_FEATURE_GET, size: size, named: "the size of the state")
    else { return }
    try call.caller.store(
      vfio_device_feature_mig_data_size(stop_copy_length: function.migrationDataSize),
      to: call.data)
  }

  func migrationState(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_feature_mig_state>.size
    guard
      try call.begins(
        VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET, size: size,
        named: "the state of a migration")
    else { return }
    var structure = try call.caller.load(from: call.data, zero: vfio_device_feature_mig_state())
    if call.isGet {
      structure.device_state = function.migrationState.rawValue
      structure.data_fd = -1
      try call.caller.store(structure, to: call.data)
      return
    }
    let session: MigrationData?
    do throws(IOMMUError) {
      session = try function.setMigrationState(structure.device_state)
    } catch {
      structure.data_fd = -1
      try call.caller.store(structure, to: call.data)
      throw error
    }
    structure.data_fd = -1
    if let session {
      // Where this fails the device is in its new state all the same.
      let file = MigrationFile(session: session, function: function)
      structure.data_fd = try call.caller.install(file, closeOnExec: true)
    }
    try call.caller.store(structure, to: call.data)
  }
}

/// The descriptor of a session. Neither call ever blocks: there is always something to say.
final class MigrationFile: EventFile {
  let session: MigrationData
  private let function: PCIFunction

  init(session: MigrationData, function: PCIFunction) {
    self.session = session
    self.function = function
  }

  var name: String { "migration data of \(function.name)" }
  var readiness: Readiness { session.readiness }
  var isWritable: Bool { session.direction == .resuming }

  func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    try session.read(count: max(0, count), deliver: deliver)
  }

  /// Bytes that are copied in at once.
  private static let window = 64 << 10

  func write(
    count: Int, fetch: (_ offset: Int, _ size: Int) throws(IOMMUError) -> [UInt8]
  ) throws(IOMMUError) -> Int {
    guard isWritable else {
      throw IOMMUError(.badFileDescriptor, "\(name) is read, not written")
    }
    var done = 0
    while done < count {
      do throws(IOMMUError) {
        let size = min(Self.window, count - done)
        try session.write(try fetch(done, size))
        done += size
      } catch {
        guard done > 0 else { throw error }
        return done
      }
    }
    return done
  }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    guard command == VFIO_MIG_GET_PRECOPY_INFO, session.direction == .saving else {
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command))")
    }
    let size = MemoryLayout<vfio_precopy_info>.size
    var info = try caller.load(vfio_precopy_info(), from: argument, size: size)
    try checkHead(argsz: info.argsz, atLeast: size)
    let left = try function.preCopyBytes(of: session)
    info.initial_bytes = UInt64(left.initial)
    info.dirty_bytes = UInt64(left.dirty)
    try caller.store(info, to: argument)
    return 0
  }

  /// The session goes on without a reader.
  func close() {}
}
