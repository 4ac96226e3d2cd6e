// SPDX-License-Identifier: Apache-2.0
//
// Calls that threads make in place of their own.

#if arch(x86_64)
  import Testing

  @testable import Interposer

  @Suite("Errands", .serialized)
  struct ErrandTests {
    /// The thread sanitizer holds signals back while a thread is in a call, one that would be interrupted
    /// too; and it does not follow tasks that share memory and are no threads.
    #if SANITIZER_thread
      private static let unsanitized: [String] = []
    #else
      private static let unsanitized = [
        "executes-among-threads", "executes-elsewhere", "shares-memory",
      ]
    #endif

    @Test(
      "A2: a thread makes another call in place of its own, and is as it was otherwise",
      arguments: [
        "results", "own-results", "long-paths", "leaves-no-trace", "signals", "waits",
        "others-go-on", "executes", "executes-on-a-stack", "killed", "killed-waiting", "stops",
        "debugged", "leaves", "threads",
      ] + Self.unsanitized)
    func replaces(_ test: String) throws {
      let end = try ErrandRig(test).end()
      #expect(end.exited == 1 && end.code == 0, "\(end)")
    }
  }
#endif
