// SPDX-License-Identifier: Apache-2.0
//
// What the event log says of accesses that fail: whose they are, in the words of their user
// (MODEL E4, H2).

import IOMMU
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(10))) struct FaultNameTests {
  private struct Fault: Equatable {
    let source: String
    let iova: UInt64
    let reason: String
  }

  private func faults(_ log: EventLog) -> [Fault] {
    log.drain().entries.compactMap {
      guard case .fault(let source, let iova, _, let reason) = $0.event else { return nil }
      return Fault(source: source, iova: iova.rawValue, reason: reason)
    }
  }

  @Test(
    "H2: a fault of a slice has the slice's name, whoever carries its accesses out",
    arguments: ["pasid", "fixed", "software"])
  func slices(type: String) throws {
    let rig = try MediatedRig()
    rig.system.events.startRecording()
    let (first, second) = (try rig.user(type, 0), try rig.user(type, 1))
    for (index, user) in [first, second].enumerated() {
      _ = faults(rig.system.events)
      // The last page that is mapped, and one more; in the middle of what is copied at a time.
      user.copy(from: 0xFF_F000, to: 0x20_0000, size: 0x2000)
      #expect(user.wait() & 7 == 3)
      let name = "\(MediatedRig.uuid(index))"
      #expect(
        faults(rig.system.events) == [
          Fault(
            source: type == "software" ? name : "\(name) (0000:e0:06.0)", iova: 0x100_0000,
            reason: type == "software"
              ? "nothing is mapped there" : "nothing is mapped there (VT-d fault 79h, SSS.2)")
        ])
      user.caller.closeAll()
    }
  }

  @Test("H2: faults of a software slice are told at a bounded rate")
  func rate() throws {
    let rig = try MediatedRig()
    rig.system.events.startRecording()
    let user = try rig.user("software", 0)
    for _ in 0..<40 {
      user.copy(from: 0x4000_0000, to: 0x20_0000)
      #expect(user.wait() & 7 == 3)
      user.write(0xA8, UInt32.max)
    }
    let told = faults(rig.system.events)
    #expect(!told.isEmpty && told.count < 40, "\(told.count)")
    #expect(rig.count("faults", of: 0) == 40)
    user.caller.closeAll()
  }

  @Test("E4: a fault under a PASID names the virtual one, and the trace of its switches too")
  func virtualPASIDs() throws {
    let rig = try MediatedRig()
    rig.system.events.startRecording()
    let users = try (0..<2).map { try rig.user("pasid", $0) }
    for (index, user) in users.enumerated() {
      let pasids = try PASIDSpace(user)
      _ = rig.system.events.drain()
      #expect(pasids.attach(9) == 0)
      user.copy(from: 0x4000_0000, to: 0x20_0000, pasid: 9)
      #expect(user.wait() & 7 == 3)
      #expect(pasids.detach(9) == 0)
      let name = "\(MediatedRig.uuid(index))"
      let entries = rig.system.events.drain().entries
      let sources = entries.compactMap { entry -> String? in
        if case .fault(let source, _, _, _) = entry.event { source } else { nil }
      }
      #expect(sources == ["\(name) PASID 9 (0000:e0:06.0)"])
      let switches = entries.compactMap { entry -> String? in
        if case .context(_, let text) = entry.event { text } else { nil }
      }
      #expect(switches == ["\(name) PASID 9: paging", "\(name) PASID 9: blocked"])
      user.caller.closeAll()
    }
  }
}
