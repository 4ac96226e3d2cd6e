// SPDX-License-Identifier: Apache-2.0
//
// Get Features and Set Features (NVM Express 1.4, 5.13 and 5.21).

import IOMMU
import VFIO

extension NVMeEngine {
  /// What of a feature is asked for.
  private enum Selection: UInt32 {
    case current = 0
    case initial = 1
    case saved = 2
    case capabilities = 3
  }

  private func identifier(
    _ command: NVMeCommand
  ) throws(NVMeStatus) -> NVMeFeatures.Identifier {
    guard
      let feature = NVMeFeatures.Identifier(
        rawValue: UInt8(truncatingIfNeeded: command.dword(10)))
    else { throw .invalidField }
    return feature
  }

  /// - Returns: Dword 0 of the completion.
  func getFeature(_ command: NVMeCommand) throws(NVMeStatus) -> UInt32 {
    let feature = try identifier(command)
    guard let selection = Selection(rawValue: command.dword(10) >> 8 & 7) else {
      throw .invalidField
    }
    if feature == .errorRecovery { _ = try targets(command) }
    switch selection {
    case .capabilities: return capabilities(of: feature)
    case .current: return try value(of: feature, in: features, command)
    // Nothing is saved, so what is saved is what was there at first.
    case .initial, .saved:
      return try value(
        of: feature, in: NVMeFeatures(vectors: configuration.queues + 1), command)
    }
  }

  /// Changeable, and whether it is each namespace's.
  private func capabilities(of feature: NVMeFeatures.Identifier) -> UInt32 {
    feature == .errorRecovery ? 0b110 : 0b100
  }

  private func value(
    of feature: NVMeFeatures.Identifier, in features: NVMeFeatures, _ command: NVMeCommand
  ) throws(NVMeStatus) -> UInt32 {
    switch feature {
    case .arbitration: return features.arbitration
    case .powerManagement: return 0
    case .temperatureThreshold:
      let (isUnder, _) = try threshold(command)
      return UInt32(isUnder ? features.underTemperature : features.overTemperature)
    case .errorRecovery: return features.errorRecovery
    case .volatileWriteCache: return features.writeCache ? 1 : 0
    case .queueCount: return queueCount
    case .interruptCoalescing: return features.interruptCoalescing
    case .interruptVector:
      let vector = Int(command.dword(11) & 0xFFFF)
      guard vector <= configuration.queues else { throw .invalidField }
      return UInt32(vector) | (features.coalescingOff[vector] ? 1 << 16 : 0)
    case .writeAtomicity: return features.writeAtomicity
    case .eventConfiguration: return features.eventConfiguration
    case .timestamp:
      var answer = NVMeBytes(count: 8)
      // Origin: whether a driver has set it.
      answer.put(features.time | (features.timestamp.isSet ? 1 << 49 : 0), at: 0)
      try self.answer(command, answer.bytes[...])
      return 0
    }
  }

  /// Both kinds of queues, less one.
  private var queueCount: UInt32 {
    let count = UInt32(configuration.queues - 1)
    return count | count << 16
  }

  /// Which threshold is meant, and for what: the composite temperature is the one that there is.
  private func threshold(
    _ command: NVMeCommand
  ) throws(NVMeStatus) -> (isUnder: Bool, value: UInt16) {
    let settings = command.dword(11)
    let sensor = settings >> 16 & 0xF
    // To set, 15 stands for all sensors.
    guard sensor == 0 || sensor == 15, settings >> 20 & 3 <= 1 else { throw .invalidField }
    return (settings >> 20 & 3 == 1, UInt16(truncatingIfNeeded: settings))
  }

  private func targets(_ command: NVMeCommand) throws(NVMeStatus) -> [BlockStore] {
    command.namespace == Self.everyNamespace ? stores : [try store(command.namespace)]
  }

  /// - Returns: Dword 0 of the completion.
  func setFeature(_ command: NVMeCommand) throws(NVMeStatus) -> UInt32 {
    let feature = try identifier(command)
    // Nothing is kept over a reset.
    guard command.dword(10) >> 31 == 0 else { throw .notSaveable }
    try checkScope(of: feature, command)
    let value = command.dword(11)
    switch feature {
    case .arbitration: features.arbitration = value
    case .powerManagement:
      // Power state 0 is the only one.
      guard value & 0x1F == 0 else { throw .invalidField }
    case .temperatureThreshold:
      let (isUnder, kelvin) = try threshold(command)
      if isUnder {
        features.underTemperature = kelvin
      } else {
        features.overTemperature = kelvin
      }
      watchTemperature()
    case .errorRecovery:
      _ = try targets(command)
      // Deallocated blocks are zero; reading them is no error here.
      guard value & 1 << 16 == 0 else { throw .invalidField }
      features.errorRecovery = value & 0xFFFF
    case .volatileWriteCache:
      let wasOn = features.writeCache
      features.writeCache = value & 1 != 0
      if wasOn, !features.writeCache {
        for store in stores { try store.flush() }
      }
    case .queueCount:
      guard active.count == 1, completions.dropFirst().allSatisfy({ $0 == nil }) else {
        throw .commandSequence
      }
      guard value & 0xFFFF != 0xFFFF, value >> 16 != 0xFFFF else { throw .invalidField }
      return queueCount
    case .interruptCoalescing: features.interruptCoalescing = value & 0xFFFF
    case .interruptVector:
      let vector = Int(value & 0xFFFF)
      guard vector <= configuration.queues else { throw .invalidField }
      features.coalescingOff[vector] = value & 1 << 16 != 0
    case .writeAtomicity: features.writeAtomicity = value & 1
    case .eventConfiguration:
      features.eventConfiguration = value
      watchTemperature()
    case .timestamp:
      try data.locate(command, count: 8, pageShift: pageShift, isRead: false)
      try data.receive()
      features.timestamp = (data.word(0) & 0xFFFF_FFFF_FFFF, true)
      features.timestampStart = ContinuousClock.now
    }
    return 0
  }

  /// All but one are the controller's, and no namespace's.
  private func checkScope(
    of feature: NVMeFeatures.Identifier, _ command: NVMeCommand
  ) throws(NVMeStatus) {
    guard feature != .errorRecovery, command.namespace != 0,
      command.namespace != Self.everyNamespace
    else { return }
    _ = try store(command.namespace)
    throw .notOfNamespace
  }

  private func watchTemperature() {
    // Bit 1 of the critical warnings that are to be told.
    guard features.isTemperatureOff, features.eventConfiguration & 1 << 1 != 0 else { return }
    events.add(.temperature)
  }
}
