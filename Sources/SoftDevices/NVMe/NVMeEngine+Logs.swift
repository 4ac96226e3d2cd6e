// SPDX-License-Identifier: Apache-2.0
//
// Log pages (NVM Express 1.4, 5.14).

import IOMMU
import VFIO

/// The log pages that there are.
enum NVMeLogPage: UInt8 {
  case errors = 0x01
  case health = 0x02
  case firmware = 0x03
  case changedNamespaces = 0x04
  case effects = 0x05
}

extension NVMeEngine {
  func getLogPage(_ command: NVMeCommand) throws(NVMeStatus) {
    let settings = command.dword(10)
    guard let page = NVMeLogPage(rawValue: UInt8(truncatingIfNeeded: settings)) else {
      throw .invalidLogPage
    }
    let words = UInt64(settings >> 16) | UInt64(command.dword(11) & 0xFFFF) << 16
    let wanted = (words + 1) * 4
    let offset = UInt64(command.dword(12)) | UInt64(command.dword(13)) << 32
    guard offset % 4 == 0, wanted <= UInt64(data.limit) else { throw .invalidField }
    let log = try read(page, namespace: command.namespace)
    guard offset < log.count else { throw .invalidField }
    // What is past the end is zero.
    let bytes = log[Int(offset)...].prefix(Int(wanted))
    try answer(command, bytes + Array(repeating: 0, count: Int(wanted) - bytes.count))
    // The next event of the kind is told after this.
    if settings & 1 << 15 == 0 { events.clear(page) }
  }

  private func read(
    _ page: NVMeLogPage, namespace: UInt32
  ) throws(NVMeStatus) -> [UInt8] {
    switch page {
    case .errors: return errorLog
    case .health:
      // Of the controller only.
      guard namespace == 0 || namespace == Self.everyNamespace else { throw .invalidField }
      return healthLog
    case .firmware:
      var log = NVMeBytes(count: 512)
      log.put(UInt8(1), at: 0)
      log.put(Self.firmware, at: 8, count: 8)
      return log.bytes
    // Namespaces do not change while the machine runs.
    case .changedNamespaces: return NVMeBytes(count: 4096).bytes
    case .effects: return effectsLog
    }
  }

  /// The newest first.
  private var errorLog: [UInt8] {
    var log = NVMeBytes(count: NVMeHealth.errorLimit * 64)
    for (index, entry) in health.errors.reversed().enumerated() {
      let start = index * 64
      log.put(entry.number, at: start)
      log.put(entry.queue, at: start + 8)
      log.put(entry.command, at: start + 10)
      log.put(entry.status.field << 1, at: start + 12)
      // Which byte of the command was at fault is not said.
      log.put(UInt16(0xFFFF), at: start + 14)
      log.put(entry.block, at: start + 16)
      log.put(entry.namespace, at: start + 24)
    }
    return log.bytes
  }

  private var healthLog: [UInt8] {
    var log = NVMeBytes(count: 512)
    log.put(features.isTemperatureOff ? UInt8(1 << 1) : 0, at: 0)
    log.put(NVMeHealth.temperature, at: 1)
    log.put(UInt8(100), at: 3)  // spare, in percent
    log.put(UInt8(10), at: 4)
    log.put(Self.thousands(health.readBytes), at: 32)
    log.put(Self.thousands(health.writtenBytes), at: 48)
    log.put(health.readCommands, at: 64)
    log.put(health.writeCommands, at: 80)
    log.put(UInt64(1), at: 112)  // power cycles
    log.put(health.hours, at: 128)
    log.put(health.mediaErrors, at: 160)
    log.put(health.errorCount, at: 176)
    return log.bytes
  }

  /// Thousands of 512 bytes, a begun one too.
  private static func thousands(_ bytes: UInt64) -> UInt64 {
    bytes / 512_000 + (bytes % 512_000 > 0 ? 1 : 0)
  }

  private var effectsLog: [UInt8] {
    var log = NVMeBytes(count: 4096)
    let admin: [NVMeCommand.Admin] = [
      .deleteSubmissionQueue, .createSubmissionQueue, .getLogPage, .deleteCompletionQueue,
      .createCompletionQueue, .identify, .abort, .setFeatures, .getFeatures, .requestEvent,
    ]
    for command in admin { log.put(UInt32(1), at: Int(command.rawValue) * 4) }
    // Changes what the blocks hold, and is to have its namespace to itself.
    log.put(UInt32(1 | 1 << 1 | 1 << 16), at: Int(NVMeCommand.Admin.format.rawValue) * 4)
    let reading: [NVMeCommand.NVM] = [.flush, .read, .compare, .verify]
    for command in reading { log.put(UInt32(1), at: 1024 + Int(command.rawValue) * 4) }
    let writing: [NVMeCommand.NVM] = [.write, .writeZeroes, .manageDataset]
    for command in writing { log.put(UInt32(0b11), at: 1024 + Int(command.rawValue) * 4) }
    return log.bytes
  }
}
