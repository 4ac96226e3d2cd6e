// SPDX-License-Identifier: Apache-2.0
//
// What a program reads in /proc/PID/status about memory that it has pinned.

import Testing

@testable import Interposer

@Suite struct ProcessStatusTests {
  @Test("B6: pinned bytes are added to the line that counts them, in the kernel's form")
  func add() {
    var status = ProcessStatus(
      "Name:\tx\nVmLck:\t       4 kB\nVmPin:\t       0 kB\nThreads:\t1\n")
    status.add(8192, to: "VmPin")
    status.add(4096, to: "VmLck")
    #expect(
      status.text
        == "Name:\tx\nVmLck:\t       8 kB\nVmPin:\t       8 kB\nThreads:\t1\n")
    status.add(1 << 40, to: "VmPin")
    #expect(status.text.contains("VmPin:\t1073741832 kB\n"))
  }

  @Test("B6: a process without memory has no such lines, and gets none")
  func none() {
    var status = ProcessStatus("Name:\tkthreadd\n")
    status.add(4096, to: "VmPin")
    #expect(status.text == "Name:\tkthreadd\n")
  }

  @Test(
    "B6: only /proc/PID/status is looked at",
    arguments: [
      ("/proc/self/status", 7), ("/proc/thread-self/status", 8), ("/proc/12/status", 12),
      ("/proc//12//status", 12), ("/proc/self/stat", nil), ("/proc/self/task/8/status", nil),
      ("/proc/x/status", nil), ("/proc/+12/status", nil),
      ("/proc/012/status", nil), ("/proc/12/status/", nil), ("/tmp/status", nil),
      ("/proc/status", nil),
    ] as [(String, Int32?)])
  func path(_ path: String, _ process: Int32?) {
    #expect(ProcessStatus.process(Array(path.utf8), thread: 8, group: 7) == process)
  }
}
