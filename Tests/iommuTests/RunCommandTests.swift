// SPDX-License-Identifier: Apache-2.0
//
// `iommu run` and `iommu demo`: programs on the machine, their status, and our own failures.

import Foundation
import Machine
import Testing

@Suite("iommu run") struct RunCommandTests {
  @Test(
    "the status is the program's",
    arguments: [
      ("exit 0", 0), ("exit 7", 7), ("kill -USR1 $$", 128 + 10), ("kill -KILL $$", 128 + 9),
    ])
  func status(script: String, expected: Int32) throws {
    #expect(try iommu("run", "--", "sh", "-c", script).status == expected)
  }

  @Test("a program that is not there is 127, one that cannot be executed 126") func notThere()
    throws
  {
    #expect(try iommu("run", "--", "/nonexistent").status == 127)
    #expect(try iommu("run", "--", "no-such-program-anywhere").status == 127)
    #expect(try iommu("run", "--", "/etc/passwd").status == 126)
  }

  @Test(
    "our own mistakes are 125",
    arguments: [["run"], ["run", "--"], ["run", "--bogus", "--", "true"], ["run", "--", ""]])
  func mistakes(arguments: [String]) throws {
    let run = try iommu(arguments)
    #expect(run.status == 125)
    #expect(!run.errors.isEmpty)
  }

  @Test("a wrong machine file is 125, and the program is not started") func wrongMachine()
    throws
  {
    let run = try iommu("run", "--machine", "-", "--", "echo", "started", input: "x: 1\n")
    #expect(run.status == 125)
    #expect(run.output.isEmpty)
    #expect(run.errors.contains("standard input:1:1: error: "))
  }

  @Test("what follows -- reaches the program untouched") func arguments() throws {
    let run = try iommu(
      "run", "--", "printf", "[%s]", "--trace", "-", "--", "a b", "", "--help")
    #expect(run.output == "[--trace][-][--][a b][][--help]")
  }

  @Test(
    "H2: --explain tells of DMA faults, each kind once per device and a bounded number more")
  func faults() throws {
    let run = try iommu("run", "--explain", "--", built("trespass").path)
    #expect(run.status == 0)
    let faults = run.errors.split(separator: "\n").filter { $0.hasPrefix("iommu: DMA fault: ") }
    for reason in ["the device is blocked", "nothing is mapped there"] {
      #expect(
        faults.contains { $0.contains("0000:e0:04.0") && $0.contains(reason) },
        "\(reason): \(faults)")
    }
    #expect(try iommu("run", "--", built("trespass").path).errors.isEmpty)
  }

  @Test(
    "A2: a child maps its memory through an inherited fd, and the engine copies it to its parent",
    arguments: ["private", "shared"])
  func twoProcesses(kind: String) throws {
    let run = try iommu("run", "--explain", "--", built("two-processes").path, kind)
    #expect(run.status == 0, "\(run.errors)")
  }

  @Test(
    "D2, C3: behind a bridge that takes its requester id away an engine copies and interrupts",
    arguments: ["pcie-to-pci", "pci"])
  func alias(kind: String) throws {
    let machine = """
      iommus: [{name: dmar0, kind: intel}]
      bridges: [{address: 00:1c.0, bus: 1}, {address: 01:00.0, bus: 2, kind: \(kind)}]
      devices:
        - {model: copy-engine, address: 02:03.0}
        - {model: copy-engine, address: 02:04.0, host-driver: pci-stub}
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("dma-copy").path, input: machine)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    let printed = try iommu("machine", "--machine", "-", input: machine)
    let alias = kind == "pci" ? "0000:01:00.0" : "0000:02:00.0"
    #expect(printed.output.contains("DMA as \(alias)"), "\(printed.output)")
    let refused = try iommu(
      "run", "--explain", "--machine", "-", "--", built("dma-copy").path,
      input: machine.replacing("pci-stub", with: "ioatdma"))
    #expect(refused.status != 0)
    #expect(
      refused.errors.contains("0000:02:04.0 is bound to the host driver ioatdma"),
      "\(refused.errors)")
  }

  @Test(
    "A1, A2: both descriptors or nothing: between strangers, by fork, dup, exec and a socket")
  func bothDescriptors() throws {
    let run = try iommu("run", "--explain", "--", built("both-descriptors").path)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
  }

  @Test("C4: a memory BAR is mapped after the bind, faults while it is off, outlives its fd")
  func deviceMemory() throws {
    let machine = """
      iommus: [{name: dmar0, kind: intel}]
      devices: [{model: copy-engine, address: e0:04.0, group: 0, local-memory: 1MiB}]
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("device-memory").path, input: machine)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("map it through a type1 container"))
  }

  @Test("J1: type1 maps the address of a memory BAR, and another device's DMA goes there")
  func peerToPeer() throws {
    let machine = """
      iommus: [{name: dmar0, kind: intel}]
      devices:
        - {model: copy-engine, address: e0:04.0, group: 0, local-memory: 64KiB}
        - {model: copy-engine, address: e0:06.0, group: 1}
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("peer-to-peer").path, "0000:e0:04.0",
      "0000:e0:06.0", input: machine)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
  }

  @Test("J1: virtual functions come by a write to sriov_numvfs, and are opened with a token")
  func virtualFunctions() throws {
    let machine = """
      iommus: [{name: dmar0, kind: intel}]
      devices:
        - model: copy-engine
          address: e1:00.0
          group: 0
          root-port: e0:05.0
          virtual-functions: 2
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("virtual-functions").path,
      "0000:e1:00.0", input: machine)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("asks for the VF token"))
  }

  @Test("B3, B4: a program's ioasids are its page table and a VM's memory, with no map call")
  func ioasidSources() throws {
    let machine = """
      virtual-machines: true
      iommus: [{name: dmar0, kind: intel, pasid-bits: 8}, {name: dmar1, kind: intel}]
      devices:
        - {model: copy-engine, address: e0:04.0, group: 0, iommu: dmar0}
        - {model: copy-engine, address: e0:06.0, group: 1, iommu: dmar1}
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("ioasid-sources").path, "0000:e0:04.0",
      "0000:e0:06.0", input: machine)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("is no VM that KVM_CREATE_VM made"))
  }

  @Test("B6: a program's RLIMIT_MEMLOCK bounds what it has pinned; files change hands")
  func lockedMemory() throws {
    let run = try iommu("run", "--explain", "--", built("locked-memory").path)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("RLIMIT_MEMLOCK"))
  }

  @Test("J1: what a machine has locked is free when its run has returned")
  func freeFiles() throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: file) }
    let machine = """
      iommus: [{name: dmar0, kind: intel}]
      devices:
        - model: nvme
          address: e0:04.0
          group: 0
          iommu: dmar0
          namespaces: [{file: \(file.path), size: 1MiB}]
      """
    for _ in 0..<20 {
      let run = try iommu("run", "--machine", "-", "--", "/bin/true", input: machine)
      #expect(run.status == 0, "\(run.errors)")
    }
  }

  @Test("B6: with --no-memlock-limit nothing bounds what a program pins")
  func unlimitedMemory() throws {
    let run = try iommu("run", "--no-memlock-limit", "--", built("locked-memory").path)
    #expect(run.status == 1)
    #expect(run.errors.contains(": 0 (Success)"), "its first map past the limit succeeds")
  }

  @Test(
    "B1: while one program maps or unmaps very much, others' calls go on; killed, it leaves nothing",
    arguments: ["map", "unmap"])
  func largeMap(call: String) throws {
    let run = try iommu(
      "run", "--explain", "--no-memlock-limit", "--", built("large-map").path, call)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("the caller was killed") == (call == "map"), "\(run.errors)")
  }

  @Test("fail-nth: a thread arms a failure for its own calls, with the self-test driver only")
  func failNth() throws {
    let program = built("fail-nth").path
    let run = try iommu("run", "--self-test-driver", "--", program)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    let without = try iommu("run", "--", program)
    #expect(without.status == 1 && without.output.contains("fail-nth can be opened"))
    let view = try iommu("run", "--", "ls", "/sys/kernel/debug/failslab")
    #expect(view.status != 0, "the switches are there with the self-test driver only")
  }

  @Test(
    "A2, G2: processes that share a context map, attach and do DMA at once, and nothing is left"
  )
  func processStress() throws {
    let run = try iommu("run", "--", built("process-stress").path, "--seconds", "2")
    #expect(run.status == 0, "\(run.output)\(run.errors)")
  }

  @Test("C6: the program sees the nodes and the machine's devices") func view() throws {
    let run = try iommu(
      "run", "--", "sh", "-c",
      """
      cat /sys/bus/pci/devices/0000:e0:04.0/vendor
      ls /sys/kernel/iommu_groups /sys/class/vfio-dev /dev/vfio/devices
      test -c /dev/iommu && test -c /dev/vfio/vfio && test -c /dev/vfio/1 && echo nodes
      stat -c %s /sys/bus/pci/devices/0000:e0:04.0/config
      """)
    #expect(run.status == 0, "\(run.errors)")
    #expect(
      run.output == """
        0x8086
        /dev/vfio/devices:
        vfio0
        vfio1
        vfio2

        /sys/class/vfio-dev:
        vfio0
        vfio1
        vfio2

        /sys/kernel/iommu_groups:
        0
        1
        nodes
        4096

        """)
  }

  @Test("a machine of one's own is the one that is there") func ownMachine() throws {
    let yaml = """
      iommus: [{name: ivhd0, kind: amd, levels: 6}]
      devices: [{model: copy-engine, address: "0001:02:03.4", group: 17, version: 0x34}]
      reserved: [{first: 0x1000, last: 0x1fff, kind: direct}]
      """
    let run = try iommu(
      "run", "--machine", "-", "--", "sh", "-c",
      """
      ls /sys/bus/pci/devices /sys/class/iommu
      cat /sys/kernel/iommu_groups/17/reserved_regions
      """, input: yaml)
    #expect(
      run.output == """
        /sys/bus/pci/devices:
        0001:02:03.4

        /sys/class/iommu:
        ivhd0
        0x0000000000001000 0x0000000000001fff direct
        0x00000000fee00000 0x00000000feefffff msi

        """)
  }

  @Test(
    "a copy engine copies a program's memory",
    arguments: [
      ["--anonymous"], ["--shared"], ["--memfd"], ["--size", "8388608"],
      ["--container", "/dev/vfio/vfio"], ["--container", "/dev/iommu", "--shared"],
      ["--mmap"], ["--container", "/dev/vfio/vfio", "--mmap"],
      ["--container", "/dev/iommu", "--mmap"],
    ])
  func copy(options: [String]) throws {
    let run = try iommu(["run", "--no-memlock-limit", "--", built("dma-copy").path] + options)
    #expect(run.status == 0, "\(run.errors)")
    #expect(run.output.contains("bytes are right"))
  }

  @Test("A3, C4: everything that must fail does") func trespass() throws {
    let run = try iommu("run", "--", built("trespass").path, "--quiet")
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.output.hasSuffix(" refused, 0 not refused\n"))
  }

  @Test("K1: the proposal's use cases run in their order") func useCases() throws {
    let run = try iommu("run", "--", built("ioasid-use-cases").path)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.output.contains("4.1") && run.output.hasSuffix("All as the proposal has it.\n"))
  }

  @Test("B1: AMD tables of six levels do as well") func amd() throws {
    let yaml = MachineDescription.standard.yaml
      .replacing("kind: intel", with: "kind: amd")
      .replacing("levels: 4", with: "levels: 6")
      .replacing("address-width: 48", with: "address-width: 64")
    let run = try iommu(
      "run", "--machine", "-", "--", built("dma-copy").path, "--quiet", input: yaml)
    #expect(run.status == 0, "\(run.errors)")
  }

  @Test("the demo runs to its end") func demo() throws {
    let run = try iommu("demo")
    #expect(run.status == 0, "\(run.errors)")
    #expect(run.output.contains("1. A program lets a device copy"))
    #expect(run.output.contains("0 not refused"))
    #expect(run.output.contains("Nothing of this needed root"))
    for topic in ["Binding takes", "Three maps", "When unmap returns"] {
      #expect(run.output.contains(topic), "the demo does not say '\(topic)…'")
    }
  }

  @Test("the demo says where it misses its programs") func demoWithoutPrograms() throws {
    let run = try iommu("demo", "--examples", "/nonexistent")
    #expect(run.status == 1)
    #expect(run.errors.contains("dma-copy is not in /nonexistent"))
  }

  @Test("the demo names a trace that cannot be written as it was given") func demoTrace() throws
  {
    let run = try iommu("demo", "--trace", "/nonexistent/demo.json")
    #expect(run.status == 1)
    #expect(run.output.contains("$ iommu run --trace /nonexistent/demo.json "))
    #expect(run.errors.contains("cannot write the trace /nonexistent/demo.json: "))
    #expect(run.errors.contains("the program was not run"))
  }

  @Test("a trace is JSON that names the calls") func trace() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: path) }
    let run = try iommu(
      "run", "--trace", path.path, "--", built("dma-copy").path, "--quiet")
    #expect(run.status == 0, "\(run.errors)")
    let events = try JSONSerialization.jsonObject(with: Data(contentsOf: path))
    #expect((events as? [[String: Any]])?.contains { $0["name"] as? String == "open" } == true)
  }

  @Test(
    "a trace goes to what was open when the run began: its output, a descriptor, a pipe",
    arguments: [
      "exec \"$0\" run --trace /dev/stdout -- \"$1\" --quiet",
      "exec \"$0\" run --trace /proc/self/fd/1 -- \"$1\" --quiet | cat",
      "exec 7>&1; exec \"$0\" run --trace /dev/fd/7 -- \"$1\" --quiet 2>&1 > /dev/null",
    ])
  func inheritedTrace(script: String) throws {
    let run = try shell(script, built("iommu").path, built("dma-copy").path)
    #expect(run.status == 0, "\(run.errors)")
    let events = try JSONSerialization.jsonObject(with: Data(run.output.utf8))
    #expect((events as? [[String: Any]])?.contains { $0["name"] as? String == "open" } == true)
  }
}
