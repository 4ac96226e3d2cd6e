// SPDX-License-Identifier: Apache-2.0
//
// A static program: opens the node and makes a call, writes an attribute and reads it.

#include "../interposer-client/client.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int main(void) {
  int fd = open("/dev/iommu", O_RDWR);
  CHECK(fd >= 0);
  struct request request = {.a = 41};
  CHECK(call(fd, 1, &request) == 41);
  CHECK(request.b == 42);
  char text[16] = "";
  int attribute = open("/sys/devices/test/value", O_RDWR);
  CHECK(attribute >= 0);
  CHECK(write(attribute, "static", 6) == 6);
  CHECK(write(attribute, "bad", 3) == -1 && errno == EINVAL);
  CHECK(pread(attribute, text, sizeof text, 0) == 7 && strcmp(text, "static\n") == 0);
  return 0;
}
