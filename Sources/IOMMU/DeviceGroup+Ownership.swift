// SPDX-License-Identifier: Apache-2.0
//
// Who owns a group: contexts of one user, or the host's drivers, never both (MODEL C2, C3, C7).

import SystemPackage

extension DeviceGroup {
  /// Makes `owner` the owner of what the group does without PASIDs, or counts one more binding
  /// of it. The first one moves the whole group to the blocked context.
  ///
  /// Linux: `iommu_device_claim_dma_owner`. MODEL C2, C3.
  /// - Throws: `EPERM` where another context owns it or a host driver uses DMA; the sentence
  ///   says who is in the way.
  func claim(
    for owner: ObjectIdentifier, device: any BindableDevice
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      if state.isOwned {
        guard state.mainOwner ?? owner == owner, state.owners[owner] != nil else {
          throw IOMMUError(
            .notPermitted,
            "\(device.name) is in IOMMU group \(id), which another open of /dev/iommu owns: "
              + "\(state.boundNames) is bound there")
        }
        state.mainOwner = owner
        state.owners[owner, default: []].append(device)
        return
      }
      if let (neighbour, driver) = Self.obstacle(in: state) {
        throw IOMMUError(
          .notPermitted,
          "IOMMU group \(id) is not viable: \(neighbour.name) is bound to the host driver "
            + "\(driver); unbind that first")
      }
      try Self.switchAll(
        state.members.map(\.device), pasid: nil, to: .blocked, from: Route.idle)
      state.owners[owner] = [device]
      state.mainOwner = owner
    }
  }

  /// Whether a user could take the group now: nobody owns it, and no host driver in it does DMA.
  /// MODEL C3.
  public var isViable: Bool {
    state.withLock { !$0.isOwned && Self.obstacle(in: $0) == nil }
  }

  /// Whether a context has bound a device of the group. Linux: `iommufd_ctx_has_group`.
  package func isOwned(by context: Context) -> Bool {
    state.withLock { $0.owners[ObjectIdentifier(context)] != nil }
  }

  /// A device whose host driver does DMA, and the driver.
  private static func obstacle(
    in state: borrowing State
  ) -> (device: any BindableDevice, driver: String)? {
    for member in state.members {
      if case .dma(let driver) = member.hostDriver { return (member.device, driver) }
    }
    return nil
  }

  /// Lets `owner` use PASIDs of a group that `holder` owns: whoever presents a binding may.
  /// - Throws: `EPERM` where `holder` does not own it any more.
  func share(
    with owner: ObjectIdentifier, by holder: ObjectIdentifier, device: any BindableDevice
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.owners[holder] != nil else {
        throw IOMMUError(
          .notPermitted, "\(device.name) is not bound by the context that would share it")
      }
      state.owners[owner, default: []].append(device)
    }
  }

  /// Undoes one `claim` or `share`. The last one gives the group back to the host.
  func release(_ device: any BindableDevice, by owner: ObjectIdentifier) {
    state.withLock { state in
      guard var bound = state.owners[owner],
        let index = bound.firstIndex(where: { $0 === device })
      else { return }
      bound.remove(at: index)
      state.owners[owner] = bound.isEmpty ? nil : bound
      if bound.isEmpty, state.mainOwner == owner { state.mainOwner = nil }
      guard !state.isOwned else { return }
      for member in state.members {
        Self.restore(member.device, pasid: nil, to: Route.idle(member.device))
      }
    }
  }

  // MARK: The host's drivers

  func hostDriver(of device: any BindableDevice) -> HostDriver {
    state.withLock { state in
      state.members.first { $0.device === device }?.hostDriver ?? .none
    }
  }

  func bind(_ driver: HostDriver, to device: any BindableDevice) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard let index = state.members.firstIndex(where: { $0.device === device }) else {
        throw IOMMUError(.noSuchDevice, "\(device.name) was taken out of the machine")
      }
      guard state.members[index].hostDriver == .none else {
        throw IOMMUError(
          .resourceBusy, "\(device.name) has a host driver already; unbind that first")
      }
      if case .dma(let name) = driver, state.isOwned {
        throw heldAgainst(name, of: device.name, state)
      }
      state.members[index].hostDriver = driver
    }
  }

  func unbindHostDriver(of device: any BindableDevice) {
    state.withLock { state in
      guard let index = state.members.firstIndex(where: { $0.device === device }) else {
        return
      }
      state.members[index].hostDriver = .none
    }
  }

  /// What a host driver's probe gets while a user has the group.
  func heldAgainst(
    _ driver: String, of device: String, _ state: borrowing State
  ) -> IOMMUError {
    IOMMUError(
      .resourceBusy,
      "\(driver), which does DMA, cannot be bound to \(device): a user owns IOMMU group \(id) "
        + "through \(state.boundNames); those have to be unbound first")
  }
}
