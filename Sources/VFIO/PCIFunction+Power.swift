// SPDX-License-Identifier: Apache-2.0
//
// Low power at the user's request: the device sleeps between two accesses, and its mappings
// fault. Facts: Linux 6.12, vfio_pci_core.c, `vfio_pci_runtime_pm_entry` and runtime resume.

import IOMMU
import Synchronization
import SystemPackage

/// Whether a function sleeps. The counts are read without a lock, the rest is `control`'s.
final class PowerGate: Sendable {
  struct Wish: Sendable {
    /// Whether the user lets the function sleep.
    var isEngaged = false
    /// Signalled once when it wakes up; it stays awake then.
    var wake: (any EventSignal)?
  }

  let wish = Guarded(Wish())
  /// Accesses under way, each of which keeps the function awake.
  let accesses = Atomic(0)
  let isEngaged = Atomic(false)
  let isAsleep = Atomic(false)
}

extension PCIFunction {
  /// Makes an access to the function, which is awake for that long.
  ///
  /// Linux: `pm_runtime_resume_and_get`, and `pm_runtime_put` after it.
  public func whileAwake<Result, Failure: Error>(
    _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    power.accesses.add(1, ordering: .sequentiallyConsistent)
    if power.isAsleep.load(ordering: .sequentiallyConsistent) { wakeUp() }
    defer {
      let left = power.accesses.subtract(1, ordering: .sequentiallyConsistent).newValue
      if left == 0, power.isEngaged.load(ordering: .sequentiallyConsistent) { fallAsleep() }
    }
    return try body()
  }

  /// Lets the function sleep from the end of the present access on: it does no DMA and raises no
  /// interrupt then, and its mappings fault. Any access but that of a mapping wakes it up.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`. Called `whileAwake`.
  /// - Parameter wake: With it the first waking is the last: it is signalled, and the function
  ///   stays awake. Linux: `…_ENTRY_WITH_WAKEUP`.
  /// - Throws: `EINVAL` where it may sleep already.
  public func enterLowPower(wake: (any EventSignal)? = nil) throws(IOMMUError) {
    try power.wish.withLock { (wish) throws(IOMMUError) in
      guard !wish.isEngaged else {
        throw IOMMUError(
          .invalidArgument, "\(name) is in low power already; LOW_POWER_EXIT ends that")
      }
      wish = PowerGate.Wish(isEngaged: true, wake: wake)
      power.isEngaged.store(true, ordering: .sequentiallyConsistent)
    }
  }

  /// The function stays awake from now on.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_LOW_POWER_EXIT`. Called `whileAwake`, which has signalled whom it
  /// should.
  public func exitLowPower() {
    power.wish.withLock { wish in
      wish = PowerGate.Wish()
      power.isEngaged.store(false, ordering: .sequentiallyConsistent)
    }
  }

  private func wakeUp() {
    changePower {
      guard power.isAsleep.exchange(false, ordering: .sequentiallyConsistent) else {
        return false
      }
      let signal = power.wish.withLock { wish -> (any EventSignal)? in
        guard let signal = wish.wake else { return nil }
        wish = PowerGate.Wish()
        power.isEngaged.store(false, ordering: .sequentiallyConsistent)
        return signal
      }
      signal?.signal()
      return true
    }
    interrupts.setLineAsleep(false)
  }

  private func fallAsleep() {
    // The user may have put it into D3hot before; it sleeps from D0.
    config.powerUp()
    interrupts.setLineAsleep(true)
    let isAsleep = changePower {
      power.isAsleep.store(true, ordering: .sequentiallyConsistent)
      // An access that began meanwhile, or an exit, has not seen that it sleeps.
      guard power.accesses.load(ordering: .sequentiallyConsistent) == 0,
        power.isEngaged.load(ordering: .sequentiallyConsistent)
      else {
        power.isAsleep.store(false, ordering: .sequentiallyConsistent)
        return false
      }
      return true
    }
    if !isAsleep { interrupts.setLineAsleep(false) }
  }
}
