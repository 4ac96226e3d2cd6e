// SPDX-License-Identifier: Apache-2.0
//
// The worker of page requests: mock devices ask for pages, while their tables, and with them
// their fault queues, change. However a group ends, its device is answered once.

import IOMMU
import PageTables
import SelfTestDriver
import SystemPackage

/// Mock devices on a space of their own, with tables that report to two queues.
final class PageRequestWorld: Sendable {
  let driver: MockIOMMU
  let space: ObjectID
  let queues: [FaultQueue]
  let devices: [MockDevice.Made]
  /// For each queue a table; and one without.
  let tables: [ObjectID]
  static let pasid = PASID(rawValue: 7)

  init(_ system: IOMMUSystem, _ context: Context) throws(IOMMUError) {
    driver = MockIOMMU(system: system)
    let (driver, space) = (driver, try context.allocateIOAS())
    self.space = space
    queues = [try context.makeFaultQueue(), try context.makeFaultQueue()]
    var devices: [MockDevice.Made] = []
    for _ in 0..<2 {
      devices.append(
        try MockDevice.make(.pasid, driver: driver, in: context, attachedTo: space))
    }
    self.devices = devices
    var tables: [ObjectID] = []
    for queue in [queues[0].id, queues[1].id, nil] {
      tables.append(
        try context.allocateHWPT(
          for: devices[0].device, from: space, attributes: .pasid, faultQueue: queue))
    }
    self.tables = tables
    // The table that the attach made goes with its last device.
    for device in devices {
      _ = try (context.foreignObject(device.object) as? MockDevice)?.replace(with: tables[2])
    }
  }

  /// Every group that a device made is in a queue, or was answered.
  func audit(_ state: StressState) {
    let counts = driver.pageRequestCounts
    let queued = queues.reduce(0) { $0 + $1.counts.waiting + $1.counts.delivered }
    if counts.outstanding != queued {
      state.fail(
        "H3: \(counts.outstanding) of \(counts.groups) groups of page requests have no answer, "
          + "and \(queued) are in the queues")
    }
  }

  /// Detaches and destroys all of it.
  func close(_ context: Context, _ state: StressState) {
    for queue in queues { context.close(queue) }
    if driver.pageRequestCounts.outstanding != 0 {
      state.fail("H3: page requests have no answer after their queue was closed")
    }
    for device in devices { try? context.destroy(device.object) }
    for table in tables { try? context.destroy(table) }
    if driver.deviceCount != 0 { state.fail("A1: mock devices are left") }
  }
}

/// Asks, reads, answers, moves devices.
final class Requester: StressWorker, @unchecked Sendable {
  var tally = Tally()
  private let world: PageRequestWorld
  private let context: Context
  private let state: StressState
  private var random: SplitMix
  private var group: UInt32 = 0
  private var cookies: [(queue: Int, cookie: UInt32)] = []

  init(world: StressWorld, state: StressState, seed: UInt64) {
    self.world = world.pageRequests
    context = world.context
    self.state = state
    random = SplitMix(seed: seed)
  }

  func step() {
    do throws(IOMMUError) {
      switch random.below(8) {
      case 0...2: try request()
      case 3...4: try read()
      case 5: answer()
      default: try move()
      }
    } catch {
      state.fail("H1: a page request's worker met \(error)")
    }
  }

  private var anyDevice: MockDevice.Made { world.devices[random.below(world.devices.count)] }

  private func request() throws(IOMMUError) {
    let device = try context.physicalDevice(anyDevice.device)
    let pasid = random.below(2) == 0 ? nil : PageRequestWorld.pasid
    group &+= 1
    if random.below(4) == 0 {
      world.driver.requestPage(
        PageRequest(
          pasid: pasid, group: group, access: .read, address: IOVA(0x1000), isLast: false),
        by: device)
    }
    world.driver.requestPage(
      PageRequest(pasid: pasid, group: group, access: .write, address: IOVA(0x2000)),
      by: device)
    tally.add(.pageRequest)
  }

  private func read() throws(IOMMUError) {
    let number = random.below(world.queues.count)
    var cookie: UInt32?
    do throws(IOMMUError) {
      _ = try world.queues[number].read(atMost: 4) { (delivery) throws(IOMMUError) in
        if delivery.cookie % 16 == 0 {
          throw IOMMUError(.badAddress, "a reader that has no room")
        }
        cookie = delivery.cookie
      }
    } catch  where error.errno == .badAddress {
    }
    if let cookie {
      cookies.append((number, cookie))
      tally.add(.pageRead)
    }
    if cookies.count > 64 { answer() }
  }

  private func answer() {
    guard let (queue, cookie) = cookies.popLast() else { return }
    do throws(IOMMUError) {
      try world.queues[queue].respond(to: cookie, with: .success)
      tally.add(.pageAnswer)
    } catch {
      // A detach has answered it already.
      if error.errno != .invalidArgument { state.fail("H1: an answer met \(error)") }
    }
  }

  private func move() throws(IOMMUError) {
    guard let device = try context.foreignObject(anyDevice.object) as? MockDevice else {
      state.fail("A1: a mock device is gone")
      return
    }
    let table = world.tables[random.below(world.tables.count)]
    switch random.below(4) {
    case 0: device.detach(PageRequestWorld.pasid)
    case 1...2:
      do throws(IOMMUError) {
        _ = try device.attach(PageRequestWorld.pasid, to: table)
      } catch {
        // Attached already: by this worker or another.
        guard error.errno == .resourceBusy || error.errno == .invalidArgument else {
          throw error
        }
      }
    default: _ = try device.replace(with: table)
    }
    tally.add(.pageMove)
  }
}
