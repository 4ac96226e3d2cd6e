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
    /// Whether a user of the physical function has set it.
    var isSet = false
    /// Virtual functions that have a user.
    var users = 0

    mutating func set(_ token: VFToken) {
      self.token = token
      isSet = true
    }
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
      let state = keeper.state.withLock { $0 }
      guard token != state.token else { return }
      throw refusal(token, of: physical.function.name, isSet: state.isSet)
    } else if !function.isVirtual, let keeper = tokens {
      let state = keeper.state.withLock { state -> TokenKeeper.State in
        if state.users == 0, let token { state.set(token) }
        return state
      }
      guard state.users > 0, token != state.token else { return }
      throw refusal(token, users: state.users)
    } else if token != nil {
      throw IOMMUError(
        .invalidArgument,
        function.isVirtual
          ? "\(function.name) takes no vf_token: vfio-pci did not have its physical function when "
            + "it got this one"
          : "\(function.name) is no virtual function and has none: it takes no vf_token")
    }
  }

  /// Why a virtual function is not opened.
  private func refusal(
    _ token: VFToken?, of physical: String, isSet: Bool
  ) -> IOMMUError {
    let remedy =
      isSet
      ? "which the user of \(physical) set"
      : "which nobody has set yet: the user of \(physical) does, by presenting one when it opens "
        + "that or by VFIO_DEVICE_FEATURE_PCI_VF_TOKEN"
    return IOMMUError(
      .permissionDenied,
      token == nil
        ? "\(function.name) asks for the VF token of \(physical), \(remedy)"
        : "what \(function.name) was given is not the VF token of \(physical), \(remedy)")
  }

  /// Why a physical function is not opened.
  private func refusal(_ token: VFToken?, users: Int) -> IOMMUError {
    let verb = users == 1 ? "is" : "are"
    return IOMMUError(
      .permissionDenied,
      token == nil
        ? "\(function.name) asks for its VF token, as set last, while \(users) of its virtual "
          + "functions \(verb) in use: their users know it"
        : "what \(function.name) was given is not its VF token, as set last; it takes another "
          + "once none of its virtual functions is in use, and now \(users) \(verb)")
  }

  /// Sets the token that users of virtual functions have to present.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`. It cannot be read: it may be another user's.
  public func setToken(_ token: VFToken) {
    tokens?.state.withLock { $0.set(token) }
  }

  /// Whether the device has a token to set: it is a physical function.
  public var hasToken: Bool { tokens != nil }

  // MARK: Users

  /// Starts the function for its first user.
  func enable(_ pages: CarriedPages) {
    function.enable(pages)
    physicalFunction?.tokens?.state.withLock { $0.users += 1 }
  }

  /// Ends what `enable` began.
  func disable() {
    physicalFunction?.tokens?.state.withLock { $0.users -= 1 }
    function.disable()
  }
}
