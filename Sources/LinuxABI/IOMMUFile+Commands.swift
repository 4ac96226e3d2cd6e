// SPDX-License-Identifier: Apache-2.0
//
// The command table of /dev/iommu: a row for each command, with the size that the first Linux
// to have it asked for. Handlers are in the files beside this one.

import CLinuxABI
import IOMMU

extension Command {
  /// Every command that needs no driver's back door.
  static let iommufd: [Command] = [
    Command(
      IOMMU_DESTROY, "IOMMU_DESTROY", minimumSize: 8, zero: iommu_destroy(), destroy),
    Command(
      IOMMU_IOAS_ALLOC, "IOMMU_IOAS_ALLOC", minimumSize: 12, zero: iommu_ioas_alloc(),
      ioasAlloc),
    Command(
      IOMMU_IOAS_ALLOW_IOVAS, "IOMMU_IOAS_ALLOW_IOVAS", minimumSize: 24,
      zero: iommu_ioas_allow_iovas(), ioasAllowIOVAs),
    Command(
      IOMMU_IOAS_COPY, "IOMMU_IOAS_COPY", minimumSize: 40, zero: iommu_ioas_copy(), ioasCopy),
    Command(
      IOMMU_IOAS_IOVA_RANGES, "IOMMU_IOAS_IOVA_RANGES", minimumSize: 32,
      zero: iommu_ioas_iova_ranges(), ioasIOVARanges),
    Command(IOMMU_IOAS_MAP, "IOMMU_IOAS_MAP", minimumSize: 40) { call throws(IOMMUError) in
      try call.run(iommu_ioas_map(), ioasMap)
    },
    Command(IOMMU_IOAS_UNMAP, "IOMMU_IOAS_UNMAP", minimumSize: 24) { call throws(IOMMUError) in
      try call.run(iommu_ioas_unmap(), ioasUnmap)
    },
    Command(IOMMU_OPTION, "IOMMU_OPTION", minimumSize: 24, zero: iommu_option(), option),
    Command(
      IOMMU_VFIO_IOAS, "IOMMU_VFIO_IOAS", minimumSize: 12, zero: iommu_vfio_ioas(), vfioIOAS),
    Command(
      IOMMU_HWPT_ALLOC, "IOMMU_HWPT_ALLOC", minimumSize: 24, zero: iommu_hwpt_alloc(),
      hwptAlloc),
    Command(
      IOMMU_GET_HW_INFO, "IOMMU_GET_HW_INFO", minimumSize: 32, zero: iommu_hw_info(),
      getHWInfo),
    Command(
      IOMMU_HWPT_INVALIDATE, "IOMMU_HWPT_INVALIDATE", minimumSize: 32,
      zero: iommu_hwpt_invalidate(), hwptInvalidate),
    Command(
      IOMMU_HWPT_SET_DIRTY_TRACKING, "IOMMU_HWPT_SET_DIRTY_TRACKING", minimumSize: 16,
      zero: iommu_hwpt_set_dirty_tracking(), hwptSetDirtyTracking),
    Command(
      IOMMU_HWPT_GET_DIRTY_BITMAP, "IOMMU_HWPT_GET_DIRTY_BITMAP", minimumSize: 48,
      zero: iommu_hwpt_get_dirty_bitmap(), hwptGetDirtyBitmap),
    Command(
      IOMMU_FAULT_QUEUE_ALLOC, "IOMMU_FAULT_QUEUE_ALLOC", minimumSize: 16,
      zero: iommu_fault_alloc(), faultQueueAlloc),
    Command(
      IOMMU_IOAS_MAP_FILE, "IOMMU_IOAS_MAP_FILE", minimumSize: 40, zero: iommu_ioas_map_file(),
      ioasMapFile),
    Command(
      IOMMU_IOAS_CHANGE_PROCESS, "IOMMU_IOAS_CHANGE_PROCESS", minimumSize: 8,
      zero: iommu_ioas_change_process(), ioasChangeProcess),
    Command(
      IOMMU_VIOMMU_ALLOC, "IOMMU_VIOMMU_ALLOC", minimumSize: 24, zero: iommu_viommu_alloc(),
      viommuAlloc),
    Command(
      IOMMU_VDEVICE_ALLOC, "IOMMU_VDEVICE_ALLOC", minimumSize: 24, zero: iommu_vdevice_alloc(),
      vdeviceAlloc),
    Command(
      IOMMU_VEVENTQ_ALLOC, "IOMMU_VEVENTQ_ALLOC", minimumSize: 28, zero: iommu_veventq_alloc(),
      veventqAlloc),
    Command(
      IOMMU_HW_QUEUE_ALLOC, "IOMMU_HW_QUEUE_ALLOC", minimumSize: 40,
      zero: iommu_hw_queue_alloc(), hwQueueAlloc),
  ]
}
