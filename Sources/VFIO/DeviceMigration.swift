// SPDX-License-Identifier: Apache-2.0
//
// What a device model does so that its state can move to another device of its kind while its
// user runs (MODEL J1; VFIO's migration, version 2). Who drives it is the framework.

import IOMMU

/// The state of a device model, to be stopped, saved and loaded. Thread-safe.
///
/// State is what makes the device go on where it was: registers, and what it has taken in hand
/// and not finished. Memory, the standard part of configuration space and the set-up of
/// interrupts are the user's to move, as with Linux's drivers; the framework itself moves the
/// model's own `ConfigRegister`s and which vectors are pending.
public protocol DeviceMigration: AnyObject, Sendable {
  /// Counts layouts of `saveState`: what was saved with another one is refused.
  var stateVersion: UInt32 { get }

  /// The most bytes that `saveState` gives. Streams that say more are refused early.
  var stateLimit: Int { get }

  /// Stops the device. When it returns, no DMA goes on, none is begun and no interrupt is raised
  /// until `resume`. Registers answer as before; what a write asks for waits. What was in hand is
  /// finished, or put back so that it is done again, and is no error.
  ///
  /// A reset of a device that is stopped does not make it go on; the framework calls `resume`
  /// after it. Called once, until `resume`.
  func quiesce()

  /// The device goes on where it stopped, or with what was loaded.
  func resume()

  /// The state as it is now. Of a device that is stopped it is whole; of one that runs, it is what
  /// a reader of all its registers at this moment would find.
  func saveState() -> [UInt8]

  /// Takes over a state, while the device is stopped.
  /// - Parameter state: What `saveState` of the same `stateVersion` gave, or anything else.
  /// - Throws: `EINVAL` for what it cannot have given; nothing has changed then.
  func loadState(_ state: [UInt8]) throws(IOMMUError)
}

extension DeviceMigration {
  public var stateLimit: Int { 1 << 20 }
}
