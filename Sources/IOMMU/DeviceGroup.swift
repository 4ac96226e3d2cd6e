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
    var devices: [PhysicalDevice] = []
    /// The context that owns the group, and how many bindings it has in it.
    var owner: ObjectIdentifier?
    var ownerCount = 0
    /// What the group's DMA goes through, by PASID; nil is DMA without one. Where there is
    /// nothing, it is blocked.
    var attachments: [PASID?: Attachment] = [:]
  }

  /// A page table in use, and the bound devices that asked for it, one by one; never none.
  ///
  /// Linux: `iommufd_attach`.
  struct Attachment: Sendable {
    var table: HWPT
    var devices: [DeviceObject]
    /// Where the page requests of those devices go; none where the table has no fault queue.
    var ports: [RequesterID: PageRequestPort] = [:]

    var route: Route { Route(context: table.context, ports: ports) }
  }

  /// Where the DMA of a group's devices goes, and their page requests.
  struct Route {
    var context: DMAContext
    var ports: [RequesterID: PageRequestPort] = [:]

    static var blocked: Route { Route(context: .blocked) }
    static var host: Route { Route(context: .host) }

    /// - Throws: What the driver throws; then the device is where it was.
    func set(_ device: PhysicalDevice, pasid: PASID?) throws(IOMMUError) {
      try device.driver.setContext(
        of: device.requester, pasid: pasid, to: context, requests: ports[device.requester])
    }
  }

  let state: RankedMutex<State>

  init(id: UInt32) {
    self.id = id
    state = RankedMutex(.group, State())
  }

  public var devices: [PhysicalDevice] { state.withLock { $0.devices } }

  /// Whether a context owns the group.
  public var isOwned: Bool { state.withLock { $0.owner != nil } }

  func add(_ device: PhysicalDevice) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      // A device that joins an owned group shares its fate at once.
      if state.owner != nil {
        let context = state.attachments[nil]?.table.context ?? .blocked
        try device.driver.setContext(of: device.requester, pasid: nil, to: context)
        for (pasid, attachment) in state.attachments {
          guard let pasid else { continue }
          try device.driver.setContext(
            of: device.requester, pasid: pasid, to: attachment.table.context)
        }
      }
      state.devices.append(device)
    }
  }

  func remove(_ device: PhysicalDevice) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.owner == nil else {
        throw IOMMUError(
          .resourceBusy, "\(device.name) is in IOMMU group \(id), which a client owns")
      }
      state.devices.removeAll { $0 === device }
    }
  }

  /// The machine is gone: lets go of the devices, which hold the group.
  func dissolve() { state.withLock { $0.devices = [] } }

  /// Makes `owner` the group's owner, or counts one more binding of it. The first one moves
  /// the whole group to the blocked context.
  ///
  /// Linux: `iommu_device_claim_dma_owner`. MODEL C2, C3.
  /// - Throws: `EPERM` where another context owns it or a host driver uses DMA; the sentence
  ///   says who is in the way.
  func claim(for owner: ObjectIdentifier, device: PhysicalDevice) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      if let current = state.owner {
        guard current == owner else {
          throw IOMMUError(
            .notPermitted,
            "\(device.name) is in IOMMU group \(id), which another open of /dev/iommu owns")
        }
        state.ownerCount += 1
        return
      }
      for neighbour in state.devices {
        if case .dma(let driver) = neighbour.hostDriver {
          throw IOMMUError(
            .notPermitted,
            "IOMMU group \(id) is not viable: \(neighbour.name) is bound to the host driver "
              + "\(driver); unbind that first")
        }
      }
      try Self.switchAll(state.devices, pasid: nil, to: .blocked, from: .host)
      state.owner = owner
      state.ownerCount = 1
    }
  }

  /// Undoes one `claim`. The last one gives the group back to the host.
  func release() {
    state.withLock { state in
      state.ownerCount -= 1
      guard state.ownerCount == 0 else { return }
      state.owner = nil
      for device in state.devices { Self.restore(device, pasid: nil, to: .host) }
    }
  }

  /// Sends every device of a group along `route`, or none of them.
  static func switchAll(
    _ devices: [PhysicalDevice], pasid: PASID?, to route: Route, from old: Route
  ) throws(IOMMUError) {
    for (index, device) in devices.enumerated() {
      do throws(IOMMUError) {
        try FailurePoint.pass(.attachment)
        try route.set(device, pasid: pasid)
      } catch {
        for device in devices[..<index] { restore(device, pasid: pasid, to: old) }
        throw error
      }
    }
  }

  /// Goes back to a route that the driver has accepted before, which cannot be refused;
  /// were it refused all the same, the device is blocked rather than left where it was.
  static func restore(_ device: PhysicalDevice, pasid: PASID?, to route: Route) {
    do throws(IOMMUError) {
      try route.set(device, pasid: pasid)
    } catch {
      assertionFailure("\(device.name): \(error)")
      try? device.driver.setContext(of: device.requester, pasid: pasid, to: .blocked)
    }
  }
}
