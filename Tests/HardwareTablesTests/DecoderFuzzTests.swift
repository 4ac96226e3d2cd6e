// SPDX-License-Identifier: Apache-2.0
//
// Bytes that nobody meant, in tables, queues and the uAPI's structures: nothing traps, nothing is
// read but where a register or a table points, what is decoded is encoded again as it was.

import FuzzSupport
import PageTables
import Testing

@testable import HardwareTables

@Suite("B2, B9: random bytes in the tables and queues of all four families")
struct DecoderFuzzTests {
  /// Words of which some have few bits set, and some nearly all.
  struct Source {
    var random: Random

    mutating func word() -> UInt64 {
      switch random.next() >> 61 {
      case 0: random.next() & random.next() & random.next()
      case 1: ~(random.next() & random.next() & random.next())
      case 2: 1 << (random.next() % 64)
      case 3: random.next() & 0x3FFF_FFFF_F000 | 1
      case 4: 0
      default: random.next()
      }
    }
    mutating func pick<Element>(_ all: [Element]) -> Element {
      all.randomElement(using: &random)!
    }
    mutating func bool() -> Bool { random.bool() }
    mutating func words2() -> Words2 { Words2(word(), word()) }
    mutating func words4() -> Words4 { Words4(lowHalf: words2(), highHalf: words2()) }
    mutating func words8() -> Words8 { Words8(lowHalf: words4(), highHalf: words4()) }
    mutating func half() -> UInt32 { UInt32(truncatingIfNeeded: word()) }
    mutating func short() -> UInt16 { UInt16(truncatingIfNeeded: word()) }

    /// A number of some bits that is small most of the time.
    mutating func number(_ bits: UInt64) -> UInt32 {
      let number = UInt32(truncatingIfNeeded: random.next() & ((1 << bits) - 1))
      return bool() ? number : number & 0xFF
    }
    /// A process or none.
    mutating func process() -> UInt32? { bool() ? bool() ? half() : number(20) : nil }

    /// Memory in which tables reach as far from where these words point.
    mutating func memory(
      _ named: UInt64..., reach: UInt64, good: [UInt64: UInt64] = [:]
    ) -> NoiseMemory {
      NoiseMemory(seed: random.next(), named: named, reach: reach, good: good)
    }
  }

  /// Runs rounds of one family, of which each looks things up some times.
  /// - Parameter look: Returns what it read, and whether it found an entry.
  static func fuzz(
    _ name: String, _ look: (inout Source) -> (memory: NoiseMemory, isFound: Bool)
  ) {
    var found = 0
    let rounds = Fuzzing.run("DecoderFuzzTests/\(name)", parts: 4) { random in
      var source = Source(random: random)
      for _ in 0..<500 {
        let (memory, isFound) = look(&source)
        #expect(memory.strays == [])
        if isFound { found += 1 }
      }
    }
    print("DecoderFuzzTests/\(name): \(found) entries found")
    if rounds >= 20 { #expect(found > 0, "a fuzzer that finds nothing proves nothing") }
  }

  @Test("B2, B9: RISC-V: directories, contexts, commands, records")
  func riscv() {
    Self.fuzz("riscv") { source in
      let full = RISCVCapabilities.with(RISCVCapabilities.full).rawValue
      let iommu = RISCVCapabilities(
        rawValue: source.bool() ? full : source.word(), isBigEndian: source.bool(),
        isGuest32Bit: source.bool(), canChangeGuestWidth: source.bool(),
        resourceIDWidth: Int(source.half() % 64))
      let word = source.word() & ~15 | source.random.next() % 6
      let context = RISCVDeviceContext(source.words8())
      let memory = source.memory(word, context.fsc, reach: 4096)
      let process = source.process()
      let type = source.pick(RISCVTransactionType.allCases)
      var isFound = false
      let directory = RISCVDeviceDirectory(register: word, iommu: iommu)
      if let directory {
        let found = try? directory.context(
          device: source.number(24), process: process, transaction: type, in: memory)
        isFound = found != nil
        _ = try? RISCVCommand(decoding: source.words2(), directory: directory)
      }
      _ = context.misconfiguration(iommu)
      _ = context.isMessageAddress(source.word())
      let translation = try? context.translation(
        process: process, isSupervisor: source.bool(), transaction: type, iommu: iommu,
        in: memory)
      isFound = isFound || translation != nil
      _ = RISCVProcessContext(source.words2()).misconfiguration(iommu, is32Bit: source.bool())
      let fault = RISCVFaultRecord(decoding: source.words4())
      #expect(RISCVFaultRecord(decoding: fault.words).words == fault.words)
      let request = PageRequestMessage(riscvRecord: source.words2())
      #expect(PageRequestMessage(riscvRecord: request.riscvRecord) == request)
      return (memory, isFound)
    }
  }

  @Test("B2, B9: VT-d: tables, descriptors, records, struct iommu_hwpt_vtd_s1")
  func intel() {
    Self.fuzz("intel") { source in
      let unit =
        source.bool()
        ? IntelCapabilities.all
        : IntelCapabilities(
          capability: source.word(), extended: source.word(),
          hostAddressWidth: Int(source.half() % 65))
      // Every other time tables that are good, or were until a bit changed.
      let isGood = source.bool()
      let good = IntelRootTableTests.self
      let table = IntelRootTable(
        register: isGood ? good.table.address | 0x400 : source.word(), unit: unit)
      // A PASID directory has up to 2^14 entries.
      let memory = source.memory(
        table.address, reach: 1 << 17, good: isGood ? good.memory().words : [:])
      let found = try? table.entry(
        requester: isGood ? good.requester : source.short(),
        pasid: isGood ? good.pasid : source.process(),
        request: source.pick(IntelRequest.allCases), wantsExecute: source.bool(),
        isSupervisor: source.bool(), in: memory)
      _ = try? IntelContextEntry(decoding: source.words2(), unit)
      _ = try? IntelScalableContextEntry(decoding: source.words4(), unit)
      _ = try? IntelPASIDEntry(decoding: source.words8(), unit)
      _ = try? IntelInvalidation(decoding: source.words4(), isWide: source.bool(), unit)
      _ = try? IntelInvalidation(
        decoding: Words4(lowHalf: source.words2(), highHalf: Words2()), isWide: true, unit)
      let nested = IntelNestedTable(decoding: source.word(), source.word(), source.word())
      _ = try? nested.entry(parent: source.words8(), unit)
      if let fault = IntelFaultRecord(decoding: source.words2()) {
        #expect(IntelFaultRecord(decoding: fault.words)?.words == fault.words)
      }
      if let request = PageRequestMessage(intelDescriptor: source.words4()) {
        #expect(PageRequestMessage(intelDescriptor: request.intelDescriptor) == request)
      }
      return (memory, found != nil)
    }
  }

  @Test("B2, B9: AMD: tables, commands, logs, struct iommu_hwpt_amd_guest")
  func amd() {
    Self.fuzz("amd") { source in
      let iommu = source.bool() ? .full : AMDCapabilities(rawValue: source.word())
      let table = AMDDeviceTable(register: source.word(), iommu: iommu)
      let entry = AMDDeviceTableEntry(source.words4())
      // A device table has up to 2 MiB.
      let memory = source.memory(table.address, entry.guestCR3Table, reach: 2 << 20)
      let found = try? table.entry(device: source.short(), in: memory)
      _ = try? entry.check(iommu)
      _ = try? entry.checkInterrupts()
      let translation = try? entry.translation(pasid: source.process(), iommu, in: memory)
      _ = try? AMDCommand(decoding: source.words2(), iommu)
      if let nested = try? AMDNestedEntry(decoding: source.words4(), iommu) {
        _ = nested.entry(parent: entry, domain: nested.guestDomain)
      }
      if let event = AMDEvent(decoding: source.words2()) {
        #expect(AMDEvent(decoding: event.words) == event)
      }
      if let request = PageRequestMessage(amdEntry: source.words2()) {
        #expect(PageRequestMessage(amdEntry: request.amdEntry) == request)
      }
      return (memory, found != nil || translation != nil)
    }
  }

  @Test("B2, B9: SMMUv3: tables, commands, records, struct iommu_hwpt_arm_smmuv3")
  func smmu() {
    Self.fuzz("smmu") { source in
      let smmu =
        source.bool()
        ? .full
        : SMMUCapabilities(
          idr0: source.half(), idr1: source.half(), idr3: source.half(), idr5: source.half())
      let table = SMMUStreamTable(
        base: source.word(),
        configuration: source.bool() ? source.half() : 0x1_0210, smmu: smmu)
      let stream = source.number(16)
      let entry = SMMUStreamTableEntry(source.words8())
      // 2^32 streams, 2^31 contexts: no entry is known to be legal here.
      let memory = source.memory(table.address, entry.contextTable, reach: 1 << 38)
      let found = try? table.entry(stream: stream, in: memory)
      _ = entry.illegality(smmu)
      var context: SMMUContextDescriptor?
      if case .context(let index) = try? entry.outcome(substream: source.process(), smmu) {
        context = try? entry.context(index, smmu, in: memory)
      }
      _ = SMMUContextDescriptor(source.words8()).illegality(entry, smmu)
      _ = try? SMMUCommand(decoding: source.words2(), smmu)
      if let nested = try? SMMUNestedEntry(decoding: source.words2()) {
        _ = nested.entry(parent: entry).illegality(smmu)
      }
      if let event = SMMUEvent(decoding: source.words4()) {
        #expect(SMMUEvent(decoding: event.words)?.words == event.words)
      }
      let request = PageRequestMessage(smmuRecord: source.words2())
      #expect(PageRequestMessage(smmuRecord: request.smmuRecord) == request)
      return (memory, found != nil || context != nil)
    }
  }
}
