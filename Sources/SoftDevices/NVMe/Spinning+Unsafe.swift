// SPDX-License-Identifier: Apache-2.0
//
// What a thread does between two looks at memory that another one writes.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Lets whoever else wants the processor have it for a while.
func yieldProcessor() { sched_yield() }

/// The processor time that the calling thread has had.
func threadTime() -> Duration {
  var time = timespec()
  // SAFETY: the structure outlives the call.
  guard unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0 else { return .zero }
  return Duration(
    secondsComponent: Int64(time.tv_sec),
    attosecondsComponent: Int64(time.tv_nsec) * 1_000_000_000)
}
