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
  public func makeFaultQueue() throws(IOMMUError) -> FaultQueue {
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
