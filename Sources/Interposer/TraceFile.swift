// SPDX-License-Identifier: Apache-2.0
//
// The trace as Chrome and Perfetto read it: one JSON array, whole after every flush, so that a
// trace is good whatever ends the program.

import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Thread-safe.
final class TraceFile: Sendable {
  private struct State {
    var pending = ""
    var isFirst = true
    /// Where the closing bracket is, in a file that can be written again there.
    var end: off_t = 0
    /// A write failed, and the user was told.
    var isShort = false
  }

  /// Of the file, or the pipe.
  var number: Int32 { descriptor.number }

  private let descriptor: OwnedDescriptor
  private let canSeek: Bool
  private let state = Guarded(State())
  /// Monotonic time of the trace's zero, in nanoseconds.
  private let origin = Reporter.now()
  private let eventOrigin = Guarded<Int64>(0)
  private static let flushSize = 1 << 16

  init(_ path: String) throws(InterposerError) {
    let number = System.open(path, O_WRONLY | O_CREAT | O_TRUNC)
    guard number >= 0 else {
      throw InterposerError("cannot write the trace \(path): \(System.message(number))")
    }
    descriptor = OwnedDescriptor(number)
    canSeek = lseek(number, 0, SEEK_SET) == 0
    flush()
  }

  /// Sets the monotonic time at which the engine's log counts zero.
  func alignEvents(at nanoseconds: Int64) { eventOrigin.withLock { $0 = nanoseconds } }

  func write(_ record: CallRecord, ended: UInt64) {
    var arguments = record.description.fields
    if let file = record.file { arguments.append(("file", file.name)) }
    arguments.append(("result", record.result))
    append(
      "{\"ph\":\"X\",\"cat\":\"call\",\"name\":\(quote(record.description.name)),"
        + "\"pid\":\(record.process),\"tid\":\(record.call.thread),"
        + "\"ts\":\(microseconds(Int64(record.started))),"
        + "\"dur\":\(thousandths(Int64(ended &- record.started))),"
        + "\"args\":{\(object(arguments))}}")
  }

  func write(_ record: RegisterRecord, ended: UInt64) {
    append(
      "{\"ph\":\"X\",\"cat\":\"register\",\"name\":\"\(record.isStore ? "store" : "load")\","
        + "\"pid\":\(record.process),\"tid\":\(record.thread),"
        + "\"ts\":\(microseconds(Int64(record.started))),"
        + "\"dur\":\(thousandths(Int64(ended &- record.started))),"
        + "\"args\":{\"file\":\(quote(record.file)),\"bar\":\"\(record.place.bar)\","
        + "\"offset\":\"\(hex(record.place.offset))\",\"width\":\"\(record.width)\","
        + "\"value\":\"\(hex(record.value))\"}}")
  }

  func write(_ entry: EventLog.Entry) {
    let time = eventOrigin.withLock { $0 } + Int64(entry.time)
    append(
      "{\"ph\":\"i\",\"s\":\"g\",\"cat\":\"engine\",\"name\":\(quote(entry.event.kind)),"
        + "\"pid\":0,\"tid\":0,\"ts\":\(microseconds(time)),"
        + "\"args\":{\"what\":\(quote(entry.event.line))}}")
  }

  func write(view sentence: String) {
    let now = microseconds(Int64(Reporter.now()))
    append(
      "{\"ph\":\"i\",\"s\":\"g\",\"cat\":\"run\",\"name\":\"view\",\"pid\":0,\"tid\":0,\"ts\":\(now),"
        + "\"args\":{\"what\":\(quote(sentence))}}")
  }

  private func object(_ fields: [(name: String, value: String)]) -> String {
    fields.map { "\(quote($0.name)):\(quote($0.value))" }.joined(separator: ",")
  }

  private func microseconds(_ time: Int64) -> String {
    thousandths(max(0, time - Int64(origin)))
  }

  private func thousandths(_ nanoseconds: Int64) -> String {
    let rest = nanoseconds % 1000
    return "\(nanoseconds / 1000)." + (rest < 10 ? "00" : rest < 100 ? "0" : "") + "\(rest)"
  }

  private func quote(_ text: String) -> String {
    var out = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": out += "\\\""
      case "\\": out += "\\\\"
      case _ where scalar.value < 0x20:
        out += "\\u00" + (scalar.value < 16 ? "0" : "") + String(scalar.value, radix: 16)
      default: out.unicodeScalars.append(scalar)
      }
    }
    return out + "\""
  }

  private func append(_ event: String) {
    let full = state.withLock { state in
      state.pending += state.isFirst ? "\n" : ",\n"
      state.pending += event
      state.isFirst = false
      return state.pending.utf8.count >= Self.flushSize
    }
    if full { flush() }
  }

  /// Writes what is pending and closes the array behind it. A pipe gets its bracket at the end.
  func flush(last: Bool = false) {
    // The system call is made under the lock: the parts must stay in order.
    state.withLock { state in
      guard !state.pending.isEmpty || last || state.end == 0 else { return }
      var bytes = Array(state.pending.utf8)
      if state.end == 0 { bytes.insert(UInt8(ascii: "["), at: 0) }
      state.pending = ""
      if canSeek { lseek(descriptor.number, state.end, SEEK_SET) }
      state.end += off_t(bytes.count)
      if canSeek || last { bytes += Array("\n]\n".utf8) }
      guard !System.writeAll(descriptor.number, bytes), !state.isShort else { return }
      state.isShort = true
      System.printError(
        "iommu: the trace cannot be written (\(System.message(-errno))): it is incomplete")
    }
  }
}
