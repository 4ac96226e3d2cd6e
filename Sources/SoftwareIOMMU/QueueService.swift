// SPDX-License-Identifier: Apache-2.0
//
// How an IOMMU itself reads and writes a guest's memory for its queues: through the parent, as a
// device does, so that what the parent unmaps meanwhile is not touched (MODEL G2).

import HardwareTables
import IOMMU
import PageTables

/// The port of one virtual IOMMU's queues. Whoever uses it holds the queue's lock.
final class QueueService: Sendable {
  private let port: DMAPort
  private let requesters: Requesters
  private let source = SoftwareIOMMU.Source(
    requester: RequesterID(rawValue: .max), pasid: nil)

  /// Its faults are nobody's to hear of: the queue says what became of a command.
  init(on parent: any SoftwareDomain, memory: PhysicalMemory) {
    let silence = EventLog()
    let requesters = Requesters(
      pageRequests: PageRequestQueue(iommu: parent.kind.iommu, capacity: 1, events: silence))
    let source = source
    self.requesters = requesters
    port = requesters.withLock { table in
      table.set(source, to: .paging(parent))
      return table.port(source) {
        DMAPort(
          source: source, memory: memory, interrupts: InterruptRemapper(events: silence),
          faults: FaultLog(
            events: silence, queue: EventQueue(parent.kind.configuration, count: 1)),
          requesters: requesters)
      }
    }
  }

  deinit {
    stop()
    // The port keeps the table that keeps it.
    requesters.close()
  }

  /// The guest's memory is reached no more when this returns.
  func stop() {
    let source = source
    requesters.withLock { $0.set(source, to: .blocked) }
  }

  /// A command of 16 bytes; nil where it cannot be read.
  func load(_ address: UInt64) -> Words2? {
    do throws(DMAFault) {
      return Words2(try port.load(IOVA(address)), try port.load(IOVA(address &+ 8)))
    } catch {
      return nil
    }
  }

  /// - Returns: Whether it was written.
  func store(_ value: some FixedWidthInteger, at address: UInt64) -> Bool {
    do throws(DMAFault) {
      try port.store(value, at: IOVA(address))
      return true
    } catch {
      return false
    }
  }
}
