// SPDX-License-Identifier: Apache-2.0
//
// The port through which a device model does all its DMA: every access is translated by the
// IOMMU with the device's requester id, and lands in pinned memory or faults.

import HardwareTables
import IOMMU
import PageTables

/// One device's way to memory.
///
/// One thread at a time uses a port (a device model with several engines serializes them or
/// has several requesters). Any thread may change translations meanwhile: once an unmap or a
/// switch of context has returned, nothing on this port uses the old translation (MODEL G2).
///
/// An access is not atomic as a whole: bytes below a fault's address were transferred, and a
/// long access lets invalidations through between pieces of at most 128 KiB. While a call is
/// under way, an unmap of its memory waits for the piece that is being copied; so a thread
/// inside `transaction` must not itself unmap or switch contexts.
@safe
public final class DMAPort: @unchecked Sendable {
  // Unchecked: `state` and `bounce` belong to the one thread that uses the port; all else is
  // immutable and Sendable.

  /// Who the IOMMU takes this port's accesses to be from.
  public let requester: RequesterID
  /// nil for requests by RID alone.
  public let pasid: PASID?
  let channel: PortChannel
  /// For those who share the port: whoever has it is the one thread that may use it.
  package let turn = RankedMutex(.busPort, ())
  let memory: PhysicalMemory
  let state: UnsafeMutablePointer<PortState>
  /// Where data rests on its way from or to memory that is reached by calls.
  let bounce: UnsafeMutableRawBufferPointer
  private let interrupts: InterruptRemapper
  let faults: FaultLog
  let requesters: Requesters
  /// Where the port's thread waits for pages that its device asks for; nil where an access that
  /// misses is aborted. Set by the port's thread only.
  public var waits: DeviceWait? {
    get { unsafe state.pointee.waits }
    set { unsafe state.pointee.waits = newValue }
  }

  /// Pieces of a long access, in bytes: how long an invalidation may have to wait.
  static let localPiece: UInt64 = 64 << 10
  static let remotePiece: UInt64 = 128 << 10

  init(
    source: SoftwareIOMMU.Source, memory: PhysicalMemory, interrupts: InterruptRemapper,
    faults: FaultLog, requesters: Requesters, device: DeviceCache? = nil
  ) {
    channel = PortChannel(device: device)
    self.requesters = requesters
    requester = source.requester
    pasid = source.pasid
    self.memory = memory
    self.interrupts = interrupts
    self.faults = faults
    // SAFETY: both are this port's own and freed in deinit.
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: PortState())
    unsafe bounce = .allocate(byteCount: Int(Self.remotePiece), alignment: 4096)
    // Read by nobody before it is written; zeroed so that no bug shows old heap contents.
    _ = unsafe bounce.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit {
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
    unsafe bounce.deallocate()
  }

  /// Ends an access: counts and records the fault, and makes the error.
  /// - Parameter refusal: Of an interrupt.
  @inline(never)
  func fail(
    _ reason: DMAFault.Reason, _ iova: UInt64, _ access: Permissions,
    refusal: InterruptRefusal? = nil
  ) -> DMAFault {
    fail(Miss(reason, iova, access), takeCause(of: reason, refusal))
  }

  /// As above, of a cause that was taken before.
  func fail(
    _ miss: Miss, _ cause: RequestFault?, pageRequest: PageRequestEnd? = nil
  ) -> DMAFault {
    var fault = fault(miss, cause)
    fault.pageRequest = pageRequest
    faults.record(fault)
    tellGuest(fault)
    return fault
  }

  /// A guest with a virtual IOMMU reads of the faults of its own tables.
  private func tellGuest(_ fault: DMAFault) {
    // SAFETY: the port thread's own state. Inside a transaction what the context refers to lives.
    guard unsafe state.pointee.depth > 0,
      case .smmuNested(let root) = unsafe state.pointee.context
    else { return }
    root.tell(fault)
  }

  /// The error of an access, not counted.
  func fault(_ miss: Miss, _ cause: RequestFault?) -> DMAFault {
    DMAFault(
      requester: requester, pasid: pasid, iova: IOVA(miss.iova), access: miss.access,
      reason: miss.reason, cause: cause, kind: kind(of: cause))
  }

  /// Refuses an access whose end overflows. `length` is not zero.
  @inline(__always)
  func checkEnd(_ iova: UInt64, _ length: Int, _ access: Permissions) throws(DMAFault) {
    if iova.addingReportingOverflow(UInt64(length) &- 1).overflow {
      throw fail(.addressWidth, iova, access)
    }
  }

  /// Whether a write is an interrupt rather than memory.
  @inline(__always)
  func isInterrupt(_ iova: UInt64, _ length: Int) -> Bool {
    length == 4 && iova & ~0xF_FFFC == InterruptRemapper.window.lowerBound
  }

  /// Delivers a write to the interrupt window. Inside the transaction, so that after a switch
  /// to blocked has returned no interrupt comes. A request with a PASID is no interrupt: a slice
  /// of a device could write its neighbour's.
  func raise(_ iova: UInt64, data: UInt32) throws(DMAFault) {
    enter()
    defer { leave() }
    switch unsafe state.pointee.context {
    case .unknown: throw fail(.unknownRequester, iova, .write)
    case .blocked: throw fail(.blocked, iova, .write)
    case .cutOff: throw fail(Miss(.blocked, iova, .write), .blocked)
    case .process where pasid != nil, .intelNested where pasid != nil,
      .smmuNested where pasid != nil, .amdNested where pasid != nil,
      .riscvNested where pasid != nil:
      // With a PASID the window is translated as any address is (VT-d 3.14): it is memory.
      let bytes = data.littleEndian
      // SAFETY: the four bytes outlive the call.
      try unsafe withUnsafeBytes(of: bytes) { bytes throws(DMAFault) in
        try put(iova, from: UInt64(UInt(bitPattern: bytes.baseAddress)), count: 4)
      }
    default:
      guard pasid == nil else { throw fail(.interruptRefused, iova, .write) }
      if let refusal = interrupts.deliver(from: requester, address: iova, data: data) {
        throw fail(.interruptRefused, iova, .write, refusal: refusal)
      }
    }
  }

  // MARK: Translation by hand

  /// Where a bus address leads at this moment.
  public struct Run: Hashable, Sendable {
    /// An address of this process where `isLocal`, else a physical one.
    public var address: UInt64
    /// Bytes from there on that the same access may use, at least 1.
    public var length: UInt64
    /// False where the memory is reached by calls. Of a process's own page table (MODEL B3) the
    /// address is virtual then, and nothing is said of what is there.
    public var isLocal: Bool
  }

  /// Keeps what `translate` says true until `body` returns: unmaps of it wait.
  ///
  /// Short, and without calls that unmap or switch contexts: they would wait for themselves.
  @inline(__always)
  public func transaction<Result, Failure: Error>(
    _ body: (DMAPort) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    enter()
    defer { leave() }
    return try body(self)
  }

  /// Translates one address. The answer holds while the surrounding `transaction` lasts, and
  /// outside one only as a hint.
  ///
  /// Outside of a transaction an access that misses may be recovered (see `waits`); inside one it
  /// is aborted, for waiting would let go of what was translated before. So translate once
  /// before a transaction what may be missing in it.
  /// - Throws: The fault, which is counted.
  public func translate(
    _ iova: IOVA, for access: Permissions
  ) throws(DMAFault) -> Run {
    let need = UInt64(access.rawValue) & IOTLB.accessFlags
    if unsafe state.pointee.depth == 0 {
      enter()
      defer { leave() }
      return Self.run(try findOrRecover(iova.rawValue, need, access), iova)
    }
    do throws(DMAFault.Reason) {
      return Self.run(try find(iova.rawValue, need), iova)
    } catch {
      throw fail(error, iova.rawValue, access)
    }
  }

  @inline(__always)
  private static func run(_ hit: Hit, _ iova: IOVA) -> Run {
    Run(address: hit.address(iova.rawValue), length: hit.left, isLocal: hit.isLocal)
  }
}
