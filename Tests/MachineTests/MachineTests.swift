// SPDX-License-Identifier: Apache-2.0
//
// The machine file: what it accepts, what it makes of it, and the round trip.

import IOMMU
import Machine
import Testing

func machine(_ text: String) throws -> MachineDescription {
  try MachineDescription(file: "m.yaml", bytes: Array(text.utf8))
}

let small = """
  iommus:
    - name: dmar0
      kind: intel
  devices:
    - model: copy-engine
      address: 0000:e0:04.0
      group: 0

  """

@Suite("Machine file") struct MachineFileTests {
  @Test("the default machine survives its own file") func defaultRoundTrip() throws {
    #expect(try machine(MachineDescription.standard.yaml) == .standard)
  }

  @Test("C2: the default machine has one engine alone and two in one group")
  func defaultGroups() {
    let sizes = MachineDescription.standard.groups.map(\.devices.count)
    #expect(sizes == [1, 2])
    #expect(MachineDescription.standard.iommus.map(\.kind) == [.intel])
    #expect(MachineDescription.standard.iommus.map(\.addressWidth) == [48])
  }

  @Test("a machine with everything set survives its own file") func fullRoundTrip() throws {
    let full = MachineDescription(
      name: "a \"quoted\" name: # \\ \t\u{7f} ü",
      iommus: [
        IOMMUDescription(
          name: "dmar0", kind: .intel, stage: .first, levels: 5, addressWidth: 57,
          pasidBits: 20, nesting: false, pageRequests: true, snoopControl: false,
          dirtyTracking: .none),
        IOMMUDescription(name: "ivhd0", kind: .amd, levels: 6, addressWidth: 64, pasidBits: 8),
        IOMMUDescription(
          name: "smmu3.0x9050000", kind: .smmuV3, addressWidth: 42, dirtyTracking: .software),
        IOMMUDescription(name: "riscv0", kind: .riscv, stage: .second, addressWidth: 57),
      ],
      devices: [
        DeviceDescription(
          model: .copyEngine(
            CopyEngineDescription(version: 0x34, fill: true, localMemory: 1 << 20)),
          address: RequesterID(segment: 1, bus: 0xff, device: 31, function: 7), group: 9,
          iommu: "ivhd0", hostDriver: .ioatdma,
          rootPort: RequesterID(segment: 1, bus: 0xfe, device: 0, function: 1)),
        DeviceDescription(
          model: .copyEngine(CopyEngineDescription(version: 0x32)),
          address: RequesterID(bus: 0, device: 1, function: 0), group: 0, iommu: "dmar0",
          hostDriver: .none),
      ],
      reserved: [
        ReservedRegion(0...0xfff, kind: .direct),
        ReservedRegion(0xffff_ffff_ffff_f000...UInt64.max, kind: .reserved),
      ])
    #expect(try machine(full.yaml) == full)
  }

  @Test("what is left out gets a default") func defaults() throws {
    let machine = try machine(small)
    #expect(machine.name == "machine")
    #expect(machine.iommus == [IOMMUDescription(name: "dmar0", kind: .intel)])
    #expect(machine.devices.map(\.iommu) == ["dmar0"])
    #expect(machine.devices.map(\.hostDriver) == [.vfio])
    #expect(machine.devices.map(\.model) == [.copyEngine(CopyEngineDescription())])
    #expect(machine.reserved.isEmpty)
  }

  @Test("B1: every machine reserves the message window") func messageWindow() throws {
    #expect(
      try machine(small).reservedRegions == [
        ReservedRegion(0xfee0_0000...0xfeef_ffff, kind: .msi)
      ])
  }

  @Test(
    "levels and address width follow from each other",
    arguments: [
      ("intel", "levels: 3", 3, 39), ("intel", "levels: 5", 5, 57),
      ("intel", "address-width: 39", 3, 39), ("intel", "address-width: 57", 5, 57),
      ("amd", "levels: 6", 6, 64), ("amd", "address-width: 64", 6, 64),
      ("amd", "address-width: 0x30", 4, 48), ("amd", "stage: first", 4, 48),
      ("amd", "stage: first\n    levels: 5", 5, 57), ("smmuv3", "", 4, 48),
      ("smmuv3", "address-width: 36", 3, 36), ("smmuv3", "stage: second", 4, 48),
      ("riscv", "levels: 3", 3, 39), ("riscv", "stage: second\n    levels: 5", 5, 57),
    ])
  func sizes(kind: String, line: String, levels: Int, width: Int) throws {
    let text = small.replacing("    kind: intel", with: "    kind: \(kind)\n    \(line)")
    let iommu = try #require(try machine(text).iommus.first)
    #expect(iommu.levels == levels)
    #expect(iommu.addressWidth == width)
  }

  @Test(
    "sizes are bytes, or with a unit",
    arguments: [
      ("4KiB", 4096), ("1MiB", 1 << 20), ("1 GiB", 1 << 30), ("65536", 65_536),
      ("0x100000", 1 << 20),
    ] as [(String, UInt64)])
  func memorySizes(text: String, size: UInt64) throws {
    let machine = try machine(
      small.replacing("group: 0", with: "group: 0\n    local-memory: \(text)"))
    #expect(machine.devices.map(\.model) == [.copyEngine(.init(localMemory: size))])
    let made = try Machine(machine)
    #expect(made.functions[0].bar(2)?.size == size)
    #expect(made.functions[0].barAddresses[1] >= 1 << 32)
  }

  @Test("flow style, comments, a byte order mark and aliases are read") func otherStyles()
    throws
  {
    let text = """
      \u{FEFF}# a comment
      iommus: [ { name: &unit ivhd0, kind: amd } ]   # flow
      devices:
        - { model: copy-engine, address: "e0:04.0", group: 0x10, iommu: *unit }
      """
    let machine = try machine(text)
    #expect(machine.devices.map(\.address.description) == ["0000:e0:04.0"])
    #expect(machine.devices.map(\.group) == [16])
    #expect(machine.devices.map(\.iommu) == ["ivhd0"])
  }

  @Test("a machine may have no devices") func noDevices() throws {
    let text = "iommus: [{name: dmar0, kind: intel}]\ndevices: []\n"
    #expect(try machine(text).groups.isEmpty)
  }

  @Test("D1: the page tables of a machine have a limit") func tableLimit() throws {
    let made = try Machine(machine(small))
    #expect(made.iommus.map(\.configuration.maximumTablePages) == [262_144])
  }
}
