// SPDX-License-Identifier: Apache-2.0
//
// An NVMe controller: NVM Express 1.4 over PCI Express (MODEL J1's second device). What drivers see
// of it: identity, BAR 0, the way in. NVMeRegisters has the registers, NVMeEngine its thread.

import IOMMU
import VFIO

/// A controller with its namespaces, to plug into a `PCIFunction`. Thread-safe.
public final class NVMeController: PCIDeviceModel {
  let core: NVMeCore
  public let identity: PCIIdentity
  public let bars: [BAR]
  public let msix: MSIXLayout?
  /// As many messages as there are queues, where MSI has so many.
  public let msi: MSILayout?
  public let interruptPin: UInt8 = 1
  public let configRegisters: [ConfigRegister] = []

  /// Opens the namespaces, or makes them, for as long as the controller is there.
  /// - Throws: Where a namespace's file cannot be had: `EBUSY` where another run has it.
  public init(_ configuration: NVMeConfiguration) throws(IOMMUError) {
    typealias Offset = NVMeRegisters.Offset
    guard (1...NVMeConfiguration.queueLimit).contains(configuration.queues),
      (2...65536).contains(configuration.queueEntries),
      NVMeConfiguration.transferLimits.contains(configuration.transferLimit),
      configuration.namespaces.allSatisfy({
        NVMeConfiguration.blockSizes.contains($0.blockSize)
          && ($0.size ?? 0) % UInt64($0.blockSize) == 0
      })
    else {
      throw IOMMUError(
        .invalidArgument,
        "an NVMe controller has 1 to \(NVMeConfiguration.queueLimit) queues of 2 to 65536 "
          + "entries, and namespaces of whole blocks")
    }
    var stores: [BlockStore] = []
    for namespace in configuration.namespaces { stores.append(try BlockStore(namespace)) }
    core = NVMeCore(configuration: configuration, stores: stores)
    identity = PCIIdentity(
      vendor: configuration.vendor, device: configuration.device, classCode: 0x01_0802,
      revision: 0x02)
    bars = [BAR(index: 0, size: Offset.end, doorbells: Offset.doorbells)]
    msix = MSIXLayout(
      vectors: configuration.queues + 1, tableBAR: 0, tableOffset: UInt32(Offset.vectors),
      pendingBAR: 0, pendingOffset: UInt32(Offset.pendingVectors))
    var messages = 1
    while messages < min(configuration.queues + 1, 32) { messages *= 2 }
    msi = MSILayout(vectors: messages, isMaskable: true)
  }

  deinit { core.stop() }

  public func connect(to function: FunctionPort) { core.connect(to: function) }

  public func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 {
    guard bar == 0, offset < NVMeRegisters.Offset.doorbells.lowerBound else { return 0 }
    return core.read(offset, width: width)
  }

  public func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {
    // What narrower writes do is not defined; here they do nothing.
    guard bar == 0, width >= 4 else { return }
    for part in 0..<UInt64(width / 4) {
      let place = offset + part * 4
      let word = UInt32(truncatingIfNeeded: value >> (part * 32))
      let doorbells = NVMeRegisters.Offset.doorbells
      if doorbells.contains(place) {
        core.ring(place - doorbells.lowerBound, word)
      } else {
        core.write(place, word)
      }
    }
  }

  public func reset() { core.reset() }

  public func remove() {
    core.stop()
    for store in core.stores { store.release() }
  }

  public var migration: (any DeviceMigration)? { core }
}
