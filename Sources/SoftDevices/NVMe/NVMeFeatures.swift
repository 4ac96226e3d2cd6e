// SPDX-License-Identifier: Apache-2.0
//
// Features: what a driver can set, and what it is at first (NVM Express 1.4, 5.21.1).

/// Values of one controller's features. Plain data of its thread.
struct NVMeFeatures {
  enum Identifier: UInt8, CaseIterable {
    case arbitration = 0x01
    case powerManagement = 0x02
    case temperatureThreshold = 0x04
    case errorRecovery = 0x05
    case volatileWriteCache = 0x06
    case queueCount = 0x07
    case interruptCoalescing = 0x08
    case interruptVector = 0x09
    case writeAtomicity = 0x0A
    case eventConfiguration = 0x0B
    case timestamp = 0x0E
  }

  private let vectors: Int
  var arbitration: UInt32 = 0
  var errorRecovery: UInt32 = 0
  var writeCache = true
  var interruptCoalescing: UInt32 = 0
  /// For each vector, whether coalescing is off.
  var coalescingOff: [Bool]
  var writeAtomicity: UInt32 = 0
  var eventConfiguration: UInt32 = 0
  /// In kelvin.
  var overTemperature = NVMeHealth.warningTemperature
  var underTemperature: UInt16 = 0
  /// In milliseconds: what was set, and when.
  var timestamp: (value: UInt64, isSet: Bool) = (0, false)
  var timestampStart = ContinuousClock.now

  init(vectors: Int) {
    self.vectors = vectors
    coalescingOff = Array(repeating: false, count: vectors)
  }

  /// As a reset leaves it; none is saved. The timestamp goes on counting.
  mutating func reset() {
    let old = self
    self = NVMeFeatures(vectors: vectors)
    timestamp = old.timestamp
    timestampStart = old.timestampStart
  }

  /// Whether the temperature is beyond what the driver said.
  var isTemperatureOff: Bool {
    NVMeHealth.temperature >= overTemperature || NVMeHealth.temperature <= underTemperature
  }

  /// Now, in milliseconds.
  var time: UInt64 {
    let passed = (ContinuousClock.now - timestampStart).components
    let milliseconds =
      UInt64(clamping: passed.seconds) &* 1000
      &+ UInt64(clamping: passed.attoseconds / 1_000_000_000_000_000)
    return (timestamp.value &+ milliseconds) & 0xFFFF_FFFF_FFFF
  }
}
