// SPDX-License-Identifier: Apache-2.0
//
// The states of a device that migrates, and the way from one to another (MODEL J1). Facts: Linux
// 6.12, include/uapi/linux/vfio.h, `enum vfio_device_mig_state`.

/// What a device does while its state moves. Linux: `enum vfio_device_mig_state`.
public enum MigrationState: UInt32, CaseIterable, Sendable {
  /// It failed; a reset is the way out.
  case error = 0
  /// It stands still.
  case stop
  case running
  /// It stands still, and its state is read.
  case stopCopy
  /// It stands still, and a state is written.
  case resuming
  /// It runs, but begins no DMA: none that could go to another device either.
  case runningPeerless
  /// It runs, and what of its state is worth it is read meanwhile.
  case preCopy
  case preCopyPeerless

  /// Whether it begins no DMA and raises no interrupt.
  public var isQuiet: Bool { self != .running && self != .preCopy }

  /// States that share one session of reading. Linux: the saving group.
  var isSaving: Bool { self == .stopCopy || self == .preCopy || self == .preCopyPeerless }
}

/// What a device can do beside standing still. Linux: `VFIO_MIGRATION_…`.
public struct MigrationFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64

  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Always.
  public static let stopCopy = MigrationFlags(rawValue: 1)
  public static let peerless = MigrationFlags(rawValue: 2)
  public static let preCopy = MigrationFlags(rawValue: 4)

  /// Whether a device with these has a state.
  func has(_ state: MigrationState) -> Bool {
    switch state {
    case .error: false
    case .stop, .running, .stopCopy, .resuming: contains(.stopCopy)
    case .runningPeerless: contains([.stopCopy, .peerless])
    case .preCopy: contains([.stopCopy, .preCopy])
    case .preCopyPeerless: contains([.stopCopy, .peerless, .preCopy])
    }
  }
}

extension MigrationState {
  /// One step: what a device does by itself. All others are made of these.
  private static let arcs: [(from: MigrationState, to: MigrationState)] = [
    (.running, .runningPeerless), (.runningPeerless, .running),
    (.runningPeerless, .stop), (.stop, .runningPeerless),
    (.stop, .stopCopy), (.stopCopy, .stop), (.stop, .resuming), (.resuming, .stop),
    (.running, .preCopy), (.preCopy, .running),
    (.preCopy, .preCopyPeerless), (.preCopyPeerless, .preCopy),
    (.runningPeerless, .preCopyPeerless), (.preCopyPeerless, .runningPeerless),
    (.preCopyPeerless, .stopCopy),
  ]

  /// The states on the way to another one, that one last: the shortest way, with no saving state
  /// in between unless it goes from one saving state to another. A device that lacks a state steps
  /// over it. Linux: `vfio_mig_get_next_state`.
  /// - Returns: Nil where there is no way, or one of the two is no state of such a device.
  func path(to target: MigrationState, with flags: MigrationFlags) -> [MigrationState]? {
    guard flags.has(self), flags.has(target) else { return nil }
    // What was saved last cannot be taken back.
    guard self != .stopCopy || !target.isSaving || target == self else { return nil }
    var paths: [[MigrationState]] = [[self]]
    var seen: Set<MigrationState> = [self]
    while let path = paths.first {
      paths.removeFirst()
      guard let last = path.last else { continue }
      if last == target { return path.dropFirst().filter { flags.has($0) } }
      for arc in Self.arcs where arc.from == last && !seen.contains(arc.to) {
        guard arc.to == target || !arc.to.isSaving || isSaving && target.isSaving else {
          continue
        }
        seen.insert(arc.to)
        paths.append(path + [arc.to])
      }
    }
    return nil
  }
}
