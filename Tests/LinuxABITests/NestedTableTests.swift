// SPDX-License-Identifier: Apache-2.0
//
// HWPT_ALLOC and HWPT_INVALIDATE of users' tables, errno by errno, as a program gets them on an
// IOMMU of each kind (MODEL B2, G1).

import CLinuxABI
import Glibc
import IOMMU
import LinuxABI
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@Suite("B2: users' tables by ioctl", .serialized)
struct NestedTableTests {
  /// A device on an IOMMU, a space with memory, and a nest parent.
  private struct Rig {
    let engine: EngineRig
    let parent: UInt32
    static let data: UInt64 = 0x3000

    init(_ architecture: SoftwareIOMMU.Architecture) throws {
      engine = try EngineRig(iommu: .init(architecture: architecture, pasidBits: 8))
      try engine.connect()
      #expect(engine.map(0x10_0000, to: 0x10_0000, length: 0x40_0000) == 0)
      var alloc = iommu_hwpt_alloc()
      alloc.size = 48
      alloc.flags = IOMMU_HWPT_ALLOC_NEST_PARENT
      alloc.dev_id = engine.deviceID
      alloc.pt_id = engine.ioas
      #expect(engine.caller.ioctl(engine.iommuFile, IOMMU_HWPT_ALLOC, &alloc) == 0)
      parent = alloc.out_hwpt_id
    }

    /// HWPT_ALLOC with words for data. Returns the id, or a negative errno.
    func allocate(
      on parent: UInt32? = nil, type: UInt32, _ words: [UInt64], length: UInt32? = nil,
      flags: UInt32 = 0
    ) -> Int {
      for (index, word) in words.enumerated() {
        engine.caller.put(word, at: Self.data + UInt64(index) * 8)
      }
      var alloc = iommu_hwpt_alloc()
      alloc.size = 48
      alloc.flags = flags
      alloc.dev_id = engine.deviceID
      alloc.pt_id = parent ?? self.parent
      alloc.data_type = type
      alloc.data_len = length ?? UInt32(words.count * 8)
      alloc.data_uptr = alloc.data_len == 0 ? 0 : Self.data
      let result = engine.caller.ioctl(engine.iommuFile, IOMMU_HWPT_ALLOC, &alloc)
      return result == 0 ? Int(alloc.out_hwpt_id) : Int(result)
    }

    func virtual(type: UInt32, on parent: UInt32? = nil) -> Int {
      var alloc = iommu_viommu_alloc()
      alloc.size = 40
      alloc.type = type
      alloc.dev_id = engine.deviceID
      alloc.hwpt_id = parent ?? self.parent
      let result = engine.caller.ioctl(engine.iommuFile, IOMMU_VIOMMU_ALLOC, &alloc)
      return result == 0 ? Int(alloc.out_viommu_id) : Int(result)
    }

    func name(_ virtual: UInt32, _ id: UInt64) -> Int32 {
      var alloc = iommu_vdevice_alloc()
      alloc.size = 24
      alloc.viommu_id = virtual
      alloc.dev_id = engine.deviceID
      alloc.virt_id = id
      return engine.caller.ioctl(engine.iommuFile, IOMMU_VDEVICE_ALLOC, &alloc)
    }

    /// HWPT_INVALIDATE: the result, and how many were handled.
    func invalidate(
      _ id: UInt32, type: UInt32, entry: UInt32, _ words: [UInt64]
    ) -> (result: Int32, handled: UInt32) {
      for (index, word) in words.enumerated() {
        engine.caller.put(word, at: Self.data + UInt64(index) * 8)
      }
      var call = iommu_hwpt_invalidate()
      call.size = 32
      call.hwpt_id = id
      call.data_uptr = words.isEmpty ? 0 : Self.data
      call.data_type = type
      call.entry_len = entry
      call.entry_num = UInt32(words.count * 8) / max(entry, 1)
      let result = engine.caller.ioctl(engine.iommuFile, IOMMU_HWPT_INVALIDATE, &call)
      return (result, call.entry_num)
    }
  }

  @Test("B2: iommu_hwpt_vtd_s1: HWPT_ALLOC, attach and HWPT_INVALIDATE, errno by errno")
  func intel() throws {
    let rig = try Rig(.intel)
    let good: [UInt64] = [0, 0x20_0000, 48]
    let id = rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, good)
    try #require(id > 0)
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, good, flags: IOMMU_HWPT_ALLOC_PASID) > 0)
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_NONE, [], length: 0) == -Int(EOPNOTSUPP))
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_NONE, good) == -Int(EINVAL))
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_ARM_SMMUV3, good) == -Int(EOPNOTSUPP))
    #expect(rig.allocate(type: 0x8000_0000, good) == -Int(EOPNOTSUPP))
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, good, length: 16) == -Int(EINVAL))
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, good + [0]) == -Int(EINVAL))
    #expect(
      rig.allocate(
        type: IOMMU_HWPT_DATA_VTD_S1, good, flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
        == -Int(EOPNOTSUPP))
    #expect(
      rig.allocate(on: UInt32(id), type: IOMMU_HWPT_DATA_VTD_S1, good) == -Int(EINVAL),
      "not on a nested one")
    #expect(
      rig.allocate(on: rig.engine.ioas, type: IOMMU_HWPT_DATA_VTD_S1, good)
        == -Int(EOPNOTSUPP), "nor on a space")
    #expect(rig.virtual(type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3) == -Int(EOPNOTSUPP))
    let narrow = rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, [0, 0x20_0000, 39])
    #expect(narrow > 0, "what it says is looked at when a device is attached")
    #expect(rig.engine.attach(UInt32(narrow)) == -EINVAL)
    #expect(rig.engine.attach(UInt32(id)) == 0)

    let type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1
    let page: [UInt64] = [0x5000, 1, UInt64(IOMMU_VTD_INV_FLAGS_LEAF)]
    #expect(rig.invalidate(UInt32(id), type: type, entry: 24, page + [0, .max, 0]) == (0, 2))
    #expect(
      rig.invalidate(UInt32(id), type: type, entry: 24, page + [1, 1, 0]) == (-EINVAL, 1))
    #expect(
      rig.invalidate(UInt32(id), type: type, entry: 24, page + page + [0, 1, 2])
        == (-EOPNOTSUPP, 2))
    #expect(rig.invalidate(UInt32(id), type: 1, entry: 24, page) == (-EINVAL, 0))
    #expect(rig.invalidate(UInt32(id), type: type, entry: 16, [0, 0]) == (-EINVAL, 0))
    #expect(rig.invalidate(rig.parent, type: type, entry: 24, page) == (-EINVAL, 0))
    #expect(rig.invalidate(9999, type: type, entry: 24, page) == (-ENOENT, 0))
    #expect(rig.engine.detach() == 0)
  }

  @Test("B2: iommu_hwpt_arm_smmuv3: in a virtual SMMUv3, errno by errno")
  func smmu() throws {
    let rig = try Rig(.smmuV3)
    let translate: [UInt64] = [0x20_0000 | 5 << 1 | 1, 0]
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_ARM_SMMUV3, translate) == -Int(EOPNOTSUPP))
    #expect(rig.virtual(type: IOMMU_VIOMMU_TYPE_DEFAULT) == -Int(EOPNOTSUPP))
    #expect(rig.virtual(type: IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV) == -Int(EOPNOTSUPP))
    let virtual = rig.virtual(type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3)
    try #require(virtual > 0)
    let owner = UInt32(virtual)
    func allocate(
      _ words: [UInt64], type: UInt32 = IOMMU_HWPT_DATA_ARM_SMMUV3, flags: UInt32 = 0
    )
      -> Int
    {
      rig.allocate(on: owner, type: type, words, flags: flags)
    }
    let id = allocate(translate)
    try #require(id > 0)
    #expect(allocate([1 | 6 << 1, 0]) == -Int(EIO))
    #expect(allocate([1 | 5 << 1, 2 << 28]) == -Int(EIO))
    #expect(allocate(translate, type: IOMMU_HWPT_DATA_VTD_S1) == -Int(EINVAL))
    #expect(allocate([1]) == -Int(EINVAL))
    #expect(allocate([1, 0, 0]) == -Int(EINVAL))
    #expect(allocate(translate, flags: IOMMU_HWPT_ALLOC_PASID) == -Int(EOPNOTSUPP))
    #expect(rig.engine.attach(UInt32(id)) == -ENOENT, "no virtual device")
    #expect(rig.name(owner, 0x42) == 0)
    #expect(rig.engine.attach(UInt32(id)) == 0)

    let type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3
    let all: [UInt64] = [0x10, 0]
    #expect(rig.invalidate(owner, type: type, entry: 16, all + [6 | 0x42 << 32, 0]) == (0, 2))
    #expect(
      rig.invalidate(owner, type: type, entry: 16, all + [6 | 0x43 << 32, 0]) == (-EIO, 1))
    #expect(
      rig.invalidate(owner, type: type, entry: 16, all + [3 | 0x42 << 32, 0]) == (-EIO, 1))
    #expect(rig.invalidate(owner, type: 0, entry: 16, all) == (-EINVAL, 0))
    #expect(rig.invalidate(owner, type: type, entry: 0, []) == (-EINVAL, 0))
    #expect(rig.invalidate(owner, type: type, entry: 24, all + [1]) == (-E2BIG, 0))
    #expect(rig.invalidate(UInt32(id), type: type, entry: 16, all) == (-EOPNOTSUPP, 0))
    #expect(rig.engine.detach() == 0)
  }

  @Test(
    "H2: a guest reads the stage 1 faults of its streams, by its own names, and of no other stage"
  )
  func events() throws {
    let rig = try Rig(.smmuV3)
    let (engine, caller) = (rig.engine, rig.engine.caller)
    let virtual = rig.virtual(type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3)
    try #require(virtual > 0)
    var alloc = iommu_veventq_alloc()
    alloc.size = 32
    alloc.viommu_id = UInt32(virtual)
    alloc.type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3
    alloc.veventq_depth = 2
    #expect(caller.ioctl(engine.iommuFile, IOMMU_VEVENTQ_ALLOC, &alloc) == 0)
    let queue = Int32(bitPattern: alloc.out_veventq_fd)
    // A context descriptor at 0x200000: T0SZ 16, EPD1, V, IPS, AFFD, AA64, R, A; its table at
    // 0x201000, which leads nowhere but by one entry beyond what is mapped.
    let words: [UInt64] = [
      16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 35 | 1 << 41 | 1 << 45 | 1 << 46, 0x20_1000,
    ]
    for (index, word) in words.enumerated() {
      caller.put(word, at: 0x20_0000 + UInt64(index) * 8)
    }
    caller.put(UInt64(0x4000_0003), at: 0x20_1008)
    let id = rig.allocate(
      on: UInt32(virtual), type: IOMMU_HWPT_DATA_ARM_SMMUV3, [0x20_0000 | 5 << 1 | 1, 0])
    try #require(id > 0)
    #expect(rig.name(UInt32(virtual), 0x42) == 0)
    #expect(engine.attach(UInt32(id)) == 0)
    let port = engine.iommu.port(for: engine.requester)
    func fault(_ iova: UInt64) {
      #expect(throws: DMAFault.self) { try port.store(UInt64(1), at: IOVA(iova)) }
    }
    fault(0x5008)
    #expect(caller.read(queue, Rig.data, count: 64) == 40)
    #expect(caller.get(UInt32.self, at: Rig.data) == 0)
    #expect(caller.get(UInt64.self, at: Rig.data + 8) == 0x42 << 32 | 0x10, "F_TRANSLATION")
    #expect(caller.get(UInt64.self, at: Rig.data + 24) == 0x5008)
    fault(0x80_0000_0000)
    #expect(
      caller.read(queue, Rig.data, count: 64) == 0, "the table is not the guest's to reach")
    caller.put(UInt64(0), at: 0x20_0000)
    #expect(
      rig.invalidate(
        UInt32(virtual), type: IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, entry: 16,
        [6 | 0x42 << 32, 0]) == (0, 1))
    for _ in 0..<3 { fault(0x5008) }
    #expect(caller.read(queue, Rig.data, count: 256) == 40 + 40 + 8, "two, and one is lost")
    #expect(caller.get(UInt64.self, at: Rig.data + 8) == 0x42 << 32 | 0x0A, "C_BAD_CD")
    #expect(caller.get(UInt32.self, at: Rig.data + 80) == 1)
    #expect(engine.detach() == 0)
    // An open queue keeps all that it is of.
    caller.closeAll()
  }

  @Test("B2: iommu_hwpt_amd_guest: in a virtual IOMMU of any type, errno by errno")
  func amd() throws {
    let rig = try Rig(.amd)
    let entry: [UInt64] = [3 | 1 << 55 | 1 << 54 | 1 << 58, 0, 0, 0]
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_AMD_GUEST, entry) == -Int(EOPNOTSUPP))
    let virtual = rig.virtual(type: 0x77)
    try #require(virtual > 0)
    func allocate(_ words: [UInt64], type: UInt32 = IOMMU_HWPT_DATA_AMD_GUEST) -> Int {
      rig.allocate(on: UInt32(virtual), type: type, words)
    }
    let id = allocate(entry)
    try #require(id > 0)
    #expect(allocate([3 | 1 << 55, 0, 0, 0]) == -Int(EINVAL), "no GCR3 table")
    #expect(allocate([entry[0] | 1 << 9, 0, 0, 0]) == -Int(EINVAL), "Mode")
    #expect(allocate([entry[0], 0, 1 << 54, 0]) == -Int(EOPNOTSUPP), "five levels")
    #expect(allocate([entry[0], 0, 2 << 54, 0]) == -Int(EINVAL))
    #expect(allocate(entry, type: IOMMU_HWPT_DATA_ARM_SMMUV3) == -Int(EOPNOTSUPP))
    #expect(allocate([entry[0], 0, 0]) == -Int(EINVAL))
    #expect(rig.engine.attach(UInt32(id)) == 0)
    #expect(
      rig.invalidate(UInt32(virtual), type: 1, entry: 16, [0, 0]) == (-EOPNOTSUPP, 0),
      "Linux takes none")
    #expect(rig.invalidate(UInt32(id), type: 0, entry: 24, [0, 1, 0]) == (-EOPNOTSUPP, 0))
    #expect(rig.engine.detach() == 0)
  }

  /// Linux asks the driver whether there is any such table before it looks at the parent.
  @Test(
    "B2: a parent that was not made to be one is EINVAL where tables nest on one, else EOPNOTSUPP",
    arguments: [
      (SoftwareIOMMU.Architecture.intel, -Int(EINVAL)), (.smmuV3, -Int(EOPNOTSUPP)),
      (.amd, -Int(EOPNOTSUPP)), (.riscv, -Int(EOPNOTSUPP)),
    ])
  func plainParent(architecture: SoftwareIOMMU.Architecture, errno: Int) throws {
    let rig = try Rig(architecture)
    let plain = rig.allocate(on: rig.engine.ioas, type: IOMMU_HWPT_DATA_NONE, [], length: 0)
    try #require(plain > 0)
    for type in 1...4 as ClosedRange<UInt32> {
      #expect(rig.allocate(on: UInt32(plain), type: type, [1, 0, 48]) == errno)
    }
    #expect(
      rig.allocate(on: UInt32(plain), type: 1, [1, 0, 48], flags: IOMMU_HWPT_ALLOC_NEST_PARENT)
        == -Int(EOPNOTSUPP), "flags come before the parent")
    #expect(
      rig.allocate(on: UInt32(plain), type: IOMMU_HWPT_DATA_NONE, [], length: 0)
        == -Int(EOPNOTSUPP), "and so does having no data")
    let virtual = rig.virtual(type: 1, on: UInt32(plain))
    #expect(
      virtual
        == (architecture == .amd || architecture == .smmuV3 ? -Int(EINVAL) : -Int(EOPNOTSUPP)))
    #expect(rig.allocate(on: 9999, type: 1, [1, 0, 48]) == -Int(EINVAL))
  }

  @Test("B2: a table that an attach made is nobody's parent by id: EINVAL, as on Linux")
  func automaticParent() throws {
    let engine = try EngineRig(iommu: .init(pasidBits: 8))
    let context = Context(system: engine.system)
    let binding = try context.register(#require(engine.vfio.function.device?.physical))
    let ioas = try context.allocateIOAS(
      AddressSpaceAttributes(allowsPASIDs: true))
    let child = try context.allocateIOAS(
      of: UserTable(format: .intelFirstStage, width: 48, root: 0x1000), nestedOn: ioas)
    try binding.group.attach(to: child)
    try binding.group.attach(PASID(rawValue: 3), to: ioas)
    let parent = try #require(
      try context.attachedHWPT(of: binding.id, pasid: PASID(rawValue: 3)))
    let data = UserData(
      type: IOMMU_HWPT_DATA_VTD_S1, length: 24,
      memory: UserBytes(
        [UInt8](repeating: 0, count: 16) + [48] + [UInt8](repeating: 0, count: 7)))
    #expect {
      _ = try context.allocateHWPT(for: binding.id, from: parent, data: data)
    } throws: { ($0 as? IOMMUError)?.errno == .invalidArgument }
  }

  @Test("B2: a program reaches nothing of a RISC-V guest's by ioctl, as on Linux")
  func riscv() throws {
    let rig = try Rig(.riscv)
    let type = RISCVNestedContext.dataType
    #expect(rig.allocate(type: type, [1, 0, 9 << 60]) == -Int(EOPNOTSUPP))
    #expect(rig.allocate(type: IOMMU_HWPT_DATA_VTD_S1, [0, 0, 48]) == -Int(EOPNOTSUPP))
    #expect(rig.virtual(type: RISCVVirtualIOMMU.type) == -Int(EOPNOTSUPP))
    #expect(rig.virtual(type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3) == -Int(EOPNOTSUPP))
  }
}
