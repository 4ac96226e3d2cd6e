// SPDX-License-Identifier: Apache-2.0
//
// Calls that threads make in place of their own.

#if arch(x86_64)
  import Testing

  @testable import Interposer

  @Suite("Errands", .serialized)
  struct ErrandTests {
    @Test(
      "A2: a thread makes another call in place of its own, and is as it was otherwise",
      arguments: [
        "results", "own-results", "long-paths", "leaves-no-trace", "signals", "waits",
        "others-go-on", "executes", "executes-on-a-stack", "executes-among-threads",
        "executes-elsewhere", "killed", "killed-waiting", "stops", "debugged", "leaves",
        "shares-memory", "threads",
      ])
    func replaces(_ test: String) throws {
      let end = try ErrandRig(test).end()
      #expect(end.exited == 1 && end.code == 0, "\(end)")
    }
  }
#endif
