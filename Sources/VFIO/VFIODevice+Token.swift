// SPDX-License-Identifier: Apache-2.0
//
// VF tokens: the users of a physical function and of its virtual ones have to share a secret, as
// either could harm the other. Facts: Linux 6.12, `vfio_pci_validate_vf_token`.

import IOMMU
import SystemPackage

/// The token of a physical function that vfio-pci has. Linux: `struct vfio_pci_vf_token`.
/// Thread-safe.
final class TokenKeeper: Sendable {
  struct State: Sendable {
    /// At first one that nobody knows.
    var token = VFToken(bytes: (0..<16).map { _ in UInt8.random(in: .min ... .max) })
    /// Virtual functions that have a user.
    var users = 0
  }

  let state = Guarded(State())
}

extension VFIODevice {
  /// Whether a user who presents this token, or none, may open the device.
  ///
  /// A virtual function of a physical one that vfio-pci has asks for that one's token. A physical
  /// one asks for it while a virtual one has a user; before, a token sets it.
  /// - Throws: `EACCES` for none or the wrong one where one is asked for; `EINVAL` for a token
  ///   where none is used.
  func checkToken(_ token: VFToken?) throws(IOMMUError) {
    if function.isVirtual, let physical = physicalFunction, let keeper = physical.tokens {
      let known = keeper.state.withLock { $0.token }
      try check(token, against: known, set: physical)
    } else if !function.isVirtual, let keeper = tokens {
      let known = keeper.state.withLock { state -> VFToken? in
        if state.users > 0 { return state.token }
        if let token { state.token = token }
        return nil
      }
      if let known { try check(token, against: known, set: self) }
    } else if token != nil {
      throw IOMMUError(
        .invalidArgument,
        function.isVirtual
          ? "\(function.name) takes no vf_token: vfio-pci has not got its physical function"
          : "\(function.name) is no virtual function and has none: it takes no vf_token")
    }
  }

  private func check(
    _ token: VFToken?, against known: VFToken, set physical: VFIODevice
  ) throws(IOMMUError) {
    guard token != known else { return }
    throw IOMMUError(
      .permissionDenied,
      token == nil
        ? "\(function.name) asks for the VF token that the user of \(physical.function.name) set"
        : "this is not the VF token that the user of \(physical.function.name) set")
  }

  /// Sets the token that users of virtual functions have to present.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`. It cannot be read: it may be another user's.
  public func setToken(_ token: VFToken) {
    tokens?.state.withLock { $0.token = token }
  }

  /// Whether the device has a token to set: it is a physical function.
  public var hasToken: Bool { tokens != nil }

  // MARK: Users

  /// Starts the function for its first user.
  func enable(memories: [Int: any DeviceMemory]) {
    function.enable(memories: memories)
    physicalFunction?.tokens?.state.withLock { $0.users += 1 }
  }

  /// Ends what `enable` began.
  func disable() {
    physicalFunction?.tokens?.state.withLock { $0.users -= 1 }
    function.disable()
  }
}
