// SPDX-License-Identifier: Apache-2.0
//
// What a wait status says.

#ifndef WAIT_STATUS_H
#define WAIT_STATUS_H

#include <string.h>
#include <sys/wait.h>

#include "CSyscalls.h"

static inline void take_apart(int pid, int status, struct csys_wait *out) {
  memset(out, 0, sizeof *out);
  out->pid = pid;
  if (WIFEXITED(status)) {
    out->exited = 1;
    out->code = WEXITSTATUS(status);
  } else if (WIFSIGNALED(status)) {
    out->signaled = 1;
    out->code = WTERMSIG(status);
  } else if (WIFSTOPPED(status)) {
    out->stopped = 1;
    out->code = WSTOPSIG(status);
  } else {
    out->continued = 1;
  }
}

#endif
