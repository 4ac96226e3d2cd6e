// SPDX-License-Identifier: Apache-2.0
//
// A machine's own device beside mock ones, in one context: what two IOMMUs have nothing to do
// with each other for. These cases need the machine of `iommu run`.

#include "calls.h"
#include "vfio_abi.h"

/// A context with a device of the machine bound to it, and a mock device on a virtual IOMMU.
struct pair {
  struct virtual_rig mock;
  int device_fd;
  uint32_t device;
};

static struct pair make_pair(void) {
  int device = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
  if (device < 0) skip("there is no device vfio0");
  struct pair made = {.mock = make_virtual_rig(), .device_fd = device};
  struct vfio_device_bind_iommufd bind = {.argsz = 16, .iommufd = made.mock.fd};
  NEED(0, call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  made.device = bind.out_devid;
  return made;
}

static long attach(const struct pair *pair, uint32_t table) {
  struct vfio_device_attach_iommufd_pt cmd = {.argsz = 12, .pt_id = table};
  return call(pair->device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}

CASE(machines, tables_of_another_iommu, LINUX_7_1) {
  struct pair pair = make_pair();
  int fd = pair.mock.fd;
  uint32_t vfio = (uint32_t)GET(alloc_hwpt(fd, pair.device, pair.mock.ioas, 0));
  EXPECT(-EINVAL, attach(&pair, pair.mock.parent));
  EXPECT(-EINVAL, attach(&pair, pair.mock.nested));
  EXPECT(-EINVAL, attach(&pair, pair.mock.mock.hwpt));
  EXPECT(-EINVAL, replace(fd, pair.mock.mock.stdev, vfio));
  EXPECT(-EINVAL, attach(&pair, pair.mock.viommu));
  EXPECT(-EINVAL, attach(&pair, pair.mock.mock.device));
  EXPECT(-ENOENT, attach(&pair, 0));
  // One address space serves both, each through a table of its own.
  EXPECT(0, attach(&pair, pair.mock.ioas));
  EXPECT(0, attach(&pair, vfio));
  EXPECT(-EBUSY, destroy(fd, vfio));
}

CASE(machines, virtual_iommu_of_another, LINUX_7_1) {
  struct pair pair = make_pair();
  int fd = pair.mock.fd;
  EXPECT(-EINVAL, alloc_vdevice(fd, pair.mock.viommu, pair.device, 1));
  EXPECT(-EINVAL, nest(fd, pair.device, pair.mock.viommu, 0, 0));
  EXPECT(-EOPNOTSUPP, alloc_viommu(fd, pair.device, pair.mock.parent));
  CHECK(nest(fd, pair.device, pair.mock.parent, 0, 0) < 0);
}

CASE(machines, back_door_is_for_mock_devices, LINUX_7_1) {
  struct pair pair = make_pair();
  int fd = pair.mock.fd;
  CHECK(page_request(fd, pair.device, 0, 1, IOMMU_PGFAULT_PERM_READ, 0) < 0);
  CHECK(trigger_event(fd, pair.device) < 0);
  CHECK(check_cache(fd, pair.device, 0, IOMMU_TEST_DEV_CACHE_DEFAULT) < 0);
  EXPECT(-ENOENT, replace(fd, pair.device, pair.mock.ioas));
  EXPECT(-ENOENT, pasid(fd, IOMMU_TEST_OP_PASID_ATTACH, pair.device, 1, pair.mock.parent));
}

CASE(machines, one_space_for_all, LINUX_7_1) {
  // What is mapped reaches both; what one of them cannot reach is for neither.
  struct pair pair = make_pair();
  int fd = pair.mock.fd;
  uint8_t *memory = pages(2, 3);
  uint64_t iova = MOCK_APERTURE_START, odd = iova + 64 * PAGE;
  NEED(0, map(fd, pair.mock.ioas, memory, PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  NEED(0, attach(&pair, pair.mock.ioas));
  EXPECT(0, check_map(fd, pair.mock.mock.hwpt, iova, memory, PAGE));
  // The mock's pages are of 2 KiB, the machine's of 4.
  EXPECT(-EINVAL, map(fd, pair.mock.ioas, memory + MOCK_PAGE_SIZE, PAGE,
                      both | IOMMU_IOAS_MAP_FIXED_IOVA, &odd));
  EXPECT(-EINVAL, map(fd, pair.mock.ioas, memory, MOCK_PAGE_SIZE,
                      both | IOMMU_IOAS_MAP_FIXED_IOVA, &odd));
  odd = MOCK_APERTURE_START - PAGE;
  EXPECT(-EINVAL, map(fd, pair.mock.ioas, memory, PAGE, both | IOMMU_IOAS_MAP_FIXED_IOVA, &odd));
  EXPECT(0, unmap(fd, pair.mock.ioas, iova, PAGE));
}

CASE(machines, attach_that_does_not_fit, LINUX_7_1) {
  // With a map of half a page the machine's device cannot come in; nothing changes then.
  struct pair pair = make_pair();
  int fd = pair.mock.fd;
  uint64_t iova = MOCK_APERTURE_START;
  NEED(0, map(fd, pair.mock.ioas, pages(1, 0), MOCK_PAGE_SIZE,
              both | IOMMU_IOAS_MAP_FIXED_IOVA, &iova));
  EXPECT(-EADDRINUSE, attach(&pair, pair.mock.ioas));
  EXPECT(-EADDRINUSE, alloc_hwpt(fd, pair.device, pair.mock.ioas, 0));
  NEED(0, unmap(fd, pair.mock.ioas, iova, MOCK_PAGE_SIZE));
  EXPECT(0, attach(&pair, pair.mock.ioas));
}

CASE(machines, pasids_of_a_device, LINUX_7_1) {
  struct pair pair = make_pair();
  uint32_t plain = (uint32_t)GET(alloc_hwpt(pair.mock.fd, pair.device, pair.mock.ioas, 0));
  struct vfio_device_attach_iommufd_pt cmd = {.argsz = 12, .flags = VFIO_DEVICE_ATTACH_PASID,
                                              .pt_id = plain, .pasid = 5};
  struct vfio_device_detach_iommufd_pt gone = {.argsz = 8, .flags = VFIO_DEVICE_DETACH_PASID};
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd));  // No room for it.
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &gone));
  cmd.argsz = sizeof cmd;
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd));
  cmd.pt_id = pair.mock.ioas;
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd));
  cmd.pt_id = 0x7fffffff;
  EXPECT(-ENOENT, call(pair.device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd));
  cmd.flags = 2;
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd));
  gone.argsz = sizeof gone;
  EXPECT(0, call(pair.device_fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &gone));
  gone.flags = 2;
  EXPECT(-EINVAL, call(pair.device_fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &gone));
}

CASE(machines, hot_reset_of_a_pair, LINUX_7_1) {
  // The built-in machine has two functions below one port, in one group, and one on a root bus.
  struct pair pair = make_pair();
  struct {
    struct vfio_pci_hot_reset_info header;
    struct vfio_pci_dependent_device devices[4];
  } info = {.header = {.argsz = sizeof info}};
  struct vfio_pci_hot_reset reset = {.argsz = sizeof reset};
  EXPECT(-ENODEV, call(pair.device_fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info));
  EXPECT(-ENODEV, call(pair.device_fd, VFIO_DEVICE_PCI_HOT_RESET, &reset));

  int device = open("/dev/vfio/devices/vfio1", O_RDWR | O_CLOEXEC);
  if (device < 0) skip("there is no device vfio1");
  EXPECT(-EINVAL, call(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info));  // Before the bind.
  struct vfio_device_bind_iommufd bind = {.argsz = 16, .iommufd = pair.mock.fd};
  NEED(0, call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  info.header.argsz = sizeof info.header + sizeof info.devices[0];
  EXPECT(-ENOSPC, call(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info));
  CHECK(info.header.count == 2 && info.header.flags == 0);
  info.header.argsz = sizeof info;
  NEED(0, call(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info));
  CHECK(info.header.count == 2);
  CHECK(info.header.flags ==
        (VFIO_PCI_HOT_RESET_FLAG_DEV_ID | VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED));
  CHECK(info.devices[0].devid == bind.out_devid);
  CHECK(info.devices[1].devid == VFIO_PCI_DEVID_OWNED);  // Its group is ours.
  CHECK(info.devices[0].bus == info.devices[1].bus && info.devices[0].devfn == 0 &&
        info.devices[1].devfn == 1);
  EXPECT(0, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
  reset.count = 1;
  EXPECT(-EINVAL, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
}
