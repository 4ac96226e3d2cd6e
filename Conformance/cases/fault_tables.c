// SPDX-License-Identifier: Apache-2.0
//
// Faults through each kind of page table: the kernel's own, a PASID's, a virtual IOMMU's
// (MODEL H1, H3, D1).

#include "calls.h"

CASE(faults, of_kernel_managed_tables, LINUX_7_1) {
  // Later kernels deliver faults of a table that they fill, too; not of a nesting parent.
  struct rig rig = make_rig(0);
  int queue;
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &queue));
  uint32_t flags = IOMMU_HWPT_FAULT_ID_VALID;
  uint32_t table = (uint32_t)GET(alloc_hwpt_full(rig.fd, rig.mock.device, rig.ioas, flags,
                                                 IOMMU_HWPT_DATA_NONE, NULL, 0, id));
  EXPECT(-EOPNOTSUPP,
         alloc_hwpt_full(rig.fd, rig.mock.device, rig.ioas, flags | IOMMU_HWPT_ALLOC_NEST_PARENT,
                         IOMMU_HWPT_DATA_NONE, NULL, 0, id));
  NEED(0, replace(rig.fd, rig.mock.stdev, table));
  NEED(0, page_request(rig.fd, rig.mock.device, 0, 1, READ_WRITE, 0x1000));
  struct iommu_hwpt_pgfault fault = take(queue);
  EXPECT(8, respond(queue, fault.cookie, SUCCESS));
  // A PASID that is not attached goes through a user's table only: this one is not.
  NEED(0, page_request(rig.fd, rig.mock.device, 9, 1, READ_WRITE, 0x1000));
  EXPECT(0, read_queue(queue, &fault, sizeof fault));
}

CASE(faults, by_pasid, LINUX_7_1) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_PASID);
  uint32_t flags = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  uint32_t device = rig.mock.device;
  struct iommu_hwpt_pgfault fault;
  int own_queue, queue;
  uint32_t own_id = (uint32_t)GET(alloc_fault_queue(rig.fd, &own_queue));
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &queue));
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t own = (uint32_t)GET(nest(rig.fd, device, parent, flags, own_id));
  uint32_t table = (uint32_t)GET(nest(rig.fd, device, parent, flags, id));
  NEED(0, replace(rig.fd, rig.mock.stdev, own));
  NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_ATTACH, rig.mock.stdev, 9, table));
  // Each PASID's faults go where its table says, others with the device's own.
  NEED(0, page_request(rig.fd, device, 9, 1, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, device, 8, 2, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, device, 0, 3, READ_WRITE, 0));
  fault = take(queue);
  EXPECT(1, fault.grpid);
  EXPECT(9, fault.pasid);
  EXPECT(2, take(own_queue).grpid);
  EXPECT(3, take(own_queue).grpid);
  EXPECT(0, read_queue(queue, &fault, sizeof fault));
  // A detach ends those of the PASID, and no others.
  NEED(0, page_request(rig.fd, device, 9, 4, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, device, 0, 5, READ_WRITE, 0));
  NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_DETACH, rig.mock.stdev, 9, 0));
  EXPECT(0, read_queue(queue, &fault, sizeof fault));
  EXPECT(-EINVAL, respond(queue, 1, SUCCESS));
  EXPECT(5, take(own_queue).grpid);
  // Then they go with the device's own.
  NEED(0, page_request(rig.fd, device, 9, 6, READ_WRITE, 0));
  EXPECT(6, take(own_queue).grpid);
}

CASE(faults, end_with_replace_of_a_pasid, LINUX_7_1) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_PASID);
  uint32_t flags = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  uint32_t device = rig.mock.device;
  struct iommu_hwpt_pgfault fault;
  int queue;
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &queue));
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t own = (uint32_t)GET(alloc_hwpt(rig.fd, device, rig.ioas, IOMMU_HWPT_ALLOC_PASID));
  uint32_t one = (uint32_t)GET(nest(rig.fd, device, parent, flags, id));
  uint32_t two = (uint32_t)GET(nest(rig.fd, device, parent, flags, id));
  NEED(0, replace(rig.fd, rig.mock.stdev, own));
  NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_ATTACH, rig.mock.stdev, 4, one));
  NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_ATTACH, rig.mock.stdev, 5, one));
  NEED(0, page_request(rig.fd, device, 4, 1, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, device, 5, 2, READ_WRITE, 0));
  NEED(0, page_request(rig.fd, device, 4, 3, READ_WRITE, 0));
  uint32_t cookie = take(queue).cookie;
  NEED(0, pasid(rig.fd, IOMMU_TEST_OP_PASID_REPLACE, rig.mock.stdev, 4, two));
  EXPECT(-EINVAL, respond(queue, cookie, SUCCESS));
  fault = take(queue);  // Only the other PASID's is left, of the same table.
  EXPECT(2, fault.grpid);
  EXPECT(0, read_queue(queue, &fault, sizeof fault));
  NEED(0, page_request(rig.fd, device, 4, 4, READ_WRITE, 0));
  EXPECT(4, take(queue).grpid);
}

CASE(faults, through_a_virtual_iommu, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  int queue;
  uint32_t id = (uint32_t)GET(alloc_fault_queue(rig.fd, &queue));
  uint32_t table =
      (uint32_t)GET(nest(rig.fd, rig.mock.device, rig.viommu, IOMMU_HWPT_FAULT_ID_VALID, id));
  EXPECT(-ENOENT, replace(rig.fd, rig.mock.stdev, table));
  NEED(0, page_request(rig.fd, rig.mock.device, 0, 1, READ_WRITE, 0));
  GET(alloc_vdevice(rig.fd, rig.viommu, rig.mock.device, VIRTUAL_ID));
  NEED(0, replace(rig.fd, rig.mock.stdev, table));
  NEED(0, page_request(rig.fd, rig.mock.device, 0, 2, READ_WRITE, 0));
  struct iommu_hwpt_pgfault fault = take(queue);
  EXPECT(2, fault.grpid);
  EXPECT(rig.mock.device, fault.dev_id);  // The real one's id, not the guest's name for it.
  NEED(0, destroy(rig.fd, rig.mock.stdev));
  EXPECT(-EINVAL, respond(queue, fault.cookie, SUCCESS));
  NEED(0, destroy(rig.fd, table));
  close(queue);
  EXPECT(0, destroy(rig.fd, id));
}
