// SPDX-License-Identifier: Apache-2.0
//
// What an instruction that is carried out in place of the processor reaches: a device's registers, at
// the addresses where the program has mapped them, and the program's own memory everywhere else.

import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage
import X86Instructions

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The memory of a stopped thread, for one instruction. The tracing thread's own.
struct TracedMemory: InstructionMemory {
  /// Why an access was refused.
  enum Cause {
    case none
    /// The device's registers do not answer, or a file has no page there.
    case noAnswer
    case notMapped
    case notAllowed
    /// ENQCMD of a thread that has no PASID.
    case noPASID
  }

  let loop: TraceLoop
  let traced: TracedThread
  private var thread: Int32 { traced.number }
  /// Where the last access to registers was.
  var area: RegisterArea
  /// Where the last access to other memory was.
  private var own: MemoryArea?
  private(set) var cause = Cause.none

  init(loop: TraceLoop, thread: TracedThread, area: RegisterArea) {
    self.loop = loop
    traced = thread
    self.area = area
  }

  mutating func load(_ address: UInt64, _ byteCount: Int) throws(AccessFault) -> UInt64 {
    var value: UInt64 = 0
    try unsafe withUnsafeMutableBytes(of: &value) { (bytes) throws(AccessFault) in
      // SAFETY: at most eight bytes are asked for.
      try unsafe move(
        address, UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]), isStore: false)
    }
    return value
  }

  mutating func store(
    _ address: UInt64, _ byteCount: Int, _ value: UInt64
  ) throws(AccessFault) {
    var value = value
    try unsafe withUnsafeMutableBytes(of: &value) { (bytes) throws(AccessFault) in
      // SAFETY: as in `load`.
      try unsafe move(
        address, UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]), isStore: true)
    }
  }

  mutating func load(
    _ address: UInt64, _ byteCount: Int, into value: inout VectorValue
  ) throws(AccessFault) {
    try unsafe withUnsafeMutableBytes(of: &value.words) { (bytes) throws(AccessFault) in
      // SAFETY: at most 64 bytes are asked for.
      try unsafe move(
        address, UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]), isStore: false)
    }
  }

  mutating func store(
    _ address: UInt64, _ byteCount: Int, from value: VectorValue
  ) throws(AccessFault) {
    var value = value
    try unsafe withUnsafeMutableBytes(of: &value.words) { (bytes) throws(AccessFault) in
      // SAFETY: as in `load`.
      try unsafe move(
        address, UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]), isStore: true)
    }
  }

  mutating func enqueue(
    _ address: UInt64, _ command: VectorValue
  ) throws(AccessFault) -> Bool {
    // Ordinary memory takes no deferrable write.
    guard find(address) else { return false }
    guard area.area.isWritable else {
      cause = .notAllowed
      throw AccessFault(address: address, isStore: true)
    }
    let offset = area.area.offset &+ (address &- area.area.start)
    let reporter = loop.tracer.reporter
    let started = reporter.isTracing ? Reporter.now() : 0
    do throws(IOMMUError) {
      let answer = try area.file.enqueue(WorkCommand(words: command.words), at: offset)
      if reporter.isTracing {
        var command = command
        unsafe withUnsafeBytes(of: &command.words) {
          unsafe report(offset, $0, isStore: true, started)
        }
      }
      return answer == .accepted
    } catch {
      cause = error.errno == .ioError ? .noAnswer : .noPASID
      if cause == .noPASID {
        reporter.note(
          "process \(traced.process.number) executes ENQCMD without a PASID: it gets SIGSEGV; "
            + error.reason)
      }
      throw AccessFault(address: address, isStore: true)
    }
  }

  // MARK: pieces

  /// Moves bytes between the program and `bytes`, in parts that lie in registers or do not.
  private mutating func move(
    _ address: UInt64, _ bytes: UnsafeMutableRawBufferPointer, isStore: Bool
  ) throws(AccessFault) {
    var done = 0
    while done < bytes.count {
      let place = address &+ UInt64(done)
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[done...])
      if area.contains(place) {
        let count = min(part.count, Int(clamping: area.area.end &- place))
        // SAFETY: `count` is at most the part's.
        try unsafe access(
          place, UnsafeMutableRawBufferPointer(rebasing: part[..<count]), isStore: isStore)
        done += count
        continue
      }
      let moved = unsafe moveOwn(place, part, isStore: isStore)
      if moved > 0 {
        done += moved
      } else if !find(place) {
        cause = cause(of: place, isStore: isStore)
        throw AccessFault(address: place, isStore: isStore)
      }
    }
  }

  /// Moves bytes between `bytes` and memory that is not registers.
  /// - Returns: How many; 0 or less where there are none, or the program may not.
  private mutating func moveOwn(
    _ address: UInt64, _ bytes: UnsafeMutableRawBufferPointer, isStore: Bool
  ) -> Int {
    if own.map({ address < $0.start || address >= $0.end }) ?? true {
      own = MemoryArea.find(address, in: traced.process.maps(of: thread))
    }
    guard let own, own.start <= address, own.end > address, own.allows(isStore: isStore) else {
      return 0
    }
    let count = min(bytes.count, Int(clamping: own.end - address))
    // SAFETY: `count` is at most the buffer's.
    let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[..<count])
    return isStore
      ? unsafe loop.write(UnsafeRawBufferPointer(part), to: address, of: traced)
      : unsafe loop.read(address, into: part, of: traced)
  }

  /// Whether registers are mapped at an address; they are the ones at hand then.
  private mutating func find(_ address: UInt64) -> Bool {
    if area.contains(address) { return true }
    guard let other = loop.registerArea(at: address, of: traced) else { return false }
    area = other
    return true
  }

  private func cause(of address: UInt64, isStore: Bool) -> Cause {
    guard let area = MemoryArea.find(address, in: traced.process.maps(of: thread)),
      area.start <= address
    else {
      return .notMapped
    }
    guard area.allows(isStore: isStore) else { return .notAllowed }
    loop.tracer.reporter.note(
      "process \(traced.process.number) touches registers and memory at \(hex(address)) with one "
        + "instruction, and that memory has no page to be had without waiting: it gets SIGBUS")
    return .noAnswer
  }

  /// One access to registers.
  private mutating func access(
    _ address: UInt64, _ bytes: UnsafeMutableRawBufferPointer, isStore: Bool
  ) throws(AccessFault) {
    guard area.area.allows(isStore: isStore) else {
      cause = .notAllowed
      throw AccessFault(address: address, isStore: isStore)
    }
    let offset = area.area.offset &+ (address &- area.area.start)
    let reporter = loop.tracer.reporter
    let started = reporter.isTracing ? Reporter.now() : 0
    do throws(IOMMUError) {
      if isStore {
        _ = try unsafe area.file.store(at: offset, from: UnsafeRawBufferPointer(bytes))
      } else {
        let count = try unsafe area.file.load(at: offset, into: bytes)
        // After the BAR's end in its last page.
        unsafe fill(bytes, from: count)
      }
    } catch {
      // What the registers cannot do with such an access, a bus would not tell either, and neither
      // that a portal does not take a plain store.
      guard Self.isUntold(error.errno) else {
        cause = .noAnswer
        throw AccessFault(address: address, isStore: isStore)
      }
      if !isStore { unsafe fill(bytes, from: 0) }
    }
    if reporter.isTracing {
      unsafe report(offset, UnsafeRawBufferPointer(bytes), isStore: isStore, started)
    }
  }

  private static func isUntold(_ errno: Errno) -> Bool {
    switch errno {
    case .invalidArgument, .resourceTemporarilyUnavailable, .notPermitted, .badAddress: true
    default: false
    }
  }

  /// What a bus reads where nobody answers.
  private func fill(_ bytes: UnsafeMutableRawBufferPointer, from start: Int) {
    guard start < bytes.count else { return }
    unsafe memset(bytes.baseAddress! + start, 0xFF, bytes.count - start)
  }

  private func report(
    _ offset: UInt64, _ bytes: UnsafeRawBufferPointer, isStore: Bool, _ started: UInt64
  ) {
    guard let place = area.file.registers(at: offset) else { return }
    var value: UInt64 = 0
    for index in 0..<min(bytes.count, 8) {
      value |= UInt64(unsafe bytes[index]) << UInt64(8 * index)
    }
    loop.tracer.reporter.register(
      RegisterRecord(
        file: area.file.name, place: place, width: bytes.count, value: value, isStore: isStore,
        process: traced.process.number, thread: thread, started: started))
  }
}

extension MemoryArea {
  /// What the processor lets a program do there: x86 has no pages that can be written only.
  fileprivate func allows(isStore: Bool) -> Bool { isWritable || !isStore && isReadable }
}

/// The vector registers of a stopped thread: fetched at the first use, stored if they were changed.
@safe
struct ThreadVectors: VectorState {
  private let thread: Int32
  private let scratch: TraceScratch
  private var size = 0
  private var isChanged = false

  init(thread: Int32, scratch: TraceScratch) {
    self.thread = thread
    self.scratch = scratch
  }

  /// Components of the XSAVE area.
  private enum Component: Int {
    case sse = 1
    case upperHalves = 2
    case masks = 5
    case upperQuarters = 6
    case highRegisters = 7
  }

  private static let places: [UInt32] = (0..<8).map { csys_extended_offset($0) }
  /// Where the area says which components are not in their initial state.
  private static let header = 512

  /// Where a part of a register is; nil where the processor has none.
  private func place(_ component: Component, _ number: Int, _ length: Int) -> Int? {
    // The first sixteen bytes of the first sixteen have their place from before XSAVE.
    let start = component == .sse ? 160 : Int(Self.places[component.rawValue])
    guard start > 0, start + (number + 1) * length <= size else { return nil }
    return start + number * length
  }

  private mutating func fetch() {
    guard size == 0 else { return }
    size = Int(
      max(
        0,
        unsafe csys_trace_extended(
          thread, scratch.extended.baseAddress, scratch.extended.count)))
  }

  private func get(_ place: Int?, _ words: Int, _ value: inout VectorValue, _ first: Int) {
    guard let place else { return }
    for index in 0..<words {
      // SAFETY: `place` lies inside of what was fetched.
      value.words[first + index] = unsafe scratch.extended.loadUnaligned(
        fromByteOffset: place + 8 * index, as: UInt64.self)
    }
  }

  private mutating func set(
    _ component: Component, _ place: Int?, _ words: Int, _ value: VectorValue, _ first: Int
  ) {
    guard let place else { return }
    for index in 0..<words {
      // SAFETY: as in `get`.
      unsafe scratch.extended.storeBytes(
        of: value.words[first + index], toByteOffset: place + 8 * index, as: UInt64.self)
    }
    mark(component)
  }

  private mutating func mark(_ component: Component) {
    isChanged = true
    guard size >= Self.header + 8 else { return }
    // SAFETY: just compared with the size.
    let bits = unsafe scratch.extended.load(fromByteOffset: Self.header, as: UInt64.self)
    unsafe scratch.extended.storeBytes(
      of: bits | 1 << UInt64(component.rawValue), toByteOffset: Self.header, as: UInt64.self)
  }

  mutating func read(_ number: Int) -> VectorValue {
    fetch()
    var value = VectorValue()
    if number < 16 {
      get(place(.sse, number, 16), 2, &value, 0)
      get(place(.upperHalves, number, 16), 2, &value, 2)
      get(place(.upperQuarters, number, 32), 4, &value, 4)
    } else {
      get(place(.highRegisters, number - 16, 64), 8, &value, 0)
    }
    return value
  }

  mutating func write(_ number: Int, _ value: VectorValue) {
    fetch()
    if number < 16 {
      set(.sse, place(.sse, number, 16), 2, value, 0)
      set(.upperHalves, place(.upperHalves, number, 16), 2, value, 2)
      set(.upperQuarters, place(.upperQuarters, number, 32), 4, value, 4)
    } else {
      set(.highRegisters, place(.highRegisters, number - 16, 64), 8, value, 0)
    }
  }

  mutating func readMask(_ number: Int) -> UInt64 {
    fetch()
    var value = VectorValue()
    get(place(.masks, number, 8), 1, &value, 0)
    return value.words[0]
  }

  mutating func writeMask(_ number: Int, _ mask: UInt64) {
    fetch()
    var value = VectorValue()
    value.words[0] = mask
    set(.masks, place(.masks, number, 8), 1, value, 0)
  }

  /// MXCSR's place is from before XSAVE.
  private static let status = 24

  mutating func readStatus() -> UInt32 {
    fetch()
    guard size >= Self.status + 4 else { return 0x1F80 }
    // SAFETY: just compared with the size.
    return unsafe scratch.extended.load(fromByteOffset: Self.status, as: UInt32.self)
  }

  mutating func writeStatus(_ value: UInt32) {
    fetch()
    guard size >= Self.status + 4 else { return }
    // SAFETY: as in `readStatus`.
    unsafe scratch.extended.storeBytes(of: value, toByteOffset: Self.status, as: UInt32.self)
    mark(.sse)
  }

  /// Gives the thread what was changed.
  func store() {
    guard isChanged else { return }
    _ = unsafe csys_trace_set_extended(thread, scratch.extended.baseAddress!, size)
  }
}
