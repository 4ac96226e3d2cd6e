// SPDX-License-Identifier: Apache-2.0
//
// What sysfs says of a PCI function, read from its own configuration space, so that the two
// cannot differ. Offsets are those of the PCI Local Bus and PCI Express specifications.

/// A PCI function's configuration space, little-endian, 256 or 4096 bytes.
struct ConfigurationSpace {
  let bytes: [UInt8]

  func byte(_ offset: Int) -> UInt8 { bytes.indices.contains(offset) ? bytes[offset] : 0 }
  func word(_ offset: Int) -> UInt16 {
    UInt16(byte(offset)) | UInt16(byte(offset + 1)) << 8
  }
  func long(_ offset: Int) -> UInt32 {
    UInt32(word(offset)) | UInt32(word(offset + 2)) << 16
  }

  var vendor: UInt16 { word(0x00) }
  var device: UInt16 { word(0x02) }
  var revision: UInt8 { byte(0x08) }
  /// 24 bits: base class, subclass, programming interface.
  var classCode: UInt32 { long(0x08) >> 8 }
  var subsystemVendor: UInt16 { word(0x2c) }
  var subsystemDevice: UInt16 { word(0x2e) }

  /// Offset of a capability; nil where the function has none of that id.
  func capability(_ id: UInt8) -> Int? {
    guard word(0x06) & 0x10 != 0 else { return nil }
    var offset = Int(byte(0x34) & 0xfc)
    // A list of more than 48 entries has a cycle.
    for _ in 0..<48 where offset >= 0x40 {
      if byte(offset) == id { return offset }
      offset = Int(byte(offset + 1) & 0xfc)
    }
    return nil
  }

  /// MSI-X vectors; 0 where it has none.
  var interruptVectors: Int {
    capability(0x11).map { Int(word($0 + 2) & 0x7ff) + 1 } ?? 0
  }

  /// What the links can do and do: nil for a function without one.
  var link: (speed: Int, width: Int, currentSpeed: Int, currentWidth: Int)? {
    guard let offset = capability(0x10) else { return nil }
    let capabilities = long(offset + 0x0c)
    let status = word(offset + 0x12)
    // Root complex integrated endpoints have none.
    guard word(offset + 2) >> 4 & 15 != 9 else { return nil }
    return (
      Int(capabilities & 15), Int(capabilities >> 4 & 63), Int(status & 15),
      Int(status >> 4 & 63)
    )
  }

  /// Whether it can be reset alone.
  var functionLevelReset: Bool {
    capability(0x10).map { long($0 + 4) & 1 << 28 != 0 } ?? false
  }

  /// A base address register as Linux's `resource` file shows it.
  struct Resource: Hashable {
    var first: UInt64 = 0
    /// Inclusive.
    var last: UInt64 = 0
    /// `IORESOURCE_…`.
    var flags: UInt64 = 0
  }

  /// The six base address registers.
  /// - Parameter sizes: Their sizes in bytes, 0 where there is none.
  func resources(sizes: [UInt64]) -> [Resource] { resources(at: 0x10, sizes: sizes) }

  /// Those of all virtual functions together.
  /// - Parameter sizes: As for `resources`, of one virtual function times how many there can be.
  func virtualResources(sizes: [UInt64]) -> [Resource] {
    guard sizes.contains(where: { $0 > 0 }), let start = extendedCapability(0x10) else {
      return [Resource](repeating: Resource(), count: 6)
    }
    return resources(at: start + 0x24, sizes: sizes)
  }

  /// Offset of an extended capability; nil where the function has none of that id.
  private func extendedCapability(_ id: UInt16) -> Int? {
    var offset = 0x100
    for _ in 0..<64 where offset >= 0x100 {
      if word(offset) == id { return offset }
      offset = Int(word(offset + 2) >> 4)
    }
    return nil
  }

  private func resources(at start: Int, sizes: [UInt64]) -> [Resource] {
    var resources = [Resource](repeating: Resource(), count: 6)
    var index = 0
    while index < 6 {
      let register = long(start + 4 * index)
      let size = sizes.indices.contains(index) ? sizes[index] : 0
      let wide = register & 7 == 4 || register & 7 == 6
      defer { index += wide ? 2 : 1 }
      guard size > 0 else { continue }
      var resource = Resource()
      if register & 1 != 0 {
        resource.first = UInt64(register & ~3)
        resource.flags = 0x0004_0100 | UInt64(register & 3)
      } else {
        resource.first = UInt64(register & ~15)
        if wide { resource.first |= UInt64(long(start + 4 + 4 * index)) << 32 }
        // Memory, aligned to its size; prefetchable; 64 bits wide; the register's low bits.
        resource.flags = 0x0004_0200 | UInt64(register & 15)
        if register & 8 != 0 { resource.flags |= 0x2000 }
        if wide { resource.flags |= 0x0010_0000 }
      }
      resource.last = resource.first &+ (size - 1)
      resources[index] = resource
    }
    return resources
  }
}
