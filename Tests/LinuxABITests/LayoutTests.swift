// SPDX-License-Identifier: Apache-2.0
//
// Holds the C headers, their static assertions and the layout table to what was measured on
// Linux 7.1 (abi/*.tsv).

import CLinuxABI
import Foundation
import Testing

@testable import LinuxABI

@Suite("L: the binary interface is Linux's")
struct LayoutTests {
  static let root = URL(filePath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

  /// Parts of VFIO that are not ours: other buses, other platforms, what was withdrawn.
  static let leftOut = [
    "SPAPR", "spapr", "EEH", "eeh", "CCW", "NVLINK", "nvlink", "GFX", "gfx", "_AP_", "FLAGS_AP",
    "ZPCI", "VFIO_IOMMU_ENABLE", "VFIO_IOMMU_DISABLE", "AMBA", "CDX", "FSL_MC", "PLATFORM",
    "DEPRECATED", "DEVICE_STATE_V1", "STATE_MASK", "migration_info", "IGD", "NVIDIA",
  ]

  struct Facts {
    var constants: [String: UInt64] = [:]
    var sizes: [String: Int] = [:]
    var fields: [String: (offset: Int, size: Int)] = [:]
  }

  static func facts(_ file: String) throws -> Facts {
    let url = root.appending(path: "Tests/LinuxABITests/abi/\(file)")
    var facts = Facts()
    for line in try String(contentsOf: url, encoding: .utf8).split(separator: "\n") {
      let parts = line.split(separator: "\t").map(String.init)
      if line.hasPrefix("#") || leftOut.contains(where: { parts[1].contains($0) }) { continue }
      switch parts[0] {
      case "enum", "const": facts.constants[parts[1]] = UInt64(parts[2].dropFirst(2), radix: 16)
      case "struct": facts.sizes[parts[1]] = Int(parts[2])
      case "field": facts.fields[parts[1]] = (Int(parts[2])!, Int(parts[3])!)
      default: break
      }
    }
    return facts
  }

  @Test(
    "L: every constant has Linux's value",
    arguments: ["iommufd", "vfio", "iommufd-selftest", "ioasid"])
  func constants(name: String) throws {
    let header = name == "iommufd-selftest" ? "iommufd_selftest" : name
    let url = Self.root.appending(path: "Sources/CLinuxABI/include/\(header)_abi.h")
    var defined: [String: UInt64] = [:]
    for line in try String(contentsOf: url, encoding: .utf8).split(separator: "\n") {
      let parts = line.split(separator: " ").map(String.init)
      guard parts.count == 3, parts[0] == "#define" else { continue }
      let digits = parts[2].replacing(/u(ll)?$/, with: "")
      defined[parts[1]] =
        digits.hasPrefix("0x") ? UInt64(digits.dropFirst(2), radix: 16) : UInt64(digits)
    }
    let facts = try Self.facts("\(name).tsv")
    #expect(facts.constants.count > 35)
    for (name, value) in facts.constants {
      // The kernel writes this one as an unsigned 32-bit number; it was measured sign-extended.
      let value = name == "VFIO_REGION_TYPE_PCI_VENDOR_TYPE" ? value & 0xffff_ffff : value
      #expect(defined[name] == value, "\(name)")
    }
  }

  @Test(
    "L: every structure size and field offset is asserted at compile time",
    arguments: ["iommufd", "vfio", "iommufd-selftest", "ioasid"])
  func assertions(name: String) throws {
    let url = Self.root.appending(path: "Sources/CLinuxABI/assertions.c")
    let lines = Set(try String(contentsOf: url, encoding: .utf8).split(separator: "\n"))
    let facts = try Self.facts("\(name).tsv")
    #expect(facts.sizes.count > 5)
    for (structure, size) in facts.sizes {
      #expect(lines.contains("SIZE(\(structure), \(size));"))
    }
    for (path, (offset, size)) in facts.fields {
      let dot = path.firstIndex(of: ".")!
      let structure = path[..<dot]
      let field = path[path.index(after: dot)...]
      let line =
        size == 0
        ? "TAIL(\(structure), \(field), \(offset));"
        : "FIELD(\(structure), \(field), \(offset), \(size));"
      #expect(lines.contains(line[...]), "\(line)")
    }
  }

  @Test("L: commands and structures import into Swift with Linux's numbers and sizes")
  func imports() {
    #expect(IOMMU_IOAS_MAP == 0x3b85 as UInt32)
    #expect(VFIO_DEVICE_BIND_IOMMUFD == 0x3b76 as UInt32)
    #expect(MemoryLayout<iommu_hwpt_alloc>.size == 48)
    #expect(MemoryLayout<vfio_irq_set>.size == 20)
    #expect(MemoryLayout<iommu_test_cmd>.size == 72)
  }

  @Test(
    "L: the layout table agrees with the structures",
    arguments: [StructLayout.Face.iommufd, .ioasid, .vfioDevice, .vfioGroup, .vfioContainer])
  func table(face: StructLayout.Face) throws {
    var facts = try Self.facts(face == .iommufd ? "iommufd.tsv" : "vfio.tsv")
    if face == .ioasid || face == .vfioDevice {
      let proposal = try Self.facts("ioasid.tsv")
      facts.constants.merge(proposal.constants) { $1 }
      facts.sizes.merge(proposal.sizes) { $1 }
      facts.fields.merge(proposal.fields) { $1 }
    }
    for layout in StructLayout.all(of: face) {
      #expect(facts.constants[layout.name] == UInt64(layout.command))
      guard let structure = layout.structure else { continue }
      #expect(facts.sizes[structure] == layout.size)
      for field in layout.fields {
        let fact = try #require(facts.fields["\(structure).\(field.name)"])
        #expect(fact == (field.offset, field.size), "\(structure).\(field.name)")
      }
    }
  }

  @Test("L: the layout table knows every command of /dev/iommu")
  func complete() throws {
    let commands = try Self.facts("iommufd.tsv").constants.values.filter { $0 >= 0x3b80 }
    #expect(commands.count == 21)
    for command in commands {
      #expect(StructLayout.of(UInt32(command), on: .iommufd) != nil)
    }
    #expect(StructLayout.of(VFIO_IOMMU_MAP_DMA, on: .iommufd)?.name == "VFIO_IOMMU_MAP_DMA")
    #expect(StructLayout.of(IOMMU_TEST_CMD, on: .iommufd)?.size == 72)
    #expect(StructLayout.of(0x3bff, on: .iommufd) == nil)
  }

  @Test("trace: a call is written with what goes in, its return with what comes out")
  func describe() throws {
    let layout = try #require(StructLayout.of(IOMMU_IOAS_MAP_FILE, on: .iommufd))
    var bytes = [UInt8](repeating: 0, count: 40)
    bytes[0] = 40
    bytes[4] = 6
    bytes[8] = 1
    bytes.replaceSubrange(12..<16, with: [0xff, 0xff, 0xff, 0xff])
    bytes[33] = 0x10
    #expect(
      layout.describe(bytes, returned: false)
        == "flags=0x6 ioas_id=1 fd=-1 start=0x0 length=0x0 iova=0x1000")
    #expect(layout.describe(bytes, returned: true) == "iova=0x1000")
    #expect(layout.describe(Array(bytes[..<10]), returned: false) == "flags=0x6")
  }
}
