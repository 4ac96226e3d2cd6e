// SPDX-License-Identifier: Apache-2.0
//
// VFIO_DEVICE_FEATURE as a program makes it: header and structure in one piece of its memory.

import CLinuxABI
import Foundation
import TestSupport

@testable import LinuxABI

extension EngineRig {
  static let get = VFIO_DEVICE_FEATURE_GET
  static let set = VFIO_DEVICE_FEATURE_SET
  static let probe = VFIO_DEVICE_FEATURE_PROBE
  private static let place: UInt64 = 0x3000

  /// One feature call with a structure behind its header.
  func feature<T>(
    _ number: UInt32, _ flags: UInt32, _ structure: inout T, argsz: UInt32? = nil
  ) -> Int32 {
    caller.put(argsz ?? UInt32(8 + MemoryLayout<T>.size), at: Self.place)
    caller.put(number | flags, at: Self.place + 4)
    caller.put(structure, at: Self.place + 8)
    let result = caller.ioctl(file, VFIO_DEVICE_FEATURE, at: Self.place)
    structure = caller.get(T.self, at: Self.place + 8)
    return result
  }

  /// One without.
  func feature(_ number: UInt32, _ flags: UInt32, argsz: UInt32 = 8) -> Int32 {
    var nothing: UInt64 = 0
    return feature(number, flags, &nothing, argsz: argsz)
  }

  // MARK: Migration

  /// What MIG_DEVICE_STATE says: a state, or a negative errno.
  var migrationState: Int32 {
    var state = vfio_device_feature_mig_state()
    let result = feature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, Self.get, &state)
    return result == 0 ? Int32(state.device_state) : result
  }

  /// Goes to a state.
  /// - Returns: 0 or a negative errno, and the descriptor.
  func migrate(to state: UInt32) -> (result: Int32, data: Int32) {
    var structure = vfio_device_feature_mig_state(device_state: state, data_fd: 77)
    let result = feature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, Self.set, &structure)
    return (result, structure.data_fd)
  }

  private static let buffer: UInt64 = 0x4000

  /// Reads until the end, or an errno, which comes back negative.
  func drain(_ data: Int32, piece: Int = 100) -> (bytes: [UInt8], result: Int) {
    var bytes: [UInt8] = []
    while true {
      let count = caller.read(data, Self.buffer, count: piece)
      guard count > 0 else { return (bytes, count) }
      bytes += (0..<count).map { caller.get(UInt8.self, at: Self.buffer + UInt64($0)) }
    }
  }

  /// Writes all of it, in pieces.
  /// - Returns: The first result that is not the whole piece; 0 where there is none.
  func fill(_ data: Int32, _ bytes: [UInt8], piece: Int = 100) -> Int {
    var rest = bytes[...]
    while !rest.isEmpty {
      let part = rest.prefix(piece)
      for (index, byte) in part.enumerated() {
        caller.put(byte, at: Self.buffer + UInt64(index))
      }
      let count = caller.write(data, Self.buffer, count: part.count)
      guard count == part.count else { return count }
      rest = rest.dropFirst(part.count)
    }
    return 0
  }

  func preCopyInfo(_ data: Int32) -> (result: Int32, initial: UInt64, dirty: UInt64) {
    guard let file = try? caller.openFile(descriptor: data) else { return (-EBADF, 0, 0) }
    var info = vfio_precopy_info()
    info.argsz = UInt32(MemoryLayout<vfio_precopy_info>.size)
    let result = caller.ioctl(file, VFIO_MIG_GET_PRECOPY_INFO, &info)
    return (result, info.initial_bytes, info.dirty_bytes)
  }
}
