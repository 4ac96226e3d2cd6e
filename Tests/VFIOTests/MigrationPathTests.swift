// SPDX-License-Identifier: Apache-2.0
//
// J1: the ways from one migration state to another, for each set of features, as
// include/uapi/linux/vfio.h of Linux 6.12 lists them.

import Testing

@testable import VFIO

@Suite struct MigrationPathTests {
  private func path(
    _ from: MigrationState, _ to: MigrationState,
    _ flags: MigrationFlags = [.stopCopy, .peerless, .preCopy]
  ) -> [MigrationState]? { from.path(to: to, with: flags) }

  @Test("J1: with every feature the ways are those that the header names, step by step")
  func all() {
    let p = MigrationState.runningPeerless
    let q = MigrationState.preCopyPeerless
    #expect(path(.preCopy, .stopCopy) == [q, .stopCopy])
    #expect(path(.preCopy, p) == [.running, p])
    #expect(path(.preCopy, .stop) == [.running, p, .stop])
    #expect(path(.preCopy, .resuming) == [.running, p, .stop, .resuming])
    #expect(path(q, .running) == [p, .running])
    #expect(path(q, .stop) == [p, .stop])
    #expect(path(q, .resuming) == [p, .stop, .resuming])
    #expect(path(.resuming, p) == [.stop, p])
    #expect(path(.resuming, q) == [.stop, p, q])
    #expect(path(.resuming, .running) == [.stop, p, .running])
    #expect(path(.resuming, .preCopy) == [.stop, p, .running, .preCopy])
    #expect(path(.resuming, .stopCopy) == [.stop, .stopCopy])
    #expect(path(.running, q) == [p, q])
    #expect(path(.running, .stop) == [p, .stop])
    #expect(path(.running, .resuming) == [p, .stop, .resuming])
    #expect(path(.running, .stopCopy) == [p, .stop, .stopCopy])
    #expect(path(p, .preCopy) == [.running, .preCopy])
    #expect(path(p, .resuming) == [.stop, .resuming])
    #expect(path(p, .stopCopy) == [.stop, .stopCopy])
    #expect(path(.stop, q) == [p, q])
    #expect(path(.stop, .running) == [p, .running])
    #expect(path(.stop, .preCopy) == [p, .running, .preCopy])
    #expect(path(.stopCopy, .resuming) == [.stop, .resuming])
    #expect(path(.stopCopy, p) == [.stop, p])
    #expect(path(.stopCopy, .running) == [.stop, p, .running])
    #expect(path(q, .preCopy) == [.preCopy])
    #expect(path(q, .stopCopy) == [.stopCopy])
  }

  @Test("J1: what lacks a state steps over it: without peerless states, without pre-copy")
  func fewer() {
    #expect(path(.running, .stopCopy, .stopCopy) == [.stop, .stopCopy])
    #expect(path(.stop, .running, .stopCopy) == [.running])
    #expect(path(.preCopy, .stopCopy, [.stopCopy, .preCopy]) == [.stopCopy])
    #expect(path(.preCopy, .stop, [.stopCopy, .preCopy]) == [.running, .stop])
    #expect(path(.running, .preCopy, .stopCopy) == nil)
    #expect(path(.running, .runningPeerless, [.stopCopy, .preCopy]) == nil)
    #expect(path(.running, .preCopyPeerless, [.stopCopy, .preCopy]) == nil)
  }

  @Test("J1: no way leads into the error state, out of it, or from the end of a copy back")
  func blocked() {
    for state in MigrationState.allCases {
      #expect(path(state, .error) == nil)
      #expect(path(.error, state) == nil)
      if state != .error { #expect(path(state, state) == []) }
    }
    #expect(path(.stopCopy, .preCopy) == nil)
    #expect(path(.stopCopy, .preCopyPeerless) == nil)
  }

  @Test("J1: no way but from one saving state to another passes a saving state")
  func interiors() {
    for from in MigrationState.allCases {
      for to in MigrationState.allCases {
        guard let steps = path(from, to), !(from.isSaving && to.isSaving) else { continue }
        let passed = steps.dropLast().filter { $0.isSaving }
        #expect(passed == [], "\(from) to \(to)")
      }
    }
  }
}
