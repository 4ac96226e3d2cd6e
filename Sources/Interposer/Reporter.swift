// SPDX-License-Identifier: Apache-2.0
//
// What the user is told: sentences about failed calls, and the trace.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// One call that we answered.
struct CallRecord {
  let call: SystemCall
  let description: CallDescription
  let file: (any OpenFile)?
  let process: Int32
  let answer: Answer
  /// In nanoseconds of the monotonic clock.
  let started: UInt64
}

/// One access to mapped registers.
struct RegisterRecord {
  let file: String
  let place: RegisterPlace
  let width: Int
  /// Of a wider access the first eight bytes.
  let value: UInt64
  let isStore: Bool
  let process: Int32
  let thread: Int32
  /// In nanoseconds of the monotonic clock.
  let started: UInt64

  /// `1234 vfio-device 0000:e0:04.0: load BAR 0 + 0x88, 8 bytes = 0x1 (3 µs)`.
  func line(ended: UInt64) -> String {
    "\(process) \(file): \(isStore ? "store" : "load") BAR \(place.bar) + "
      + "\(hex(place.offset)), \(width) bytes = \(hex(value)) (\((ended - started) / 1000) µs)"
  }
}

/// Explains and traces. Thread-safe.
final class Reporter: Sendable {
  let isTracing: Bool
  private let explains: Bool
  private let lines: Bool
  private let trace: TraceFile?
  private let events = Guarded<EventLog?>(nil)
  private let said = Guarded<Set<String>>([])

  init(_ options: RunOptions) throws(InterposerError) {
    explains = options.explain
    switch options.trace {
    case .none: (lines, trace) = (false, nil)
    case .standardError: (lines, trace) = (true, nil)
    case .file(let path): (lines, trace) = (false, try TraceFile(path))
    }
    isTracing = lines || trace != nil
  }

  /// Descriptors that are its own.
  var descriptors: [Int32] { trace.map { [$0.number] } ?? [] }

  /// Whether calls are to be reported at all.
  var isActive: Bool { isTracing || explains }

  /// How often to come by, in milliseconds; -1 where nothing waits.
  var pollInterval: Int32 { isActive ? 100 : -1 }

  static func now() -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  func attach(_ log: EventLog?) {
    guard isActive, let log else { return }
    log.startRecording()
    // The log counts from its first entry: find out when that was.
    log.append(.context(RequesterID(rawValue: 0), ""))
    let now = Int64(Self.now())
    if let first = log.drain().entries.last { trace?.alignEvents(at: now - Int64(first.time)) }
    events.withLock { $0 = log }
  }

  /// A sentence that the user must see, once.
  func say(_ sentence: String) {
    if said.withLock({ $0.insert(sentence).inserted }) {
      System.printError("iommu: " + sentence)
    }
  }

  /// A sentence about an error that no program was told of.
  func complain(_ sentence: String) { System.printError("iommu: " + sentence) }

  /// A sentence for who asked for explanations, once.
  func note(_ sentence: String) { if explains { say(sentence) } }

  /// For who asked for explanations or for a trace: which view it is, and why.
  func report(_ start: Supervisor.Start) {
    let why = start.refusal.map { ", for \($0)" } ?? ", as was asked for"
    let sentence = "/dev and /sys are shown by paths, without a mount namespace\(why)"
    if explains || lines { say(sentence) }
    trace?.write(view: sentence)
  }

  func call(_ record: CallRecord) {
    // What the device did comes before what the program did about it.
    if explains { drain() }
    if explains, case .failure(let error) = record.answer, !error.reason.isEmpty {
      let on = record.file.map { " on \($0.name)" } ?? ""
      System.printError(
        "iommu: \(record.description.name)\(on): \(error.reason) (\(error.errno.symbol))")
    }
    if lines {
      drain()
      System.printError(record.line)
    }
    trace?.write(record, ended: Self.now())
  }

  /// One access to mapped registers.
  func register(_ record: RegisterRecord) {
    let ended = Self.now()
    if lines { System.printError(record.line(ended: ended)) }
    trace?.write(record, ended: ended)
  }

  /// Moves what the engine has logged into the trace. Who asked for explanations is told of DMA
  /// faults, as the kernel's log would, and of errors that were put in.
  func drain() {
    guard isActive, let log = events.withLock({ $0 }) else { return }
    let (entries, lost) = log.drain()
    for entry in entries {
      if lines {
        System.printError("     " + entry.event.line)
      } else if explains, entry.event.isExplained {
        System.printError("iommu: " + entry.event.line)
      }
      trace?.write(entry)
    }
    if lost > 0, isTracing {
      say("\(lost) events of the engine came too fast for the trace and are missing")
    }
  }

  func flush() { trace?.flush() }

  func finish() {
    drain()
    trace?.flush(last: true)
  }
}
