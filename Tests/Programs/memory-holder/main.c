// SPDX-License-Identifier: Apache-2.0
//
// A process whose memory others look at (MODEL B3): says where it is, then does what each byte of
// its input asks for, and answers each with a line. It knows nothing of devices.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, COUNT = 8 };

int main(int argc, char **argv) {
  unsigned char *memory =
      mmap(NULL, COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  // Page 0 is written, page 3 may be read only, page 5 is not there, the others were never touched.
  memset(memory, 'a', PAGE);
  memory[3 * PAGE] = 'r';
  if (mprotect(memory + 3 * PAGE, PAGE, PROT_READ) || munmap(memory + 5 * PAGE, PAGE)) return 1;
  setvbuf(stdout, NULL, _IONBF, 0);
  printf("%lx\n", (unsigned long)memory);
  for (int command; (command = getchar()) != EOF;) switch (command) {
      case 'u':
        munmap(memory + PAGE, PAGE);
        puts("unmapped");
        break;
      case 'm':
        mmap(memory + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0);
        puts("mapped");
        break;
      case 'p':
        printf("%d %d %d\n", memory[0], memory[2 * PAGE], memory[3 * PAGE]);
        break;
      case 'x':
        execl("/proc/self/exe", argv[0], (char *)NULL);
        return 1;
      default:
        return 0;
    }
  return argc == 0;
}
