// SPDX-License-Identifier: Apache-2.0
//
// Registers of a copy engine, mapped: the first argument names a test. Exit status 0: as expected.

#include "registers.h"

struct engine engine = {.event = -1};
struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
volatile uint8_t *map;

static void open_engine(void) {
  CHECK(engine_find(&engine, NULL));
  engine.iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  engine.device = open(engine.node, O_RDWR | O_CLOEXEC);
  CHECK(engine_bind(&engine) == 0 && engine_enable(&engine) == 0);
  CHECK(ioctl(engine.device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
  CHECK(bar.flags & VFIO_REGION_INFO_FLAG_MMAP);
}

int main(int count, char **arguments) {
  // What starts programs may have them print a backtrace.
  signal(SIGBUS, SIG_DFL);
  const struct test *all[] = {access_tests, signal_tests, process_tests, edge_tests};
  for (size_t i = 0; count > 1 && i < sizeof all / sizeof *all; i++) {
    for (const struct test *test = all[i]; test->name; test++) {
      if (strcmp(test->name, arguments[1])) continue;
      open_engine();
      // A second argument: the test maps by itself.
      if (count == 2) {
        map = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, engine.device,
                   (off_t)bar.offset);
        CHECK(map != MAP_FAILED);
      }
      test->run();
      return 0;
    }
  }
  fprintf(stderr, "no such test\n");
  return 2;
}
