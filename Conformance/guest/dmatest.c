// SPDX-License-Identifier: Apache-2.0
//
// The step `dmatest`: Linux's own test of DMA drivers, on every channel that a driver has given it.
// Its threads copy between buffers at random offsets, and compare; what each found is a line of the
// kernel's log.

#define _GNU_SOURCE

#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { most_channels = 16 };

static int find_channels(char names[most_channels][32]) {
  DIR *channels = opendir("/sys/class/dma");
  int count = 0;
  for (struct dirent *entry; channels && (entry = readdir(channels));)
    if (entry->d_name[0] != '.' && count < most_channels)
      snprintf(names[count++], 32, "%.31s", entry->d_name);
  if (channels) closedir(channels);
  return count;
}

static int set(const char *name, const char *value) {
  int status = put(path("/sys/module/dmatest/parameters/%s", name), value);
  if (status != 0) judge(0, "dmatest-setting", "%s=%s: %s", name, value, strerror(status));
  return status == 0;
}

/// Tells of each thread what its summary says, until all have ended or `seconds` are over. (The
/// parameter `wait` of dmatest does not wait for threads that have not begun.)
static int judge_threads(
    int log, const char *kind, long iterations, long expected, double seconds) {
  int threads = 0;
  char record[2048];
  for (double end = now() + seconds; threads < expected && now() < end;) {
    ssize_t length = read(log, record, sizeof record - 1);
    if (length < 0 && errno == EAGAIN) usleep(5000);
    if (length < 0) continue;
    record[length] = 0;
    char *text = strchr(record, ';');
    if (!text) continue;
    text[strcspn(text, "\n")] = 0;
    char name[64];
    long tests = 0, failures = 0;
    int status = 0;
    char *rate = strstr(text, "failures ");
    if (!rate || sscanf(text, ";dmatest: %63[^:]: summary %ld tests, %ld failures", name, &tests,
                        &failures) != 3) {
      // Data that is wrong, transfers that ended early: dmatest and drivers say so.
      if (strstr(text, "dmatest") && (strstr(text, "result #") || strstr(text, "error")))
        tell("note %s", text + 1);
      continue;
    }
    char *last = strrchr(text, '(');
    if (last) status = atoi(last + 1);
    rate[strcspn(rate, "(")] = 0;
    threads++;
    judge(tests == iterations && failures == 0 && status == 0, kind, "%s %ld tests, %s status %d",
          name, tests, rate, status);
  }
  return threads;
}

/// Settings: channels (how many there must be), iterations, threads, size of the buffers, polled,
/// driver (which must have bound), timeout of one transfer in milliseconds, limit of all in seconds.
void step_dmatest(void) {
  long expected = number("channels", 1);
  char names[most_channels][32];
  int count = 0;
  for (double end = now() + 20; (count = find_channels(names)) < expected && now() < end;)
    usleep(20000);
  judge(count == expected, "channels", "%d of %ld are there", count, expected);
  if (count == 0) return;

  const char *driver = setting("driver", "ioatdma");
  for (int i = 0; i < count; i++) {
    const char *bound = link_end(path("/sys/class/dma/%s/device/driver", names[i]));
    judge(strcmp(bound, driver) == 0, "driver", "of %s is %s", names[i], *bound ? bound : "none");
  }

  int polled = number("polled", 0) != 0;
  if (!set("iterations", setting("iterations", "100")) ||
      !set("threads_per_chan", setting("threads", "2")) ||
      !set("test_buf_size", setting("size", "16384")) ||
      !set("timeout", setting("timeout", "20000")) || !set("polled", polled ? "Y" : "N"))
    return;
  int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (!judge(log >= 0, "log", "/dev/kmsg can be read")) return;
  lseek(log, 0, SEEK_END);
  for (int i = 0; i < count; i++)
    if (!set("channel", names[i])) return;
  double start = now();
  if (!set("run", "1")) return;
  const char *kind = polled ? "dmatest-polled" : "dmatest";
  long iterations = number("iterations", 100), threads = number("threads", 2);
  int found = judge_threads(log, kind, iterations, threads * count, (double)number("limit", 120));
  double took = now() - start;
  judge(found == threads * count, "threads", "%d of %ld have ended", found, threads * count);
  tell("note %ld copies in %.2f s, %.0f a second", iterations * found, took,
       (double)(iterations * found) / took);
  put("/sys/module/dmatest/parameters/run", "0"); // Lets the channels go.
  close(log);
}
