// SPDX-License-Identifier: Apache-2.0
//
// What a controller counts: transfers, and the errors of commands (NVM Express 1.4, 5.14.1.1 and
// 5.14.1.2).

/// Counters and the error log. Plain data of the controller's thread.
struct NVMeHealth {
  /// An entry of the error log.
  struct ErrorEntry: Hashable {
    var number: UInt64
    var queue: UInt16
    var command: UInt16
    var status: NVMeStatus
    var block: UInt64
    var namespace: UInt32
  }

  /// Entries that are kept.
  static let errorLimit = 64
  /// In kelvin, all the time: software does not get warm.
  static let temperature: UInt16 = 303
  static let warningTemperature: UInt16 = 343
  static let criticalTemperature: UInt16 = 353

  var readBytes: UInt64 = 0
  var writtenBytes: UInt64 = 0
  var readCommands: UInt64 = 0
  var writeCommands: UInt64 = 0
  var mediaErrors: UInt64 = 0
  private let start = ContinuousClock.now
  /// All that there were.
  var errorCount: UInt64 = 0
  /// The newest last.
  var errors: [ErrorEntry] = []

  var hours: UInt64 { UInt64((ContinuousClock.now - start).components.seconds) / 3600 }

  /// Notes a command that failed.
  mutating func record(_ status: NVMeStatus, _ command: NVMeCommand, queue: UInt16) {
    errorCount &+= 1
    // That blocks are not what they are compared with is no fault of theirs.
    if status.code >> 8 == 2, status.code != NVMeStatus.compareFailure.code {
      mediaErrors &+= 1
    }
    if errors.count == Self.errorLimit { errors.removeFirst() }
    errors.append(
      ErrorEntry(
        number: errorCount, queue: queue, command: command.identifier, status: status,
        block: queue == 0 ? 0 : command.firstBlock, namespace: command.namespace))
  }
}
