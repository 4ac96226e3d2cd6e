// SPDX-License-Identifier: Apache-2.0
//
// What every newer command shares: sizes, the unknown tail, reserved fields, unknown flags, and
// ids that name nothing or something of another kind.

#include <stddef.h>

#include "calls.h"

#define LAST(type, field) (offsetof(struct type, field) + sizeof(((struct type *)0)->field))

/// The commands that Linux got after 6.12, and the oldest length of each.
static const struct command {
  const char *name;
  uint32_t number, shortest, size;
} commands[] = {
    {"FAULT_QUEUE_ALLOC", IOMMU_FAULT_QUEUE_ALLOC, LAST(iommu_fault_alloc, out_fault_fd),
     sizeof(struct iommu_fault_alloc)},
    {"HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, LAST(iommu_hwpt_invalidate, __reserved),
     sizeof(struct iommu_hwpt_invalidate)},
    {"HWPT_ALLOC", IOMMU_HWPT_ALLOC, LAST(iommu_hwpt_alloc, __reserved),
     sizeof(struct iommu_hwpt_alloc)},
    {"IOAS_MAP_FILE", IOMMU_IOAS_MAP_FILE, LAST(iommu_ioas_map_file, iova),
     sizeof(struct iommu_ioas_map_file)},
    {"VIOMMU_ALLOC", IOMMU_VIOMMU_ALLOC, LAST(iommu_viommu_alloc, out_viommu_id),
     sizeof(struct iommu_viommu_alloc)},
    {"VDEVICE_ALLOC", IOMMU_VDEVICE_ALLOC, LAST(iommu_vdevice_alloc, virt_id),
     sizeof(struct iommu_vdevice_alloc)},
    {"IOAS_CHANGE_PROCESS", IOMMU_IOAS_CHANGE_PROCESS, LAST(iommu_ioas_change_process, __reserved),
     sizeof(struct iommu_ioas_change_process)},
    {"VEVENTQ_ALLOC", IOMMU_VEVENTQ_ALLOC, LAST(iommu_veventq_alloc, out_veventq_fd),
     sizeof(struct iommu_veventq_alloc)},
    {"HW_QUEUE_ALLOC", IOMMU_HW_QUEUE_ALLOC, LAST(iommu_hw_queue_alloc, length),
     sizeof(struct iommu_hw_queue_alloc)},
};

/// A command of a given size, with every byte after the size field as given.
static long sized(int fd, const struct command *command, uint32_t size, uint32_t tail) {
  uint8_t bytes[256] = {0};
  memcpy(bytes, &size, sizeof size);
  if (tail) bytes[size - 1] = (uint8_t)tail;
  return call(fd, command->number, bytes);
}

CASE(commands, too_short, LINUX_7_1) {
  int fd = open_iommu();
  for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (!EXPECT(-EINVAL, sized(fd, &commands[i], commands[i].shortest - 1, 0)) ||
        !EXPECT(-EINVAL, sized(fd, &commands[i], 0, 0)))
      printf("    of %s\n", commands[i].name);
  }
}

CASE(commands, unknown_tail, LINUX_7_1) {
  int fd = open_iommu();
  for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
    const struct command *command = &commands[i];
    long plain = sized(fd, command, command->size, 0);
    bool good = EXPECT(-E2BIG, sized(fd, command, command->size + 1, 1));
    good &= EXPECT(-E2BIG, sized(fd, command, command->size + 64, 1));
    // The order of the queues' descriptors is not at stake: only that nothing is refused.
    good &= EXPECT(plain, sized(fd, command, command->size + 8, 0));
    if (!good) printf("    of %s\n", command->name);
  }
}

CASE(commands, oldest_length, LINUX_7_1) {
  // The oldest length of a command is as good as the whole: what is left out counts as zero.
  int fd = open_iommu();
  for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
    const struct command *command = &commands[i];
    if (!EXPECT(sized(fd, command, command->size, 0), sized(fd, command, command->shortest, 0)))
      printf("    of %s\n", command->name);
  }
}

CASE(commands, bad_pointer, LINUX_7_1) {
  int fd = open_iommu();
  uint8_t *end = pages(2, 0);
  munmap(end + PAGE, PAGE);
  for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
    uint8_t *cut = end + PAGE - 8;  // The size can be read, the rest cannot.
    bool good = EXPECT(-EFAULT, call(fd, commands[i].number, NULL));
    *(uint32_t *)cut = commands[i].size;
    if (commands[i].size > 8) good &= EXPECT(-EFAULT, call(fd, commands[i].number, cut));
    if (!good) printf("    of %s\n", commands[i].name);
  }
}

CASE(commands, unknown_numbers, LINUX_6_12) {
  int fd = open_iommu();
  uint32_t bytes[64] = {sizeof bytes};
  EXPECT(-ENOTTY, call(fd, IOMMUFD_TYPE << 8 | 0x7f, bytes));
  EXPECT(-ENOTTY, call(fd, IOMMUFD_TYPE << 8 | 0x9f, bytes));
  EXPECT(-ENOTTY, call(fd, 0x3a << 8 | 0x80, bytes));
  // The numbers carry no size and no direction.
  EXPECT(-ENOTTY, call(fd, 0xc0080000u | IOMMU_DESTROY, bytes));
}

CASE(commands, unknown_flags, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  uint64_t iova = 0;
  uint8_t *memory = pages(1, 0);
  struct iommu_fault_alloc fault = {.size = sizeof fault, .flags = 1};
  struct iommu_viommu_alloc viommu = {.size = sizeof viommu, .flags = 1,
                                      .type = IOMMU_VIOMMU_TYPE_SELFTEST,
                                      .dev_id = rig.mock.device, .hwpt_id = rig.parent};
  struct iommu_veventq_alloc events = {.size = sizeof events, .flags = 1, .veventq_depth = 1,
                                       .viommu_id = rig.viommu,
                                       .type = IOMMU_VEVENTQ_TYPE_SELFTEST};
  NEED(0, map(rig.fd, rig.ioas, memory, PAGE, both, &iova));
  struct iommu_hw_queue_alloc queue = {.size = sizeof queue, .flags = 1, .viommu_id = rig.viommu,
                                       .type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
                                       .nesting_parent_iova = iova, .length = PAGE};
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_FAULT_QUEUE_ALLOC, &fault));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_VIOMMU_ALLOC, &viommu));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_VEVENTQ_ALLOC, &events));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_HW_QUEUE_ALLOC, &queue));
  EXPECT(-EOPNOTSUPP, alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, 1u << 31));
  EXPECT(-EOPNOTSUPP, nest(rig.fd, rig.mock.device, rig.parent, 1u << 31, 0));
  EXPECT(-EOPNOTSUPP, nest(rig.fd, rig.mock.device, rig.viommu, 1u << 31, 0));
  EXPECT(-EOPNOTSUPP, map_file(rig.fd, rig.ioas, 0, 0, PAGE, both | 1u << 31, &iova));
}

CASE(commands, reserved_fields, LINUX_7_1) {
  struct virtual_rig rig = make_virtual_rig();
  struct iommu_ioas_change_process process = {.size = sizeof process, .__reserved = 1};
  struct iommu_veventq_alloc events = {.size = sizeof events, .__reserved = 1, .veventq_depth = 1,
                                       .viommu_id = rig.viommu,
                                       .type = IOMMU_VEVENTQ_TYPE_SELFTEST};
  struct iommu_hwpt_alloc table = {.size = sizeof table, .__reserved = 1, .dev_id = rig.mock.device,
                                   .pt_id = rig.ioas};
  struct iommu_hwpt_invalidate request = {.size = sizeof request, .__reserved = 1, .entry_num = 7,
                                          .hwpt_id = rig.nested};
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_IOAS_CHANGE_PROCESS, &process));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_VEVENTQ_ALLOC, &events));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_HWPT_ALLOC, &table));
  EXPECT(-EOPNOTSUPP, call(rig.fd, IOMMU_HWPT_INVALIDATE, &request));
  EXPECT(0, request.entry_num);  // Nothing was handled, and the caller is told so.
}

CASE(commands, unwritable_answer, LINUX_7_1) {
  // A call that cannot store its answer makes nothing: the next id is the one it had.
  struct rig rig = make_rig(0);
  uint8_t *page = pages(1, 0);
  uint32_t next = (uint32_t)GET(alloc_ioas(rig.fd));
  uint32_t parent = (uint32_t)GET(
      alloc_hwpt(rig.fd, rig.mock.device, rig.ioas, IOMMU_HWPT_ALLOC_NEST_PARENT));
  NEED(0, destroy(rig.fd, next));
  struct iommu_fault_alloc fault = {.size = sizeof fault};
  struct iommu_viommu_alloc viommu = {.size = sizeof viommu, .type = IOMMU_VIOMMU_TYPE_SELFTEST,
                                      .dev_id = rig.mock.device, .hwpt_id = parent};
  struct iommu_hwpt_alloc table = {.size = sizeof table, .dev_id = rig.mock.device,
                                   .pt_id = rig.ioas};
  memcpy(page, &fault, sizeof fault);
  memcpy(page + 64, &viommu, sizeof viommu);
  memcpy(page + 128, &table, sizeof table);
  NEED(0, mprotect(page, PAGE, PROT_READ));
  EXPECT(-EFAULT, call(rig.fd, IOMMU_FAULT_QUEUE_ALLOC, page));
  EXPECT(-EFAULT, call(rig.fd, IOMMU_VIOMMU_ALLOC, page + 64));
  EXPECT(-EFAULT, call(rig.fd, IOMMU_HWPT_ALLOC, page + 128));
  EXPECT(next, alloc_ioas(rig.fd));
  EXPECT(0, destroy(rig.fd, parent));
}
