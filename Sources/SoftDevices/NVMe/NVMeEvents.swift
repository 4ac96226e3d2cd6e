// SPDX-License-Identifier: Apache-2.0
//
// Asynchronous events: what the controller has to tell, and the commands that wait for it (NVM
// Express 1.4, 5.2).

/// Events of one controller. Plain data of its thread.
struct NVMeEvents {
  /// One event.
  struct Event: Hashable {
    enum Kind: UInt32 {
      case error = 0
      case health = 1
    }

    var kind: Kind
    var information: UInt32
    /// Reading it lets the next event of the kind through.
    var logPage: UInt32

    init(_ error: DoorbellError) {
      kind = .error
      information = UInt32(error.rawValue)
      logPage = UInt32(NVMeLogPage.errors.rawValue)
    }

    /// The temperature is where the driver wants to know of it.
    static let temperature = Event(
      kind: .health, information: 1, logPage: UInt32(NVMeLogPage.health.rawValue))

    /// Those that there are.
    static let all = [Event(.noSuchQueue), Event(.invalidValue), temperature]

    private init(kind: Kind, information: UInt32, logPage: UInt32) {
      self.kind = kind
      self.information = information
      self.logPage = logPage
    }

    /// Dword 0 of the completion.
    var result: UInt32 { kind.rawValue | information << 8 | logPage << 16 }
  }

  /// Commands that may wait at once.
  static let limit = 4
  var waiting: [UInt16] = []
  /// Those that were aborted.
  var cancelled: [UInt16] = []
  /// Each once.
  private(set) var pending: [Event] = []
  /// Kinds that were told and whose log was not read since.
  var told: Set<Event.Kind> = []

  /// Takes a command.
  /// - Returns: False where as many wait as may.
  mutating func take(_ identifier: UInt16) -> Bool {
    guard waiting.count < Self.limit else { return false }
    waiting.append(identifier)
    return true
  }

  mutating func add(_ event: Event) {
    if !pending.contains(event) { pending.append(event) }
  }

  /// Ends a command that waits.
  /// - Returns: False where it does not.
  mutating func cancel(_ identifier: UInt16) -> Bool {
    guard let index = waiting.firstIndex(of: identifier) else { return false }
    cancelled.append(waiting.remove(at: index))
    return true
  }

  /// The next command to complete, with its event; with none where it was aborted.
  mutating func next() -> (identifier: UInt16, event: Event?)? {
    if !cancelled.isEmpty { return (cancelled.removeFirst(), nil) }
    guard !waiting.isEmpty, let index = pending.firstIndex(where: { !told.contains($0.kind) })
    else { return nil }
    let event = pending.remove(at: index)
    told.insert(event.kind)
    return (waiting.removeFirst(), event)
  }

  /// A log page was read.
  mutating func clear(_ page: NVMeLogPage) {
    switch page {
    case .errors: told.remove(.error)
    case .health: told.remove(.health)
    default: break
    }
  }

  mutating func reset() { self = NVMeEvents() }
}
