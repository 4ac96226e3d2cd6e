// SPDX-License-Identifier: Apache-2.0
//
// VFIO_DEVICE_FEATURE: which features there are, the rules of probing, reading and setting, and the
// short ones. Facts: Linux 6.12, vfio_main.c and vfio_pci_core.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

/// One VFIO_DEVICE_FEATURE, its header checked.
struct FeatureCall {
  static let headerSize = 8

  let flags: UInt32
  /// Of the feature's own structure.
  let data: UInt64
  /// Bytes that the caller has for it.
  let room: Int
  let caller: any Caller

  var isGet: Bool { flags & VFIO_DEVICE_FEATURE_GET != 0 }

  /// Linux: `vfio_check_feature`.
  /// - Parameters:
  ///   - operations: Of `VFIO_DEVICE_FEATURE_GET` and `…_SET` those that the feature has.
  ///   - size: Of its structure, in bytes.
  /// - Returns: False where the call only probes: then nothing is done.
  /// - Throws: `EINVAL`.
  func begins(
    _ operations: UInt32, size: Int, named name: String
  ) throws(IOMMUError) -> Bool {
    let both = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET
    guard flags & both & ~operations == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(name) is \(operations == VFIO_DEVICE_FEATURE_GET ? "read, and never set" : "set, and never read")"
      )
    }
    if flags & VFIO_DEVICE_FEATURE_PROBE != 0 { return false }
    guard flags & both != 0 else {
      throw IOMMUError(.invalidArgument, "what to do with \(name) is missing: GET or SET")
    }
    guard room >= size else {
      throw IOMMUError(
        .invalidArgument,
        "argsz is \(room + Self.headerSize); \(name) needs \(size + Self.headerSize) bytes")
    }
    return true
  }
}

extension VFIODeviceFile {
  func feature(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = FeatureCall.headerSize
    let header = try caller.load(vfio_device_feature(), from: argument, size: minimum)
    try checkHead(argsz: header.argsz, atLeast: minimum)
    let (get, set) = (VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_SET)
    let probe = VFIO_DEVICE_FEATURE_PROBE
    guard header.flags & ~(VFIO_DEVICE_FEATURE_MASK | get | set | probe) == 0 else {
      throw IOMMUError(
        .invalidArgument, "feature flags \(hex(header.flags)) have unknown bits")
    }
    guard header.flags & probe != 0 || header.flags & (get | set) != get | set else {
      throw IOMMUError(.invalidArgument, "a feature is read or set, not both at once")
    }
    let call = FeatureCall(
      flags: header.flags, data: argument &+ UInt64(minimum),
      room: Int(header.argsz) - minimum, caller: caller)
    let number = header.flags & VFIO_DEVICE_FEATURE_MASK
    switch number {
    case VFIO_DEVICE_FEATURE_PCI_VF_TOKEN where session.device.hasToken: try setToken(call)
    case VFIO_DEVICE_FEATURE_MIGRATION where canMigrate: try getMigration(call)
    case VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE where canMigrate: try migrationState(call)
    case VFIO_DEVICE_FEATURE_MIG_DATA_SIZE where canMigrate: try getDataSize(call)
    case VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: try enterLowPower(call)
    case VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: try enterLowPowerWithWakeup(call)
    case VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: try exitLowPower(call)
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_START: try startLogging(call)
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: try stopLogging(call)
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: try reportLogging(call)
    default:
      // BUS_MASTER among them: PCI devices have that in their command register.
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(function.name) has no feature \(number)")
    }
  }

  private func setToken(_ call: FeatureCall) throws(IOMMUError) {
    guard try call.begins(VFIO_DEVICE_FEATURE_SET, size: 16, named: "a VF token") else {
      return
    }
    session.device.setToken(VFToken(bytes: try call.caller.bytes(at: call.data, count: 16)))
  }

  // MARK: Low power

  private func enterLowPower(_ call: FeatureCall) throws(IOMMUError) {
    guard try call.begins(VFIO_DEVICE_FEATURE_SET, size: 0, named: "low power") else { return }
    try function.enterLowPower()
  }

  private func enterLowPowerWithWakeup(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_low_power_entry_with_wakeup>.size
    guard try call.begins(VFIO_DEVICE_FEATURE_SET, size: size, named: "low power") else {
      return
    }
    let entry = try call.caller.load(
      from: call.data, zero: vfio_device_low_power_entry_with_wakeup())
    guard entry.wakeup_eventfd >= 0 else {
      throw IOMMUError(
        .invalidArgument, "\(entry.wakeup_eventfd) is no eventfd to be told of the waking by")
    }
    try call.caller.prepare(eventFDs: [entry.wakeup_eventfd])
    try function.enterLowPower(
      wake: try call.caller.eventFD(descriptor: entry.wakeup_eventfd))
  }

  private func exitLowPower(_ call: FeatureCall) throws(IOMMUError) {
    guard try call.begins(VFIO_DEVICE_FEATURE_SET, size: 0, named: "low power") else { return }
    function.exitLowPower()
  }
}
