// SPDX-License-Identifier: Apache-2.0
//
// A PCI function on the bus: a device model with its configuration space, its BARs, its
// interrupts and its way to memory, in an IOMMU's hands or in its driver's.

import IOMMU
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// One function. Thread-safe.
public final class PCIFunction: Sendable {
  /// `0000:e0:04.0`, or a slice's UUID.
  public let name: String
  public let route: DMARoute
  /// The PASIDs that its user attached, and no others.
  public let allowedPASIDs = AllowedPASIDs()
  public let model: any PCIDeviceModel
  public let config: PCIConfigSpace
  public let interrupts: InterruptVectors
  public let bars: [BAR]
  /// Where the BARs are on the bus, in the order of `bars`, as `/sys` shows them in `resource`.
  public let barAddresses: [UInt64]
  /// The bus that it is on; nil on a root bus.
  public let bus: PCIBus?
  /// What it is as a physical function; nil where it is none.
  public let sriov: SRIOVLayout?
  /// Whether it is a virtual function: it decodes memory as long as it is there.
  public let isVirtual: Bool
  let virtuals = Guarded<[PCIFunction]>([])
  /// What its DMA writes, where its user wants to know.
  public let log = DMALog()
  /// Where CPUs submit commands; nil where the function has no shared work queue.
  public let portal: FunctionPortal?
  private let gate = MasterGate()
  private let port: FunctionPort
  /// What is behind the memory BARs, by number, while the function has a user.
  private let memories = Guarded<[Int: any DeviceMemory]>([:])
  /// `isMemoryEnabled`, as it was last carried out: for who holds locks.
  private let decodesMemory = Atomic(false)
  /// Serializes resets and changes of what the command register governs.
  private let control = RankedMutex(.function, ())
  let power = PowerGate()
  let faults = FaultGate()
  /// How far its state's move is. Taken before `control`.
  let progress = RankedMutex(.migration, MigrationProgress())

  /// - Parameters:
  ///   - upstream: The bus above, for this function's requester id.
  ///   - barAddresses: Multiples of the BARs' sizes, in the order of the model's `bars`; laid
  ///     out from `0xC000_0000` up where nil.
  ///   - bus: What it is on; nil for a root bus.
  ///   - sriov: What it can make of itself.
  ///   - services: What it says of translations and page requests.
  ///   - isVirtual: Whether it is made so. Its BARs read as 0 then until its user writes them.
  public convenience init(
    device: any BindableDevice, model: any PCIDeviceModel, upstream: any UpstreamBus,
    barAddresses: [UInt64]? = nil, bus: PCIBus? = nil, sriov: SRIOVLayout? = nil,
    isVirtual: Bool = false, services: TranslationCapabilities = TranslationCapabilities()
  ) {
    self.init(
      name: device.name, route: .iommu(device), model: model, upstream: upstream,
      barAddresses: barAddresses, bus: bus, sriov: sriov, isVirtual: isVirtual,
      services: services)
  }

  /// Makes a function that is software all through (MODEL D2, kind 3).
  /// - Parameter memory: Its way to the memory of whoever binds it.
  public convenience init(
    name: String, model: any PCIDeviceModel, memory: AccessorBus, barAddresses: [UInt64]? = nil
  ) {
    self.init(
      name: name, route: .accessor(memory), model: model, upstream: memory,
      barAddresses: barAddresses, bus: nil, sriov: nil, isVirtual: false,
      services: TranslationCapabilities())
  }

  private init(
    name: String, route: DMARoute, model: any PCIDeviceModel, upstream: any UpstreamBus,
    barAddresses: [UInt64]?, bus: PCIBus?, sriov: SRIOVLayout?, isVirtual: Bool,
    services: TranslationCapabilities
  ) {
    self.name = name
    self.route = route
    self.bus = bus
    self.sriov = sriov
    self.isVirtual = isVirtual
    self.model = model
    let endpoint: (any BindableDevice)? =
      if case .iommu(let device) = route { device } else { nil }
    portal = endpoint.flatMap { endpoint in
      model.portal.map { FunctionPortal(device: endpoint, layout: $0, model: model) }
    }
    bars = model.bars
    let addresses = barAddresses ?? Self.layOut(model.bars)
    self.barAddresses = addresses
    config = PCIConfigSpace(
      identity: model.identity, bars: bars,
      barAddresses: isVirtual ? bars.map { _ in 0 } : addresses, msix: model.msix,
      msi: model.msi, interruptPin: isVirtual ? 0 : model.interruptPin,
      registers: model.configRegisters, sriov: sriov, services: services,
      hasFunctionReset: model.hasFunctionReset, isResetByPower: model.isResetByPower)
    interrupts = InterruptVectors(
      msix: model.msix, msi: model.msi, config: config, upstream: upstream, gate: gate,
      log: log)
    port = FunctionPort(
      interrupts: interrupts, config: config, upstream: upstream, gate: gate,
      pasids: endpoint?.pasids, allowedPASIDs: allowedPASIDs, log: log,
      faults: faults)
    model.connect(to: port)
    bus?.add(self)
  }

  private static func layOut(_ bars: [BAR]) -> [UInt64] {
    var next: UInt64 = 0xC000_0000
    return bars.map { bar in
      let address = (next + bar.size - 1) & ~(bar.size - 1)
      next = address + bar.size
      return address
    }
  }

  /// What the IOMMU layer knows of it: a device whose requester id is the function's address, or
  /// a slice of one; nil where no IOMMU routes it.
  public var device: (any BindableDevice)? {
    if case .iommu(let device) = route { device } else { nil }
  }
  /// Where it is on the bus. Behind some bridges its DMA carries another one.
  public var address: RequesterID {
    RequesterID(name) ?? device?.physical.requester ?? RequesterID(rawValue: 0)
  }

  /// The BAR of a number; nil where there is none, as for the upper half of a 64-bit one.
  public func bar(_ index: Int) -> BAR? { bars.first { $0.index == index } }

  /// What is behind a memory BAR while the function has a user; nil where there is none. It
  /// answers while the function decodes memory, and is zero after each reset.
  public func memory(ofBAR index: Int) -> (any DeviceMemory)? {
    memories.withLock { $0[index] }
  }

  // MARK: Opening, reset and closing

  /// Makes the function ready for a new user: reset, memory decoding on, bus mastering off.
  /// Linux: `vfio_pci_core_enable`.
  /// - Parameter pages: What its BARs show: nobody else's from now on.
  func enable(_ pages: CarriedPages = CarriedPages()) {
    resetting {
      gate.allowsMaster = false
      model.reset()
      interrupts.disableAll()
      config.resetAll(memoryEnabled: true)
      memories.withLock { $0 = pages.memories }
      port.setDoorbells(pages.doorbells)
      followMemory()
    }
    resetVirtualFunctions()
  }

  /// A reset of a physical function is one of what it made of itself, too.
  private func resetVirtualFunctions() {
    for function in virtualFunctions { function.reset() }
  }

  /// Takes the function from its user. When it returns, it does no DMA, raises no interrupt
  /// and remembers nothing. Linux: `vfio_pci_core_disable`.
  func disable() {
    resetting {
      gate.allowsMaster = false
      interrupts.disableAll()
      model.reset()
      config.resetAll(memoryEnabled: false)
      followMemory()
      for memory in memories.withLock({ Array($0.values) }) { memory.clear() }
      memories.withLock { $0 = [:] }
      port.setDoorbells(nil)
    }
    log.stop()
    exitLowPower()
    power.isAsleep.store(false, ordering: .sequentiallyConsistent)
    resetVirtualFunctions()
  }

  /// A function-level reset on behalf of the user. What is in the header and the capabilities
  /// is as before, and the set-up of interrupts too: Linux saves and restores them. When it
  /// returns, no DMA that was begun before goes on, and the memory BARs are zero: a reset leaves
  /// nothing of what a function was used for (PCI Express, 6.6.2).
  public func reset() {
    resetting {
      gate.allowsMaster = false
      model.reset()
      interrupts.deviceReset()
      config.resetDeviceRegisters()
      for memory in memories.withLock({ Array($0.values) }) { memory.clear() }
      followControl()
    }
    resetVirtualFunctions()
  }

  /// Whether it can be reset without others: by itself, or by its bus where it is alone there. Linux:
  /// `reset_works`.
  public var canReset: Bool {
    !config.resets.isEmpty || bus.map { $0.functions.count == 1 } ?? false
  }

  /// A migration ends with any reset: the function runs after it.
  private func resetting(_ body: () -> Void) {
    progress.withLock { progress in
      control.withLock { _ in body() }
      resetMigration(&progress)
    }
  }

  /// Lets a memory BAR answer for a moment, whatever the command register says: state is moved.
  func whileGiven(_ bar: BAR, _ body: (any DeviceMemory) -> Bool) -> Bool {
    control.withLock { _ in
      guard let memory = memory(ofBAR: bar.index) else { return false }
      guard !memory.isGiven else { return body(memory) }
      memory.give()
      defer { memory.take() }
      return body(memory)
    }
  }

  /// The device is taken out of the machine: its threads end.
  public func remove() {
    disable()
    model.remove()
  }

  /// Changes whether the function sleeps, and does what follows from it.
  /// - Parameter body: Says whether it changed.
  @discardableResult
  func changePower(_ body: () -> Bool) -> Bool {
    control.withLock { _ in
      let hasChanged = body()
      if hasChanged { followControl() }
      return hasChanged
    }
  }

  // MARK: Configuration space

  /// Carries out what a write to configuration space asked for beyond the bytes it changed.
  func carryOut(_ effects: PCIConfigSpace.Effects) {
    if effects.contains(.functionReset) {
      // It follows the rest too; no DMA of what was there before begins in between.
      reset()
    } else if effects.contains(.control) {
      control.withLock { _ in followControl() }
    }
    if effects.contains(.messages) { interrupts.followMessageControl() }
  }

  private func followControl() {
    let command = config.command
    gate.allowsMaster =
      command & Command.master != 0 && !config.isPoweredDown
      && !power.isAsleep.load(ordering: .sequentiallyConsistent) && !isDead
    interrupts.setLineDisabled(command & Command.interruptDisable != 0)
    followMemory()
  }

  /// Memory BARs answer while the function decodes memory; else who has them mapped faults.
  private func followMemory() {
    let isEnabled = isMemoryEnabled
    decodesMemory.store(isEnabled, ordering: .sequentiallyConsistent)
    for memory in memories.withLock({ Array($0.values) }) where memory.isGiven != isEnabled {
      if isEnabled { memory.give() } else { memory.take() }
    }
  }

  /// As `isMemoryEnabled`, without a lock: a change that is not carried out yet does not show.
  public var isDecoding: Bool { decodesMemory.load(ordering: .sequentiallyConsistent) }

  /// Whether the BARs answer: memory decoding is on and the function has power.
  public var isMemoryEnabled: Bool {
    (isVirtual || config.command & Command.memory != 0) && !config.isPoweredDown
      && !power.isAsleep.load(ordering: .sequentiallyConsistent) && !isDead
  }
}
