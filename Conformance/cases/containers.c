// SPDX-License-Identifier: Apache-2.0
//
// Groups and containers (MODEL C6, J1) as a program for VFIO uses them, on whatever groups there
// are under /dev/vfio. These cases need a machine with devices bound to vfio-pci.

#include <dirent.h>
#include <sys/stat.h>

#include "calls.h"
#include "vfio_abi.h"

enum { IOVA = 0x100000 };

/// An open group and the name of a device of it.
struct group {
  int fd;
  char device[64];
};

/// The numbered nodes of /dev/vfio, lowest first.
static int group_number(unsigned index) {
  int found = -1;
  for (int number = 0; number < 256; number++) {
    char path[64];
    snprintf(path, sizeof path, "/dev/vfio/%d", number);
    if (access(path, F_OK) == 0 && index-- == 0) {
      found = number;
      break;
    }
  }
  return found;
}

static struct group open_group(unsigned index) {
  struct group made = {.fd = -1};
  char path[320];
  int number = group_number(index);
  if (number < 0) skip("there are not enough groups in /dev/vfio");
  snprintf(path, sizeof path, "/dev/vfio/%d", number);
  made.fd = (int)GET((made.fd = open(path, O_RDWR | O_CLOEXEC)) < 0 ? -errno : made.fd);
  snprintf(path, sizeof path, "/sys/kernel/iommu_groups/%d/devices", number);
  DIR *directory = opendir(path);
  if (!directory) skip("the groups have no devices in /sys");
  for (struct dirent *entry; (entry = readdir(directory));)
    if (entry->d_name[0] != '.') snprintf(made.device, sizeof made.device, "%.60s", entry->d_name);
  closedir(directory);
  return made;
}

static int open_container(void) {
  int fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  return (int)GET(fd < 0 ? -errno : fd);
}

static long set_container(int group, int container) {
  return call(group, VFIO_GROUP_SET_CONTAINER, &container);
}

static long get_device(const struct group *group) {
  return call(group->fd, VFIO_GROUP_GET_DEVICE_FD, (void *)(uintptr_t)group->device);
}

static uint32_t status(int group) {
  struct vfio_group_status cmd = {.argsz = sizeof cmd};
  NEED(0, call(group, VFIO_GROUP_GET_STATUS, &cmd));
  return cmd.flags;
}

static long set_model(int container, uintptr_t model) {
  return call(container, VFIO_SET_IOMMU, (void *)model);
}

/// A container with the first group in it.
struct set {
  int container;
  struct group group;
};

static struct set make_set(uintptr_t model) {
  struct set made = {.group = open_group(0)};
  made.container = open_container();
  NEED(0, set_container(made.group.fd, made.container));
  NEED(0, set_model(made.container, model));
  return made;
}

static long map_dma(int fd, void *memory, uint64_t iova, uint64_t size, uint32_t flags) {
  struct vfio_iommu_type1_dma_map cmd = {.argsz = sizeof cmd, .flags = flags,
                                         .vaddr = (uintptr_t)memory, .iova = iova, .size = size};
  return call(fd, VFIO_IOMMU_MAP_DMA, &cmd);
}

/// Unmaps; `*size` comes back as the structure's, which a failure leaves alone.
static long unmap_dma(int fd, uint64_t iova, uint64_t *size, uint32_t flags) {
  struct vfio_iommu_type1_dma_unmap cmd = {.argsz = sizeof cmd, .flags = flags, .iova = iova,
                                           .size = *size};
  long result = call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd);
  *size = cmd.size;
  return result;
}

CASE(containers, alone, LINUX_7_1) {
  int fd = open_container();
  uint64_t bytes[8] = {sizeof bytes};
  EXPECT(0, call(fd, VFIO_GET_API_VERSION, NULL));
  for (uintptr_t i = 0; i < 16; i++)
    EXPECT(i == VFIO_TYPE1_IOMMU || i == VFIO_TYPE1v2_IOMMU || i == VFIO_UNMAP_ALL,
           call(fd, VFIO_CHECK_EXTENSION, (void *)i));
  EXPECT(-EINVAL, set_model(fd, VFIO_TYPE1_IOMMU));
  EXPECT(-EINVAL, set_model(fd, 99));
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_GET_INFO, bytes));
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_GET_INFO, nowhere));  // Nothing is read without a model.
  EXPECT(-EINVAL, call(fd, 0x3bff, NULL));
  char byte;
  EXPECT(-EINVAL, read(fd, &byte, 1) < 0 ? -errno : 0);
  CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
}

CASE(containers, the_order_of_steps, LINUX_7_1) {
  struct group group = open_group(0);
  int container = open_container();
  EXPECT(VFIO_GROUP_FLAGS_VIABLE, status(group.fd));
  EXPECT(-EINVAL, call(group.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  EXPECT(-EINVAL, get_device(&group));
  EXPECT(-EBADF, set_container(group.fd, -1));
  EXPECT(-EBADFD, set_container(group.fd, group.fd));
  EXPECT(-EBADFD, set_container(group.fd, STDOUT_FILENO));
  EXPECT(-EFAULT, call(group.fd, VFIO_GROUP_SET_CONTAINER, nowhere));
  EXPECT(0, set_container(group.fd, container));
  EXPECT(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET, status(group.fd));
  EXPECT(-EINVAL, set_container(group.fd, container));
  EXPECT(-EBADF, set_container(group.fd, -1));
  EXPECT(-EINVAL, get_device(&group));
  EXPECT(-ENODEV, set_model(container, 99));
  EXPECT(0, set_model(container, VFIO_TYPE1v2_IOMMU));
  EXPECT(-EINVAL, set_model(container, VFIO_TYPE1v2_IOMMU));
  EXPECT(-ENOTTY, call(container, 0x3bff, NULL));
  EXPECT(-ENOTTY, call(group.fd, 0x3bff, NULL));
  int device = (int)GET(get_device(&group));
  EXPECT(-EBUSY, call(group.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  close(device);
  EXPECT(0, call(group.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  // Without a group it is as it was in the beginning.
  EXPECT(-EINVAL, set_model(container, VFIO_TYPE1v2_IOMMU));
  EXPECT(VFIO_GROUP_FLAGS_VIABLE, status(group.fd));
}

CASE(containers, a_device, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1_IOMMU);
  struct vfio_device_info info = {.argsz = 16};
  struct vfio_region_info region = {.argsz = sizeof region, .index = 7};
  int device = (int)GET(get_device(&set.group)), again = (int)GET(get_device(&set.group));
  uint32_t ids[2] = {0, 0};
  CHECK(device != again);
  EXPECT(FD_CLOEXEC, fcntl(device, F_GETFD));
  EXPECT(0, call(device, VFIO_DEVICE_GET_INFO, &info));
  EXPECT(VFIO_PCI_NUM_REGIONS, info.num_regions);
  EXPECT(0, call(device, VFIO_DEVICE_GET_REGION_INFO, &region));
  EXPECT(4, pread(device, &ids[0], 4, (off_t)region.offset));
  EXPECT(4, pread(again, &ids[1], 4, (off_t)region.offset));
  EXPECT(ids[0], ids[1]);
  struct vfio_device_bind_iommufd bind = {.argsz = 16, .iommufd = open_iommu()};
  EXPECT(-EINVAL, call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  struct vfio_device_attach_iommufd_pt attach = {.argsz = 12, .pt_id = 1};
  EXPECT(-ENOTTY, call(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
  // One of two descriptors goes: the device stays as it is.
  uint16_t command = 6;
  EXPECT(2, pwrite(device, &command, 2, (off_t)region.offset + 4));
  close(device);
  command = 0;
  EXPECT(2, pread(again, &command, 2, (off_t)region.offset + 4));
  EXPECT(6, command & 6);
}

CASE(containers, names, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  struct group other = set.group;
  strcat(other.device, " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3");
  EXPECT(-EINVAL, get_device(&other));  // No virtual function, and none of its own.
  snprintf(other.device, sizeof other.device, "%.40s option", set.group.device);
  EXPECT(-EINVAL, get_device(&other));
  snprintf(other.device, sizeof other.device, "%.40s0", set.group.device);
  EXPECT(-ENODEV, get_device(&other));
  EXPECT(-EFAULT, call(set.group.fd, VFIO_GROUP_GET_DEVICE_FD, nowhere));
  snprintf(other.device, sizeof other.device, "%.40s ", set.group.device);
  close((int)GET(get_device(&other)));
}

/// What poll, stat and another close see of a group after its own descriptor is closed.
CASE(containers, closing_the_group_first, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  int device = (int)GET(get_device(&set.group));
  char path[64];
  uint8_t *memory = pages(1, 7);
  struct vfio_device_info info = {.argsz = 16};
  snprintf(path, sizeof path, "/dev/vfio/%d", group_number(0));
  close(set.group.fd);
  EXPECT(-EBUSY, open(path, O_RDWR) < 0 ? -errno : 0);
  EXPECT(0, map_dma(set.container, memory, IOVA, PAGE, 3));
  EXPECT(0, call(device, VFIO_DEVICE_GET_INFO, &info));
  close(set.container);
  EXPECT(0, call(device, VFIO_DEVICE_GET_INFO, &info));
  close(device);
  int group = open(path, O_RDWR);
  CHECK(group >= 0);
  EXPECT(VFIO_GROUP_FLAGS_VIABLE, status(group));
}

CASE(containers, either_way, LINUX_7_1) {
  struct group group = open_group(0);
  char path[320];
  int number = -1;
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", group.device);
  DIR *directory = opendir(path);
  if (!directory) skip("there are no device nodes here");
  for (struct dirent *entry; (entry = readdir(directory));)
    if (sscanf(entry->d_name, "vfio%d", &number) == 1) break;
  closedir(directory);
  snprintf(path, sizeof path, "/dev/vfio/devices/vfio%d", number);
  int device = (int)GET((device = open(path, O_RDWR)) < 0 ? -errno : device);
  struct vfio_device_bind_iommufd bind = {.argsz = 16, .iommufd = open_iommu()};
  EXPECT(-EBUSY, call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  close(group.fd);
  EXPECT(0, call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
  snprintf(path, sizeof path, "/dev/vfio/%d", group_number(0));
  EXPECT(-EBUSY, open(path, O_RDWR) < 0 ? -errno : 0);
  close(device);
  CHECK((group.fd = open(path, O_RDWR)) >= 0);
}

CASE(containers, map_arguments, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  uint8_t *memory = pages(4, 1);
  int fd = set.container;
  struct vfio_iommu_type1_dma_map cmd = {.argsz = 31, .flags = 3, .size = PAGE};
  EXPECT(-EFAULT, call(fd, VFIO_IOMMU_MAP_DMA, nowhere));
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_MAP_DMA, &cmd));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA, PAGE, 8));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA, 0, 3));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA, PAGE, 0));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA + 1, PAGE, 3));
  EXPECT(-EINVAL, map_dma(fd, memory + 1, IOVA, PAGE, 3));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA, PAGE + 1, 3));
  EXPECT(-EOVERFLOW, map_dma(fd, memory, -(uint64_t)PAGE, 2 * PAGE, 3));
  EXPECT(-EOVERFLOW, map_dma(fd, (void *)-(uintptr_t)PAGE, IOVA, 2 * PAGE, 3));
  EXPECT(-EINVAL, map_dma(fd, memory, 0xfee00000, PAGE, 3));  // Interrupts are written there.
  EXPECT(-EINVAL, map_dma(fd, memory, 0xfedff000, 2 * PAGE, 3));
  EXPECT(-EFAULT, map_dma(fd, (void *)PAGE, IOVA, PAGE, 3));
  EXPECT(0, map_dma(fd, memory, IOVA, 2 * PAGE, 3));
  EXPECT(-EEXIST, map_dma(fd, memory, IOVA + PAGE, PAGE, 3));
  EXPECT(-EEXIST, map_dma(fd, (void *)PAGE, IOVA - PAGE, 2 * PAGE, 3));
  EXPECT(0, map_dma(fd, memory, IOVA - PAGE, PAGE, 1));
  EXPECT(0, map_dma(fd, memory, IOVA + 2 * PAGE, PAGE, 2));
  uint8_t *constant = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT(-EFAULT, map_dma(fd, constant, 0x200000, PAGE, 3));
  EXPECT(0, map_dma(fd, constant, 0x200000, PAGE, 1));
}

CASE(containers, type1v2_unmap, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  uint8_t *memory = pages(4, 1);
  int fd = set.container;
  uint64_t size = PAGE;
  NEED(0, map_dma(fd, memory, IOVA, 2 * PAGE, 3));
  NEED(0, map_dma(fd, memory, IOVA + 4 * PAGE, PAGE, 3));
  EXPECT(-EINVAL, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(PAGE, (long long)size);
  EXPECT(-EINVAL, unmap_dma(fd, IOVA + PAGE, &size, 0));
  EXPECT(-EINVAL, unmap_dma(fd, IOVA + 1, &size, 0));
  size = 0;
  EXPECT(-EINVAL, unmap_dma(fd, IOVA, &size, 0));
  size = PAGE / 2;
  EXPECT(-EINVAL, unmap_dma(fd, IOVA, &size, 0));
  size = -(uint64_t)IOVA + PAGE;
  EXPECT(-EOVERFLOW, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(-EINVAL, unmap_dma(fd, IOVA, &size, 8));
  size = PAGE;
  EXPECT(0, unmap_dma(fd, IOVA + 2 * PAGE, &size, 0));  // Nothing there is no error.
  EXPECT(0, (long long)size);
  size = 5 * PAGE;
  EXPECT(0, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(3 * PAGE, (long long)size);
  NEED(0, map_dma(fd, memory, IOVA, PAGE, 3));
  size = PAGE;
  EXPECT(-EINVAL, unmap_dma(fd, 0, &size, VFIO_DMA_UNMAP_FLAG_ALL));
  size = 0;
  EXPECT(-EINVAL, unmap_dma(fd, IOVA, &size, VFIO_DMA_UNMAP_FLAG_ALL));
  EXPECT(0, unmap_dma(fd, 0, &size, VFIO_DMA_UNMAP_FLAG_ALL));
  EXPECT(PAGE, (long long)size);
  size = 0;
  EXPECT(0, unmap_dma(fd, 0, &size, VFIO_DMA_UNMAP_FLAG_ALL));
}

CASE(containers, type1_unmap, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1_IOMMU);
  uint8_t *memory = pages(8, 1);
  int fd = set.container;
  uint64_t size = PAGE;
  NEED(0, map_dma(fd, memory, IOVA, 4 * PAGE, 3));
  NEED(0, map_dma(fd, memory + 4 * PAGE, IOVA + 4 * PAGE, 4 * PAGE, 3));
  // Inside a mapping: nothing. From its beginning: all of it.
  EXPECT(0, unmap_dma(fd, IOVA + PAGE, &size, 0));
  EXPECT(0, (long long)size);
  size = 6 * PAGE;
  EXPECT(0, unmap_dma(fd, IOVA + PAGE, &size, 0));
  EXPECT(0, (long long)size);
  size = PAGE;
  EXPECT(0, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(4 * PAGE, (long long)size);
  NEED(0, map_dma(fd, memory, IOVA, 4 * PAGE, 3));
  size = 5 * PAGE;
  EXPECT(0, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(8 * PAGE, (long long)size);
  uint32_t start[2] = {8, VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
  EXPECT(-EACCES, call(fd, VFIO_IOMMU_DIRTY_PAGES, start));
  EXPECT(-EACCES, call(fd, VFIO_IOMMU_DIRTY_PAGES, nowhere));
}

CASE(containers, information, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  int fd = set.container;
  union {
    struct vfio_iommu_type1_info info;
    uint8_t bytes[4096];
  } all;
  memset(&all, 0xee, sizeof all);
  all.info.argsz = 15;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_GET_INFO, &all));
  EXPECT(-EFAULT, call(fd, VFIO_IOMMU_GET_INFO, nowhere));
  all.info.argsz = 16;
  EXPECT(0, call(fd, VFIO_IOMMU_GET_INFO, &all));
  EXPECT(VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS, all.info.flags);
  CHECK(all.info.iova_pgsizes & PAGE);
  EXPECT(0xee, all.bytes[16]);  // No further than argsz.
  uint32_t needed = all.info.argsz;
  CHECK(needed > 24 && needed < sizeof all);
  all.info.argsz = needed - 1;
  EXPECT(0, call(fd, VFIO_IOMMU_GET_INFO, &all));
  EXPECT(needed, all.info.argsz);
  EXPECT(0, all.info.cap_offset);
  EXPECT(0xee, all.bytes[24]);  // All of the chain or none of it.
  all.info.argsz = sizeof all;
  EXPECT(0, call(fd, VFIO_IOMMU_GET_INFO, &all));
  EXPECT(sizeof all, all.info.argsz);
  EXPECT(24, all.info.cap_offset);
  EXPECT(0xee, all.bytes[needed]);
  static const uint16_t order[] = {VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
                                   VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
                                   VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE};
  uint32_t at = all.info.cap_offset;
  for (unsigned i = 0; i < 3; i++) {
    struct vfio_info_cap_header *header = (void *)(all.bytes + at);
    NEED(order[i], header->id);
    EXPECT(1, header->version);
    if (i == 0) {
      struct vfio_iommu_type1_info_cap_migration *dirty = (void *)header;
      EXPECT(0, dirty->flags);
      EXPECT(PAGE, (long long)dirty->pgsize_bitmap);
      EXPECT(256 << 20, (long long)dirty->max_dirty_bitmap_size);
    } else if (i == 1) {
      EXPECT(65535, ((struct vfio_iommu_type1_info_dma_avail *)header)->avail);
    } else {
      struct vfio_iommu_type1_info_cap_iova_range *ranges = (void *)header;
      CHECK(ranges->nr_iovas >= 2);
      EXPECT(0, (long long)ranges->iova_ranges[0].start);
      EXPECT(0xfedfffff, (long long)ranges->iova_ranges[0].end);
      EXPECT(needed, at + 16 + 16 * ranges->nr_iovas);
      EXPECT(0, header->next);
    }
    at = header->next;
  }
}

CASE(containers, dirty_calls, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  int fd = set.container;
  uint8_t *memory = pages(4, 1);
  uint64_t bits[4];
  struct {
    struct vfio_iommu_type1_dirty_bitmap head;
    struct vfio_iommu_type1_dirty_bitmap_get get;
  } cmd = {.head = {.argsz = sizeof cmd}};
  NEED(0, map_dma(fd, memory, IOVA, 2 * PAGE, 3));
  NEED(0, map_dma(fd, memory, IOVA + 70 * PAGE, PAGE, 1));
#define DIRTY(flags_)                                                                              \
  (cmd.head.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_##flags_, call(fd, VFIO_IOMMU_DIRTY_PAGES, &cmd))
#define RANGE(iova_, count_, bytes_)                                                               \
  (cmd.get = (struct vfio_iommu_type1_dirty_bitmap_get){                                           \
       .iova = (iova_), .size = (uint64_t)(count_) * PAGE,                                         \
       .bitmap = {.pgsize = PAGE, .size = (bytes_), .data = (uintptr_t)bits}})
  RANGE(IOVA, 128, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));  // Nothing is tracked yet.
  EXPECT(0, DIRTY(STOP));
  EXPECT(0, DIRTY(START));
  EXPECT(0, DIRTY(START));
  cmd.head.flags = 0;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_DIRTY_PAGES, &cmd));
  cmd.head.flags = 3;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_DIRTY_PAGES, &cmd));
  cmd.head.flags = 9;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_DIRTY_PAGES, &cmd));
  EXPECT(-EFAULT, call(fd, VFIO_IOMMU_DIRTY_PAGES, nowhere));
  // Whatever is mapped counts as written, at each look; words that no mapping touches stay.
  memset(bits, 0xff, sizeof bits);
  EXPECT(0, DIRTY(GET_BITMAP));
  EXPECT(3, (long long)bits[0]);
  EXPECT(0x7f, (long long)bits[1]);
  EXPECT(-1, (long long)bits[2]);
  memset(bits, 0, sizeof bits);
  EXPECT(0, DIRTY(GET_BITMAP));
  EXPECT(3, (long long)bits[0]);
  EXPECT(0x40, (long long)bits[1]);
  // The arguments, one by one.
  RANGE(IOVA, 128, 15);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 129, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 128, (256 << 20) + 1);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 0, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(-(uint64_t)PAGE, 2, 16);
  EXPECT(-EOVERFLOW, DIRTY(GET_BITMAP));
  RANGE(IOVA + 1, 1, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 1, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));  // It ends inside a mapping.
  RANGE(IOVA + PAGE, 127, 16);
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 128, 16);
  cmd.get.bitmap.pgsize = 2 * PAGE;
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  cmd.get.bitmap.pgsize = 0;
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 128, 16);
  cmd.get.bitmap.data = (uintptr_t)nowhere;
  EXPECT(-EFAULT, DIRTY(GET_BITMAP));
  cmd.get.bitmap.data = -(uint64_t)8;
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
  RANGE(IOVA, 128, 16);
  cmd.head.argsz = sizeof cmd - 1;
  EXPECT(-EINVAL, DIRTY(GET_BITMAP));
}

CASE(containers, unmap_with_bitmap, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  int fd = set.container;
  uint8_t *memory = pages(4, 1);
  uint64_t bits[2] = {0, 0};
  struct {
    uint32_t argsz, flags;
    uint64_t iova, size;
    struct vfio_bitmap bitmap;
  } cmd = {.argsz = sizeof cmd, .flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, .iova = IOVA,
           .size = 8 * PAGE, .bitmap = {PAGE, 8, (uintptr_t)bits}};
  uint32_t start[2] = {8, VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
  NEED(0, map_dma(fd, memory, IOVA + PAGE, 2 * PAGE, 3));
  NEED(0, map_dma(fd, memory, IOVA + 7 * PAGE, PAGE, 3));
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));  // Nothing is tracked yet.
  NEED(0, call(fd, VFIO_IOMMU_DIRTY_PAGES, start));
  cmd.bitmap.size = 7;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  cmd.bitmap.size = 8;
  cmd.flags |= VFIO_DMA_UNMAP_FLAG_ALL;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  cmd.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
  cmd.argsz--;
  EXPECT(-EINVAL, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  cmd.argsz++;
  EXPECT(0, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  EXPECT(3 * PAGE, (long long)cmd.size);
  EXPECT(0x86, (long long)bits[0]);
  cmd.size = 8 * PAGE;
  EXPECT(0, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  EXPECT(0, (long long)cmd.size);
  // A bitmap that cannot be written keeps its mapping.
  NEED(0, map_dma(fd, memory, IOVA, PAGE, 3));
  cmd.bitmap.data = (uintptr_t)nowhere;
  cmd.size = PAGE;
  EXPECT(-EFAULT, call(fd, VFIO_IOMMU_UNMAP_DMA, &cmd));
  EXPECT(-EEXIST, map_dma(fd, memory, IOVA, PAGE, 3));
}

CASE(containers, two_groups, LINUX_7_1) {
  struct group late = open_group(1);
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  int fd = set.container;
  uint8_t *memory = pages(2, 1);
  uint64_t size = PAGE;
  NEED(0, map_dma(fd, memory, IOVA, PAGE, 3));
  EXPECT(0, set_container(late.fd, fd));
  int device = (int)GET(get_device(&late));
  // The first group goes; the mappings stay with the second one, and end with it.
  EXPECT(0, call(set.group.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  EXPECT(-EEXIST, map_dma(fd, memory, IOVA, PAGE, 3));
  EXPECT(-EINVAL, set_model(fd, VFIO_TYPE1v2_IOMMU));
  close(device);
  EXPECT(0, call(late.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  EXPECT(-EINVAL, map_dma(fd, memory, IOVA, PAGE, 3));
  EXPECT(0, set_container(late.fd, fd));
  EXPECT(0, set_model(fd, VFIO_TYPE1_IOMMU));
  EXPECT(0, map_dma(fd, memory, IOVA, PAGE, 3));
  EXPECT(0, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(PAGE, (long long)size);
}

CASE(containers, in_place_of_a_container, LINUX_7_1) {
  struct group group = open_group(0);
  int fd = open_iommu();
  uint8_t *memory = pages(1, 1);
  uint64_t size = PAGE;
  EXPECT(-ENODEV, set_model(fd, VFIO_TYPE1v2_IOMMU));
  EXPECT(0, set_container(group.fd, fd));
  EXPECT(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET, status(group.fd));
  EXPECT(0, set_model(fd, VFIO_TYPE1v2_IOMMU));
  EXPECT(0, map_dma(fd, memory, IOVA, PAGE, 3));
  int device = (int)GET(get_device(&group)), again = (int)GET(get_device(&group));
  // Devices that are open do not keep the group here.
  EXPECT(0, call(group.fd, VFIO_GROUP_UNSET_CONTAINER, NULL));
  EXPECT(0, status(group.fd));
  EXPECT(-EPERM, set_container(group.fd, open_container()));
  close(device);
  EXPECT(0, status(group.fd));
  close(again);
  EXPECT(VFIO_GROUP_FLAGS_VIABLE, status(group.fd));
  EXPECT(0, unmap_dma(fd, IOVA, &size, 0));
  EXPECT(PAGE, (long long)size);
}

CASE(containers, hot_reset_by_groups, LINUX_7_1) {
  struct group group = open_group(1);
  int container = open_container();
  struct {
    struct vfio_pci_hot_reset_info head;
    struct vfio_pci_dependent_device devices[32];
  } info = {.head = {.argsz = sizeof info}};
  struct {
    struct vfio_pci_hot_reset head;
    int32_t fds[2];
  } reset = {.head = {.argsz = sizeof reset, .count = 1}, .fds = {group.fd, -1}};
  NEED(0, set_container(group.fd, container));
  NEED(0, set_model(container, VFIO_TYPE1v2_IOMMU));
  int device = (int)GET(get_device(&group));
  if (call(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info) == -ENODEV)
    skip("the second group's devices are on a root bus");
  // By groups, not by the ids of a context.
  EXPECT(0, info.head.flags);
  for (uint32_t i = 0; i < info.head.count; i++)
    EXPECT(group_number(1), info.devices[i].group_id);
  EXPECT(0, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
  reset.fds[0] = container;
  EXPECT(-EINVAL, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
  reset.fds[0] = -1;
  EXPECT(-EBADF, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
  reset.head.count = 0;
  EXPECT(-EINVAL, call(device, VFIO_DEVICE_PCI_HOT_RESET, &reset));
}

/// A number of /proc/self/status, in KiB.
static long status_of(const char *name) {
  FILE *file = fopen("/proc/self/status", "re");
  char line[256];
  long value = -1;
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0) value = atol(line + strlen(name) + 1);
  if (file) fclose(file);
  return value;
}

CASE(containers, locked_memory, LINUX_7_1) {
  struct set set = make_set(VFIO_TYPE1v2_IOMMU);
  uint8_t *memory = pages(16, 1);
  uint64_t size = 16 * PAGE;
  long locked = status_of("VmLck"), pinned = status_of("VmPin");
  NEED(0, map_dma(set.container, memory, IOVA, 16 * PAGE, 3));
  EXPECT(locked + 64, status_of("VmLck"));
  NEED(0, map_dma(set.container, memory, IOVA + 16 * PAGE, 4 * PAGE, 1));  // Counts again.
  EXPECT(locked + 80, status_of("VmLck"));
  EXPECT(pinned, status_of("VmPin"));
  EXPECT(0, unmap_dma(set.container, IOVA, &size, 0));
  EXPECT(locked + 16, status_of("VmLck"));
  close(set.group.fd);
  EXPECT(locked, status_of("VmLck"));
}

/// The calls of DPDK 22.11, in its order: one container, the first model that takes, all memory
/// mapped at its own address before the device is asked for.
CASE(containers, as_dpdk_calls, LINUX_7_1) {
  int container = open_container();
  static const uintptr_t models[] = {VFIO_TYPE1_IOMMU, 7, VFIO_NOIOMMU_IOMMU};
  uint8_t *memory = pages(4, 1);
  uintptr_t model = 0;
  NEED(0, call(container, VFIO_GET_API_VERSION, NULL));
  for (unsigned i = 0; i < 3; i++)
    if (GET(call(container, VFIO_CHECK_EXTENSION, (void *)models[i])) == 1 && !model)
      model = models[i];
  struct group group = open_group(0);
  NEED(VFIO_GROUP_FLAGS_VIABLE, status(group.fd));
  NEED(0, set_container(group.fd, container));
  NEED(0, set_model(container, model));
  struct vfio_iommu_type1_info info = {.argsz = sizeof info};
  EXPECT(0, call(container, VFIO_IOMMU_GET_INFO, &info));
  uint64_t iova = (uintptr_t)memory & 0x7fffffff000, size = 4 * PAGE;
  NEED(0, map_dma(container, memory, iova, size, 3));
  int device = (int)GET(get_device(&group));
  struct vfio_device_info device_info = {.argsz = sizeof device_info};
  EXPECT(0, call(device, VFIO_DEVICE_GET_INFO, &device_info));
  EXPECT(0, unmap_dma(container, iova, &size, 0));
  EXPECT(4 * PAGE, (long long)size);  // It insists on the whole length.
  EXPECT(0, close(device));
  EXPECT(0, close(group.fd));
  EXPECT(0, close(container));
}

/// The calls of QEMU 7.2: it tries containers that it has, maps RAM first and ROM read-only, and
/// tracks dirty pages while it migrates.
CASE(containers, as_qemu_calls, LINUX_7_1) {
  struct group group = open_group(0);
  int container = open_container();
  uint8_t *ram = pages(8, 1);
  uint8_t *rom = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint64_t bits = 0;
  NEED(VFIO_GROUP_FLAGS_VIABLE, status(group.fd));
  NEED(0, call(container, VFIO_GET_API_VERSION, NULL));
  NEED(1, call(container, VFIO_CHECK_EXTENSION, (void *)VFIO_TYPE1v2_IOMMU));
  NEED(0, set_container(group.fd, container));
  NEED(0, set_model(container, VFIO_TYPE1v2_IOMMU));
  struct vfio_iommu_type1_info *info = calloc(1, sizeof *info);
  info->argsz = sizeof *info;
  NEED(0, call(container, VFIO_IOMMU_GET_INFO, info));
  CHECK(info->argsz > sizeof *info);
  info = realloc(info, info->argsz);
  NEED(0, call(container, VFIO_IOMMU_GET_INFO, info));
  CHECK(info->cap_offset == sizeof *info && info->iova_pgsizes & PAGE);
  EXPECT(0, map_dma(container, ram, 0, 8 * PAGE, 3));
  EXPECT(0, map_dma(container, rom, 0xfffff000, PAGE, 1));
  int device = (int)GET(get_device(&group));
  uint32_t start[2] = {8, VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
  uint32_t stop[2] = {8, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP};
  struct {
    struct vfio_iommu_type1_dirty_bitmap head;
    struct vfio_iommu_type1_dirty_bitmap_get get;
  } dirty = {{.argsz = sizeof dirty, .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP},
             {0, 8 * PAGE, {PAGE, 8, (uintptr_t)&bits}}};
  EXPECT(0, call(container, VFIO_IOMMU_DIRTY_PAGES, start));
  EXPECT(0, call(container, VFIO_IOMMU_DIRTY_PAGES, &dirty));
  EXPECT(0xff, (long long)bits);
  EXPECT(0, call(container, VFIO_IOMMU_DIRTY_PAGES, stop));
  uint64_t size = 8 * PAGE;
  EXPECT(0, unmap_dma(container, 0, &size, 0));
  size = PAGE;
  EXPECT(0, unmap_dma(container, 0xfffff000, &size, 0));
  close(device);
  EXPECT(0, call(group.fd, VFIO_GROUP_UNSET_CONTAINER, &container));
}
