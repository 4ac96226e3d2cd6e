// SPDX-License-Identifier: Apache-2.0
//
// A device with ATS in charge of its translations: it forgets, and confirms, when it likes (MODEL
// G2). Device models need none of this; it is there to show what a slow or faulty device does.

import IOMMU

extension DMAPort {
  /// Whether the device confirms invalidations itself (`confirmInvalidations`), rather than by its
  /// next access. Until then its accesses go on using what it was told to forget, and whoever
  /// unmapped waits, for `Configuration.invalidationTimeout` at most. Of a device without ATS it
  /// stays false. The port's thread sets it; such a port asks for no pages.
  public var confirmsByHand: Bool {
    get { channel.device?.isByHand ?? false }
    set {
      channel.device?.isByHand = newValue
      if !newValue { confirmInvalidations() }
    }
  }

  /// Whether there is something to confirm. From any thread.
  public var hasInvalidations: Bool { channel.device?.isPending ?? false }

  /// Forgets what invalidations have named, and confirms them. On the port's thread, outside of
  /// transactions.
  /// - Returns: Whether there were any.
  @discardableResult
  public func confirmInvalidations() -> Bool {
    guard let device = channel.device, let (mail, number) = device.take() else { return false }
    forget(mail)
    device.confirm(number)
    return true
  }
}
