// SPDX-License-Identifier: Apache-2.0
//
// A function's work portal: the page that commands are written to in one deferrable write, and
// the way out of the queue for a PASID that is being detached (MODEL E4).

import IOMMU

/// Where a model takes commands.
public struct PortalLayout: Hashable, Sendable {
  public var bar: Int
  /// Of the page, in bytes from the start of the BAR; a multiple of 4 KiB.
  public var offset: UInt64
  /// In bytes.
  public static let byteCount: UInt64 = 4096

  public init(bar: Int, offset: UInt64) {
    precondition(offset % Self.byteCount == 0, "a portal is a page")
    self.bar = bar
    self.offset = offset
  }

  func contains(_ offset: UInt64) -> Bool {
    (self.offset..<self.offset + Self.byteCount).contains(offset)
  }
}

/// The portal of a function. Thread-safe.
public final class FunctionPortal: WorkPortal {
  public let device: any BindableDevice
  let layout: PortalLayout
  private let model: any PCIDeviceModel
  /// PASIDs, as the device has them, that are on their way out. Held while the model takes a
  /// command, so that none comes in after the model was drained.
  private let leaving = Guarded<Set<PASID>>([])

  init(device: any BindableDevice, layout: PortalLayout, model: any PCIDeviceModel) {
    self.device = device
    self.layout = layout
    self.model = model
  }

  public func receive(_ command: WorkCommand) -> DeferrableWrite {
    leaving.withLock { leaving in
      // What was attached when the CPU looked may be detached by now.
      guard !leaving.contains(command.pasid), device.pasids.virtual(of: command.pasid) != nil
      else { return .retry }
      return model.receive(command)
    }
  }

  /// Runs `body`, which detaches a virtual PASID, when nothing of it is left in the queue and
  /// nothing new comes in: the physical one may be somebody else's afterwards.
  public func whileDrained(of virtual: PASID, _ body: () -> Void) {
    guard let physical = device.pasids.physical(of: virtual) else { return body() }
    _ = leaving.withLock { $0.insert(physical) }
    model.drain(physical)
    body()
    _ = leaving.withLock { $0.remove(physical) }
  }
}

extension PCIFunction {
  /// The portal that a write to a region would go to; nil where it goes to registers.
  /// - Parameter offset: In the region, in bytes.
  public func portal(in region: PCIRegion, at offset: UInt64) -> FunctionPortal? {
    guard let portal, region == .bar(portal.layout.bar), portal.layout.contains(offset) else {
      return nil
    }
    return portal
  }

  /// Writes a command to the portal, as a CPU does with one instruction.
  ///
  /// - Parameters:
  ///   - bytes: 64 of them, little-endian words; at a multiple of 64 in the portal's page.
  ///   - machine: The VM that the CPU runs; nil for none.
  /// - Returns: 64.
  /// - Throws: `EAGAIN` where the queue is full; `EINVAL` for another length or place; `EIO`
  ///   while memory decoding is off; as `WorkPortal.enqueue`.
  public func submit(
    _ bytes: [UInt8], at offset: UInt64, to portal: FunctionPortal,
    from machine: VirtualMachine?
  ) throws(IOMMUError) -> Int {
    guard bytes.count == WorkCommand.byteCount, offset % UInt64(WorkCommand.byteCount) == 0
    else {
      throw IOMMUError(
        .invalidArgument,
        "the work portal of \(name) takes \(WorkCommand.byteCount) bytes in one write, at a "
          + "multiple of that; not \(bytes.count) at \(hex(offset))")
    }
    var words = InlineArray<8, UInt64>(repeating: 0)
    for (index, byte) in bytes.enumerated() {
      words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8)
    }
    switch try submit(WorkCommand(words: words), to: portal, from: machine) {
    case .accepted: return bytes.count
    case .retry:
      throw IOMMUError(
        .resourceTemporarilyUnavailable,
        "the work queue of \(name) is full; write the command again")
    }
  }

  /// Writes a command to the portal. As above, but that a full queue is told, not thrown.
  /// - Parameter command: With a virtual PASID.
  /// - Throws: `EIO` while memory decoding is off; as `WorkPortal.enqueue`.
  public func submit(
    _ command: WorkCommand, to portal: FunctionPortal, from machine: VirtualMachine?
  ) throws(IOMMUError) -> DeferrableWrite {
    guard isMemoryEnabled else {
      throw IOMMUError(
        .ioError,
        "\(name) does not decode memory: set bit 1 of its command register, and power state D0")
    }
    return try portal.enqueue(command, from: machine)
  }
}
