// SPDX-License-Identifier: Apache-2.0
//
// Pages of doorbells: plain memory that a busy device polls, registers that trap while it rests.
// So a ring costs a store while there is work, and an idle device costs no CPU (MODEL J1).

/// The doorbells of one open of a device, as its carrier keeps them: 32-bit words. Closed at first,
/// all zero. Thread-safe.
///
/// No ring is lost between the two: a store comes before `close` has taken the page away, and is
/// in what `load` gives from then on; or after it, and traps. So a device rests like this: close,
/// look at every word once more, open again where one has changed, sleep where none has.
public protocol DoorbellPages: AnyObject, Sendable {
  /// In bytes, a multiple of 4 KiB.
  var byteCount: UInt64 { get }

  /// From here on stores of programs that have trapped once land in the page, and nobody is told of
  /// them. The page opens with what the words are: none of them is ever seen as anything else.
  /// Nothing happens where it is open.
  func open()

  /// A word: of the page while it is open, in one atomic load; what it was last while it is closed.
  /// What the program stored before it stored the word is seen by who loads the word.
  /// - Parameter offset: In bytes from the first doorbell, a multiple of 4, inside.
  func load(_ offset: UInt64) -> UInt32

  /// Sets a word, open or closed. A model does so with what a trapped access wrote, so that the
  /// words are always what was written last, and with zeros at a reset.
  /// - Parameter offset: As in `load`.
  func store(_ value: UInt32, at offset: UInt64)

  /// From its return on every store traps again, as a write of a register; and `load` gives what
  /// the page held at last. Nothing happens where it is closed.
  func close()
}
