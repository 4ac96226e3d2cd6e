// SPDX-License-Identifier: Apache-2.0
//
// What each ioctl command is called and where the fields of its structure lie: what a trace
// needs to print a call as its caller wrote it. Names are the kernel's; a test holds the
// offsets to those of CLinuxABI.

import CLinuxABI

/// One command and its structure.
public struct StructLayout: Sendable {
  /// The number as `ioctl(2)` takes it.
  public let command: UInt32
  /// `IOMMU_IOAS_MAP`.
  public let name: String
  /// The C structure's name; nil where the argument is no structure.
  public let structure: String?
  /// Size of the structure as Linux 7.1 has it, in bytes; 0 where there is none.
  public let size: Int
  /// In order of offset. Sizes (`size`, `argsz`) and reserved fields are left out.
  public let fields: [Field]

  /// One field of a structure.
  public struct Field: Sendable {
    public let name: String
    /// From the start of the structure, in bytes.
    public let offset: Int
    /// In bytes: 1, 2, 4 or 8.
    public let size: Int
    public let direction: Direction
    public let format: Format

    init(_ name: String, _ offset: Int, _ size: Int, _ direction: Direction, _ format: Format) {
      self.name = name
      self.offset = offset
      self.size = size
      self.direction = direction
      self.format = format
    }
  }

  /// Who writes a field.
  public enum Direction: Sendable {
    case `in`, out, `inout`
  }

  /// How a field reads best.
  public enum Format: Sendable {
    case decimal
    /// Addresses, lengths and flags.
    case hex
    /// An address of the caller.
    case pointer
    /// A file descriptor, signed.
    case descriptor
  }

  /// Which file a command goes to: VFIO uses some numbers for a device and for a container.
  public enum Face: Sendable {
    case iommufd, ioasid, vfioDevice, vfioGroup, vfioContainer, kvm
  }

  init(
    _ command: UInt32, _ name: String, _ structure: String? = nil, size: Int = 0,
    _ fields: [Field] = []
  ) {
    self.command = command
    self.name = name
    self.structure = structure
    self.size = size
    self.fields = fields
  }

  /// All commands that one kind of file knows.
  public static func all(of face: Face) -> [StructLayout] {
    switch face {
    case .iommufd: iommufd
    case .ioasid: ioasid
    case .vfioDevice: vfioDevice + vfioDeviceIOASID
    case .vfioGroup: vfioGroup
    case .vfioContainer: vfioContainer
    case .kvm: kvm
    }
  }

  /// The layout of a command; nil where the file does not know it. /dev/iommu also answers
  /// a container's commands and, to self-tests, the back door.
  public static func of(_ command: UInt32, on face: Face) -> StructLayout? {
    let known = face == .iommufd ? iommufd + vfioContainer + [selfTest] : all(of: face)
    return known.first { $0.command == command }
  }

  /// The back door of the self-tests: only what all of its operations have.
  private static let selfTest = StructLayout(
    IOMMU_TEST_CMD, "IOMMU_TEST_CMD", "iommu_test_cmd", size: 72,
    [.init("op", 4, 4, .in, .decimal), .init("id", 8, 4, .in, .decimal)])

  /// Writes the fields as `name=value`, in order.
  ///
  /// - Parameters:
  ///   - bytes: The structure as the caller has it in memory; it may be shorter than `size`,
  ///     then what is missing is left out.
  ///   - returned: Whether the call has come back: before it, fields that the call writes are
  ///     left out; after it, those that only the caller writes are.
  public func describe(_ bytes: [UInt8], returned: Bool) -> String {
    fields.compactMap { field -> String? in
      guard field.direction != (returned ? .in : .out),
        let value = field.value(in: bytes)
      else { return nil }
      return "\(field.name)=\(field.text(value))"
    }.joined(separator: " ")
  }
}

extension StructLayout.Field {
  /// The field's value, little-endian, zero-extended; nil where `bytes` end before it.
  public func value(in bytes: [UInt8]) -> UInt64? {
    guard size <= 8, offset + size <= bytes.count else { return nil }
    return bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// A value in the field's format.
  public func text(_ value: UInt64) -> String {
    switch format {
    case .decimal: String(value)
    case .hex, .pointer: "0x" + String(value, radix: 16)
    case .descriptor: String(Int32(truncatingIfNeeded: value))
    }
  }
}
