// SPDX-License-Identifier: Apache-2.0
//
// The structures of the commands of /dev/iommu.

import CLinuxABI

extension StructLayout {
  /// All 21 commands of Linux 7.1.
  static let iommufd: [StructLayout] = [
    StructLayout(
      IOMMU_DESTROY, "IOMMU_DESTROY", "iommu_destroy", size: 8,
      [
        .init("id", 4, 4, .in, .decimal)
      ]),
    StructLayout(
      IOMMU_IOAS_ALLOC, "IOMMU_IOAS_ALLOC", "iommu_ioas_alloc", size: 12,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("out_ioas_id", 8, 4, .out, .decimal),
      ]),
    StructLayout(
      IOMMU_IOAS_ALLOW_IOVAS, "IOMMU_IOAS_ALLOW_IOVAS", "iommu_ioas_allow_iovas", size: 24,
      [
        .init("ioas_id", 4, 4, .in, .decimal),
        .init("num_iovas", 8, 4, .in, .decimal),
        .init("allowed_iovas", 16, 8, .in, .pointer),
      ]),
    StructLayout(
      IOMMU_IOAS_COPY, "IOMMU_IOAS_COPY", "iommu_ioas_copy", size: 40,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("dst_ioas_id", 8, 4, .in, .decimal),
        .init("src_ioas_id", 12, 4, .in, .decimal),
        .init("length", 16, 8, .in, .hex),
        .init("dst_iova", 24, 8, .in, .hex),
        .init("src_iova", 32, 8, .in, .hex),
      ]),
    StructLayout(
      IOMMU_IOAS_IOVA_RANGES, "IOMMU_IOAS_IOVA_RANGES", "iommu_ioas_iova_ranges", size: 32,
      [
        .init("ioas_id", 4, 4, .in, .decimal),
        .init("num_iovas", 8, 4, .inout, .decimal),
        .init("allowed_iovas", 16, 8, .in, .pointer),
        .init("out_iova_alignment", 24, 8, .out, .hex),
      ]),
    StructLayout(
      IOMMU_IOAS_MAP, "IOMMU_IOAS_MAP", "iommu_ioas_map", size: 40,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("ioas_id", 8, 4, .in, .decimal),
        .init("user_va", 16, 8, .in, .pointer),
        .init("length", 24, 8, .in, .hex),
        .init("iova", 32, 8, .inout, .hex),
      ]),
    StructLayout(
      IOMMU_IOAS_UNMAP, "IOMMU_IOAS_UNMAP", "iommu_ioas_unmap", size: 24,
      [
        .init("ioas_id", 4, 4, .in, .decimal),
        .init("iova", 8, 8, .in, .hex),
        .init("length", 16, 8, .inout, .hex),
      ]),
    StructLayout(
      IOMMU_OPTION, "IOMMU_OPTION", "iommu_option", size: 24,
      [
        .init("option_id", 4, 4, .in, .decimal),
        .init("op", 8, 2, .in, .decimal),
        .init("object_id", 12, 4, .in, .decimal),
        .init("val64", 16, 8, .inout, .hex),
      ]),
    StructLayout(
      IOMMU_VFIO_IOAS, "IOMMU_VFIO_IOAS", "iommu_vfio_ioas", size: 12,
      [
        .init("ioas_id", 4, 4, .inout, .decimal),
        .init("op", 8, 2, .in, .decimal),
      ]),
    StructLayout(
      IOMMU_HWPT_ALLOC, "IOMMU_HWPT_ALLOC", "iommu_hwpt_alloc", size: 48,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("dev_id", 8, 4, .in, .decimal),
        .init("pt_id", 12, 4, .in, .decimal),
        .init("out_hwpt_id", 16, 4, .out, .decimal),
        .init("data_type", 24, 4, .in, .hex),
        .init("data_len", 28, 4, .in, .decimal),
        .init("data_uptr", 32, 8, .in, .pointer),
        .init("fault_id", 40, 4, .in, .decimal),
      ]),
    StructLayout(
      IOMMU_GET_HW_INFO, "IOMMU_GET_HW_INFO", "iommu_hw_info", size: 40,
      [
        .init("flags", 4, 4, .inout, .hex),
        .init("dev_id", 8, 4, .in, .decimal),
        .init("data_len", 12, 4, .inout, .decimal),
        .init("data_uptr", 16, 8, .in, .pointer),
        .init("out_data_type", 24, 4, .out, .hex),
        .init("out_max_pasid_log2", 28, 1, .out, .decimal),
        .init("out_capabilities", 32, 8, .out, .hex),
      ]),
    StructLayout(
      IOMMU_HWPT_SET_DIRTY_TRACKING, "IOMMU_HWPT_SET_DIRTY_TRACKING",
      "iommu_hwpt_set_dirty_tracking", size: 16,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("hwpt_id", 8, 4, .in, .decimal),
      ]),
    StructLayout(
      IOMMU_HWPT_GET_DIRTY_BITMAP, "IOMMU_HWPT_GET_DIRTY_BITMAP", "iommu_hwpt_get_dirty_bitmap",
      size: 48,
      [
        .init("hwpt_id", 4, 4, .in, .decimal),
        .init("flags", 8, 4, .in, .hex),
        .init("iova", 16, 8, .in, .hex),
        .init("length", 24, 8, .in, .hex),
        .init("page_size", 32, 8, .in, .hex),
        .init("data", 40, 8, .in, .pointer),
      ]),
    StructLayout(
      IOMMU_HWPT_INVALIDATE, "IOMMU_HWPT_INVALIDATE", "iommu_hwpt_invalidate", size: 32,
      [
        .init("hwpt_id", 4, 4, .in, .decimal),
        .init("data_uptr", 8, 8, .in, .pointer),
        .init("data_type", 16, 4, .in, .hex),
        .init("entry_len", 20, 4, .in, .decimal),
        .init("entry_num", 24, 4, .inout, .decimal),
      ]),
    StructLayout(
      IOMMU_FAULT_QUEUE_ALLOC, "IOMMU_FAULT_QUEUE_ALLOC", "iommu_fault_alloc", size: 16,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("out_fault_id", 8, 4, .out, .decimal),
        .init("out_fault_fd", 12, 4, .out, .descriptor),
      ]),
    StructLayout(
      IOMMU_IOAS_MAP_FILE, "IOMMU_IOAS_MAP_FILE", "iommu_ioas_map_file", size: 40,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("ioas_id", 8, 4, .in, .decimal),
        .init("fd", 12, 4, .in, .descriptor),
        .init("start", 16, 8, .in, .hex),
        .init("length", 24, 8, .in, .hex),
        .init("iova", 32, 8, .inout, .hex),
      ]),
    StructLayout(
      IOMMU_VIOMMU_ALLOC, "IOMMU_VIOMMU_ALLOC", "iommu_viommu_alloc", size: 40,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("type", 8, 4, .in, .decimal),
        .init("dev_id", 12, 4, .in, .decimal),
        .init("hwpt_id", 16, 4, .in, .decimal),
        .init("out_viommu_id", 20, 4, .out, .decimal),
        .init("data_len", 24, 4, .in, .decimal),
        .init("data_uptr", 32, 8, .in, .pointer),
      ]),
    StructLayout(
      IOMMU_VDEVICE_ALLOC, "IOMMU_VDEVICE_ALLOC", "iommu_vdevice_alloc", size: 24,
      [
        .init("viommu_id", 4, 4, .in, .decimal),
        .init("dev_id", 8, 4, .in, .decimal),
        .init("out_vdevice_id", 12, 4, .out, .decimal),
        .init("virt_id", 16, 8, .in, .hex),
      ]),
    StructLayout(
      IOMMU_IOAS_CHANGE_PROCESS, "IOMMU_IOAS_CHANGE_PROCESS", "iommu_ioas_change_process",
      size: 8, []),
    StructLayout(
      IOMMU_VEVENTQ_ALLOC, "IOMMU_VEVENTQ_ALLOC", "iommu_veventq_alloc", size: 32,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("viommu_id", 8, 4, .in, .decimal),
        .init("type", 12, 4, .in, .decimal),
        .init("veventq_depth", 16, 4, .in, .decimal),
        .init("out_veventq_id", 20, 4, .out, .decimal),
        .init("out_veventq_fd", 24, 4, .out, .descriptor),
      ]),
    StructLayout(
      IOMMU_HW_QUEUE_ALLOC, "IOMMU_HW_QUEUE_ALLOC", "iommu_hw_queue_alloc", size: 40,
      [
        .init("flags", 4, 4, .in, .hex),
        .init("viommu_id", 8, 4, .in, .decimal),
        .init("type", 12, 4, .in, .decimal),
        .init("index", 16, 4, .in, .decimal),
        .init("out_hw_queue_id", 20, 4, .out, .decimal),
        .init("nesting_parent_iova", 24, 8, .in, .hex),
        .init("length", 32, 8, .in, .hex),
      ]),
  ]
}
