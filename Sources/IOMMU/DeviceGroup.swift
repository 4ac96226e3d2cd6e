// SPDX-License-Identifier: Apache-2.0
//
// The devices that cannot be isolated from each other, who owns them, and the one security
// context that they share (MODEL C2, C3, D3).

import SystemPackage

/// Linux: `iommu_group`. Thread-safe.
public final class DeviceGroup: Sendable {
  /// As `/sys/kernel/iommu_groups` numbers it.
  public let id: UInt32

  struct State: Sendable {
    var members: [Member] = []
    /// The contexts that own the group, and what each has bound of it. MODEL C7: one of them
    /// holds what the devices do without a PASID, the others only PASIDs.
    var owners: [ObjectIdentifier: [any BindableDevice]] = [:]
    var mainOwner: ObjectIdentifier?
    /// What the group's DMA goes through. Where there is nothing, it is blocked.
    var attachments: [Slot: Attachment] = [:]

    var isOwned: Bool { !owners.isEmpty }

    /// The devices that are bound, as a sentence names them. Names are everybody's to know, as
    /// in sysfs; whose context it is, and its ids, are not (MODEL A1).
    var boundNames: String {
      Set(owners.values.joined().map(\.name)).sorted().joined(separator: ", ")
    }

    /// The devices whose DMA goes one way.
    func devices(of subgroup: Int) -> [any BindableDevice] {
      members.filter { $0.subgroup == subgroup }.map(\.device)
    }

    func subgroup(of device: any BindableDevice) -> Int? {
      members.first { $0.device === device }?.subgroup
    }
  }

  struct Member: Sendable {
    let device: any BindableDevice
    /// Devices of different numbers are told apart by the IOMMU (MODEL D3).
    let subgroup: Int
    var hostDriver: HostDriver
  }

  /// DMA that is routed together: of one sub-group, under one PASID; nil is DMA without one.
  struct Slot: Hashable, Sendable {
    let subgroup: Int
    let pasid: PASID?
  }

  /// A page table in use, and the bound devices that asked for it, one by one; never none.
  ///
  /// Linux: `iommufd_attach`.
  struct Attachment: Sendable {
    var table: HWPT
    var devices: [DeviceObject]
    /// Where the page requests of those devices go; none where the table has no fault queue.
    var ports: [RequesterID: PageRequestPort] = [:]
    /// Which of `devices` promise that their DMA snoops (MODEL F2).
    var promises: Set<ObjectIdentifier> = []

    var route: Route { Route(context: table.context, ports: ports) }
  }

  /// Where the DMA of a group's devices goes, and their page requests.
  struct Route {
    var context: DMAContext
    var ports: [RequesterID: PageRequestPort] = [:]

    static var blocked: Route { Route(context: .blocked) }
    /// Where a device's DMA goes while nobody owns it.
    static func idle(_ device: any BindableDevice) -> Route {
      Route(context: device.idleContext)
    }

    /// - Parameter pasid: As the user names it, assigned to the device; nil for DMA without one.
    /// - Throws: What the driver throws; then the device is where it was.
    func set(_ device: any BindableDevice, pasid: PASID?) throws(IOMMUError) {
      guard let pasid else { return try apply(to: device.physical, pasid: device.defaultPASID) }
      guard let physical = device.pasids.physical(of: pasid) else {
        throw IOMMUError(
          .invalidArgument, "\(device.name) is not attached with PASID \(pasid.rawValue)")
      }
      guard device.kind.allocation == .global else {
        return try apply(to: device.physical, pasid: physical)
      }
      try device.physical.sharedRoutes.set(self, of: device, virtual: pasid, physical: physical)
    }

    /// - Parameter pasid: Physical.
    func apply(to device: PhysicalDevice, pasid: PASID?) throws(IOMMUError) {
      try device.driver.setContext(
        of: device.requester, pasid: pasid, to: context, requests: ports[device.requester])
    }

    var isBlocked: Bool { if case .blocked = context { true } else { false } }

    /// Tells page tables apart; nil where there is none.
    var tableID: ObjectIdentifier? {
      switch context {
      case .host, .blocked: nil
      case .paging(let domain): ObjectIdentifier(domain)
      case .nested(let domain): ObjectIdentifier(domain)
      case .shared(let domain): ObjectIdentifier(domain)
      }
    }
  }

  let state: RankedMutex<State>

  init(id: UInt32) {
    self.id = id
    state = RankedMutex(.group, State())
  }

  public var devices: [any BindableDevice] { state.withLock { $0.members.map(\.device) } }

  /// Whether a context owns the group.
  public var isOwned: Bool { state.withLock { $0.isOwned } }

  /// The devices that go where a device of the group goes, itself included (MODEL D3).
  func companions(of device: any BindableDevice) -> [any BindableDevice] {
    state.withLock { state in
      guard let subgroup = state.subgroup(of: device) else { return [device] }
      return state.devices(of: subgroup)
    }
  }

  func add(
    _ device: any BindableDevice, subgroup: Int, hostDriver: HostDriver
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      if let twin = state.members.first(where: {
        $0.subgroup != subgroup && $0.device.physical.isAlias(of: device.physical)
      }) {
        throw IOMMUError(
          .invalidArgument,
          "\(device.name) and \(twin.device.name) have one requester id, so that no IOMMU tells "
            + "them apart: they are of one sub-group")
      }
      // A device that joins an owned group shares its fate at once.
      if state.isOwned {
        if case .dma(let driver) = hostDriver {
          throw heldAgainst(driver, of: device.name, state)
        }
        let route = state.attachments[Slot(subgroup: subgroup, pasid: nil)]?.route
        try (route ?? .blocked).set(device, pasid: nil)
        do throws(IOMMUError) {
          try routePASIDs(of: device, like: subgroup, state)
        } catch {
          for pasid in device.pasids.all {
            Self.restore(device, pasid: pasid, to: .blocked)
            device.pasids.free(pasid, on: device.physical)
          }
          Self.restore(device, pasid: nil, to: .blocked)
          throw error
        }
      } else if device.defaultPASID != nil {
        try Route.blocked.set(device, pasid: nil)
      }
      state.members.append(
        Member(device: device, subgroup: subgroup, hostDriver: hostDriver))
    }
  }

  private func routePASIDs(
    of device: any BindableDevice, like subgroup: Int, _ state: borrowing State
  ) throws(IOMMUError) {
    for (slot, attachment) in state.attachments where slot.subgroup == subgroup {
      guard let pasid = slot.pasid, let owner = attachment.devices.first?.owner else {
        continue
      }
      try device.pasids.assign(pasid, on: device.physical, owner: owner)
      try attachment.route.set(device, pasid: pasid)
    }
  }

  func remove(_ device: any BindableDevice) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard !state.isOwned else {
        throw IOMMUError(
          .resourceBusy,
          "\(device.name) is in IOMMU group \(id), of which a user has bound "
            + "\(state.boundNames); those have to be unbound first")
      }
      state.members.removeAll { $0.device === device }
    }
  }

  /// The machine is gone: lets go of the devices, which hold the group.
  func dissolve() { state.withLock { $0.members = [] } }

  /// Sends every device of a group along `route`, or none of them.
  static func switchAll(
    _ devices: [any BindableDevice], pasid: PASID?, to route: Route,
    from old: (any BindableDevice) -> Route
  ) throws(IOMMUError) {
    for (index, device) in devices.enumerated() {
      do throws(IOMMUError) {
        try FailurePoint.pass(.attachment)
        try route.set(device, pasid: pasid)
      } catch {
        for device in devices[..<index] { restore(device, pasid: pasid, to: old(device)) }
        throw error
      }
    }
  }

  /// Goes back to a route that the driver has accepted before, which cannot be refused;
  /// were it refused all the same, the device is blocked rather than left where it was.
  static func restore(_ device: any BindableDevice, pasid: PASID?, to route: Route) {
    do throws(IOMMUError) {
      try route.set(device, pasid: pasid)
    } catch {
      assertionFailure("\(device.name): \(error)")
      try? Route.blocked.set(device, pasid: pasid)
    }
  }
}
