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
