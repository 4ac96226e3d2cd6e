// SPDX-License-Identifier: Apache-2.0
//
// The structures of the commands of /dev/ioasid, and of the proposal's commands on a device.

import CLinuxABI

extension StructLayout {
  /// `/dev/ioasid`.
  static let ioasid: [StructLayout] = [
    StructLayout(IOASID_CHECK_EXTENSION, "IOASID_CHECK_EXTENSION"),
    StructLayout(
      IOASID_DEVICE_GET_INFO, "IOASID_DEVICE_GET_INFO", "ioasid_device_info", size: 32,
      [
        .init("flags", 4, 4, .out, .hex),
        .init("cookie", 8, 8, .in, .hex),
        .init("iova_pgsizes", 16, 8, .out, .hex),
        .init("addr_width", 24, 4, .out, .decimal),
        .init("cap_offset", 28, 4, .out, .decimal),
      ]),
    StructLayout(
      IOASID_ALLOC, "IOASID_ALLOC", "ioasid_alloc", size: 32,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("type", 8, 4, .in, .decimal),
        .init("addr_width", 12, 4, .in, .decimal),
        .init("parent", 16, 4, .in, .decimal),
        .init("table", 24, 8, .in, .pointer),
      ]),
    StructLayout(IOASID_FREE, "IOASID_FREE"),
    StructLayout(
      IOASID_MAP_DMA, "IOASID_MAP_DMA", "ioasid_dma_map", size: 48,
      [
        .init("ioasid", 8, 4, .in, .decimal),
        .init("map.flags", 20, 4, .in, .hex),
        .init("map.vaddr", 24, 8, .in, .pointer),
        .init("map.iova", 32, 8, .in, .hex),
        .init("map.size", 40, 8, .in, .hex),
      ]),
    StructLayout(
      IOASID_UNMAP_DMA, "IOASID_UNMAP_DMA", "ioasid_dma_unmap", size: 40,
      [
        .init("ioasid", 8, 4, .in, .decimal),
        .init("iova", 24, 8, .in, .hex),
        .init("size", 32, 8, .inout, .hex),
      ]),
    StructLayout(
      IOASID_INVALIDATE_CACHE, "IOASID_INVALIDATE_CACHE", "ioasid_invalidate_cache", size: 48,
      [
        .init("ioasid", 8, 4, .in, .decimal),
        .init("granularity", 12, 4, .in, .decimal),
        .init("caches", 16, 4, .in, .hex),
        .init("vpasid", 20, 4, .in, .decimal),
        .init("cookie", 24, 8, .in, .hex),
        .init("addr", 32, 8, .in, .hex),
        .init("size", 40, 8, .in, .hex),
      ]),
    StructLayout(
      IOASID_PAGE_FAULT_FD, "IOASID_PAGE_FAULT_FD", "ioasid_page_fault_fd", size: 16,
      [.init("ioasid", 8, 4, .in, .decimal)]),
    StructLayout(
      IOASID_PAGE_RESPONSE, "IOASID_PAGE_RESPONSE", "ioasid_page_response", size: 20,
      [
        .init("ioasid", 8, 4, .in, .decimal),
        .init("cookie", 12, 4, .in, .decimal),
        .init("code", 16, 4, .in, .decimal),
      ]),
    userTable(IOASID_BIND_PGTABLE, "IOASID_BIND_PGTABLE"),
    userTable(IOASID_UNBIND_PGTABLE, "IOASID_UNBIND_PGTABLE"),
  ]

  private static func userTable(_ command: UInt32, _ name: String) -> StructLayout {
    StructLayout(
      command, name, "ioasid_bind_pgtable", size: 32,
      [
        .init("ioasid", 8, 4, .in, .decimal),
        .init("format", 12, 4, .in, .decimal),
        .init("addr_width", 16, 4, .in, .decimal),
        .init("addr", 24, 8, .in, .hex),
      ])
  }

  /// What a device knows beside Linux's commands.
  static let vfioDeviceIOASID: [StructLayout] = [
    StructLayout(
      VFIO_DEVICE_BIND_IOMMU_FD, "VFIO_DEVICE_BIND_IOMMU_FD", "vfio_device_bind_iommu_fd",
      size: 24,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("iommu_fd", 8, 4, .in, .descriptor),
        .init("cookie", 16, 8, .in, .hex),
      ]),
    attachment(VFIO_DEVICE_ATTACH_IOASID, "VFIO_DEVICE_ATTACH_IOASID"),
    attachment(VFIO_DEVICE_DETACH_IOASID, "VFIO_DEVICE_DETACH_IOASID"),
  ]

  private static func attachment(_ command: UInt32, _ name: String) -> StructLayout {
    StructLayout(
      command, name, "vfio_device_attach_ioasid", size: 20,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("iommu_fd", 8, 4, .in, .descriptor),
        .init("ioasid", 12, 4, .in, .decimal),
        .init("vpasid", 16, 4, .in, .decimal),
      ])
  }
}
