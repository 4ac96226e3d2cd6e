// SPDX-License-Identifier: Apache-2.0
//
// Fault queues as objects of a context: Linux's FAULT_QUEUE_ALLOC and what the queue's file
// descriptor keeps (MODEL H1, H3).

import SystemPackage

extension Context {
  /// Makes a fault queue, to be named when page tables are allocated.
  ///
  /// Linux: `IOMMU_FAULT_QUEUE_ALLOC`. MODEL H1. Until `close(_:)` it keeps the context alive
  /// and cannot be destroyed, as its file descriptor does on Linux.
  /// - Throws: `EBADF` where the context was closed, `ENOMEM` where it is full.
  public func makeFaultQueue() throws(IOMMUError) -> FaultQueue { try insertFaultQueue() }

  /// Makes the page requests of devices that are attached to a space go to a queue (MODEL B7, H1),
  /// in place of one that was closed.
  ///
  /// The proposal's PAGE_FAULT_FD. Close it with `close(_:of:)`; then it goes with the last table
  /// that reports to it.
  /// - Throws: `ENOENT`; `EBUSY` where a device is attached to the space, or its queue is open;
  ///   as `makeFaultQueue()`.
  public func makeFaultQueue(for space: ObjectID) throws(IOMMUError) -> FaultQueue {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      _ = try addressSpace(space)
      if let device = attachedDevice(of: space) {
        throw IOMMUError(
          .resourceBusy,
          "\(device.name) is attached to ioasid \(space); where page requests go is said before"
        )
      }
      guard configuration.faultQueues[space] == nil else {
        throw IOMMUError(
          .resourceBusy, "the page requests of ioasid \(space) go to a descriptor already")
      }
      let queue = try insertFaultQueue()
      configuration.faultQueues[space] = queue
      return queue
    }
  }

  /// Where the page requests of devices go that are attached to a space.
  /// - Throws: `ENOENT` where there is no such space, or they go nowhere.
  public func faultQueue(of space: ObjectID) throws(IOMMUError) -> FaultQueue {
    _ = try addressSpace(space)
    guard let queue = configuration.withLock({ $0.faultQueues[space] }) else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "no descriptor was made for the page requests of ioasid \(space) (PAGE_FAULT_FD)")
    }
    return queue
  }

  /// Ends the user's side of a queue that is a space's, as `close(_:)`.
  package func close(_ queue: FaultQueue, of space: ObjectID) {
    queue.close()
    configuration.withLock { configuration in
      dropUser(of: queue.id)
      destroyIfUnused(queue, of: space, &configuration)
    }
    dropHolder()
  }

  /// Destroys a space's queue that was closed and that no table reports to.
  func destroyIfUnused(
    _ queue: FaultQueue, of space: ObjectID, _ configuration: inout Configuration
  ) {
    let isGone = objects.withLock { objects in
      guard objects.table.users(of: queue.id) == 0 else { return false }
      objects.table.remove(queue.id)
      return true
    }
    guard isGone, configuration.faultQueues[space] === queue else { return }
    configuration.faultQueues[space] = nil
  }

  private func attachedDevice(of space: ObjectID) -> DeviceObject? {
    boundDevices.first { device in
      device.group.attachedPASIDs(of: device).contains { pasid in
        device.group.table(of: device, pasid: pasid)?.space.id == space
      }
    }
  }

  private func insertFaultQueue() throws(IOMMUError) -> FaultQueue {
    try addHolder()
    do throws(IOMMUError) {
      return try objects.withLock { (objects) throws(IOMMUError) in
        let queue = try objects.table.insert { id in
          let queue = FaultQueue(id: id)
          return (.faultQueue(queue), queue)
        }
        objects.table.addUser(of: queue.id)
        return queue
      }
    } catch {
      dropHolder()
      throw error
    }
  }

  /// Ends the user's side of a queue: what was not answered is answered `.invalid`, and so is
  /// what still comes. The queue stays until it is destroyed. Call once.
  public func close(_ queue: FaultQueue) {
    queue.close()
    dropUser(of: queue.id)
    dropHolder()
  }

  func faultQueue(_ id: ObjectID) throws(IOMMUError) -> FaultQueue {
    guard case .faultQueue(let queue)? = objects.withLock({ $0.table[id] }) else {
      throw noObject(id, wanted: "a fault queue")
    }
    return queue
  }
}
