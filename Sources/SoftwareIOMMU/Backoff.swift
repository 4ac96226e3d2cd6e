// SPDX-License-Identifier: Apache-2.0
//
// How a thread waits for another one for a moment.

import Glibc

/// Waits a little longer each time: spins first, then gives the processor away, then sleeps.
struct Backoff {
  private var rounds = 0

  mutating func pause() {
    rounds &+= 1
    if rounds < 64 { return }
    if rounds < 256 {
      sched_yield()
    } else {
      usleep(50)
    }
  }

  /// Waits for a moment in which others may do much.
  static func rest() { usleep(200) }
}
