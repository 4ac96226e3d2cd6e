// SPDX-License-Identifier: Apache-2.0
//
// A device that asks for pages, a space whose table has a fault queue, and its user, for tests.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

/// One access of a device, on a thread of its own.
final class BackgroundAccess: Sendable {
  private let outcome = Monitor<DMAFault.Reason??>(nil)

  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  init(_ access: @escaping @Sendable () throws(DMAFault) -> Void) {
    let outcome = outcome
    let body = Body {
      let reason = reason(access)
      outcome.change { $0 = .some(reason) }
    }
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { argument in
        Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
        return nil
      }, Unmanaged.passRetained(body).toOpaque())
    pthread_detach(thread)
  }

  var isDone: Bool { outcome.withLock { $0 != nil } }

  /// Waits for its end.
  /// - Returns: Why it was aborted; nil where it succeeded.
  func end() -> DMAFault.Reason? { outcome.wait { $0 } }
}

/// What a user has read of a fault queue.
struct ReadGroup: Sendable {
  var cookie: UInt32
  var deviceCookie: UInt64
  var requests: [PageRequest]
}

final class PageRequestRig: Sendable {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let context: Context
  let binding: Binding
  let queue: FaultQueue
  let ioas: ObjectID
  /// Attached, with the queue.
  let table: ObjectID
  let memory: LocalMemory
  static let pasid = PASID(rawValue: 9)

  init(
    features: SoftwareIOMMU.DeviceFeatures = .init(pageRequests: true), queueLength: Int = 512,
    pages: Int = 64, takesRequests: Bool = true
  ) throws {
    var configuration = SoftwareIOMMU.Configuration(pasidBits: 8)
    configuration.pageRequests = takesRequests
    configuration.pageRequestQueueLength = queueLength
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: configuration, memory: system.memory, events: system.events)
    iommu.setFeatures(features, of: Bench.device)
    context = Context(system: system)
    let device = try system.addDevice(
      name: "device", requester: Bench.device, driver: iommu, group: system.addGroup())
    binding = try context.register(device, cookie: 0xC00C1E)
    queue = try context.makeFaultQueue()
    ioas = try context.allocateIOAS()
    table = try context.allocateHWPT(
      for: binding.id, from: ioas, attributes: .pasid, faultQueue: queue.id)
    _ = try binding.group.attach(to: table)
    memory = try LocalMemory(byteCount: UInt64(pages) * 4096)
  }

  /// The device's port, which waits.
  func port(_ waits: DeviceWait = DeviceWait(), pasid: PASID? = nil) -> DMAPort {
    let port = iommu.port(for: Bench.device, pasid: pasid)
    port.waits = waits
    return port
  }

  func map(
    page: Int, pages: Int = 1, at iova: UInt64, permissions: Permissions = .readWrite
  ) throws {
    try context.map(
      memory, start: UInt64(page) * 4096, length: UInt64(pages) * 4096, into: ioas,
      permissions: permissions, at: .fixed(IOVA(iova)))
  }

  /// Waits for a group, and reads it.
  func read(_ queue: FaultQueue? = nil) throws -> ReadGroup {
    while true {
      if let group = try readOrNothing(queue) { return group }
      usleep(100)
    }
  }

  func readOrNothing(_ queue: FaultQueue? = nil) throws -> ReadGroup? {
    var group: ReadGroup?
    _ = try (queue ?? self.queue).read(atMost: 64) { delivery in
      group = ReadGroup(
        cookie: delivery.cookie, deviceCookie: delivery.deviceCookie,
        requests: delivery.requests)
    }
    return group
  }

  func respond(_ group: ReadGroup, _ code: PageResponse.Code) throws {
    try queue.respond(to: group.cookie, with: code)
  }
}
