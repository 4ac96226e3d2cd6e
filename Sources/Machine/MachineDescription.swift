// SPDX-License-Identifier: Apache-2.0
//
// A machine as data: its IOMMUs, the devices behind them, the groups that those form, and
// the IOVA that nobody may map. Everything else (files, sysfs, objects) is made from this.

import IOMMU
import SoftDevices

/// What a machine consists of. Plain data, always consistent when it comes from the parser.
public struct MachineDescription: Hashable, Sendable {
  /// For titles and traces.
  public var name: String
  /// In the order of the file; names are unique.
  public var iommus: [IOMMUDescription]
  /// In the order of the file; addresses are unique, those of devices included.
  public var bridges: [BridgeDescription]
  /// In the order of the file; addresses are unique.
  public var devices: [DeviceDescription]
  /// IOVA that no address space of any device may map, beside the MSI window that each
  /// machine has.
  public var reserved: [ReservedRegion]
  /// Whether `/dev/kvm` is the machine's: VMs for DMA, which run no guest (MODEL B4, E4).
  /// Otherwise it is the host's.
  public var virtualMachines: Bool

  public init(
    name: String, iommus: [IOMMUDescription], bridges: [BridgeDescription] = [],
    devices: [DeviceDescription], reserved: [ReservedRegion] = [],
    virtualMachines: Bool = false
  ) {
    self.virtualMachines = virtualMachines
    self.name = name
    self.iommus = iommus
    self.bridges = bridges
    self.devices = devices
    self.reserved = reserved
  }

  /// Where interrupts are written to, as on each x86 machine: 0xFEE00000 to 0xFEEFFFFF.
  public static let messageWindow = ReservedRegion(0xfee0_0000...0xfeef_ffff, kind: .msi)

  /// The MSI window and what the file reserves, by address.
  public var reservedRegions: [ReservedRegion] {
    (reserved + [Self.messageWindow]).sorted { $0.range.lowerBound < $1.range.lowerBound }
  }

  /// The groups, by number.
  public var groups: [GroupDescription] {
    let functions = Dictionary(grouping: devices, by: \.group)
    let ports = Dictionary(grouping: bridges, by: \.group)
    return Set(functions.keys).union(ports.keys).sorted().map { number in
      GroupDescription(
        number: number, devices: (functions[number] ?? []).map(\.address).sorted(),
        bridges: (ports[number] ?? []).map(\.address).sorted())
    }
  }

  /// The root ports above devices that are not among the bridges, by address, each with its bus
  /// below.
  public var rootPorts: [(address: RequesterID, bus: UInt8)] {
    let listed = Set(bridges.map(\.address))
    return Dictionary(
      devices.compactMap { device in device.rootPort.map { ($0, device.address.bus) } },
      uniquingKeysWith: { first, _ in first }
    ).filter { !listed.contains($0.key) }.map { ($0.key, $0.value) }
      .sorted { $0.address < $1.address }
  }

  /// The IOMMU of that name; nil where there is none.
  public func iommu(named name: String) -> IOMMUDescription? {
    iommus.first { $0.name == name }
  }
}

/// One IOMMU.
public struct IOMMUDescription: Hashable, Sendable {
  /// As `/sys/class/iommu` shows it: `dmar0`.
  public var name: String
  public var kind: Kind
  /// Of its kernel-managed page tables.
  public var stage: Stage
  /// Levels of those.
  public var levels: Int
  /// Width of the IOVA that those translate, in bits. RISC-V: of its first stage, the second has
  /// two more.
  public var addressWidth: Int
  /// Width of its PASIDs, in bits; 0 where it has none.
  public var pasidBits: Int
  /// Whether users' page tables may nest on kernel-managed ones.
  public var nesting: Bool
  /// Whether devices may ask for pages (PRI).
  public var pageRequests: Bool
  /// Whether it can force DMA to snoop the CPU's caches.
  public var snoopControl: Bool
  /// How its page tables can tell which pages were written.
  public var dirtyTracking: DirtyTracking

  public enum Kind: String, CaseIterable, Hashable, Sendable {
    /// Intel VT-d.
    case intel
    /// AMD-Vi.
    case amd
    /// Arm SMMUv3.
    case smmuV3 = "smmuv3"
    /// The RISC-V IOMMU.
    case riscv
  }

  /// Which of an IOMMU's two translations a table is for.
  public enum Stage: String, CaseIterable, Hashable, Sendable {
    case first, second
  }

  /// How page tables tell which pages were written, where they are asked to.
  public enum DirtyTracking: Hashable, Sendable {
    /// They cannot.
    case none
    /// By bits that the IOMMU sets in them.
    case bits
    /// By protection: the first write to a page costs a miss more.
    case software
  }

  /// - Parameters:
  ///   - stage: nil for what Linux's driver of the kind chooses.
  ///   - levels: nil for what the width needs. Of an SMMUv3 it is always that.
  public init(
    name: String, kind: Kind, stage: Stage? = nil, levels: Int? = nil, addressWidth: Int = 48,
    pasidBits: Int = 0, nesting: Bool = true, pageRequests: Bool = false,
    snoopControl: Bool = true, dirtyTracking: DirtyTracking = .bits
  ) {
    self.name = name
    self.kind = kind
    self.stage = stage ?? kind.stage
    self.addressWidth = addressWidth
    self.levels = kind.levels(self.stage, levels, width: addressWidth)
    self.pasidBits = pasidBits
    self.nesting = nesting
    self.pageRequests = pageRequests
    self.snoopControl = snoopControl
    self.dirtyTracking = dirtyTracking
  }
}

/// One PCI function.
public struct DeviceDescription: Hashable, Sendable {
  public var model: Model
  public var address: RequesterID
  /// Number of its group; devices that cannot be isolated from each other share one.
  public var group: UInt32
  /// Devices of a group with different numbers may be in different address spaces: the IOMMU
  /// tells them apart, though they are not isolated from each other (MODEL D3).
  public var subgroup: Int
  /// Whether it keeps the other functions of its device from reaching it past the IOMMU
  /// (PCI Express: Access Control Services).
  public var acs: Bool
  /// Name of the IOMMU that its DMA goes through.
  public var iommu: String
  /// What the host has bound to it.
  public var hostDriver: HostDriver
  /// Whether its DMA can bypass the CPU's caches (MODEL F1).
  public var noSnoop: Bool
  /// What it can do beside DMA: keep translations, ask for pages.
  public var services: TranslationServices
  /// The address of the root port above it; nil on a root bus. Devices below one port are on one
  /// bus, and reset together.
  public var rootPort: RequesterID?
  /// How many virtual functions it can make of itself (SR-IOV's TotalVFs); 0 where it has none.
  public var virtualFunctions: Int
  /// How many of them there are from the start.
  public var enabledFunctions: Int
  /// What its user has of PASIDs; nil where that follows from its IOMMU.
  public var pasids: PASIDUse?

  /// What a user has of a device's PASIDs (MODEL E2).
  public enum PASIDUse: String, CaseIterable, Hashable, Sendable {
    /// None: kind 1.
    case none
    /// The whole table: kind 4.
    case delegated
    /// Those that it attaches: kind 5, and kind 7 with a shared work queue.
    case registered
  }

  public enum Model: Hashable, Sendable {
    case copyEngine(CopyEngineDescription)
    case workQueue(WorkQueueDescription)
    case nvme(NVMeConfiguration)

    /// As the machine file spells it.
    public var name: String {
      switch self {
      case .copyEngine: "copy-engine"
      case .workQueue: "work-queue"
      case .nvme: "nvme"
      }
    }
  }

  public enum HostDriver: String, CaseIterable, Hashable, Sendable {
    /// Offered to programs: `/dev/vfio/devices/vfioN` and `/dev/vfio/N`.
    case vfio = "vfio-pci"
    /// No driver: not offered, and not in the way of its group.
    case none
    /// Keeps other drivers away, and does nothing: not offered, and not in the way.
    case stub = "pci-stub"
    /// A host driver that does DMA: not offered, and its group cannot be taken.
    case ioatdma
    /// A host driver that shares the device out: programs get slices of it, made at run time. It
    /// does DMA for them, so the device's own group cannot be taken.
    case mediated = "ioat-mdev"
    /// The same of a work-queue engine.
    case mediatedQueue = "wq-mdev"

    /// Whether programs get slices of the device, rather than the device or nothing.
    public var isMediating: Bool { self == .mediated || self == .mediatedQueue }
  }

  public init(
    model: Model, address: RequesterID, group: UInt32, subgroup: Int = 0, acs: Bool = false,
    iommu: String, hostDriver: HostDriver = .vfio, noSnoop: Bool = false,
    rootPort: RequesterID? = nil,
    virtualFunctions: Int = 0, enabledFunctions: Int = 0, pasids: PASIDUse? = nil,
    services: TranslationServices = TranslationServices()
  ) {
    self.services = services
    self.pasids = pasids
    self.model = model
    self.address = address
    self.group = group
    self.subgroup = subgroup
    self.acs = acs
    self.iommu = iommu
    self.hostDriver = hostDriver
    self.noSnoop = noSnoop
    self.rootPort = rootPort
    self.virtualFunctions = virtualFunctions
    self.enabledFunctions = enabledFunctions
  }
}

/// The copy engine's parameters.
public struct CopyEngineDescription: Hashable, Sendable {
  /// What its VER register says: 0x32, 0x33 or 0x34.
  public var version: UInt8
  /// Whether it also fills memory with a pattern.
  public var fill: Bool
  /// Memory behind its BAR 2 that programs map, in bytes, a power of two; 0 for none.
  public var localMemory: UInt64
  /// Slices that there may be at once, where a mediating driver shares it out.
  public var slices: Int

  public init(
    version: UInt8 = 0x33, fill: Bool = false, localMemory: UInt64 = 0, slices: Int = 8
  ) {
    self.version = version
    self.fill = fill
    self.localMemory = localMemory
    self.slices = slices
  }

  /// The versions that exist.
  public static let versions: [UInt8] = [0x32, 0x33, 0x34]
}

/// The work-queue engine's parameters.
public struct WorkQueueDescription: Hashable, Sendable {
  /// Whether CPUs submit to it with PASIDs of theirs, or registers say for which.
  public var mode: Mode
  /// Commands that wait at most, 1 to 64.
  public var depth: Int
  /// Queues that there may be at once, where a mediating driver shares it out.
  public var slices: Int

  public enum Mode: String, CaseIterable, Hashable, Sendable {
    case shared, dedicated
  }

  public init(mode: Mode = .shared, depth: Int = 16, slices: Int = 8) {
    self.mode = mode
    self.depth = depth
    self.slices = slices
  }
}

extension DeviceDescription {
  /// What it is as far as PASIDs go, behind an IOMMU with PASIDs of so many bits (MODEL E2).
  public func kind(pasidBits: Int) -> DeviceKind {
    switch pasids ?? (pasidBits > 0 ? .registered : .none) {
    case .none: return .physicalWithoutPASIDs
    case .delegated: return .physicalDelegated
    case .registered:
      if case .workQueue(let queue) = model, queue.mode == .shared {
        return .physicalWithWorkQueue
      }
      return .physical
    }
  }
}

/// Devices that cannot be isolated from each other.
public struct GroupDescription: Hashable, Sendable {
  public var number: UInt32
  /// By address.
  public var devices: [RequesterID]
  /// By address.
  public var bridges: [RequesterID]

  public init(number: UInt32, devices: [RequesterID], bridges: [RequesterID] = []) {
    self.number = number
    self.devices = devices
    self.bridges = bridges
  }
}
