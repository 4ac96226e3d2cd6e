// SPDX-License-Identifier: Apache-2.0
//
// Moves a device that works from one host to another, by VFIO's migration calls, and checks that
// nothing was lost or done twice: a copy engine, then an NVMe controller. migration.c has the calls.

#define _GNU_SOURCE
#include "migration.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int step;

void tell(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("%2d  ", ++step);
  vprintf(format, arguments);
  puts("");
  va_end(arguments);
}

void fail(const char *what) {
  const int error = errno;
  fflush(stdout);
  fprintf(stderr, "live-migration: %s: %s\n", what, strerror(error));
  exit(EXIT_FAILED);
}

void wrong(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fflush(stdout);
  fputs("live-migration: ", stderr);
  vfprintf(stderr, format, arguments);
  fputs("\n", stderr);
  exit(EXIT_FAILED);
}

static void usage(FILE *stream) {
  fputs(
      "Usage: live-migration [--engine | --nvme]\n"
      "\n"
      "Moves a device with its work in hand to another one, by VFIO's migration calls (PRE_COPY,\n"
      "STOP_COPY, RESUMING) and DMA logging, and checks that nothing was lost or done twice.\n"
      "\n"
      "  --engine  a copy engine only (PCI 8086:2021); the machine has two\n"
      "  --nvme    an NVMe controller only (PCI class 010802); the machine has two, which share a\n"
      "            namespace, and its first 192 KiB are overwritten\n"
      "  --help    print this\n"
      "\n"
      "Exit status: 0 all is right, 1 something failed, 2 wrong usage, 3 no two devices.\n",
      stream);
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  bool engine = true, nvme = true;
  static const struct option options[] = {{"engine", no_argument, NULL, 'e'},
                                          {"nvme", no_argument, NULL, 'n'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(count, arguments, "h", options, NULL)) != -1;) {
    switch (option) {
      case 'e': nvme = false; break;
      case 'n': engine = false; break;
      case 'h': usage(stdout); return EXIT_OK;
      default: usage(stderr); return EXIT_USAGE;
    }
  }
  if (optind != count || (!engine && !nvme)) {
    usage(stderr);
    return EXIT_USAGE;
  }
  const int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  if (iommu < 0) fail("/dev/iommu");
  int status = engine ? migrate_engine(iommu) : EXIT_OK;
  if (status == EXIT_OK && nvme) status = migrate_nvme(iommu);
  close(iommu);
  return status;
}
