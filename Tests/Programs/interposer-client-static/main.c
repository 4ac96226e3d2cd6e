// SPDX-License-Identifier: Apache-2.0
//
// A static program: opens the node and makes a call.

#include "../interposer-client/client.h"

#include <fcntl.h>

int main(void) {
  int fd = open("/dev/iommu", O_RDWR);
  CHECK(fd >= 0);
  struct request request = {.a = 41};
  CHECK(call(fd, 1, &request) == 41);
  CHECK(request.b == 42);
  return 0;
}
