// SPDX-License-Identifier: Apache-2.0
//
// Attaching by PASID: attach, replace, detach, and the rules between a device's own table and
// those of its PASIDs (MODEL D1, E1).

#include "calls.h"

static long attach(int fd, uint32_t stdev, uint32_t number, uint32_t table) {
  return pasid(fd, IOMMU_TEST_OP_PASID_ATTACH, stdev, number, table);
}

static long change(int fd, uint32_t stdev, uint32_t number, uint32_t table) {
  return pasid(fd, IOMMU_TEST_OP_PASID_REPLACE, stdev, number, table);
}

static long detach(int fd, uint32_t stdev, uint32_t number) {
  return pasid(fd, IOMMU_TEST_OP_PASID_DETACH, stdev, number, 0);
}

static long holds(int fd, uint32_t stdev, uint32_t number, uint32_t table) {
  return pasid(fd, IOMMU_TEST_OP_PASID_CHECK_HWPT, stdev, number, table);
}

/// A device with PASIDs whose own table allows them, and two more such tables.
struct pasid_rig {
  int fd;
  uint32_t ioas, stdev, device, own, one, other;
};

static struct pasid_rig make_pasid_rig(void) {
  struct rig rig = make_rig(MOCK_FLAGS_DEVICE_PASID);
  struct pasid_rig made = {.fd = rig.fd, .ioas = rig.ioas, .stdev = rig.mock.stdev,
                           .device = rig.mock.device};
  uint32_t *tables[] = {&made.own, &made.one, &made.other};
  for (int i = 0; i < 3; i++)
    *tables[i] =
        (uint32_t)GET(alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_PASID));
  NEED(0, replace(made.fd, made.stdev, made.own));
  return made;
}

CASE(pasids, life, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  EXPECT(0, detach(rig.fd, rig.stdev, 5));  // Nothing there, and nothing said.
  EXPECT(0, holds(rig.fd, rig.stdev, 5, 0));
  NEED(0, attach(rig.fd, rig.stdev, 5, rig.one));
  EXPECT(0, holds(rig.fd, rig.stdev, 5, rig.one));
  EXPECT(0, holds(rig.fd, rig.stdev, 6, 0));
  EXPECT(-EBUSY, attach(rig.fd, rig.stdev, 5, rig.one));
  EXPECT(-EBUSY, attach(rig.fd, rig.stdev, 5, rig.other));
  NEED(0, change(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(0, holds(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(0, change(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(-EINVAL, change(rig.fd, rig.stdev, 6, rig.other));
  NEED(0, detach(rig.fd, rig.stdev, 5));
  EXPECT(0, holds(rig.fd, rig.stdev, 5, 0));
  EXPECT(-EINVAL, change(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(0, attach(rig.fd, rig.stdev, 5, rig.own));  // Also the device's own table.
  EXPECT(0, detach(rig.fd, rig.stdev, 5));
}

CASE(pasids, what_can_be_attached, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  int queue;
  uint32_t plain = (uint32_t)GET(alloc_hwpt(rig.fd, rig.device, rig.ioas, 0));
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, rig.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t nested = (uint32_t)GET(nest(rig.fd, rig.device, parent, IOMMU_HWPT_ALLOC_PASID, 0));
  uint32_t unfit = (uint32_t)GET(nest(rig.fd, rig.device, parent, 0, 0));
  uint32_t faults = (uint32_t)GET(alloc_fault_queue(rig.fd, &queue));
  EXPECT(-ENOENT, attach(rig.fd, rig.stdev, 5, 0));
  EXPECT(-ENOENT, attach(rig.fd, rig.stdev, 5, 0x7fffffff));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, rig.ioas));  // An automatic table takes no PASIDs.
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, faults));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, rig.device));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, plain));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, parent));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, unfit));
  EXPECT(-ENOENT, attach(rig.fd, rig.device, 5, rig.one));  // Not the mock device's id.
  EXPECT(-ENOENT, attach(rig.fd, 0, 5, rig.one));
  EXPECT(0, holds(rig.fd, rig.stdev, 5, 0));
  NEED(0, attach(rig.fd, rig.stdev, 5, nested));
  EXPECT(-EINVAL, change(rig.fd, rig.stdev, 5, rig.ioas));
  EXPECT(-EINVAL, change(rig.fd, rig.stdev, 5, plain));
  EXPECT(-ENOENT, change(rig.fd, rig.stdev, 5, 0));
  EXPECT(0, holds(rig.fd, rig.stdev, 5, nested));
  NEED(0, detach(rig.fd, rig.stdev, 5));
  // The failed attach of an address space has left nothing that would keep it busy.
  NEED(0, destroy(rig.fd, rig.stdev));
  EXPECT(0, destroy(rig.fd, nested));
  EXPECT(0, destroy(rig.fd, unfit));
  uint32_t tables[] = {parent, plain, rig.own, rig.one, rig.other};
  for (int i = 0; i < 5; i++) EXPECT(0, destroy(rig.fd, tables[i]));
  EXPECT(0, destroy(rig.fd, rig.ioas));
}

CASE(pasids, own_table_rules, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  uint32_t plain = (uint32_t)GET(alloc_hwpt(rig.fd, rig.device, rig.ioas, 0));
  // While the device's own table takes no PASIDs, none can be attached.
  NEED(0, replace(rig.fd, rig.stdev, plain));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, rig.one));
  NEED(0, replace(rig.fd, rig.stdev, rig.ioas));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, 5, rig.one));
  // While one is attached, the device stays on tables that take them.
  NEED(0, replace(rig.fd, rig.stdev, rig.own));
  NEED(0, attach(rig.fd, rig.stdev, 5, rig.one));
  NEED(0, attach(rig.fd, rig.stdev, 6, rig.one));
  EXPECT(-EINVAL, replace(rig.fd, rig.stdev, plain));
  EXPECT(-EINVAL, replace(rig.fd, rig.stdev, rig.ioas));
  EXPECT(0, replace(rig.fd, rig.stdev, rig.other));
  NEED(0, detach(rig.fd, rig.stdev, 5));
  EXPECT(-EINVAL, replace(rig.fd, rig.stdev, plain));
  NEED(0, detach(rig.fd, rig.stdev, 6));
  EXPECT(0, replace(rig.fd, rig.stdev, plain));
}

CASE(pasids, numbers, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  uint32_t most = 1u << MOCK_PASID_WIDTH;
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, most, rig.one));
  EXPECT(-EINVAL, attach(rig.fd, rig.stdev, UINT32_MAX, rig.one));
  EXPECT(0, holds(rig.fd, rig.stdev, most, 0));
  NEED(0, attach(rig.fd, rig.stdev, most - 1, rig.one));
  NEED(0, attach(rig.fd, rig.stdev, 1, rig.one));
  EXPECT(0, detach(rig.fd, rig.stdev, most - 1));
  EXPECT(0, holds(rig.fd, rig.stdev, 1, rig.one));
  EXPECT(0, detach(rig.fd, rig.stdev, 1));
  // Zero stands for the device itself.
  EXPECT(-EBUSY, attach(rig.fd, rig.stdev, 0, rig.one));
  EXPECT(0, holds(rig.fd, rig.stdev, 0, rig.own));
  EXPECT(0, change(rig.fd, rig.stdev, 0, rig.other));
  EXPECT(0, holds(rig.fd, rig.stdev, 0, rig.other));
  EXPECT(0, destroy(rig.fd, rig.own));
  EXPECT(-EBUSY, destroy(rig.fd, rig.other));
}

CASE(pasids, devices_without, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  struct mock plain;
  NEED(0, add_mock(rig.fd, rig.ioas, 0, &plain));
  // The table is the device's to use; its PASIDs are not.
  EXPECT(0, replace(rig.fd, plain.stdev, rig.one));
  EXPECT(-EINVAL, attach(rig.fd, plain.stdev, 5, rig.one));
  EXPECT(0, holds(rig.fd, plain.stdev, 5, 0));
  // A device without them may make a table that takes them.
  uint32_t table =
      (uint32_t)GET(alloc_hwpt(rig.fd, plain.device, rig.ioas, IOMMU_HWPT_ALLOC_PASID));
  EXPECT(0, attach(rig.fd, rig.stdev, 5, table));
  EXPECT(0, detach(rig.fd, rig.stdev, 5));
}

CASE(pasids, hold_their_tables, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  NEED(0, attach(rig.fd, rig.stdev, 5, rig.one));
  NEED(0, attach(rig.fd, rig.stdev, 9, rig.one));
  EXPECT(-EBUSY, destroy(rig.fd, rig.one));
  NEED(0, change(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(-EBUSY, destroy(rig.fd, rig.one));
  NEED(0, detach(rig.fd, rig.stdev, 9));
  EXPECT(0, destroy(rig.fd, rig.one));
  EXPECT(-EBUSY, destroy(rig.fd, rig.other));
  EXPECT(0, detach(rig.fd, rig.stdev, 5));
  EXPECT(0, destroy(rig.fd, rig.other));
}

CASE(pasids, failed_replace_keeps_the_old, LINUX_7_1) {
  // The mock driver refuses the second call on one PASID, and takes the third.
  struct pasid_rig rig = make_pasid_rig();
  enum { MOODY = IOMMU_TEST_PASID_RESERVED };
  NEED(0, attach(rig.fd, rig.stdev, MOODY, rig.one));
  EXPECT(-ENOMEM, change(rig.fd, rig.stdev, MOODY, rig.other));
  EXPECT(0, holds(rig.fd, rig.stdev, MOODY, rig.one));
  EXPECT(0, destroy(rig.fd, rig.other));
  EXPECT(-EBUSY, destroy(rig.fd, rig.one));
  EXPECT(0, change(rig.fd, rig.stdev, MOODY, rig.own));
  EXPECT(0, destroy(rig.fd, rig.one));
  EXPECT(0, detach(rig.fd, rig.stdev, MOODY));
  // A detach makes it forget: attach works again.
  EXPECT(0, attach(rig.fd, rig.stdev, MOODY, rig.own));
  EXPECT(0, detach(rig.fd, rig.stdev, MOODY));
  EXPECT(0, attach(rig.fd, rig.stdev, MOODY, rig.own));
}

CASE(pasids, looking, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  NEED(0, attach(rig.fd, rig.stdev, 5, rig.one));
  EXPECT(-EINVAL, holds(rig.fd, rig.stdev, 5, 0));
  EXPECT(-EINVAL, holds(rig.fd, rig.stdev, 5, rig.other));
  EXPECT(-EINVAL, holds(rig.fd, rig.stdev, 7, rig.one));
  EXPECT(-EINVAL, holds(rig.fd, rig.stdev, 5, rig.ioas));
  EXPECT(-ENOENT, holds(rig.fd, rig.stdev, 5, 0x7fffffff));
  EXPECT(-ENOENT, holds(rig.fd, rig.device, 5, rig.one));
  EXPECT(-ENOENT, detach(rig.fd, rig.device, 5));
  EXPECT(0, detach(rig.fd, rig.stdev, 5));
}

CASE(pasids, through_a_virtual_iommu, LINUX_7_1) {
  struct pasid_rig rig = make_pasid_rig();
  uint32_t parent =
      (uint32_t)GET(alloc_hwpt(rig.fd, rig.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  uint32_t viommu = (uint32_t)GET(alloc_viommu(rig.fd, rig.device, parent));
  uint32_t nested = (uint32_t)GET(nest(rig.fd, rig.device, viommu, IOMMU_HWPT_ALLOC_PASID, 0));
  // A PASID needs no virtual device, as the device's own table does.
  EXPECT(0, attach(rig.fd, rig.stdev, 5, nested));
  EXPECT(-EBUSY, destroy(rig.fd, nested));
  EXPECT(0, detach(rig.fd, rig.stdev, 5));
  EXPECT(0, destroy(rig.fd, nested));
  EXPECT(0, destroy(rig.fd, viommu));
}
