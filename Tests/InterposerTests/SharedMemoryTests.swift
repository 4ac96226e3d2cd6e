// SPDX-License-Identifier: Apache-2.0
//
// MODEL B3 with another process: its address space as a page table for DMA, while it unmaps,
// executes another program and dies.

import CSyscalls
import Glibc
import IOMMU
import PageTables
import SoftwareIOMMU
import Testing

@testable import Interposer

/// A running memory-holder.
private final class Holder {
  let process: Int32
  private let input: Int32
  private let output: Int32
  /// Where its eight pages are.
  private(set) var address: UInt64 = 0

  init() throws {
    var toHolder: [Int32] = [0, 0]
    var fromHolder: [Int32] = [0, 0]
    try #require(pipe(&toHolder) == 0 && pipe(&fromHolder) == 0)
    for end in [toHolder[1], fromHolder[0]] { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    posix_spawn_file_actions_adddup2(&actions, toHolder[0], 0)
    posix_spawn_file_actions_adddup2(&actions, fromHolder[1], 1)
    defer { posix_spawn_file_actions_destroy(&actions) }
    var buffer = [CChar](repeating: 0, count: 4096)
    readlink("/proc/self/exe", &buffer, 4095)
    let here = buffer.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    let path = here.prefix(upTo: here.lastIndex(of: "/")!) + "/memory-holder"
    var child: Int32 = 0
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("memory-holder"), nil]
    defer { free(arguments[0]) }
    let result = posix_spawn(&child, String(path), &actions, nil, &arguments, environ)
    close(toHolder[0])
    close(fromHolder[1])
    process = child
    input = toHolder[1]
    output = fromHolder[0]
    try #require(result == 0, "memory-holder is not built")
    address = try #require(UInt64(line(), radix: 16))
  }

  deinit {
    close(input)
    close(output)
    kill(process, SIGKILL)
    waitpid(process, nil, 0)
  }

  private func line() -> String {
    var text: [UInt8] = []
    var byte: UInt8 = 0
    while read(output, &byte, 1) == 1, byte != UInt8(ascii: "\n") { text.append(byte) }
    return String(decoding: text, as: UTF8.self)
  }

  /// Sends a command and waits for the answer.
  @discardableResult
  func ask(_ command: Character) -> String {
    var byte = command.asciiValue!
    write(input, &byte, 1)
    return line()
  }

  func end() {
    kill(process, SIGKILL)
    var status = siginfo_t()
    // Dead, and not reaped: its number stays its own.
    waitid(P_PID, id_t(process), &status, WEXITED | WNOWAIT)
  }

  func iova(page: Int, _ offset: Int = 0) -> IOVA {
    IOVA(address + UInt64(page * 4096 + offset))
  }
}

@Suite("B3: another process's page table", .serialized)
struct SharedMemoryTests {
  private let holder: Holder
  private let memory: ClientMemory
  private let iommu: SoftwareIOMMU
  private let port: DMAPort

  init() throws {
    holder = try Holder()
    memory = try #require(
      ClientMemory(
        thread: holder.process, group: holder.process, number: 1, isSettled: true,
        handles: try HandleTable()))
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 8), memory: PhysicalMemory(),
      events: EventLog())
    let requester = RequesterID(bus: 0, device: 1, function: 0)
    let pasid = PASID(rawValue: 1)
    try iommu.setContext(
      of: requester, pasid: pasid,
      to: .shared(iommu.makeSharedDomain(for: requester, process: memory)))
    port = iommu.port(for: requester, pasid: pasid)
  }

  private func reason(_ access: () throws(DMAFault) -> Void) -> DMAFault.Reason? {
    do throws(DMAFault) {
      try access()
      return nil
    } catch {
      return error.reason
    }
  }

  private func store(_ page: Int) -> DMAFault.Reason? {
    reason { () throws(DMAFault) in try port.store(UInt8(7), at: holder.iova(page: page)) }
  }

  private func load(_ page: Int) -> DMAFault.Reason? {
    reason { () throws(DMAFault) in _ = try port.load(holder.iova(page: page), as: UInt8.self) }
  }

  @Test(
    "B3: a device reaches a process's pages, faults in new ones, and follows munmap at once")
  func follows() throws {
    #expect(try port.load(holder.iova(page: 0), as: UInt8.self) == UInt8(ascii: "a"))
    try port.store(UInt8(1), at: holder.iova(page: 0))
    try port.copy(from: holder.iova(page: 0), to: holder.iova(page: 2), length: 4096)
    #expect(holder.ask("p") == "1 1 114")
    #expect(store(3) == .permission && load(3) == nil)
    #expect(store(5) == .notPresent && load(5) == .notPresent)
    do {
      try port.fill(holder.iova(page: 4), pattern: 0x0202_0202_0202_0202, length: 8192)
      Issue.record("no fault")
    } catch {
      #expect(error.iova == holder.iova(page: 5) && error.reason == .notPresent)
    }
    #expect(try port.load(holder.iova(page: 4, 4095), as: UInt8.self) == 2)
    #expect(store(1) == nil)
    #expect(holder.ask("u") == "unmapped")
    #expect(store(1) == .notPresent && load(1) == .notPresent)
    #expect(holder.ask("m") == "mapped")
    #expect(try port.load(holder.iova(page: 1), as: UInt8.self) == 0)
    #expect(store(1) == nil)
    #expect(holder.ask("p") == "1 1 114")
  }

  @Test(
    "B3: by descriptor, once the process number may not be used, the same is allowed and no more"
  )
  func byDescriptor() throws {
    memory.willExecute()
    #expect(try port.load(holder.iova(page: 0), as: UInt8.self) == UInt8(ascii: "a"))
    try port.store(UInt16(0x0909), at: holder.iova(page: 2))
    #expect(store(3) == .permission && load(3) == nil)
    #expect(store(5) == .notPresent && load(5) == .notPresent)
    var bytes = [UInt8](repeating: 0, count: 8192)
    bytes.withUnsafeMutableBytes { bytes in
      #expect(
        reason { () throws(DMAFault) in try port.read(holder.iova(page: 4), into: bytes) }
          == .notPresent)
    }
    #expect(holder.ask("p") == "97 9 114", "the page that may be read only is as it was")
  }

  @Test("B3: once the process executes another program, nothing of either is reached")
  func executes() throws {
    #expect(store(0) == nil)
    // As the supervisor does before it lets an exec go on.
    memory.willExecute()
    let old = holder.iova(page: 0)
    let again = try #require(UInt64(holder.ask("x"), radix: 16))
    for address in [old, IOVA(again)] {
      #expect(
        reason { () throws(DMAFault) in _ = try port.load(address, as: UInt8.self) }
          == .memoryGone)
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt8(1), at: address) } == .memoryGone)
    }
    #expect(holder.ask("p") == "97 0 114")
  }

  @Test("B3: a process that is killed under DMA ends it with a fault, and no other with it")
  func killed() async throws {
    let (port, from, to) = (self.port, holder.iova(page: 0), holder.iova(page: 2))
    let device = Task.detached { () -> DMAFault.Reason? in
      while true {
        do throws(DMAFault) {
          try port.copy(from: from, to: to, length: 4096)
        } catch {
          return error.reason
        }
      }
    }
    try await Task.sleep(for: .milliseconds(20))
    holder.end()
    let reason = await device.value
    // While it dies its pages go first.
    #expect(reason == .memoryGone || reason == .notPresent)
    #expect(load(0) == .memoryGone && store(0) == .memoryGone)
    #expect(iommu.faults.count == 3)
  }
}
