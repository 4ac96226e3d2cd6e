// SPDX-License-Identifier: Apache-2.0
//
// What the 2021 proposal's calls ask of an open device beside Linux's (MODEL K1).

import IOMMU
import SystemPackage

extension DeviceSession {
  /// The context that the device is bound to through this file.
  /// - Throws: `EINVAL` before the bind.
  public func boundContext() throws(IOMMUError) -> Context {
    try checkAccess()
    let context = device.state.withLock { $0.binding?.context }
    guard let context else { throw notBound }
    return context
  }

  /// Sends the device, or one of its PASIDs, back to blocked from the address space that it is
  /// attached to.
  /// - Throws: `EINVAL` before the bind, and where it is attached to another space or to none.
  public func detach(pasid: PASID?, from ioasid: ObjectID) throws(IOMMUError) {
    try checkAccess()
    try device.state.withLock { (state) throws(IOMMUError) in
      guard state.binding != nil else { throw notBound }
      guard try state.binding?.addressSpace(of: pasid) == ioasid else {
        throw IOMMUError(
          .invalidArgument,
          "\(device.function.name) is not attached to \(ioasid)"
            + (pasid.map { " with PASID \($0.rawValue)" } ?? ""))
      }
      state.binding?.detach(pasid)
    }
  }

  private var notBound: IOMMUError {
    IOMMUError(.invalidArgument, "\(device.function.name) is bound to no context")
  }
}
