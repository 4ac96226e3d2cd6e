// SPDX-License-Identifier: Apache-2.0
//
// A file in /sys that is asked and told. Linux: `struct device_attribute`, with sysfs's manners:
// a read from offset 0 shows, each write(2) stores.

import IOMMU
import SystemPackage

/// What shows and takes the text of one file in /sys. Thread-safe.
///
/// How to use it:
/// 1. Make one of these, or a `CommandAttribute`, and put it into a view as
///    `View.Entry(path, .attribute(it))`; in `Machine`, `SysfsBuilder.attribute(_:_:)` does.
/// 2. `show` is called for each read from offset 0, and gives the text with its newline.
/// 3. `store` is called once for each `write(2)`, before that returns, with at most 4096 bytes
///    as they were written: `attributeValue(_:)` takes the newline off. What it throws is the
///    write's errno, and its sentence is what `--explain` prints.
/// 4. A store may change what is there by `LiveView.change(_:)`: programs see all of the change
///    before their write returns.
/// 5. Calls come from several threads, one at a time or not: guard what you keep. They hold
///    none of the engine's locks.
public protocol Attribute: AnyObject, Sendable {
  /// Permissions, as `stat(2)` shows them: 0o644, 0o200 for a file that only takes commands.
  /// Like sysfs, a read without `0o444` in it or a write without `0o222` is `EACCES` for root
  /// too.
  var mode: UInt16 { get }

  /// What the file says now, with its newline.
  /// - Throws: `EIO` where it cannot be read.
  func show() throws(IOMMUError) -> String

  /// Does what one `write(2)` says.
  /// - Parameters:
  ///   - text: As written; with or without a newline.
  ///   - caller: Who writes. A shell's write to a descriptor below 768 may come after the call:
  ///     then the caller is who opened the file, and its memory and descriptors cannot be had.
  /// - Throws: The write's errno.
  func store(_ text: String, by caller: any Caller) throws(IOMMUError)
}

extension Attribute {
  public func show() throws(IOMMUError) -> String {
    throw IOMMUError(.ioError, "this attribute takes commands and shows nothing")
  }

  public func store(_ text: String, by caller: any Caller) throws(IOMMUError) {
    throw IOMMUError(.ioError, "this attribute cannot be written")
  }
}

/// An attribute of bytes, which are read and written at any offset. Linux: `struct bin_attribute`.
/// Thread-safe.
public protocol BinaryAttribute: Attribute {
  /// All bytes as they are now: as many each time.
  func read() throws(IOMMUError) -> [UInt8]

  /// Does what one `write(2)` says.
  /// - Parameters:
  ///   - bytes: At least one; they lie inside of what there is.
  ///   - offset: Of the first one.
  func write(_ bytes: [UInt8], at offset: Int) throws(IOMMUError)
}

/// An attribute made of closures.
public final class CommandAttribute: Attribute {
  public let mode: UInt16
  private let shows: (@Sendable () throws(IOMMUError) -> String)?
  private let stores: (@Sendable (String, any Caller) throws(IOMMUError) -> Void)?

  /// - Parameters:
  ///   - mode: Nil is what the closures say: 0444, 0200 or 0644.
  ///   - show: The value without a newline, which is added.
  ///   - store: Gets the value without its newline.
  public init(
    mode: UInt16? = nil, show: (@Sendable () throws(IOMMUError) -> String)? = nil,
    store: (@Sendable (String, any Caller) throws(IOMMUError) -> Void)? = nil
  ) {
    self.mode = mode ?? (store == nil ? 0o444 : show == nil ? 0o200 : 0o644)
    shows = show
    stores = store
  }

  public func show() throws(IOMMUError) -> String {
    guard let shows else {
      throw IOMMUError(.ioError, "this attribute takes commands and shows nothing")
    }
    return try shows() + "\n"
  }

  public func store(_ text: String, by caller: any Caller) throws(IOMMUError) {
    guard let stores else { throw IOMMUError(.ioError, "this attribute cannot be written") }
    try stores(attributeValue(text), caller)
  }
}

/// What was written to an attribute, as Linux compares it (`sysfs_streq`): up to a zero byte,
/// without one newline at the end.
public func attributeValue(_ text: String) -> String {
  var value = text.prefix { $0 != "\0" }
  if value.hasSuffix("\n") { value.removeLast() }
  return String(value)
}
