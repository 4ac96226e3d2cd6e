// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: programs that map a device's registers, under `iommu run`.

#if arch(x86_64)
  import Foundation
  import Testing

  @Suite("Mapped registers", .serialized) struct MappedRegisterTests {
    private func run(_ arguments: String...) throws -> Finished {
      try iommu(["run", "--explain", "--", built("mapped-registers").path] + arguments)
    }

    /// Programs that the thread sanitizer does not follow: tasks that share memory and are no threads,
    /// threads that end without its knowing.
    #if SANITIZER_thread
      private static let unsanitized: [String] = []
      private static let native: [String] = []
    #else
      private static let unsanitized = ["shares-memory", "ends"]
      private static let native = ["orphans", "missing-memory"]
    #endif

    @Test(
      "J1: loads and stores of mapped registers are accesses of the device, of every width",
      arguments: ["widths", "strings", "copy", "remaps", "counts", "library"])
    func accesses(_ name: String) throws {
      let run = try run(name)
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test(
      "J1: threads and processes with mapped registers come, go, stop, execute and are killed",
      arguments: [
        "threads", "forks", "executes", "executes-ignoring", "killed", "stops", "comings",
        "leader-ends", "polled",
      ] + Self.unsanitized)
    func processes(_ name: String) throws {
      let run = try run(name)
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test(
      "J1: a program's own SIGBUS stays its own: handled, blocked, ignored or by default",
      arguments: [
        "own-handler", "default-action", "blocked", "block-in-loop", "ignored", "timers",
        "alternate-stack", "jumps",
      ])
    func signals(_ name: String) throws {
      let run = try run(name)
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test(
      "J1: a traced program finds its handlers, masks, stack and children as they would be",
      arguments: ["handlers-change", "masks", "write-only"] + Self.native)
    func edges(_ name: String) throws {
      let run = try run(name)
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test("J1: the stack of a program that maps registers is as it left it")
    func smallStack() throws {
      let run = try run("small-stack", "unmapped")
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test("J1: regions are found at Linux's own file offsets too, by calls and by mappings")
    func linuxOffsets() throws {
      let run = try run("linux-offsets")
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test(
      "J1: a mapped MSI-X table is the device's: masks, pending bits, messages of one's own")
    func table() throws {
      let run = try run("table")
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }

    @Test("C4: registers that do not answer raise SIGBUS; mapped ones keep the device open")
    func revocation() throws {
      for name in ["memory-off", "lifetime"] {
        let run = try run(name)
        #expect(run.status == 0, "\(name): \(run.output)\(run.errors)")
      }
    }

    @Test("J1: a program under a debugger maps no registers, and is told why")
    func debugger() throws {
      let run = try run("debugged", "unmapped")
      #expect(run.status == 0, "\(run.output)\(run.errors)")
      #expect(run.errors.contains("is under a debugger"), "\(run.errors)")
      #expect(run.errors.contains("pread and pwrite"), "\(run.errors)")
    }

    @Test(
      "J1: ENQCMD, MOVDIR64B and MOVDIRI reach a portal on any processor, with retry and PASID")
    func portals() throws {
      let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).yaml")
      try Data(
        """
        iommus:
          - {name: dmar0, kind: intel, pasid-bits: 8}
        devices:
          - {model: work-queue, address: "e0:07.0", group: 7, depth: 3}

        """.utf8
      ).write(to: file)
      defer { try? FileManager.default.removeItem(at: file) }
      let run = try iommu(
        "run", "--explain", "--machine", file.path, "--", built("work-portal").path)
      #expect(run.status == 0, "\(run.output)\(run.errors)")
      #expect(run.errors.contains("executes ENQCMD without a PASID"), "\(run.errors)")
    }

    @Test("J1: a driver's whole copy goes by mapped registers, and a trace has each access")
    func copy() throws {
      let run = try iommu(
        "run", "--trace=-", "--", built("dma-copy").path, "--mmap", "--size", "64K")
      #expect(run.status == 0, "\(run.output)\(run.errors)")
      #expect(run.errors.contains("store BAR 0 + 0x86, 2 bytes = 0x1"), "\(run.errors)")
      let plain = try iommu("run", "--", built("dma-copy").path, "--mmap", "--repeat", "3")
      #expect(plain.status == 0 && plain.errors.isEmpty, "\(plain.errors)")
    }
  }
#endif
