// SPDX-License-Identifier: Apache-2.0
//
// Threads without Foundation, and random numbers that a seed repeats.

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

private final class Body: Sendable {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

/// A thread to be joined once.
struct RunningThread {
  fileprivate let thread: pthread_t

  func join() { pthread_join(thread, nil) }
}

func startThread(_ body: @escaping @Sendable () -> Void) -> RunningThread {
  var thread = pthread_t()
  let argument = Unmanaged.passRetained(Body(body)).toOpaque()
  let result = pthread_create(
    &thread, nil,
    { argument in
      if let argument { Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
      return nil
    }, argument)
  precondition(result == 0, "no thread can be started: errno \(result)")
  return RunningThread(thread: thread)
}

func yieldThread() { sched_yield() }

func sleepThread(milliseconds: UInt32) { usleep(milliseconds * 1000) }

struct SplitMix: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}
