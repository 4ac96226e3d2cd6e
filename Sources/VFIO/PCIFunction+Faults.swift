// SPDX-License-Identifier: Apache-2.0
//
// Errors that are put into a function while it runs, and what its user sees of them (MODEL J1,
// H2): advanced error reporting and the error notice, DMA that fails, a device that stands still, a
// link that is down. Facts: PCI Express Base Specification, 7.8.4; Linux 6.12,
// `vfio_pci_core_aer_err_detected`.

import IOMMU
import Synchronization
import SystemPackage

/// An error that a function reports by advanced error reporting.
public enum PCIError: String, CaseIterable, Sendable {
  case dataLink = "data-link"
  case surpriseDown = "surprise-down"
  case poisoned = "poisoned"
  case completionTimeout = "completion-timeout"
  case completerAbort = "completer-abort"
  case unexpectedCompletion = "unexpected-completion"
  case malformed = "malformed"
  case unsupportedRequest = "unsupported-request"
  case internalError = "internal"
  /// Corrected by hardware: a receiver error.
  case corrected = "corrected"

  /// Its bit in the status and mask registers.
  var bit: UInt32 {
    switch self {
    case .dataLink: 1 << 4
    case .surpriseDown: 1 << 5
    case .poisoned: 1 << 12
    case .completionTimeout: 1 << 14
    case .completerAbort: 1 << 15
    case .unexpectedCompletion: 1 << 16
    case .malformed: 1 << 18
    case .unsupportedRequest: 1 << 20
    case .internalError: 1 << 22
    case .corrected: 1 << 0
    }
  }

  /// Linux tells a user of those that nothing corrected.
  var isUncorrectable: Bool { self != .corrected }
}

/// What is wrong with a function. Read before each access of its DMA, without a lock.
final class FaultGate: Sendable {
  /// Accesses to memory that fail from now on.
  let failing = Atomic(0)
  /// Whether nobody is there any more: registers read as all ones.
  let isDead = Atomic(false)

  /// Whether an access is to fail.
  @inline(__always)
  func takesOne() -> Bool {
    guard failing.load(ordering: .relaxed) > 0 else { return false }
    return failing.subtract(1, ordering: .relaxed).oldValue > 0
  }
}

extension PCIFunction {
  /// The function reports an error: its status bit is set, and where its mask lets it through and
  /// nothing corrected it, the user's error notice is signalled.
  public func report(_ error: PCIError) {
    let offset = 0x100 + (error.isUncorrectable ? 0x04 : 0x10)
    config.setBits(error.bit, at: offset)
    let mask = config.value(at: offset + 4)
    if error.isUncorrectable, mask & error.bit == 0 { interrupts.signalError() }
  }

  /// The function's next accesses to memory fail, as if they translated to nothing.
  /// - Parameter count: Accesses; replaces what is left of an earlier one.
  public func failDMA(_ count: Int) {
    faults.failing.store(max(0, count), ordering: .sequentiallyConsistent)
  }

  /// The function takes nothing in hand any more, until it is reset; its registers answer.
  /// - Throws: `EOPNOTSUPP` for a model that cannot be stopped; `EBUSY` in a migration.
  public func stick() throws(IOMMUError) {
    guard let migration = model.migration else {
      throw IOMMUError(.operationNotSupported, "\(name) cannot be made to stand still")
    }
    try progress.withLock { (progress) throws(IOMMUError) in
      guard !progress.state.isQuiet else {
        throw IOMMUError(
          .resourceBusy, "\(name) stands still in state \(progress.state) of a migration")
      }
      guard !progress.isStuck else { return }
      migration.quiesce()
      progress.isStuck = true
    }
  }

  /// The link to the function is lost: its registers read as all ones, writes go nowhere, what is
  /// mapped faults, and its DMA has ended when this returns. Its user is told by the error notice,
  /// and finds ENODEV in all commands but those that give the device up.
  public func loseLink() {
    faults.isDead.store(true, ordering: .sequentiallyConsistent)
    reset()
    report(.surpriseDown)
  }

  /// The link comes back, to a function that was reset.
  public func restoreLink() {
    faults.isDead.store(false, ordering: .sequentiallyConsistent)
    reset()
  }

  /// Whether the link is lost.
  public var isDead: Bool { faults.isDead.load(ordering: .acquiring) }

  /// Whether loads and stores of mapped registers arrive: the link is there, and the function does
  /// not sleep. They do not wake it up.
  public var answersMappings: Bool {
    !isDead && !power.isAsleep.load(ordering: .sequentiallyConsistent)
  }

  /// - Throws: `ENODEV` where the link is lost.
  public func checkLink() throws(IOMMUError) {
    guard !isDead else {
      throw IOMMUError(
        .noSuchDevice, "\(name) was taken away without notice; close it")
    }
  }
}
