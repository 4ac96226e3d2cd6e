// SPDX-License-Identifier: Apache-2.0
//
// Bytes that nobody meant: nothing here may trap, whatever hardware's tables and queues hold.

import Testing

@testable import HardwareTables

@Suite("B14: random bytes") struct RandomBytesTests {
  /// Words of which some have few bits set, and some nearly all: another sequence every run,
  /// whose seed a failure names.
  struct Source {
    let seed: UInt64
    private var state: UInt64

    init() {
      seed = .random(in: 0 ... .max)
      state = seed
    }

    private mutating func next() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var value = state
      value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
      value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
      return value ^ (value >> 31)
    }
    mutating func word() -> UInt64 {
      switch next() >> 62 {
      case 0: next() & next() & next()
      case 1: ~(next() & next() & next())
      case 2: 1 << (next() % 64)
      default: next()
      }
    }
    mutating func pick<Element>(_ all: [Element]) -> Element {
      all[Int(next() % UInt64(all.count))]
    }
    mutating func bool() -> Bool { next() >> 63 != 0 }
    mutating func words2() -> Words2 { Words2(word(), word()) }
    mutating func words4() -> Words4 { Words4(lowHalf: words2(), highHalf: words2()) }
    mutating func words8() -> Words8 { Words8(lowHalf: words4(), highHalf: words4()) }
    mutating func half() -> UInt32 { UInt32(truncatingIfNeeded: word()) }
  }

  static let rounds = 10_000

  @Test("B14: RISC-V: directories, contexts, commands, records")
  func riscv() {
    var source = Source()
    for _ in 0..<Self.rounds {
      let iommu = RISCVCapabilities(
        rawValue: source.word(), isBigEndian: source.bool(), isGuest32Bit: source.bool(),
        canChangeGuestWidth: source.bool(), resourceIDWidth: Int(source.half() % 64))
      guard let directory = RISCVDeviceDirectory(register: source.word(), iommu: iommu) else {
        continue
      }
      let memory = NoiseMemory(seed: source.word())
      let process = source.bool() ? source.half() : nil
      let type = source.pick(RISCVTransactionType.allCases)
      _ = try? directory.context(
        device: source.half(), process: process, transaction: type, in: memory)
      let context = RISCVDeviceContext(source.words8())
      _ = context.misconfiguration(iommu)
      _ = context.isMessageAddress(source.word())
      _ = try? context.translation(
        process: process, isSupervisor: source.bool(), transaction: type, iommu: iommu,
        in: memory)
      _ = RISCVProcessContext(source.words2()).misconfiguration(iommu, is32Bit: source.bool())
      _ = try? RISCVCommand(decoding: source.words2(), directory: directory)
      let fault = RISCVFaultRecord(decoding: source.words4())
      #expect(
        RISCVFaultRecord(decoding: fault.words).words == fault.words, "seed \(source.seed)")
      let request = PageRequestMessage(riscvRecord: source.words2())
      #expect(
        PageRequestMessage(riscvRecord: request.riscvRecord) == request, "seed \(source.seed)")
    }
  }

  @Test("B14: VT-d: tables, descriptors, records")
  func intel() {
    var source = Source()
    for _ in 0..<Self.rounds {
      let unit = IntelCapabilities(
        capability: source.word(), extended: source.word(),
        hostAddressWidth: Int(source.half() % 65))
      let table = IntelRootTable(register: source.word(), unit: unit)
      let memory = NoiseMemory(seed: source.word())
      let kind = source.pick(IntelRequest.allCases)
      _ = try? table.entry(
        requester: UInt16(truncatingIfNeeded: source.half()),
        pasid: source.bool() ? source.half() : nil, request: kind, wantsExecute: source.bool(),
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
        #expect(
          IntelFaultRecord(decoding: fault.words)?.words == fault.words, "seed \(source.seed)")
      }
      if let request = PageRequestMessage(intelDescriptor: source.words4()) {
        #expect(
          PageRequestMessage(intelDescriptor: request.intelDescriptor) == request,
          "seed \(source.seed)")
      }
    }
  }

  @Test("B14: AMD: tables, commands, logs")
  func amd() {
    var source = Source()
    for _ in 0..<Self.rounds {
      let iommu = AMDCapabilities(rawValue: source.word())
      let table = AMDDeviceTable(register: source.word(), iommu: iommu)
      let memory = NoiseMemory(seed: source.word())
      _ = try? table.entry(device: UInt16(truncatingIfNeeded: source.half()), in: memory)
      let entry = AMDDeviceTableEntry(source.words4())
      _ = try? entry.check(iommu)
      _ = try? entry.checkInterrupts()
      _ = try? entry.translation(
        pasid: source.bool() ? source.half() : nil, iommu, in: memory)
      _ = try? AMDCommand(decoding: source.words2(), iommu)
      if let nested = try? AMDNestedEntry(decoding: source.words4(), iommu) {
        _ = nested.entry(parent: entry, domain: nested.guestDomain)
      }
      if let event = AMDEvent(decoding: source.words2()) {
        #expect(AMDEvent(decoding: event.words) == event, "seed \(source.seed)")
      }
      if let request = PageRequestMessage(amdEntry: source.words2()) {
        #expect(
          PageRequestMessage(amdEntry: request.amdEntry) == request, "seed \(source.seed)")
      }
    }
  }

  @Test("B14: SMMUv3: tables, commands, records")
  func smmu() {
    var source = Source()
    for _ in 0..<Self.rounds {
      let smmu = SMMUCapabilities(
        idr0: source.half(), idr1: source.half(), idr3: source.half(), idr5: source.half())
      let table = SMMUStreamTable(
        base: source.word(), configuration: source.half(), smmu: smmu)
      let memory = NoiseMemory(seed: source.word())
      _ = try? table.entry(stream: source.half(), in: memory)
      let entry = SMMUStreamTableEntry(source.words8())
      _ = entry.illegality(smmu)
      let substream = source.bool() ? source.half() : nil
      if case .context(let index) = try? entry.outcome(substream: substream, smmu) {
        _ = try? entry.context(index, smmu, in: memory)
      }
      _ = SMMUContextDescriptor(source.words8()).illegality(entry, smmu)
      _ = try? SMMUCommand(decoding: source.words2(), smmu)
      if let nested = try? SMMUNestedEntry(decoding: source.words2()) {
        _ = nested.entry(parent: entry).illegality(smmu)
      }
      if let event = SMMUEvent(decoding: source.words4()) {
        #expect(SMMUEvent(decoding: event.words)?.words == event.words, "seed \(source.seed)")
      }
      let request = PageRequestMessage(smmuRecord: source.words2())
      #expect(
        PageRequestMessage(smmuRecord: request.smmuRecord) == request, "seed \(source.seed)")
    }
  }
}
