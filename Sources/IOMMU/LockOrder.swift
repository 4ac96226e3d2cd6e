// SPDX-License-Identifier: Apache-2.0
//
// The lock order of all layers, written once (MODEL A4), and the lock that checks it in debug
// builds. A thread takes locks in ascending rank only; nothing calls upward, so there is no
// other way in.

import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Locks in the order in which a thread may take them.
@usableFromInline
package enum LockRank: Int, Sendable {
  // Above the engine: frameworks, and device models on their way down to the driver.

  /// `PCIDrivers.state`: held while a driver is bound or unbound and /sys follows.
  case hostDrivers
  /// `VFIOGroup.state`: which of the two ways a group is used; held over what its file does.
  case vfioGroup
  /// `PCIBus.state`: held over bind, open and close of the devices on a bus, and over its reset.
  case pciBus
  /// `VFIODevice.state`: held over bind, attach, detach, open and close.
  case vfioDevice
  /// `VFIOContainer.state`: its groups, and its mappings while they are made and taken away.
  case vfioContainer
  /// `MockDevice.binding`: held over attach and detach.
  case mockDevice
  /// `PCIFunction.progress`: a migration, one step at a time, and resets, which end it.
  case migration
  /// `MigrationData.state`: held while a piece of state is read from the device or put into it.
  case migrationData
  /// `PCIFunction.control`: resets and bus mastering.
  case function
  /// `InterruptVectors.state`. Held while an interrupt is written to the bus.
  case interruptVectors
  /// `PCIConfigSpace.state`.
  case configurationSpace
  /// `SoftwareIOMMUBus.port`: one thread at a time uses a port.
  case busPort

  // The engine.

  /// `RevocableMemory.state`: held while a buffer that is taken back leaves the page tables.
  case revocation
  /// `Context.configuration`: bind, attach, replace, detach and page-table allocation, one at
  /// a time.
  case configuration
  /// `DeviceGroup.state`: who owns a group, and what is attached to it.
  case group
  /// `SharedRoutes.users`: PASIDs that slices share. Held while the driver switches one.
  case sharedRoutes
  /// `Accessor.state`: which address space a software device is on.
  case accessor
  /// `VirtualMachine.state`: memory slots. Held while the spaces that follow take a change over.
  case virtualMachine
  /// `AddressSpace.state`: areas, reserved ranges and the page tables that mirror them. Held
  /// while memory is pinned and tables are filled, because a map is all or nothing. Of a space
  /// that nests on no other; in a tree of nested spaces each change takes this of the root first.
  case addressSpace
  /// `AddressSpace.state` of nested spaces, by their depth: a parent's before its child's. Never
  /// those of two spaces of one depth.
  case nestedSpace1, nestedSpace2, nestedSpace3, nestedSpace4, nestedSpace5, nestedSpace6
  case nestedSpace7
  /// `Pages.pins`: where one piece of memory is pinned.
  case pages
  /// `Context.objects`: ids. Nothing is called under it.
  case objects
  /// `FaultQueue.state`: page requests. A driver is told the answer under it, and holds none of
  /// its own locks when it reports a request.
  case faultQueue

  // The driver.

  /// `AMDCommandBuffer.state`, `RISCVCommandQueue.state`: held while commands are carried out.
  case virtualQueue
  /// `SoftwareIOMMU.entries`: which context each requester is in; held through a switch.
  case requesters
  /// `GuestDevices.devices`: what a guest calls its devices.
  case virtualStreams
  /// `MockVirtualIOMMU.state`.
  case mockVirtualIOMMU
  /// `MockIOMMU.devices`.
  case mockDevices
  /// A page table: `DomainTable.state`, `MockDomain.state`, `MockNestedDomain.cache`.
  case domain
  /// `PortChannel.mailbox`: what a port has to forget.
  case mailbox
  /// `MockIOMMU.pageRequests`, `PageRequestQueue.state`: a fault queue answers under its own lock.
  case pageRequests
  /// `InterruptRemapper.state`.
  case interrupts
  /// `FaultLog.state`.
  case faultLog
  /// `EventQueue.state`.
  case hardwareEvents

  // Below all of them.

  /// `VirtualEvents.queues`: where a driver reports.
  case virtualEvents
  /// `VirtualEventQueue.state`.
  case virtualEventQueue
  /// `PhysicalMemory.slots`: physical space.
  case physicalMemory
  /// `MmapAreas.state`.
  case mmapAreas
  /// `LocalMmapBacking.state`: what a carrier keeps areas in.
  case sharedPages
  /// `NoSnoopWatch.state`.
  case noSnoop
  /// `LocalDeviceMemory.state`, and a carrier's: one access to a device's memory, or its taking.
  case deviceMemory
  /// `Readiness.state`: a carrier's signal is set under it.
  case readiness
  /// `EventLog.state`.
  case events

  // Without a rank, as nothing is called under them: `IOMMUSystem.state`, `PASIDSpaces.state`,
  // `VirtualPASIDs.assigned`, `DMASources.state`, `VirtualMachine.translation`, `FailureCountdown.state`, the bytes of
  // a `UserMemory` in this process, what a queue's file holds until it is closed, `MediatedBus.state`,
  // `MediatedCopyEngine.state`, `AccessorBus.state`. `MediatedDevices.changing` is above all of
  // them: nobody holds anything who makes or removes a device. `AllowedPASIDs.list` is held over
  // one access of a device model's, above `busPort`. A device model's own locks come after
  // `function`.
}

extension LockRank {
  /// The rank of an address space.
  /// - Parameter depth: 0 where it nests on no other; at most `ParentLink.maximumDepth`.
  static func addressSpace(depth: Int) -> LockRank {
    let ranks: [LockRank] = [
      .addressSpace, .nestedSpace1, .nestedSpace2, .nestedSpace3, .nestedSpace4, .nestedSpace5,
      .nestedSpace6, .nestedSpace7,
    ]
    return ranks[depth]
  }
}

/// A mutex that knows its place in the order.
@usableFromInline
package struct RankedMutex<State: ~Copyable>: ~Copyable, Sendable {
  @usableFromInline let mutex: Guarded<State>
  @usableFromInline let rank: LockRank

  @inlinable
  package init(_ rank: LockRank, _ state: consuming sending State) {
    mutex = Guarded(state)
    self.rank = rank
  }

  @inlinable @inline(__always)
  package borrowing func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout sending State) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    #if DEBUG
      HeldRanks.push(rank)
      defer { HeldRanks.pop(rank) }
    #endif
    return try mutex.withLock(body)
  }
}

#if DEBUG
  /// The ranks that the current thread holds, as a bit set in thread-local storage.
  @usableFromInline
  enum HeldRanks {
    private static let key: pthread_key_t = {
      var key = pthread_key_t()
      unsafe pthread_key_create(&key, nil)
      return key
    }()

    // SAFETY: the value is an integer in pointer's clothing; it is never dereferenced.
    private static var bits: UInt {
      get { unsafe UInt(bitPattern: pthread_getspecific(key)) }
      set { unsafe pthread_setspecific(key, UnsafeRawPointer(bitPattern: newValue)) }
    }

    @usableFromInline
    static func push(_ rank: LockRank) {
      precondition(
        bits >> UInt(rank.rawValue) == 0,
        "lock order: \(rank) is taken under a lock of the same or a later rank")
      bits |= 1 << UInt(rank.rawValue)
    }

    @usableFromInline
    static func pop(_ rank: LockRank) { bits &= ~(1 << UInt(rank.rawValue)) }
  }
#endif
