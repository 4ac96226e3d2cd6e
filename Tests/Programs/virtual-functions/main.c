// SPDX-License-Identifier: Apache-2.0
//
// The user of a physical function makes virtual ones, and shares them by a token. Exits with 0
// where all of it holds.
// Usage: virtual-functions ADDRESS: a copy engine that can have two virtual functions.

#include <sys/mman.h>
#include <sys/stat.h>

#include "copy_engine.h"
#include "../common/check.h"

static const char uuid[] = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
static const uint8_t token[16] = {0xbd, 0x8d, 0x9d, 0x2b, 0x5a, 0x5f, 0x4f, 0x5a,
                                  0xa2, 0x11, 0xf5, 0x91, 0x51, 0x4b, 0xa1, 0xf3};
static struct engine physical;

// 0, or the errno.
static int set_number(const char *number) {
  char path[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/sriov_numvfs", physical.bdf);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  int result = write(fd, number, strlen(number)) < 0 ? errno : 0;
  close(fd);
  return result;
}

// The engine that a link `virtfnN` of the physical one leads to.
static struct engine find(int number) {
  struct engine found = {.event = -1, .group = -1};
  char path[320], target[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/virtfn%d", physical.bdf, number);
  ssize_t length = readlink(path, target, sizeof target - 1);
  CHECK(length > 0);
  target[length] = 0;
  CHECK(engine_find(&found, strrchr(target, '/') + 1));
  return found;
}

static int bind(struct engine *engine, const uint8_t *secret) {
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = engine->iommu};
  if (secret) {
    bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
    bind.token_uuid_ptr = (uintptr_t)secret;
  }
  return ioctl(engine->device, VFIO_DEVICE_BIND_IOMMUFD, &bind) ? errno : 0;
}

static void set_token(void) {
  // argsz, flags, and the token.
  uint32_t feature[6] = {sizeof feature, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN};
  memcpy(feature + 2, token, sizeof token);
  CHECK(ioctl(physical.device, VFIO_DEVICE_FEATURE, feature) == 0);
  feature[1] = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
  CHECK(ioctl(physical.device, VFIO_DEVICE_FEATURE, feature) == -1 && errno == EINVAL);
}

// A copy by the engine, through an address space of its own.
static void copy(struct engine *engine) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  CHECK(ioctl(engine->iommu, IOMMU_IOAS_ALLOC, &alloc) == 0);
  CHECK(engine_attach(engine, alloc.out_ioas_id) == 0 && engine_enable(engine) == 0);
  uint64_t *memory =
      mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  struct iommu_ioas_map map = {.size = sizeof map,
                               .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
                               .ioas_id = alloc.out_ioas_id,
                               .user_va = (uintptr_t)memory,
                               .length = 16384};
  CHECK(ioctl(engine->iommu, IOMMU_IOAS_MAP, &map) == 0);
  *(struct descriptor *)memory = (struct descriptor){.size = 4096,
                                                     .control = CONTROL_COMPLETION,
                                                     .source = map.iova + 8192,
                                                     .destination = map.iova + 12288};
  memory[1024] = 0xc0ffee;
  CHECK(engine_reset(engine));
  engine_start(engine, map.iova, map.iova + 4096, 1);
  volatile uint64_t *completion = memory + 512;
  for (int wait = 0; wait < 30000 && !*completion; wait++) usleep(1000);
  CHECK(memory[1536] == 0xc0ffee);
}

int main(int count, char **arguments) {
  CHECK(count == 2 && engine_find(&physical, arguments[1]));
  physical.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  physical.device = open(physical.node, O_RDWR | O_CLOEXEC);
  CHECK(bind(&physical, NULL) == 0);
  set_token();
  CHECK(set_number("3") == ERANGE && set_number("x") == EINVAL);
  CHECK(set_number("2\n") == 0 && set_number("1\n") == EBUSY);

  struct engine first = find(0), second = find(1);
  unsigned vendor = 0;
  CHECK(read_id(first.bdf, "vendor", &vendor) && vendor == 0x8086);
  first.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  first.device = open(first.node, O_RDWR | O_CLOEXEC);
  CHECK(first.device >= 0 && bind(&first, NULL) == EACCES);
  CHECK(bind(&first, (const uint8_t *)"not the secret..") == EACCES);
  CHECK(bind(&first, token) == 0);
  copy(&first);

  // The other way in: the token is behind the name.
  char name[128];
  snprintf(name, sizeof name, "%s", second.bdf);
  second.group = -1;
  CHECK(engine_open_by_group(&second, "/dev/vfio/vfio") != NULL && errno == EACCES);
  snprintf(name, sizeof name, "%s vf_token=%s", second.bdf, uuid);
  second.device = ioctl(second.group, VFIO_GROUP_GET_DEVICE_FD, name);
  CHECK(second.device >= 0);

  // With users, the physical function asks for the token too, and the virtual ones stay.
  CHECK(set_number("0\n") == EBUSY);
  CHECK(close(physical.device) == 0);
  physical.device = open(physical.node, O_RDWR | O_CLOEXEC);
  CHECK(bind(&physical, NULL) == EACCES && bind(&physical, token) == 0);
  CHECK(close(first.device) == 0 && close(second.device) == 0);
  // The second one's group is in the container still, and leaves it.
  CHECK(set_number("0\n") == 0);
  struct vfio_group_status gone = {.argsz = sizeof gone};
  CHECK(ioctl(second.group, VFIO_GROUP_GET_STATUS, &gone) == -1 && errno == ENODEV);
  CHECK(ioctl(second.group, VFIO_GROUP_SET_CONTAINER, &second.iommu) == -1 && errno == ENODEV);
  CHECK(close(second.group) == 0 && close(second.iommu) == 0);
  struct stat status;
  CHECK(stat(first.node, &status) == -1 && errno == ENOENT);
  char path[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s", first.bdf);
  CHECK(stat(path, &status) == -1 && errno == ENOENT);
  return 0;
}
